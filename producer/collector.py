"""The collector: events come in over HTTP and go out onto the stream.

``POST /events`` takes one event (a JSON object), an array, or ``{"events": [...], "sent_at": ms}``,
under any content type, plain or gzip, of at most 1 MiB and 10,000 events. The answer comes after
Kinesis has acknowledged every accepted event:

- One event: 200 ``{"message", "event_id", "session_id"}``, or 400 ``{"error", "reason"}``.
- An array or envelope: 200 ``{"message", "accepted", "rejected": [{"index", "reason", "error"}],
  "events": [{"index", "event_id", "session_id"}]}``, also when each of its events is rejected:
  the request itself could be read, and sending it again would change nothing.
- 400, 413, 415 or 403 with ``{"error", "reason"}``: nothing of the request could be taken.
- 503 with ``{"error", "reason"}`` and Retry-After: Kinesis has not acknowledged. Some events may be on
  the stream all the same; sent again with the same ids they count once.

``GET /health`` is 200 or 503 and holds the counters of this process. ``GET /liveinsight.js`` is the
browser tracker. Every error, of whatever kind, is a JSON object with ``error``.

The client's address is neither read nor stored.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException

from producer.client import BufferFull, DeliveryFailed, EventProducer, ProducerClosed, local_or_environ_kinesis
from producer.event import Event, Received, Rejected, parse_request

MAX_BODY_BYTES = 1024 * 1024
#: How much of a refused body is read on, so that its sender sees the answer.
MAX_DROPPED_BYTES = 16 * 1024 * 1024
_DROPPED_AT_ONCE = 64 * 1024
MAX_EVENTS = 10_000
#: How long (s) after a failed delivery the collector calls itself unhealthy, if none succeeds meanwhile.
#: It must end by itself: a collector that a load balancer has taken out gets no request to succeed with.
UNHEALTHY_SECONDS = 30
#: While the stream fails, this many requests at a time still try it; the others are told so at once.
PROBES = 4
#: Requests that are parsed at the same time. More would not be faster, but would hold more memory.
PARSING = 4
PREFLIGHT_SECONDS = 86_400
#: How long (s) a stopping process tries to put on the stream what it has already answered with 503.
CLOSE_SECONDS = 5
TRACKER = Path(__file__).parent / "tracker" / "liveinsight.js"

_log = logging.getLogger("liveinsight.collector")


class Refusal(StrEnum):
    """Why a request was refused as a whole. ``event.Reason`` names what is wrong with its events."""

    BODY_TOO_LARGE = "body_too_large"
    TOO_MANY_EVENTS = "too_many_events"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    BAD_GZIP = "bad_gzip"
    BODY_INCOMPLETE = "body_incomplete"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"


class Unavailable(StrEnum):
    """Why sound events were answered with 503."""

    BUSY = "busy"
    BUFFER_FULL = "buffer_full"
    DELIVERY_FAILED = "delivery_failed"
    NOT_IN_TIME = "not_in_time"
    CLOSING = "closing"


_UNAVAILABLE: dict[Unavailable, tuple[int, str]] = {
    Unavailable.BUSY: (2, "too many requests wait for the stream"),
    Unavailable.BUFFER_FULL: (2, "more events wait for the stream than memory allows"),
    Unavailable.DELIVERY_FAILED: (5, "the stream did not take the events"),
    Unavailable.NOT_IN_TIME: (5, "the stream has not acknowledged the events in time"),
    Unavailable.CLOSING: (2, "the collector is stopping"),
}


@dataclass(frozen=True)
class CollectorSettings:
    """``allowed_origins``: those (lower case, or ``*``) whose pages may send. ``trust_edge_headers``: take the
    country from CloudFront-Viewer-Country; only where every request comes through CloudFront. ``answer_within``
    (s): how long a request waits for Kinesis. ``max_waiting``: how many requests may wait at the same time.
    """

    allowed_origins: tuple[str, ...] = ("*",)
    trust_edge_headers: bool = False
    answer_within: float = 10.0
    max_waiting: int = 256

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> CollectorSettings:
        """Raises ValueError that names the variable and what it takes."""
        origins = environ.get("LIVEINSIGHT_ALLOWED_ORIGINS", "*").split(",")
        allowed = tuple(origin for given in origins if (origin := given.strip().rstrip("/").lower()))
        for origin in allowed:
            if origin != "*" and not re.fullmatch(r"https?://[^\s/?#*]+", origin):
                raise ValueError(f"LIVEINSIGHT_ALLOWED_ORIGINS: {origin!r} is neither * nor like https://example.com")
        trust = environ.get("LIVEINSIGHT_TRUST_EDGE_HEADERS", "").strip() or "0"
        if trust not in {"0", "1"}:
            raise ValueError(f"LIVEINSIGHT_TRUST_EDGE_HEADERS: {trust!r} is neither 0 nor 1")
        return cls(
            allowed_origins=allowed or ("*",),
            trust_edge_headers=trust == "1",
            answer_within=_positive(environ, "LIVEINSIGHT_ANSWER_SECONDS", cls.answer_within),
            max_waiting=int(_positive(environ, "LIVEINSIGHT_MAX_WAITING", cls.max_waiting, r"\d{1,6}")),
        )


def _positive(environ: Mapping[str, str], name: str, default: float, form: str = r"\d{1,6}(\.\d+)?") -> float:
    text = environ.get(name, "").strip() or str(default)
    if not re.fullmatch(form, text, re.ASCII) or not float(text):
        raise ValueError(f"{name}: {text!r} is no number above 0 that it takes")
    return float(text)


class Intake:
    """What this process took and refused, and how many of its requests wait for Kinesis. Thread-safe.

    ``clock`` gives milliseconds. Refusals of both kinds are logged as one line of counts, at most every 10 seconds.
    """

    LOG_EVERY_MS = 10_000

    def __init__(self, max_waiting: int, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._accepted = 0
        self._waiting = 0
        self._rejected: Counter[str] = Counter()
        self._unavailable: Counter[str] = Counter()
        self._failed_at: int | None = None
        self._unlogged: Counter[str] = Counter()
        self._logged_at: int | None = None

    def enter(self) -> bool:
        """Begin to wait for Kinesis, unless as many as may are waiting. :meth:`leave` ends it."""
        with self._lock:
            limit = self._max_waiting if self._failed_at is None else min(PROBES, self._max_waiting)
            if self._waiting >= limit:
                return False
            self._waiting += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._waiting -= 1

    def delivered(self, events: int) -> None:
        with self._lock:
            self._accepted += events
            self._failed_at = None

    def undelivered(self, why: Unavailable, detail: str) -> None:
        if why in {Unavailable.DELIVERY_FAILED, Unavailable.NOT_IN_TIME}:
            with self._lock:
                self._failed_at = self._clock()
        self._count(self._unavailable, why, detail)

    def reject(self, reason: str, detail: str) -> None:
        self._count(self._rejected, reason, detail)

    def _count(self, counter: Counter[str], reason: str, detail: str) -> None:
        now = self._clock()
        with self._lock:
            counter[reason] += 1
            self._unlogged[reason] += 1
            if self._logged_at is not None and now - self._logged_at < self.LOG_EVERY_MS:
                return
            self._logged_at = now
            counts, self._unlogged = dict(self._unlogged), Counter()
        line = {"message": "refused", "counts": counts, "last": {"reason": reason, "detail": detail[:200]}}
        _log.warning(msgspec.json.encode(line).decode())

    def unreachable(self) -> bool:
        """Whether deliveries have lately failed, with none that succeeded since."""
        with self._lock:
            return self._failed_at is not None and self._clock() - self._failed_at < UNHEALTHY_SECONDS * 1000

    def counters(self) -> dict[str, Any]:
        with self._lock:
            return {
                "accepted": self._accepted,
                "waiting": self._waiting,
                "rejected": dict(self._rejected),
                "unavailable": dict(self._unavailable),
            }


class _Refused(Exception):  # noqa: N818 - carries an answer, nothing has gone wrong here
    def __init__(self, status: HTTPStatus, reason: str, error: str) -> None:
        super().__init__(error)
        self.status, self.reason, self.error = status, reason, error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _fresh_id() -> str:
    return uuid.uuid4().hex


def create_app(
    producer: EventProducer,
    settings: CollectorSettings,
    *,
    clock: Callable[[], int] = _now_ms,
    fresh_id: Callable[[], str] = _fresh_id,
) -> Flask:
    """The collector's WSGI application. ``producer`` stays its maker's: whoever made it closes it.

    ``clock`` gives milliseconds since 1970 UTC, ``fresh_id`` a new unique id at each call.
    """
    app = Flask("liveinsight.collector", static_folder=None)
    collector = _Collector(producer, settings, clock, fresh_id)

    @app.post("/events", provide_automatic_options=False)
    def events() -> Response:
        return collector.take(request)

    @app.route("/events", methods=["OPTIONS"])
    def preflight() -> Response:
        if not _allowed(request, settings):
            return _json(HTTPStatus.FORBIDDEN, {"error": "pages of this origin may not send events here"})
        response = Response(status=HTTPStatus.NO_CONTENT)
        del response.headers["Content-Type"]
        response.headers["Access-Control-Allow-Methods"] = "POST, OPTIONS"
        response.headers["Access-Control-Allow-Headers"] = "Content-Type, Content-Encoding"
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response

    @app.get("/health")
    def health() -> Response:
        return collector.health()

    @app.get("/liveinsight.js")
    def tracker() -> Response:
        return _tracker(request)

    @app.after_request
    def cross_origin(response: Response) -> Response:
        if request.path == "/events":
            response.headers["Cache-Control"] = "no-store"
            response.headers["Access-Control-Expose-Headers"] = "Retry-After"
            if "*" in settings.allowed_origins:
                response.headers["Access-Control-Allow-Origin"] = "*"
            else:
                response.headers["Vary"] = "Origin"
                if (origin := request.headers.get("Origin")) and _allowed(request, settings):
                    response.headers["Access-Control-Allow-Origin"] = origin
        return response

    _answer_errors_as_json(app, collector.intake)
    return app


def app() -> Flask:
    """The application of a server process, from the process's environment.

    Its producer is closed, so that nothing buffered is lost, when the process ends in good order.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = CollectorSettings.from_environ(os.environ)
    kinesis, producer_settings = local_or_environ_kinesis(os.environ)
    producer = EventProducer(producer_settings, kinesis)
    # A server's worker process runs multiprocessing's exit functions, but not those of atexit.
    Finalize(None, _close, args=(producer,), exitpriority=100)
    return create_app(producer, settings)


