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

Here is the application for any WSGI server. :mod:`producer.collector_gateway` is what ``python -m producer collector``
serves: the same, but that requests wait for Kinesis without a thread each.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException

from producer import posts
from producer.client import (
    BufferFull,
    DeliveryFailed,
    EventProducer,
    ProducerClosed,
    Receipt,
    local_or_environ_kinesis,
)
from producer.posts import MAX_BODY_BYTES, MAX_DROPPED_BYTES, Answer, Head, Headers, Refused, Unavailable

#: How long (s) after a failed delivery the collector calls itself unhealthy, if none succeeds meanwhile.
#: It must end by itself: a collector that a load balancer has taken out gets no request to succeed with.
UNHEALTHY_SECONDS = 30
#: While the stream fails, this many requests at a time still try it; the others are told so at once.
PROBES = 4
#: Requests that are parsed at the same time. More would not be faster, but would hold more memory.
PARSING = 4
#: What the answers of the requests that wait may take together, in bytes: that of 10,000 events has a megabyte.
MAX_WAITING_ANSWERS = 16 * 1024 * 1024
PREFLIGHT_SECONDS = 86_400
#: How long (s) a stopping process tries to put on the stream what it has already answered with 503.
CLOSE_SECONDS = 5
TRACKER = Path(__file__).parent / "tracker" / "liveinsight.js"

_DROPPED_AT_ONCE = 64 * 1024
_EXTENSION = "liveinsight.collector"

_log = logging.getLogger("liveinsight.collector")


@dataclass(frozen=True)
class CollectorSettings:
    """``allowed_origins``: those (lower case, or ``*``) whose pages may send. ``trust_edge_headers``: take the
    country from CloudFront-Viewer-Country; only where every request comes through CloudFront. ``answer_within``
    (s): how long a request waits for Kinesis. ``max_waiting``: how many requests may wait at the same time.
    """

    allowed_origins: tuple[str, ...] = ("*",)
    trust_edge_headers: bool = False
    answer_within: float = 10.0
    max_waiting: int = 4096

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
        self._waiting_bytes = 0
        self._rejected: Counter[str] = Counter()
        self._unavailable: Counter[str] = Counter()
        self._failed_at: int | None = None
        self._unlogged: Counter[str] = Counter()
        self._logged_at: int | None = None

    def enter(self, answer: Answer) -> bool:
        """Begin to wait for Kinesis, and then to give that answer, unless as many as may do. :meth:`leave` ends it."""
        size = len(answer.body)
        with self._lock:
            limit = self._max_waiting if self._failed_at is None else min(PROBES, self._max_waiting)
            if self._waiting >= limit or (self._waiting and self._waiting_bytes + size > MAX_WAITING_ANSWERS):
                return False
            self._waiting += 1
            self._waiting_bytes += size
            return True

    def leave(self, answer: Answer) -> None:
        with self._lock:
            self._waiting -= 1
            self._waiting_bytes -= len(answer.body)

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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _fresh_id() -> str:
    return uuid.uuid4().hex


