"""The Event: every refusal has its name, nothing raises, and the bytes on the stream stay what they are."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from producer.event import (
    MAX_AGE_MS,
    MAX_EVENT_BYTES,
    Event,
    Reason,
    Received,
    Rejected,
    decode,
    encode,
    parse,
    parse_request,
    stable_id,
)

NOW = 1_795_000_000_000
GOLDEN = Path(__file__).parent / "golden_events.jsonl"


def received(at=NOW, **facts):
    numbers = itertools.count(1)
    return Received(at=at, fresh_id=lambda: f"made-{next(numbers)}", **facts)


def given_event(**fields):
    return json.dumps({"event_type": "page_view", **fields}).encode()


# -- the bytes on the stream ------------------------------------------------------------------------

FULL = Event(
    event_id="e-1",
    site_id="shop.example",
    session_id="s-1",
    event_type="conversion",
    timestamp=NOW - 5,
    received_at=NOW,
    user_id="Zoë",
    source="tab-1",
    seq=7,
    page_url="https://shop.example/café?q=1",
    referrer="https://example.org/",
    title='A "quoted" title\n',
    user_agent="Mozilla/5.0",
    country="DE",
    language="de-DE",
    element_id="buy",
    element_tag="button",
    element_text="Buy \U0001f6d2",
    element_href="/cart",
    conversion_type="order",
    conversion_value=12.5,
    conversion_currency="EUR",
    properties=Raw(b'{"a":[1,2.5,null,true],"b":{"c":"\xc3\xbc"}}'),
)
SHORTEST = Event(event_id="e", site_id="s", session_id="i", event_type="x", timestamp=0, received_at=0)


def test_the_bytes_of_an_event_never_change():
    """What lies on a stream for days, or in a replay's archive, is read by the next version too."""
    lines = GOLDEN.read_bytes().splitlines()
    assert [encode(FULL), encode(SHORTEST)] == lines
    assert [decode(line) for line in lines] == [FULL, SHORTEST]


identifiers = st.from_regex(r"[A-Za-z0-9._:~@+=-]{1,128}", fullmatch=True)
text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
keys = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
flat_objects = st.dictionaries(keys, st.none() | numbers | st.lists(numbers, max_size=2), max_size=3)
TEXT_FIELDS = (
    *("user_id", "source", "page_url", "referrer", "title", "user_agent", "language", "element_id", "element_tag"),
    *("element_text", "element_href", "conversion_type", "conversion_currency"),
)
events = st.builds(
    Event,
    event_id=identifiers,
    site_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    session_id=identifiers,
    event_type=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=64),
    timestamp=st.integers(0, 253_402_300_799_999),
    received_at=st.integers(0, 253_402_300_799_999),
    seq=st.integers(0, 2**53),
    country=st.from_regex(r"([A-Z][A-Z0-9])?", fullmatch=True),
    conversion_value=st.floats(-1e9, 1e9),
    properties=flat_objects.map(lambda given: Raw(json.dumps(given, separators=(",", ":")).encode())),
    **dict.fromkeys(TEXT_FIELDS, text),
)


@given(events)
def test_decode_is_the_inverse_of_encode(event):
    data = encode(event)
    assert decode(data) == event
    assert encode(decode(data)) == data


# -- refusals ---------------------------------------------------------------------------------------