def _close(producer: EventProducer) -> None:
    try:
        producer.close(CLOSE_SECONDS)
    except (DeliveryFailed, TimeoutError) as error:  # of events whose senders have got a 503
        _log.error("stopped with events that the stream did not take: %s", error)


class _Collector:
    """The answers of ``POST /events`` and ``GET /health``."""

    def __init__(
        self,
        producer: EventProducer,
        settings: CollectorSettings,
        clock: Callable[[], int],
        fresh_id: Callable[[], str],
    ) -> None:
        self.intake = Intake(settings.max_waiting, clock)
        self._producer = producer
        self._settings = settings
        self._clock = clock
        self._fresh_id = fresh_id
        self._parsing = threading.BoundedSemaphore(PARSING)

    def take(self, request: Request) -> Response:
        if not _allowed(request, self._settings):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                Refusal.ORIGIN_NOT_ALLOWED,
                f"pages of {request.headers['Origin'][:200]} may not send events here; "
                "LIVEINSIGHT_ALLOWED_ORIGINS lists those that may",
            )
        body = _body(request)
        with self._parsing:
            outcomes = parse_request(body, self._received(request))
        if isinstance(outcomes, Rejected):
            raise _Refused(HTTPStatus.BAD_REQUEST, outcomes.reason, outcomes.detail)
        if len(outcomes) > MAX_EVENTS:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                Refusal.TOO_MANY_EVENTS,
                f"{len(outcomes)} events; at most {MAX_EVENTS} in one request",
            )
        if _is_single(body):
            answer = _one_answer(outcomes[0])
        else:
            answer = _batch_answer(outcomes)
            for outcome in outcomes:
                if isinstance(outcome, Rejected):
                    self.intake.reject(outcome.reason, outcome.detail)
        accepted = [outcome for outcome in outcomes if isinstance(outcome, Event)]
        if accepted and (why := self._deliver(accepted)):
            seconds, error = _UNAVAILABLE[why]
            return _json(
                HTTPStatus.SERVICE_UNAVAILABLE,
                {"error": f"{error}; send them again with the same ids", "reason": why},
                {"Retry-After": str(seconds)},
            )
        return answer

    def health(self) -> Response:
        status = "closing" if self._producer.closing else "stream_unreachable" if self.intake.unreachable() else "ok"
        code = HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
        return _json(code, {"status": status, **self._producer.stats(), **self.intake.counters()})

    def _received(self, request: Request) -> Received:
        language = request.headers.get("Accept-Language", "").partition(",")[0].partition(";")[0].strip()
        country = request.headers.get("CloudFront-Viewer-Country", "") if self._settings.trust_edge_headers else ""
        user_agent = request.headers.get("User-Agent", "")
        return Received(
            at=self._clock(),
            fresh_id=self._fresh_id,
            user_agent=user_agent.encode("latin-1", "replace").decode("utf-8", "replace"),
            country=country if re.fullmatch(r"[A-Z][A-Z0-9]", country) else "",
            language=language if re.fullmatch(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8}){0,4}", language) else "",
        )

    def _deliver(self, events: Sequence[Event]) -> Unavailable | None:
        """Put ``events`` on the stream and wait for Kinesis; why that failed, if it did."""
        intake, timeout = self.intake, self._settings.answer_within
        if not intake.enter():
            intake.undelivered(Unavailable.BUSY, "")
            return Unavailable.BUSY
        try:
            self._producer.send_many(events).wait(timeout)
        except BufferFull as error:
            why, detail = Unavailable.BUFFER_FULL, str(error)
        except DeliveryFailed as error:
            why, detail = Unavailable.DELIVERY_FAILED, str(error)
        except TimeoutError:
            why, detail = Unavailable.NOT_IN_TIME, f"not within {timeout:g} s"
        except ProducerClosed as error:
            why, detail = Unavailable.CLOSING, str(error)
        else:
            intake.delivered(len(events))
            return None
        finally:
            intake.leave()
        intake.undelivered(why, detail)
        return why


