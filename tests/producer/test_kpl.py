"""The aggregated record: what Amazon's library does with sound data ours does too, and nothing is ever lost silently."""

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.kpl import (
    Aggregate,
    KplReason,
    Malformed,
    Plain,
    SubRecord,
    decode_record,
    encode_aggregate,
    entry_size,
    frame_size,
)

_path = list(sys.path)
from aws_kinesis_agg.aggregator import RecordAggregator  # noqa: E402 - it changes sys.path
from aws_kinesis_agg.deaggregator import deaggregate_records  # noqa: E402

sys.path[:] = _path

MAGIC = b"\xf3\x89\x9a\xc2"
GOLDEN = json.loads((Path(__file__).parent / "golden_frames.json").read_text())

payloads = st.lists(st.binary(max_size=300), max_size=8)
keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
hash_keys = st.integers(0, 2**128 - 1).map(str)


def framed(body):
    """A frame of this body with the checksum that fits."""
    return MAGIC + body + hashlib.md5(body).digest()


def body_of(frame):
    return frame[4:-16]


def by_amazon(data):
    """What Amazon's deaggregator makes of a record that Lambda hands over."""
    record = {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": "outer",
            "sequenceNumber": "7",
            "data": base64.b64encode(data),
            "approximateArrivalTimestamp": 1.0,
        },
        "eventSource": "aws:kinesis",
    }
    return [
        SubRecord(
            base64.b64decode(found["kinesis"]["data"]),
            found["kinesis"]["partitionKey"],
            found["kinesis"].get("explicitHashKey"),
        )
        for found in deaggregate_records([record])
    ]


def sub_records(frame):
    """What a sound frame holds, and that its payloads are theirs."""
    found = decode_record(frame)
    assert isinstance(found, Aggregate)
    assert found.payloads == [record.data for record in found.records]
    return found.records


# -- interoperation ---------------------------------------------------------------------------------


@given(payloads, keys, hash_keys)
def test_what_we_write_we_and_amazon_read(entries, key, hash_key):
    frame = encode_aggregate(entries, key, hash_key)
    expected = [SubRecord(data, key, hash_key) for data in entries]
    assert sub_records(frame) == tuple(expected)
    assert by_amazon(frame) == expected
    assert len(frame) == frame_size(key, hash_key) + sum(entry_size(len(data)) for data in entries)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "é"]) | keys, st.binary(max_size=300), st.none() | hash_keys),
        min_size=1,
        max_size=8,
    )
)
def test_what_amazon_writes_we_read(records):
    aggregator = RecordAggregator()
    for key, data, hash_key in records:
        assert aggregator.add_user_record(key, data, hash_key) is None
    _, _, frame = aggregator.clear_and_get().get_contents()
    assert sub_records(frame) == tuple(SubRecord(data, key, hash_key) for key, data, hash_key in records)


@pytest.mark.parametrize("size", [0, 1, 122, 123, 127, 128, 16_378, 16_379, 16_384, 1_000_000])
def test_sizes_at_the_borders_of_a_varint(size):
    frame = encode_aggregate([b"x" * size], "k", "0")
    assert len(frame) == frame_size("k", "0") + entry_size(size)
    assert sub_records(frame) == (SubRecord(b"x" * size, "k", "0"),)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_golden_frames(golden):
    frame = bytes.fromhex(golden["frame"])
    records = [SubRecord(data.encode(), key, hash_key) for data, key, hash_key in golden["records"]]
    assert sub_records(frame) == tuple(records)
    if golden["ours"]:
        entries = [record.data for record in records]
        assert encode_aggregate(entries, golden["partition_key"], golden["explicit_hash_key"]) == frame


def test_an_aggregate_may_be_empty():
    frame = encode_aggregate([], "lane-0", "0")
    assert sub_records(frame) == ()
    assert by_amazon(frame) == []


def test_a_record_without_a_hash_key_does_not_inherit_anothers():
    aggregator = RecordAggregator()
    aggregator.add_user_record("a", b"1", "123")
    aggregator.add_user_record("b", b"2")
    found = decode_record(aggregator.clear_and_get().get_contents()[2])
    assert [record.explicit_hash_key for record in found.records] == ["123", None]


# -- what is no frame -------------------------------------------------------------------------------


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda data: MAGIC + data))
def test_any_bytes_without_a_right_checksum_are_a_plain_record(data):
    assert decode_record(data) == Plain(data)
    assert by_amazon(data) == [SubRecord(data, "outer", None)]


def test_magic_and_checksum_around_nothing_are_a_plain_record():
    data = framed(b"")
    assert decode_record(data) == Plain(data)
    assert by_amazon(data) == [SubRecord(data, "outer", None)]


FRAME = encode_aggregate([b'{"a":1}', b"", b"\x00\xff" * 70], "lane-0", "170141183460469231731687303715884105728")


def test_every_truncation_is_a_plain_record():
    for size in range(len(FRAME)):
        assert decode_record(FRAME[:size]) == Plain(FRAME[:size])