class Collector:
    """The answers of ``POST /events`` and ``GET /health``, for whatever server reads the requests. Thread-safe.

    ``producer`` stays its maker's. ``clock`` gives milliseconds since 1970 UTC, ``fresh_id`` a new unique id at each
    call.
    """

    def __init__(
        self,
        producer: EventProducer,
        settings: CollectorSettings,
        clock: Callable[[], int] = _now_ms,
        fresh_id: Callable[[], str] = _fresh_id,
    ) -> None:
        self.settings = settings
        self._intake = Intake(settings.max_waiting, clock)
        self._producer = producer
        self._clock = clock
        self._fresh_id = fresh_id

    def check(self, headers: Headers, host: str) -> Head:
        """Raises Refused for a request whose body need not be read. ``host``: the collector's name, in it."""
        return posts.check(headers, host, self.settings.allowed_origins)

    def take(self, head: Head, body: bytes) -> Sent | Answer:
        """Put a request's events on their way to the stream; what comes of that, :meth:`finish` tells. Never waits.

        The answer, where there is nothing to wait for. ``body`` as for :func:`producer.posts.read`; raises Refused.
        """
        trust = self.settings.trust_edge_headers
        post = posts.read(head, body, posts.received(head.headers, self._clock(), self._fresh_id, trust))
        for rejected in post.rejected:
            self._intake.reject(rejected.reason, rejected.detail)
        if not post.events:
            return post.answer
        if not self._intake.enter(post.answer):
            return self._unavailable(Unavailable.BUSY, "")
        try:
            return Sent(post.answer, len(post.events), self._producer.send_many(post.events))
        except BufferFull as error:
            why, detail = Unavailable.BUFFER_FULL, str(error)
        except ProducerClosed as error:
            why, detail = Unavailable.CLOSING, str(error)
        except BaseException:
            self._intake.leave(post.answer)
            raise
        self._intake.leave(post.answer)
        return self._unavailable(why, detail)

    def finish(self, sent: Sent, timeout: float) -> Answer:
        """The answer, when Kinesis has acknowledged the events, or has not within ``timeout`` s from now."""
        try:
            sent.receipt.wait(timeout)
        except DeliveryFailed as error:
            why, detail = Unavailable.DELIVERY_FAILED, str(error)
        except TimeoutError:
            why, detail = Unavailable.NOT_IN_TIME, f"not within {self.settings.answer_within:g} s"
        else:
            self._intake.delivered(sent.events)
            return sent.answer
        finally:
            self._intake.leave(sent.answer)
        return self._unavailable(why, detail)

    def refuse(self, refused: Refused) -> Answer:
        self._intake.reject(refused.reason, refused.error)
        return posts.refusal(refused)

    def health(self) -> Answer:
        status = "closing" if self._producer.closing else "stream_unreachable" if self._intake.unreachable() else "ok"
        code = HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
        return posts.json_answer(code, {"status": status, **self._producer.stats(), **self._intake.counters()})

    def _unavailable(self, why: Unavailable, detail: str) -> Answer:
        self._intake.undelivered(why, detail)
        return posts.unavailable(why)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request whose events are on their way to the stream: how many, and its answer when they are there.

    It holds nothing of them: while a request waits, its events are in memory once, as the producer's bytes.
    """

    answer: Answer
    events: int
    receipt: Receipt


def create_app(
    producer: EventProducer,
    settings: CollectorSettings,
    *,
    clock: Callable[[], int] = _now_ms,
    fresh_id: Callable[[], str] = _fresh_id,
) -> Flask:
    """The collector's WSGI application, which holds a thread for each request that waits.

    ``producer`` stays its maker's: whoever made it closes it. ``clock`` gives milliseconds since 1970 UTC, ``fresh_id``
    a new unique id at each call. :func:`collector_of` gives what it asks.
    """
    app = Flask("liveinsight.collector", static_folder=None)
    collector = app.extensions[_EXTENSION] = Collector(producer, settings, clock, fresh_id)
    origins = settings.allowed_origins
    parsing = threading.BoundedSemaphore(PARSING)

    def take(head: Head, body: bytes) -> Sent | Answer:
        with parsing:
            return collector.take(head, body)

    @app.post("/events", provide_automatic_options=False)
    def events() -> Response:
        head = collector.check(request.headers, request.host)
        taken = take(head, _body(request))
        return _response(taken if isinstance(taken, Answer) else collector.finish(taken, settings.answer_within))

    @app.route("/events", methods=["OPTIONS"])
    def preflight() -> Response:
        if not posts.allowed(request.headers, request.host, origins):
            return _json(HTTPStatus.FORBIDDEN, {"error": "pages of this origin may not send events here"})
        response = Response(status=HTTPStatus.NO_CONTENT)
        del response.headers["Content-Type"]
        response.headers["Access-Control-Allow-Methods"] = "POST, OPTIONS"
        response.headers["Access-Control-Allow-Headers"] = "Content-Type, Content-Encoding"
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response

    @app.get("/health")
    def health() -> Response:
        return _response(collector.health())

    @app.get("/liveinsight.js")
    def tracker() -> Response:
        return _tracker(request)

    @app.after_request
    def cross_origin(response: Response) -> Response:
        if request.path == "/events":
            response.headers.update(posts.cross_origin(request.headers, request.host, origins))
        return response

    _answer_errors_as_json(app, collector)
    return app


def collector_of(app: Flask) -> Collector:
    """What an application of :func:`create_app` asks."""
    collector: Collector = app.extensions[_EXTENSION]
    return collector


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


def _answer_errors_as_json(app: Flask, collector: Collector) -> None:
    @app.errorhandler(Refused)
    def refused(refusal: Refused) -> Response:
        _read_on(request)
        return _response(collector.refuse(refusal))

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        headers = {name: value for name, value in error.get_headers() if name in {"Allow", "Location", "Retry-After"}}
        return _json(error.code or 500, {"error": error.description or error.name}, headers)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        _log.error("request failed: %s %s", request.method, request.path, exc_info=error)
        return _response(posts.internal_error())


def _body(request: Request) -> bytes:
    """The body, or its first ``MAX_BODY_BYTES`` + 1."""
    # Read by hand: a length limit of werkzeug's cuts a chunked body off where it should refuse it.
    body = bytearray()
    while len(body) <= MAX_BODY_BYTES and (part := request.stream.read(MAX_BODY_BYTES + 1 - len(body))):
        body += part
    return bytes(body)


def _read_on(request: Request) -> None:
    """Read and drop what is left of a refused body, within reason."""
    for _ in range(MAX_DROPPED_BYTES // _DROPPED_AT_ONCE):
        if not request.stream.read(_DROPPED_AT_ONCE):
            return


def _json(status: int, answer: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return _response(posts.json_answer(status, answer, headers))


def _response(answer: Answer) -> Response:
    return Response(answer.body, status=answer.status, headers=answer.headers, content_type="application/json")