REFUSED = {
    Reason.NOT_UTF8: [b'{"event_type": "\xff"}'],
    Reason.NOT_JSON: [b"", b"nope", b'{"event_type": "x"', b"{'event_type': 'x'}", b'\xef\xbb\xbf{"event_type": "x"}'],
    Reason.NOT_AN_OBJECT: [b"[]", b"1", b"null", b'"page_view"'],
    Reason.WRONG_TYPE: [given_event(title=1), given_event(timestamp=True), given_event(properties=[])],
    Reason.MISSING_FIELD: [b"{}", b'{"title": "x"}'],
    Reason.TOO_DEEP: [
        given_event(properties={"1": {"2": {"3": {"4": {"5": {"6": {"7": {"8": {}}}}}}}}}),
        b'{"event_type": "x", "unknown": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
    Reason.TOO_LONG: [given_event(title="x" * 513), given_event(page_url="/" * 2049), given_event(user_id="x" * 129)],
    Reason.TOO_LARGE: [given_event(properties={"a": "x" * 8192}), given_event() + b" " * MAX_EVENT_BYTES],
    Reason.NOT_FINITE: [
        b'{"event_type": "x", "conversion_value": NaN}',
        b'{"event_type": "x", "conversion_value": 1e400}',
        b'{"event_type": "x", "properties": {"a": -Infinity}}',
    ],
    Reason.OUT_OF_RANGE: [given_event(conversion_value=1e10), given_event(seq=-1), given_event(seq=2**53 + 1)],
    Reason.LONE_SURROGATE: [rb'{"event_type": "x", "title": "\ud800"}'],
    Reason.NUL_CHARACTER: [rb'{"event_type": "x", "title": "\u0000"}', given_event(properties={"a": {"\x00": 1}})],
    Reason.BAD_IDENTIFIER: [
        given_event(event_id=""),
        given_event(event_id="a b"),
        given_event(session_id="x" * 129),
        given_event(site_id="-shop"),
        given_event(site_id="shop\n"),
        given_event(event_type="x" * 65),
        given_event(event_type="a\tb"),
    ],
    Reason.BAD_TIMESTAMP: [given_event(timestamp="yesterday"), given_event(timestamp="")],
}


def test_every_reason_has_an_example():
    assert REFUSED.keys() == set(Reason)


@pytest.mark.parametrize(("reason", "raw"), [(reason, raw) for reason, raws in REFUSED.items() for raw in raws])
def test_a_refusal_names_its_reason(reason, raw):
    refused = parse(raw, received())
    assert isinstance(refused, Rejected)
    assert refused.reason == reason
    assert refused.detail


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (Reason.BAD_IDENTIFIER, (b'"s-1"', b'"s 1"')),
        (Reason.MISSING_FIELD, (b'"timestamp":', b'"tymestamp":')),
        (Reason.OUT_OF_RANGE, (b'"timestamp":1', b'"timestamp":-1')),
        (Reason.BAD_IDENTIFIER, (b'"DE"', b'"de"')),
        (Reason.NUL_CHARACTER, (b"Mozilla", rb"\u0000")),
        (Reason.TOO_DEEP, (b"null", b'{"":' * 8 + b"1" + b"}" * 8)),
        (Reason.NOT_JSON, (b"}", b"")),
    ],
)
def test_the_stream_is_read_as_strictly_as_the_sender_is(reason, change):
    data = encode(FULL)
    changed = data.replace(*change)
    assert changed != data
    refused = decode(changed)
    assert isinstance(refused, Rejected)
    assert refused.reason == reason


json_objects = st.dictionaries(
    st.sampled_from(["event_type", "timestamp", "properties", "title", "seq", "event_id", "extra"]) | keys, json_values
)
mutated = st.builds(
    lambda data, at, byte: data[: at % len(data)] + byte + data[at % len(data) + 1 :],
    st.just(encode(FULL)) | events.map(encode),
    st.integers(0, 10_000),
    st.binary(max_size=3),
)
any_bytes = st.binary(max_size=60) | json_objects.map(lambda given: json.dumps(given).encode()) | mutated


@given(any_bytes)
def test_parse_and_decode_never_raise(data):
    parsed = parse(data, received(user_agent="agent"))
    if isinstance(parsed, Event):
        assert decode(encode(parsed)) == parsed, "what parse accepts must be readable from the stream"
    else:
        assert parsed.reason in set(Reason)
    assert isinstance(decode(data), Event | Rejected)


@given(any_bytes | st.lists(json_objects | json_values, max_size=4).map(lambda given: json.dumps(given).encode()))
def test_parse_request_never_raises_and_answers_for_each_event(body):
    outcomes = parse_request(body, received())
    if isinstance(outcomes, Rejected):
        assert outcomes.reason in set(Reason)
    else:
        assert all(isinstance(outcome, Event | Rejected) for outcome in outcomes)
        if body.startswith(b"["):
            assert len(outcomes) == len(json.loads(body))


def test_what_parse_accepts_fits_the_stream_also_at_the_limit():
    wide = rb"\u0001"
    raw = b'{"event_type":"x","page_url":"%b","referrer":"%b","element_href":"%b"}' % (
        wide * 2048,
        wide * 2048,
        wide * 1340,
    )
    assert len(raw) <= MAX_EVENT_BYTES
    parsed = parse(raw, received(user_agent="u" * 512))
    assert isinstance(parsed, Rejected) or isinstance(decode(encode(parsed)), Event)


