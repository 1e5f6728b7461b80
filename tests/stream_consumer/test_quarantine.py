"""Poison: put aside once, with reason, position and payload; its neighbours are applied; and there is a way back."""

import hashlib
import json

import boto3
import pytest
from aws_kinesis_agg import MAGIC
from moto import mock_aws

from producer import erasure
from producer.batching import hash_key_of, lane_of
from producer.event import MAX_TEXT, encode
from producer.kpl import encode_aggregate
from stream_consumer import __main__ as cli
from stream_consumer.consume import consume
from stream_consumer.items import quarantine_item
from stream_consumer.kinesis_batch import Arrived, Poison, position, read
from stream_consumer.quarantine import PoisonGauge, Quarantine, Unredrivable, event_id_of
from tests.builders import NOON, a_batch, a_lambda_event, an_erasure, an_event
from tests.fake_dynamodb import MemoryTables

SHARD = "shardId-000000000000"


def broken(**change) -> bytes:
    """A sound event as its bytes, with something put into it that msgspec would not write."""
    return json.dumps({**json.loads(encode(an_event(99))), **change}).encode()


def frame(body: bytes) -> bytes:
    return MAGIC + body + hashlib.md5(body).digest()


SOUND_FRAME = encode_aggregate([encode(an_event(1))], "lane-0", "0")
POISON = {
    "not UTF-8": (b"\xff\xfe{}", "not_utf8"),
    "not JSON": (b'{"event_id":', "not_json"),
    "wrong type": (broken(page_url=7), "wrong_type"),
    "missing field": (b'{"event_id":"e"}', "missing_field"),
    "too deep": (b'{"properties":' + b'{"a":' * 1000 + b"1" + b"}" * 1001, "too_deep"),
    "NaN": (broken(properties={"a": float("nan")}), "not_finite"),
    "1e400": (broken().replace(b"{", b'{"conversion_value":1e400,', 1), "not_finite"),
    "lone surrogate": (broken(title="\ud800"), "lone_surrogate"),
    "NUL in a key": (broken(properties={"a\x00": 1}), "nul_character"),
    "over-long field": (broken(title="x" * (MAX_TEXT + 1)), "too_long"),
}
#: These are whole records; inside an aggregate they are payloads that are no JSON.
POISON_RECORDS = {
    "bad checksum": (SOUND_FRAME[:-1] + bytes([SOUND_FRAME[-1] ^ 1]), "not_utf8"),
    "truncated protobuf": (frame(SOUND_FRAME[4:-20]), "aggregate_not_protobuf"),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", [*POISON, *POISON_RECORDS])
def test_plain_poison_is_put_aside_once_and_its_neighbours_are_applied(name: str, place: int) -> None:
    payload, reason = (POISON | POISON_RECORDS)[name]
    payloads = [encode(an_event(1)), encode(an_event(2))]
    payloads.insert(place, payload)
    store = MemoryTables()
    for _ in range(2):  # a redelivery quarantines nothing twice
        outcome = consume(read(a_lambda_event(payloads)), store)
        assert outcome.quarantined == {reason: 1}
    ((key, item),) = store.quarantine.items()
    assert key == (SHARD, position(str(place + 1), 0))
    assert (item["reason"]["S"], item["payload"]["B"]) == (reason, payload)
    assert outcome.duplicate == 2
    assert len(store.sessions) == 1


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", [*POISON, *POISON_RECORDS])
def test_poison_inside_an_aggregate_leaves_the_rest_of_it_alone(name: str, place: int) -> None:
    payload, reason = (POISON | POISON_RECORDS)[name]
    payloads = [encode(an_event(1)), encode(an_event(2))]
    payloads.insert(place, payload)
    entries = read(a_lambda_event([encode_aggregate(payloads, "lane-0", "0")])).entries
    assert [type(entry) for entry in entries] == [Poison if at == place else Arrived for at in range(3)]
    poison = entries[place]
    assert isinstance(poison, Poison)
    assert poison.payload == payload
    assert poison.position == position("1", place)
    assert poison.reason == (reason if name in POISON else "not_utf8")  # a frame in a frame is a payload like any
    outcome = consume(read(a_lambda_event([encode_aggregate(payloads, "lane-0", "0")])), MemoryTables())
    assert (outcome.applied, outcome.quarantined.total()) == (2, 1)


def test_when_most_of_a_shard_is_poison_the_consumer_stops_and_says_so() -> None:
    gauge, store = PoisonGauge(limit=0.5, least=10), MemoryTables()
    some = [*(an_event(n) for n in range(7)), *(poison(n) for n in range(8, 12))]
    assert consume(a_batch(some), store, gauge).failed_from is None
    most = [poison(n) for n in range(20, 40)]
    for _ in range(3):  # the mapping sends it again and again; it is counted once
        outcome = consume(a_batch(most, first=20), store, gauge)
        assert outcome.failed_from == "20"
        assert "24 of the last 31 payloads" in outcome.failure
    assert len(store.quarantine) == 4
    assert consume(a_batch(most, first=20), store, PoisonGauge(limit=1)).failed_from is None
    assert len(store.quarantine) == 24


def test_a_little_poison_is_no_reason_to_stop_and_what_is_past_is_forgotten() -> None:
    gauge = PoisonGauge(limit=0.5, least=10, window=100)
    assert gauge.too_much(a_batch([poison(1)] * 9)) == ""
    for first in range(10, 1000, 10):
        assert gauge.too_much(a_batch([an_event(n) for n in range(10)], first=first)) == ""
    assert gauge.too_much(a_batch([poison(1)] * 40, first=2000)) == ""
    assert gauge.too_much(a_batch([poison(1)] * 40, first=2100)) != ""


def poison(number: int) -> Poison:
    return Poison(position(str(number), 0), str(number), NOON // 1000, "not_json", "byte 1", b"{")


@pytest.fixture
def aws(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("LIVEINSIGHT_QUARANTINE_TABLE", "quarantine")
    monkeypatch.setenv("LIVEINSIGHT_STREAM", "events")
    with mock_aws():
        dynamodb, kinesis = boto3.client("dynamodb"), boto3.client("kinesis")
        dynamodb.create_table(
            TableName="quarantine",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        )
        kinesis.create_stream(StreamName="events", ShardCount=2)
        yield dynamodb, kinesis


def put_aside(dynamodb, payload: bytes, number: int = 5, reason: str = "too_long") -> str:
    at = position(str(number), 0)
    dynamodb.put_item(
        TableName="quarantine",
        Item=quarantine_item(Poison(at, str(number), NOON // 1000, reason, "said so", payload), SHARD),
    )
    return at


def on_the_stream(kinesis) -> list[bytes]:
    found = []
    for shard in kinesis.list_shards(StreamName="events")["Shards"]:
        iterator = kinesis.get_shard_iterator(
            StreamName="events", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        found += [record["Data"] for record in kinesis.get_records(ShardIterator=iterator)["Records"]]
    return found


def test_a_repaired_event_goes_back_once_with_its_id_in_its_sessions_lane(aws, capsys, tmp_path) -> None:
    dynamodb, kinesis = aws
    at = put_aside(dynamodb, POISON["over-long field"][0])
    mended = tmp_path / "mended.json"
    mended.write_bytes(encode(an_event(99, title="short")))
    assert cli.main(["quarantine", "redrive", SHARD, at, "--repaired", str(mended)]) == 0
    assert on_the_stream(kinesis) == [mended.read_bytes()]
    (entry,) = read(a_lambda_event(on_the_stream(kinesis))).entries
    assert isinstance(entry, Arrived)
    assert entry.event.event_id == "e99"
    shard_of_lane = int(hash_key_of(lane_of("s1", 64), 64)) >= 2**127
    held = Quarantine(dynamodb, "quarantine").get(SHARD, at)
    assert held is not None
    assert held.redriven
    assert kinesis.list_shards(StreamName="events")["Shards"][int(shard_of_lane)]
    capsys.readouterr()
    assert cli.main(["quarantine", "list"]) == 0
    assert "nothing is in quarantine" in capsys.readouterr().err
    assert cli.main(["quarantine", "redrive", "--all"]) == 0
    assert len(on_the_stream(kinesis)) == 1


def test_a_repaired_event_keeps_its_id(aws, capsys, tmp_path) -> None:
    dynamodb, kinesis = aws
    at = put_aside(dynamodb, POISON["over-long field"][0])
    other = tmp_path / "other.json"
    other.write_bytes(encode(an_event(1)))
    assert cli.main(["quarantine", "redrive", SHARD, at, "--repaired", str(other)]) == 1
    assert "'e99'" in capsys.readouterr().err
    assert on_the_stream(kinesis) == []


def test_what_is_still_no_event_goes_back_only_when_told_to(aws, capsys) -> None:
    dynamodb, kinesis = aws
    at = put_aside(dynamodb, b"{", reason="not_json")
    assert cli.main(["quarantine", "redrive", SHARD, at]) == 1
    assert "--as-it-was" in capsys.readouterr().err
    assert cli.main(["quarantine", "redrive", SHARD, at, "--as-it-was"]) == 0
    assert on_the_stream(kinesis) == [b"{"]


def test_an_erasure_that_an_older_consumer_put_aside_goes_back_in_its_sessions_lane(aws) -> None:
    dynamodb, kinesis = aws
    for number in range(8):
        put_aside(dynamodb, erasure.encode(an_erasure(f"s{number}")), number + 1, reason="missing_field")
    assert cli.main(["quarantine", "redrive", "--all"]) == 0
    for half, shard in enumerate(kinesis.list_shards(StreamName="events")["Shards"]):
        iterator = kinesis.get_shard_iterator(
            StreamName="events", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        found = [erasure.decode(record["Data"]) for record in kinesis.get_records(ShardIterator=iterator)["Records"]]
        assert found
        assert {int(hash_key_of(lane_of(one.session_id, 64), 64)) >= 2**127 for one in found} == {bool(half)}


def test_what_is_not_kept_whole_cannot_go_back(aws) -> None:
    dynamodb, kinesis = aws
    at = put_aside(dynamodb, b"{" * 300_000)
    one = Quarantine(dynamodb, "quarantine").get(SHARD, at)
    assert one is not None
    assert not one.whole
    with pytest.raises(Unredrivable, match="300000"):
        Quarantine(dynamodb, "quarantine").redrive(one, kinesis, "events", 64, as_it_was=True)


def test_list_and_show_name_reason_place_and_payload(aws, capsysbinary) -> None:
    dynamodb, _ = aws
    for number in range(1, 4):
        put_aside(dynamodb, b"\x1b[31m{\xff", number, reason="not_utf8")
    put_aside(dynamodb, b"[]", 9, reason="not_an_object")
    assert cli.main(["quarantine", "list", "--reason", "not_utf8"]) == 0
    out = capsysbinary.readouterr().out
    assert out.count(b"not_utf8") == 3
    assert b"\x1b" not in out
    assert cli.main(["quarantine", "list", "--limit", "2", "--json"]) == 0
    lines = capsysbinary.readouterr().out.splitlines()
    assert [json.loads(row)["position"] for row in lines] == [position("1", 0), position("2", 0)]
    assert cli.main(["quarantine", "show", SHARD, position("9", 0)]) == 0
    assert b"not_an_object" in capsysbinary.readouterr().out
    assert cli.main(["quarantine", "show", SHARD, position("1", 0), "--payload"]) == 0
    assert capsysbinary.readouterr().out == b"\x1b[31m{\xff"
    assert cli.main(["quarantine", "show", SHARD, "nowhere"]) == 1
    assert cli.main(["quarantine", "redrive", SHARD]) == 2


def test_tables_that_are_not_there_are_one_clear_line(monkeypatch, capsys) -> None:
    for name in ("AWS_ENDPOINT_URL", "LIVEINSIGHT_STREAM", "LIVEINSIGHT_QUARANTINE_TABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_PORT", "9")
    assert cli.main(["quarantine", "list"]) == 1
    assert "make run" in capsys.readouterr().err


def test_the_id_that_a_broken_event_still_shows() -> None:
    assert event_id_of(POISON["over-long field"][0]) == "e99"
    assert event_id_of(encode(an_event(4))) == "e4"
    assert event_id_of(b"{") == event_id_of(b"\xff") == ""
