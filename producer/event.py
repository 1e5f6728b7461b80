"""The Event: what LiveInsight counts, and its bytes on the stream.

Everything upstream of the stream turns its input into an :class:`Event` here, once, so that
whoever reads the stream (again) computes nothing from a clock or from a default. A consumer
reads the bytes back with :func:`decode`, which is as strict as :func:`parse` is: whatever it
refuses it refuses with a :class:`Rejected` that names one :class:`Reason`, never an exception.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

DEFAULT_SITE = "default"
MAX_EVENT_BYTES = 32 * 1024
MAX_PROPERTIES_BYTES = 8 * 1024
MAX_PROPERTIES_DEPTH = 8
MAX_URL = 2048
MAX_TEXT = 512
#: How far behind its arrival a browser may date an event (an offline queue), in ms.
MAX_AGE_MS = 24 * 3600 * 1000
#: Largest magnitude of one conversion's value, in units of its currency.
MAX_VALUE = 1e9

PAGE_VIEW = "page_view"
CLICK = "click"
CONVERSION = "conversion"
HEARTBEAT = "heartbeat"
PAGE_EXIT = "page_exit"
SCROLL = "scroll"
BUILT_IN_TYPES = frozenset({PAGE_VIEW, CLICK, CONVERSION, HEARTBEAT, PAGE_EXIT, SCROLL})


class Reason(StrEnum):
    """Why an event was refused. The names are metric dimensions: stable, and one for each cause."""

    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    TOO_DEEP = "too_deep"
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    LONE_SURROGATE = "lone_surrogate"
    NUL_CHARACTER = "nul_character"
    BAD_IDENTIFIER = "bad_identifier"
    BAD_TIMESTAMP = "bad_timestamp"


class Rejected(Struct, frozen=True):
    """A refusal: one named reason, and a sentence for whoever sent the event."""

    reason: str
    detail: str


# One definition of each field's bounds, for the sender's input and for the stream's bytes alike.
_SITE_ID = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ID = "[A-Za-z0-9._:~@+=-]{1,128}"
_NAME = r"[^\x00-\x1f\x7f]{1,64}"
_COUNTRY = "(?:[A-Z][A-Z0-9])?"
SiteId = Annotated[str, Meta(pattern=rf"^{_SITE_ID}\Z")]
Id = Annotated[str, Meta(pattern=rf"^{_ID}\Z")]
Name = Annotated[str, Meta(pattern=rf"^{_NAME}\Z")]
Label = Annotated[str, Meta(max_length=128)]
Url = Annotated[str, Meta(max_length=MAX_URL)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Value = Annotated[float, Meta(ge=-MAX_VALUE, le=MAX_VALUE)]
Millis = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]  # 9999-12-31T23:59:59.999Z
Seq = Annotated[int, Meta(ge=0, le=2**53)]

NO_PROPERTIES = Raw(b"{}")


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One thing that happened on a site.

    Times are integer milliseconds since 1970 UTC. ``timestamp`` is the event time: the client's
    clock corrected by the collector, final once the event is on the stream. ``received_at`` is
    when LiveInsight first held it. ``source`` names the numbering process (a tab, an SDK process)
    and ``seq`` its running number within the session, from 1; ``seq == 0`` means unnumbered, and
    the event is then told from its repeats by ``event_id``. An empty string means unknown.
    ``properties`` is the sender's own JSON object, kept as bytes.
    """

    # Those that have a pattern are checked by _misnamed: msgspec would take as long for that as for all else.
    event_id: str
    site_id: str
    session_id: str
    event_type: str
    timestamp: Millis
    received_at: Millis
    user_id: Label = ""
    source: Label = ""
    seq: Seq = 0
    page_url: Url = ""
    referrer: Url = ""
    title: Text = ""
    user_agent: Text = ""
    country: str = ""
    language: Label = ""
    element_id: Text = ""
    element_tag: Label = ""
    element_text: Text = ""
    element_href: Url = ""
    conversion_type: Label = ""
    conversion_value: Value = 0.0
    conversion_currency: Label = ""
    properties: Raw = NO_PROPERTIES


class Received(Struct, frozen=True):
    """What the collector knows about a request: when (ms) it came, and what its headers say.

    ``sent_at`` is the sender's clock (ms) when it sent the request, which tells how far that
    clock is off. ``fresh_id`` makes a new unique id at each call.
    """

    at: int
    fresh_id: Any  # Callable[[], str]; msgspec has no type for it
    sent_at: int | None = None
    user_agent: str = ""
    country: str = ""
    language: str = ""


class _Incoming(Struct, kw_only=True):
    """An event as a sender may write it: ids, times and site may be absent, fields may be null."""

    event_type: Name
    event_id: Id | None = None
    site_id: SiteId | None = None
    session_id: Id | None = None
    timestamp: int | float | str | None = None
    user_id: Label | None = None
    source: Label | None = None
    seq: Seq | None = None
    page_url: Url | None = None
    referrer: Url | None = None
    title: Text | None = None
    user_agent: Text | None = None
    language: Label | None = None
    element_id: Text | None = None
    element_tag: Label | None = None
    element_text: Text | None = None
    element_href: Url | None = None
    conversion_type: Label | None = None
    conversion_value: Value | None = None
    conversion_currency: Label | None = None
    properties: dict[str, Any] | None = None


