import base64

import pytest

from producer import erasure
from producer.event import encode
from producer.kpl import encode_aggregate
from stream_consumer.kinesis_batch import Arrived, ErasureArrived, Poison, position, read
from tests.builders import a_lambda_event, an_aggregate, an_erasure, an_event


def test_plain_and_aggregated_records_give_their_events_in_the_streams_order() -> None:
    events = [an_event(number) for number in range(5)]
    batch = read(a_lambda_event([encode(events[0]), an_aggregate(events[1:4]), encode(events[4])], first=98))
    assert [entry.event for entry in batch.entries] == events
    places = [("98", 0), ("99", 0), ("99", 1), ("99", 2), ("100", 0)]
    assert [entry.position for entry in batch.entries] == [position(*place) for place in places]
    assert [entry.position for entry in batch.entries] == sorted(entry.position for entry in batch.entries)
    assert (batch.shard_id, batch.first_sequence_number, batch.records) == ("shardId-000000000000", "98", 3)


def test_an_erasure_has_its_place_among_the_events() -> None:
    payloads = [encode(an_event(1)), erasure.encode(an_erasure("s1")), encode(an_event(2))]
    for entries in (
        read(a_lambda_event(payloads)).entries,
        read(a_lambda_event([encode_aggregate(payloads, "lane-0", "0")])).entries,
    ):
        assert [type(entry) for entry in entries] == [Arrived, ErasureArrived, Arrived]
        assert entries[1].erasure == an_erasure("s1")
        assert [entry.position for entry in entries] == sorted(entry.position for entry in entries)


POISON = {
    "not_utf8": b"\xff\xfe",
    "not_json": b"{",
    "not_an_object": b"[1]",
    "missing_field": b"{}",
}


@pytest.mark.parametrize("reason", POISON)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_poison_leaves_its_neighbours_alone(reason: str, place: int) -> None:
    payloads = [encode(an_event(number)) for number in range(2)]
    payloads.insert(place, POISON[reason])
    entries = read(a_lambda_event(payloads)).entries
    (poison,) = [entry for entry in entries if isinstance(entry, Poison)]
    assert entries.index(poison) == place
    assert (poison.reason, poison.payload, poison.sequence_number) == (reason, POISON[reason], str(place + 1))
    assert sum(isinstance(entry, Arrived) for entry in entries) == 2


def test_a_sound_checksum_over_a_broken_message_is_poison_as_a_whole() -> None:
    import hashlib

    from aws_kinesis_agg import MAGIC

    body = b"\x0a\xff"
    frame = MAGIC + body + hashlib.md5(body).digest()
    (poison,) = read(a_lambda_event([frame])).entries
    assert isinstance(poison, Poison)
    assert poison.payload == frame


def test_what_is_not_base64_is_poison_too() -> None:
    event = a_lambda_event([b"x"])
    event["Records"][0]["kinesis"]["data"] = "***"
    (poison,) = read(event).entries
    assert (poison.reason, poison.payload) == ("not_base64", b"***")
    event["Records"][0]["kinesis"]["data"] = base64.b64encode(encode(an_event())).decode()
    assert isinstance(read(event).entries[0], Arrived)


def test_what_no_mapping_sends_is_an_error() -> None:
    with pytest.raises(ValueError, match="no Records"):
        read({})
    mixed = a_lambda_event([b"x", b"y"])
    mixed["Records"][1]["eventID"] = "shardId-000000000009:2"
    with pytest.raises(ValueError, match="shardId-000000000009"):
        read(mixed)