def _tracker(request: Request) -> Response:
    try:
        script = TRACKER.read_bytes()
    except FileNotFoundError:
        return _json(HTTPStatus.NOT_FOUND, {"error": "the tracker script is not installed"})
    response = Response(script, content_type="text/javascript; charset=utf-8")
    response.headers["Cache-Control"] = "public, max-age=3600"
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.set_etag(hashlib.sha256(script).hexdigest()[:32])
    response.make_conditional(request)
    return response


def _answer_errors_as_json(app: Flask, intake: Intake) -> None:
    @app.errorhandler(_Refused)
    def refused(refusal: _Refused) -> Response:
        intake.reject(refusal.reason, refusal.error)
        _read_on(request)
        return _json(refusal.status, {"error": refusal.error, "reason": refusal.reason})

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        headers = {name: value for name, value in error.get_headers() if name in {"Allow", "Location", "Retry-After"}}
        return _json(error.code or 500, {"error": error.description or error.name}, headers)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        _log.error("request failed: %s %s", request.method, request.path, exc_info=error)
        return _json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error"})


def _body(request: Request) -> bytes:
    """The request's body, unpacked, of at most ``MAX_BODY_BYTES``; raises _Refused."""
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip"}:
        raise _Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            Refusal.UNSUPPORTED_ENCODING,
            f"Content-Encoding {encoding[:40]!r} is not supported; send gzip, or none",
        )
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    # Read by hand: a length limit of werkzeug's cuts a chunked body off where it should refuse it.
    body = bytearray()
    while len(body) <= MAX_BODY_BYTES and (part := request.stream.read(MAX_BODY_BYTES + 1 - len(body))):
        body += part
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    if request.content_length is not None and len(body) < request.content_length:
        raise _Refused(HTTPStatus.BAD_REQUEST, Refusal.BODY_INCOMPLETE, "the body ends before its Content-Length")
    return _gunzip(bytes(body)) if encoding.endswith("gzip") else bytes(body)


