"""What a POST of events may hold, and what it is answered: the rules, whatever server reads it. Nothing here waits."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from producer.event import Event, Received, Rejected, parse_request

MAX_BODY_BYTES = 1024 * 1024
#: How much of a refused body is read on, so that its sender sees the answer and not that the connection is reset.
MAX_DROPPED_BYTES = 16 * 1024 * 1024
MAX_EVENTS = 10_000
_LENGTH = re.compile("[0-9]{1,18}")
_COUNTRY = re.compile("[A-Z][A-Z0-9]")
_LANGUAGE = re.compile("[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8}){0,4}")


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


class Refused(Exception):  # noqa: N818 - carries an answer, nothing has gone wrong here
    """Nothing of the request can be taken."""

    def __init__(self, status: HTTPStatus, reason: str, error: str) -> None:
        super().__init__(error)
        self.status, self.reason, self.error = status, reason, error


class Headers(Protocol):
    """A request's headers."""

    def get(self, name: str, /) -> str | None:
        """By a name in lower case; of a header that came several times all, with commas between."""


@dataclass(frozen=True, slots=True)
class Head:
    """The headers of a request whose body is worth reading. ``length``: how long (bytes) that is, None if they do not
    tell; ``packed``: with gzip.
    """

    headers: Headers
    length: int | None
    packed: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with a body of JSON. ``headers``: those besides its type and :func:`cross_origin`'s."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Post:
    """A request that could be read: the events to be put on the stream, and the answer once they are.

    ``rejected``: what of a batch was refused. A single event that is none is :class:`Refused`.
    """

    events: list[Event]
    answer: Answer
    rejected: list[Rejected]


def json_answer(status: int, answer: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, msgspec.json.encode(answer) + b"\n", dict(headers or {}))


def refusal(refused: Refused) -> Answer:
    return json_answer(refused.status, {"error": refused.error, "reason": refused.reason})


def unavailable(why: Unavailable) -> Answer:
    seconds, error = _UNAVAILABLE[why]
    return json_answer(
        HTTPStatus.SERVICE_UNAVAILABLE,
        {"error": f"{error}; send them again with the same ids", "reason": why},
        {"Retry-After": str(seconds)},
    )


def internal_error() -> Answer:
    return json_answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error"})


def allowed(headers: Headers, host: str, origins: Sequence[str]) -> bool:
    """Whether the page that sends may: ``origins`` are in lower case, or ``*``.

    What is no page (a server SDK) names no origin; the collector's own pages may, at its ``host``.
    """
    if "*" in origins or (origin := headers.get("origin")) is None:
        return True
    origin = origin.lower()
    return origin in origins or origin.partition("://")[2] == host.lower()


def cross_origin(headers: Headers, host: str, origins: Sequence[str]) -> dict[str, str]:
    """The headers that every answer of ``/events`` has, so that the page that sent can read it."""
    answered = {"Cache-Control": "no-store", "Access-Control-Expose-Headers": "Retry-After"}
    if "*" in origins:
        answered["Access-Control-Allow-Origin"] = "*"
    else:
        answered["Vary"] = "Origin"
        if (origin := headers.get("origin")) and allowed(headers, host, origins):
            answered["Access-Control-Allow-Origin"] = origin
    return answered