def test_every_change_of_one_byte_is_a_plain_record():
    for at in range(len(FRAME)):
        for value in range(256):
            if value != FRAME[at]:
                data = FRAME[:at] + bytes([value]) + FRAME[at + 1 :]
                assert decode_record(data) == Plain(data)


# -- right checksum, wrong content ------------------------------------------------------------------


def records_in(body):
    """How many records a body has, by its own walk over the fields; None when it is not made of fields."""
    count = at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            value |= (body[at] & 127) << shift
            shift += 7
            at += 1
            if body[at - 1] < 128:
                return value

    try:
        while at < len(body):
            tag = varint()
            if tag & 7 != 2:
                return None
            size = varint()
            at += size
            count += tag == 0x1A
    except IndexError:
        return None
    return count if at == len(body) else None


def is_whole(body):
    """The frame of ``body`` is refused, or gives as many records as it has."""
    found = decode_record(framed(body))
    return isinstance(found, Malformed) or (isinstance(found, Aggregate) and len(found.records) == records_in(body))


def test_no_truncation_with_a_right_checksum_loses_records():
    body = body_of(FRAME)
    whole = [size for size in range(1, len(body) + 1) if isinstance(decode_record(framed(body[:size])), Aggregate)]
    assert all(is_whole(body[:size]) for size in range(1, len(body)))
    # It can be cut only where a field ends: after each of the two keys and the three records.
    assert len(whole) == 5


def test_no_change_of_one_byte_with_a_right_checksum_loses_records():
    body = body_of(encode_aggregate([b'{"a":1}', b"xy"], "lane-0", "12"))
    for at in range(len(body)):
        for value in range(256):
            assert is_whole(body[:at] + bytes([value]) + body[at + 1 :])


@given(st.binary(min_size=1, max_size=60))
def test_no_body_raises(body):
    assert is_whole(body)


KEY = b"\x0a\x01k"
RECORD = b"\x1a\x05\x08\x00\x1a\x01x"
MALFORMED = [
    ("cut inside a record", KEY + RECORD[:-1], KplReason.NOT_PROTOBUF),
    ("no data", KEY + b"\x1a\x02\x08\x00", KplReason.MISSING_FIELD),
    ("no key index", KEY + b"\x1a\x03\x1a\x01x", KplReason.MISSING_FIELD),
    ("an unknown field after the records", KEY + RECORD + b"\x78\x01", KplReason.UNKNOWN_FIELD),
    ("an unknown field in a record", KEY + b"\x1a\x07\x08\x00\x1a\x01x\x78\x01", KplReason.UNKNOWN_FIELD),
    ("records that are numbers", KEY + RECORD + b"\x18\x01", KplReason.UNKNOWN_FIELD),
    ("data twice", KEY + b"\x1a\x08\x08\x00\x1a\x01x\x1a\x01y", KplReason.NOT_CANONICAL),
    ("a long zero", KEY + b"\x1a\x06\x08\x80\x00\x1a\x01x", KplReason.NOT_CANONICAL),
    ("a key of no text", b"\x0a\x01\xff" + RECORD, KplReason.KEY_NOT_UTF8),
    ("a hash key of no text", KEY + b"\x12\x01\xff" + RECORD, KplReason.KEY_NOT_UTF8),
    ("no keys", RECORD, KplReason.INDEX_OUT_OF_RANGE),
    ("the key after the last", KEY + RECORD + b"\x1a\x05\x08\x01\x1a\x01x", KplReason.INDEX_OUT_OF_RANGE),
    ("a huge key index", KEY + b"\x1a\x0e\x08" + b"\xff" * 9 + b"\x01\x1a\x01x", KplReason.INDEX_OUT_OF_RANGE),
    ("no hash keys", KEY + b"\x1a\x07\x08\x00\x10\x00\x1a\x01x", KplReason.INDEX_OUT_OF_RANGE),
]


@pytest.mark.parametrize(("name", "body", "reason"), MALFORMED, ids=[name for name, _, _ in MALFORMED])
def test_malformed(name, body, reason):
    found = decode_record(framed(body))
    assert isinstance(found, Malformed)
    assert found.reason == reason
    assert found.detail


def test_every_reason_has_a_case():
    assert {reason for _, _, reason in MALFORMED} == set(KplReason)


def test_fields_may_come_in_any_order_and_records_may_have_tags():
    tagged = b"\x1a\x0a\x1a\x01x\x22\x03\x0a\x01t\x08\x00"
    assert sub_records(framed(tagged + KEY)) == (SubRecord(b"x", "k", None),)


# -- the definitions' own module --------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "import aws_kinesis_agg.deaggregator; "])
def test_importing_leaves_the_process_as_it_was(before):
    script = (
        "import sys; "
        + before
        + "path = list(sys.path); loaded = 'config_pb2' in sys.modules; import producer.kpl as kpl; "
        "assert sys.path == path; assert ('config_pb2' in sys.modules) == loaded; "
        "import aws_kinesis_agg.deaggregator; "
        "assert kpl.decode_record(kpl.encode_aggregate([b'x'], 'k', '0')).records[0].data == b'x'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2], timeout=60)