def _read_on(request: Request) -> None:
    """Read and drop what is left of a refused body, within reason: answered while it still sends, a client
    would see its connection reset and not the answer.
    """
    for _ in range(MAX_DROPPED_BYTES // _DROPPED_AT_ONCE):
        if not request.stream.read(_DROPPED_AT_ONCE):
            return


def _gunzip(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        body = unpacker.decompress(data, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, Refusal.BAD_GZIP, f"the body is no gzip data: {error}") from None
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    if not unpacker.eof:
        raise _Refused(HTTPStatus.BAD_REQUEST, Refusal.BAD_GZIP, "the gzip data ends early")
    if unpacker.unused_data:
        raise _Refused(HTTPStatus.BAD_REQUEST, Refusal.BAD_GZIP, "something follows the gzip data")
    return body


def _too_large() -> _Refused:
    return _Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        Refusal.BODY_TOO_LARGE,
        f"a request has at most {MAX_BODY_BYTES} bytes, unpacked; send several",
    )


def _allowed(request: Request, settings: CollectorSettings) -> bool:
    """Whether the page that sends may. What is no page (a server SDK) names no origin; the collector's own may."""
    origin = request.headers.get("Origin")
    if origin is None or "*" in settings.allowed_origins:
        return True
    origin = origin.lower()
    return origin in settings.allowed_origins or origin.partition("://")[2] == request.host.lower()


def _is_single(body: bytes) -> bool:
    """Whether a body that parse_request could read is one event by itself, not an array or envelope."""
    if body.lstrip()[:1] != b"{":
        return False
    return b'"events"' not in body or "events" not in msgspec.json.decode(body, type=dict[str, msgspec.Raw])


def _one_answer(outcome: Event | Rejected) -> Response:
    if isinstance(outcome, Rejected):
        raise _Refused(HTTPStatus.BAD_REQUEST, outcome.reason, outcome.detail)
    return _json(
        HTTPStatus.OK,
        {"message": "Event accepted", "event_id": outcome.event_id, "session_id": outcome.session_id},
    )


def _batch_answer(outcomes: Sequence[Event | Rejected]) -> Response:
    rejected, accepted = [], []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Rejected):
            rejected.append({"index": index, "reason": outcome.reason, "error": outcome.detail})
        else:
            accepted.append({"index": index, "event_id": outcome.event_id, "session_id": outcome.session_id})
    message = f"{len(accepted)} of {len(outcomes)} events accepted"
    return _json(
        HTTPStatus.OK,
        {"message": message, "accepted": len(accepted), "rejected": rejected, "events": accepted},
    )


def _json(status: int, answer: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(answer) + b"\n", status=status, headers=headers, content_type="application/json"
    )