class _Envelope(Struct):
    events: list[Raw]
    sent_at: int | float | None = None


_FIELDS = frozenset(_Incoming.__struct_fields__)
_COMPLETED = {"event_type", "event_id", "site_id", "session_id", "timestamp", "user_agent", "language", "properties"}
_COPIED = tuple(name for name in _Incoming.__struct_fields__ if name not in _COMPLETED)
_incoming = msgspec.json.Decoder(_Incoming)
_any_object = msgspec.json.Decoder(dict[str, Any])
_envelope = msgspec.json.Decoder(_Envelope)
_raw_list = msgspec.json.Decoder(list[Raw])
_event = msgspec.json.Decoder(Event)
_encoder = msgspec.json.Encoder(order="deterministic")


def encode(event: Event) -> bytes:
    """The event's bytes on the stream: compact UTF-8 JSON, a pure function of the event."""
    return _encoder.encode(event)


def decode(data: bytes) -> Event | Rejected:
    """The event that ``data`` holds, or why it holds none. The inverse of :func:`encode`."""
    if len(data) > MAX_EVENT_BYTES:
        return Rejected(Reason.TOO_LARGE, f"{len(data)} bytes; at most {MAX_EVENT_BYTES}")
    try:
        event = _event.decode(data)
        if event.properties != NO_PROPERTIES:
            _check_properties(_any_object.decode(event.properties))
    except (msgspec.DecodeError, RecursionError, UnicodeError, _Refusal) as error:
        return _explain(error, data)
    if not _named(f"{event.event_id} {event.session_id} {event.site_id} {event.country} {event.event_type}"):
        return _misnamed(event)
    # A single byte (the backslash) is found at once, and hardly any event has it.
    if 0x5C in data and b"\\u0000" in data and (refused := _nul(event)):
        return refused
    return event


# All names of an event at once; a space is in the last of them only. What a part has taken it need not give back ("+").
_named = re.compile(f"{_ID}+ {_ID}+ {_SITE_ID}+ {_COUNTRY}+ {_NAME}").fullmatch


def _misnamed(event: Event) -> Rejected:
    """Which name of an event is none."""
    for name, pattern in (
        ("event_id", _ID),
        ("site_id", _SITE_ID),
        ("session_id", _ID),
        ("event_type", _NAME),
        ("country", _COUNTRY),
    ):
        if not re.fullmatch(pattern, getattr(event, name)):
            return Rejected(Reason.BAD_IDENTIFIER, f"{name} does not match {pattern}")
    raise AssertionError("each name is sound")


def parse(raw: bytes | Raw, received: Received) -> Event | Rejected:
    """One event as a sender wrote it (a JSON object), completed with what ``received`` says.

    Fields that LiveInsight does not know are kept, as ``properties``. A missing ``timestamp`` is
    the time of arrival; a missing ``event_id`` or ``session_id`` is made; a missing or null
    ``site_id`` is ``default``. The event time is clamped to the 24 hours before arrival.
    """
    data = bytes(raw)
    if len(data) > MAX_EVENT_BYTES:
        return Rejected(Reason.TOO_LARGE, f"{len(data)} bytes; at most {MAX_EVENT_BYTES}")
    try:
        given = _incoming.decode(data)
        whole = _any_object.decode(data)
        properties = dict(given.properties or {})
        for name in whole.keys() - _FIELDS:
            properties.setdefault(name, whole[name])
        _check_properties(properties)
        at = event_time(given.timestamp, received)
    except (msgspec.DecodeError, RecursionError, UnicodeError, _Refusal) as error:
        return _explain(error, data)
    encoded = _encoder.encode(properties) if properties else b"{}"
    if len(encoded) > MAX_PROPERTIES_BYTES:
        return Rejected(Reason.TOO_LARGE, f"properties of {len(encoded)} bytes; at most {MAX_PROPERTIES_BYTES}")
    fields = {name: value for name in _COPIED if (value := getattr(given, name)) is not None}
    event = Event(
        event_id=given.event_id or received.fresh_id(),
        site_id=given.site_id or DEFAULT_SITE,
        session_id=given.session_id or received.fresh_id(),
        event_type=given.event_type,
        timestamp=at,
        received_at=received.at,
        user_agent=(given.user_agent or received.user_agent)[:MAX_TEXT],
        language=(given.language or received.language)[:128],
        country=received.country,
        properties=Raw(encoded) if properties else NO_PROPERTIES,
        **fields,
    )
    if b"\\u0000" in data and (refused := _nul(event)):
        return refused
    # What was completed may be longer than what came; what a reader would refuse is refused here.
    if len(data) > MAX_EVENT_BYTES // 2 and (size := len(encode(event))) > MAX_EVENT_BYTES:
        return Rejected(Reason.TOO_LARGE, f"{size} bytes with what was completed; at most {MAX_EVENT_BYTES}")
    return event