def check(headers: Headers, host: str, origins: Sequence[str]) -> Head:
    """Raises Refused for what need not be read."""
    if not allowed(headers, host, origins):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            Refusal.ORIGIN_NOT_ALLOWED,
            f"pages of {(headers.get('origin') or '')[:200]} may not send events here; "
            "LIVEINSIGHT_ALLOWED_ORIGINS lists those that may",
        )
    encoding = (headers.get("content-encoding") or "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip"}:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            Refusal.UNSUPPORTED_ENCODING,
            f"Content-Encoding {encoding[:40]!r} is not supported; send gzip, or none",
        )
    length = _length(headers)
    if (length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    return Head(headers, length, encoding.endswith("gzip"))


def _length(headers: Headers) -> int | None:
    told = headers.get("content-length")
    if told is None or headers.get("transfer-encoding") is not None or not _LENGTH.fullmatch(told):
        return None
    return int(told)


def read(head: Head, body: bytes, received: Received) -> Post:
    """``body`` is what came after the headers: the first ``MAX_BODY_BYTES`` + 1 of it, if there are more.

    Raises Refused.
    """
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    if len(body) < (head.length or 0):
        raise Refused(HTTPStatus.BAD_REQUEST, Refusal.BODY_INCOMPLETE, "the body ends before its Content-Length")
    if head.packed:
        body = _gunzip(body)
    outcomes = parse_request(body, received)
    if isinstance(outcomes, Rejected):
        raise Refused(HTTPStatus.BAD_REQUEST, outcomes.reason, outcomes.detail)
    if len(outcomes) > MAX_EVENTS:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            Refusal.TOO_MANY_EVENTS,
            f"{len(outcomes)} events; at most {MAX_EVENTS} in one request",
        )
    return _single(outcomes[0]) if _is_single(body) else _batch(outcomes)


def received(headers: Headers, at: int, fresh_id: Callable[[], str], trust_edge_headers: bool) -> Received:
    """What the headers say about the sender. ``at``: when (ms) the request came."""
    language = (headers.get("accept-language") or "").partition(",")[0].partition(";")[0].strip()
    country = (headers.get("cloudfront-viewer-country") or "") if trust_edge_headers else ""
    user_agent = headers.get("user-agent") or ""
    return Received(
        at=at,
        fresh_id=fresh_id,
        user_agent=user_agent
        if user_agent.isascii()
        else user_agent.encode("latin-1", "replace").decode("utf-8", "replace"),
        country=country if _COUNTRY.fullmatch(country) else "",
        language=language if _LANGUAGE.fullmatch(language) else "",
    )


def _gunzip(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        body = unpacker.decompress(data, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise Refused(HTTPStatus.BAD_REQUEST, Refusal.BAD_GZIP, f"the body is no gzip data: {error}") from None
    if len(body) > MAX_BODY_BYTES:
        raise _too_large()
    if not unpacker.eof:
        raise Refused(HTTPStatus.BAD_REQUEST, Refusal.BAD_GZIP, "the gzip data ends early")
    if unpacker.unused_data:
        raise Refused(HTTPStatus.BAD_REQUEST, Refusal.BAD_GZIP, "something follows the gzip data")
    return body


def _too_large() -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        Refusal.BODY_TOO_LARGE,
        f"a request has at most {MAX_BODY_BYTES} bytes, unpacked; send several",
    )


def _is_single(body: bytes) -> bool:
    """Whether a body that parse_request could read is one event by itself, not an array or envelope."""
    if body.lstrip()[:1] != b"{":
        return False
    return b'"events"' not in body or "events" not in msgspec.json.decode(body, type=dict[str, msgspec.Raw])


def _single(outcome: Event | Rejected) -> Post:
    if isinstance(outcome, Rejected):
        raise Refused(HTTPStatus.BAD_REQUEST, outcome.reason, outcome.detail)
    told = {"message": "Event accepted", "event_id": outcome.event_id, "session_id": outcome.session_id}
    return Post([outcome], json_answer(HTTPStatus.OK, told), [])


def _batch(outcomes: Sequence[Event | Rejected]) -> Post:
    events, rejected, told_rejected, told_accepted = [], [], [], []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
            told_rejected.append({"index": index, "reason": outcome.reason, "error": outcome.detail})
        else:
            events.append(outcome)
            told_accepted.append({"index": index, "event_id": outcome.event_id, "session_id": outcome.session_id})
    told = {
        "message": f"{len(events)} of {len(outcomes)} events accepted",
        "accepted": len(events),
        "rejected": told_rejected,
        "events": told_accepted,
    }
    return Post(events, json_answer(HTTPStatus.OK, told), rejected)
