"""The archive's lines: what goes in comes out byte for byte, and what is no line is told, never passed over."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.event import encode
from stream_consumer.archive.lines import ArchivedRecord, BadLine, entries_of, read_line, write_line
from stream_consumer.kinesis_batch import read
from tests.builders import NOON, a_lambda_event, an_aggregate, an_event

SHARD = "shardId-000000000000"


def a_record(payload: bytes, index: int | None = None, number: str = "1") -> ArchivedRecord:
    return ArchivedRecord(SHARD, number, index, NOON, payload)


EVENT = encode(an_event(1, title="é\u2028\x7f", properties={"a": [1, 2.50, "x"]}))
AWKWARD = [
    b"",
    b"{}",
    b"null",
    EVENT + b" ",
    b"\n" + EVENT,
    EVENT.replace(b'"a"', b'\n"a"'),
    EVENT.replace(b'"a"', b'\r"a"'),
    EVENT.replace(b'"x"', b'"\xff"'),
    b'{"event_id":"1","event_id":"2"}',
    b"{" * 3000,
    b"\x00\x1f\x8b",
    an_aggregate([an_event(1), an_event(2)]),
]
PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([EVENT, *AWKWARD]),
    st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)).map(
        lambda value: json.dumps(value).encode()
    ),
    st.text(max_size=30).map(lambda text: encode(an_event(title=text))),
)


@given(
    st.from_regex(r"shardId-[0-9]{12}", fullmatch=True),
    st.from_regex(r"[1-9][0-9]{0,128}", fullmatch=True),
    st.none() | st.integers(0, 999_999),
    st.integers(0, 1 << 45),
    PAYLOADS,
)
@settings(max_examples=400)
def test_a_record_comes_back_as_it_was_from_one_line(
    shard: str, number: str, index: int | None, arrived: int, payload: bytes
) -> None:
    record = ArchivedRecord(shard, number, index, arrived, payload)
    line = write_line(record)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert b"\r" not in line
    assert json.loads(line)["sequence_number"] == number
    assert read_line(line) == record


@pytest.mark.parametrize("payload", AWKWARD)
def test_what_is_no_event_on_one_line_is_kept_as_base64(payload: bytes) -> None:
    line = write_line(a_record(payload))
    assert "base64" in json.loads(line)
    assert read_line(line).payload == payload


def test_an_event_can_be_queried_as_it_is() -> None:
    line = json.loads(write_line(a_record(EVENT, index=3)))
    assert line == {
        "shard_id": SHARD,
        "sequence_number": "1",
        "index": 3,
        "arrived": NOON,
        "event": json.loads(EVENT),
    }


GOOD = json.loads(write_line(a_record(EVENT)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff", "not_json"),
        (b"[]", "wrong_fields"),
        (json.dumps(GOOD | {"more": 1}).encode(), "wrong_fields"),
        (json.dumps(GOOD | {"sequence_number": "1a"}).encode(), "wrong_fields"),
        (json.dumps(GOOD | {"sequence_number": 1}).encode(), "wrong_fields"),
        (json.dumps(GOOD | {"index": -1}).encode(), "wrong_fields"),
        (json.dumps(GOOD | {"base64": ""}).encode(), "wrong_fields"),
        (json.dumps({name: value for name, value in GOOD.items() if name != "event"}).encode(), "wrong_fields"),
        (json.dumps({name: value for name, value in GOOD.items() if name != "arrived"}).encode(), "wrong_fields"),
        (write_line(a_record(b"x")).replace(b'"eA=="', b'"eA="'), "not_base64"),
        (write_line(a_record(EVENT))[:-9], "not_json"),
    ],
)
def test_what_is_no_line_is_refused_by_one_reason(line: bytes, reason: str) -> None:
    with pytest.raises(BadLine) as refused:
        read_line(line)
    assert refused.value.reason == reason


def test_a_whole_record_and_one_that_was_taken_apart_are_read_as_the_consumer_reads_the_stream() -> None:
    events = [an_event(n) for n in range(3)]
    broken = bytearray(an_aggregate(events))
    broken[-1] ^= 1
    datas = [EVENT, an_aggregate(events), b"{", bytes(broken), an_aggregate([])]
    wanted = read(a_lambda_event(datas)).entries
    whole = [entry for at, data in enumerate(datas, 1) for entry in entries_of(a_record(data, None, str(at)))]
    assert whole == wanted
    apart = [a_record(EVENT, 0, "1"), *(a_record(encode(event), n, "2") for n, event in enumerate(events))]
    apart += [a_record(b"{", 0, "3"), a_record(bytes(broken), 0, "4"), a_record(an_aggregate([]), 0, "5")]
    assert [entry for record in apart for entry in entries_of(record)] == wanted