def parse_request(body: bytes, received: Received) -> list[Event | Rejected] | Rejected:
    """The events of one request, in its order: one object, an array, or ``{"events": [...], "sent_at": ms}``.

    A :class:`Rejected` in place of the list means that the request as a whole is malformed.
    """
    start = body.lstrip()[:1]
    try:
        if start == b"[":
            raws = _raw_list.decode(body)
        elif start == b"{":
            if b'"events"' not in body or "events" not in _any_object.decode(body):
                return [parse(body, received)]
            envelope = _envelope.decode(body)
            raws = envelope.events
            if envelope.sent_at is not None:
                received = msgspec.structs.replace(received, sent_at=int(envelope.sent_at))
        elif not start:
            return Rejected(Reason.NOT_JSON, "the body is empty")
        else:
            msgspec.json.decode(body)
            return Rejected(Reason.NOT_AN_OBJECT, "an event is a JSON object")
    except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError) as error:
        return _explain(error, body)
    return [parse(raw, received) for raw in raws]


def event_time(timestamp: float | str | None, received: Received) -> int:
    """The event time in ms: the sender's time moved by its clock's error, within 24 h before arrival."""
    if timestamp is None:
        return received.at
    if isinstance(timestamp, str):
        try:
            moment = datetime.fromisoformat(timestamp)
        except ValueError:
            raise _Refusal(Reason.BAD_TIMESTAMP, "timestamp is neither milliseconds nor ISO 8601") from None
        timestamp = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
    at = int(timestamp)
    if received.sent_at is not None:
        at += received.at - received.sent_at
    return min(max(at, received.at - MAX_AGE_MS), received.at)


def stable_id(*parts: str) -> str:
    """An id of 32 hex digits that depends on ``parts`` alone: what makes a second import a repeat."""
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class _Refusal(Exception):  # noqa: N818 - carries a refusal to the edge of this module, nothing further
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.refused = Rejected(reason, detail)


def _check_properties(value: object, depth: int = 1) -> None:
    """Refuse what no reader further on could hold: deep nesting, and NUL in a key."""
    if depth > MAX_PROPERTIES_DEPTH:
        raise _Refusal(Reason.TOO_DEEP, f"properties nest deeper than {MAX_PROPERTIES_DEPTH}")
    if isinstance(value, dict):
        for key, inner in value.items():
            if "\x00" in key:
                raise _Refusal(Reason.NUL_CHARACTER, "a key of properties has a NUL character")
            _check_properties(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_properties(inner, depth + 1)


def _nul(event: Event) -> Rejected | None:
    for name in Event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str) and "\x00" in value:
            return Rejected(Reason.NUL_CHARACTER, f"{name} has a NUL character")
    return None


# msgspec says in words what was wrong; each phrase is one reason. The first that fits names it.
_PHRASES = (
    ("missing required field", Reason.MISSING_FIELD),
    ("of length <=", Reason.TOO_LONG),
    ("matching regex", Reason.BAD_IDENTIFIER),
    ("Number out of range", Reason.NOT_FINITE),
    (">=", Reason.OUT_OF_RANGE),
    ("<=", Reason.OUT_OF_RANGE),
    ("Integer value out of range", Reason.OUT_OF_RANGE),
    ("got `array` - at `$`", Reason.NOT_AN_OBJECT),
    ("Expected", Reason.WRONG_TYPE),
)


def _explain(error: Exception, data: bytes) -> Rejected:
    """Name the one reason behind a decoder's error."""
    if isinstance(error, _Refusal):
        return error.refused
    if isinstance(error, RecursionError):
        return Rejected(Reason.TOO_DEEP, "the JSON nests too deep")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as broken:
        return Rejected(Reason.NOT_UTF8, f"byte {broken.start} is not UTF-8")
    said = str(error)
    if isinstance(error, msgspec.ValidationError):
        if said.startswith("Expected `object`") and " - at " not in said:
            return Rejected(Reason.NOT_AN_OBJECT, "an event is a JSON object")
        for phrase, reason in _PHRASES:
            if phrase in said:
                return Rejected(reason, said)
        return Rejected(Reason.WRONG_TYPE, said)
    return _explain_malformed(data, said)


def _explain_malformed(data: bytes, said: str) -> Rejected:
    """Tell the look-alikes of JSON that a laxer reader takes (NaN, half a surrogate pair) from what is no JSON."""

    def not_finite(name: str) -> None:
        raise _Refusal(Reason.NOT_FINITE, f"{name} is not a JSON number")

    try:
        json.dumps(json.loads(data, parse_constant=not_finite), ensure_ascii=False).encode()
    except _Refusal as refusal:
        return refusal.refused
    except UnicodeEncodeError:
        return Rejected(Reason.LONE_SURROGATE, "a string has half a surrogate pair")
    except RecursionError:
        return Rejected(Reason.TOO_DEEP, "the JSON nests too deep")
    except ValueError:
        pass
    return Rejected(Reason.NOT_JSON, said)