# -- completing what a sender left out --------------------------------------------------------------


def test_what_is_missing_is_made_and_said():
    event = parse(
        b'{"event_type": "page_view", "event_id": null}',
        received(user_agent="Firefox", country="FR", language="fr"),
    )
    assert event == Event(
        event_id="made-1",
        site_id="default",
        session_id="made-2",
        event_type="page_view",
        timestamp=NOW,
        received_at=NOW,
        user_agent="Firefox",
        country="FR",
        language="fr",
    )


def test_the_sender_knows_better_than_the_request_headers():
    event = parse(
        given_event(user_agent="App/1", language="pt"), received(user_agent="Firefox", country="FR", language="fr")
    )
    assert (event.user_agent, event.language, event.country) == ("App/1", "pt", "FR")


def test_unknown_fields_are_kept_as_properties_and_given_properties_win():
    event = parse(given_event(colour="red", size=2, properties={"size": 1}), received())
    assert json.loads(bytes(event.properties)) == {"colour": "red", "size": 1}


@pytest.mark.parametrize(
    ("timestamp", "sent_at", "event_time"),
    [
        (None, None, NOW),
        (NOW - 1000, None, NOW - 1000),
        (NOW - 1000.7, None, NOW - 1001),
        (NOW + 1000, None, NOW),
        (NOW - MAX_AGE_MS, None, NOW - MAX_AGE_MS),
        (NOW - MAX_AGE_MS - 1, None, NOW - MAX_AGE_MS),
        (1000, 3000, NOW - 2000),  # a clock decades behind
        (NOW + 7_000_000, NOW + 7_001_000, NOW - 1000),  # and one two hours ahead
        ("2026-11-18T14:06:39+03:00", None, NOW - 1000),
        ("2026-11-18T11:06:39Z", None, NOW - 1000),
        ("2026-11-18T11:06:39", None, NOW - 1000),
    ],
)
def test_the_event_time_is_the_senders_corrected_and_clamped(timestamp, sent_at, event_time):
    event = parse(given_event(timestamp=timestamp), received(sent_at=sent_at))
    assert event.timestamp == event_time
    assert event.received_at == NOW


@given(st.integers(-(2**63), 2**63) | st.floats(allow_nan=False), st.none() | st.integers(-(2**53), 2**53))
def test_the_event_time_lies_in_the_day_before_arrival(timestamp, sent_at):
    event = parse(given_event(timestamp=timestamp), received(sent_at=sent_at))
    if isinstance(event, Event):
        assert NOW - MAX_AGE_MS <= event.timestamp <= NOW
    else:
        assert event.reason == Reason.NOT_FINITE  # infinities, which are no JSON


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"event_type": "x"}', 1),
        (b'[{"event_type": "x"}, {"event_type": "y"}]', 2),
        (b'{"events": [{"event_type": "x"}]}', 1),
        (b' {"events": [{"event_type": "x"}, {}], "sent_at": 5, "more": 1}', 2),
        (b'{"event_type": "x", "title": "\\"events\\""}', 1),
        (b"[]", 0),
        (b'{"events": []}', 0),
    ],
)
def test_a_request_is_one_event_an_array_or_an_envelope(body, count):
    assert len(parse_request(body, received())) == count


def test_an_envelopes_sent_at_corrects_the_times_of_its_events():
    body = json.dumps({"sent_at": 10_000, "events": [{"event_type": "x", "timestamp": 4_000}]}).encode()
    [event] = parse_request(body, received())
    assert event.timestamp == NOW - 6_000


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.NOT_JSON),
        (b"  \n", Reason.NOT_JSON),
        (b"5", Reason.NOT_AN_OBJECT),
        (b'{"events": 5}', Reason.WRONG_TYPE),
        (b'{"events": [{}', Reason.NOT_JSON),
        (b"[" * 100_000, Reason.TOO_DEEP),
    ],
)
def test_a_malformed_request_is_refused_as_a_whole(body, reason):
    outcome = parse_request(body, received())
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason


def test_stable_ids_depend_on_each_part_and_on_nothing_else():
    assert stable_id("a", "b") == "065ab5741cdfad44687cf119c1eb4ec9"
    assert len({stable_id("a", "b"), stable_id("ab"), stable_id("b", "a"), stable_id("a", "b", "")}) == 4
    assert stable_id("\udc80")
