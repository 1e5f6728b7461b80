"""Generations side by side: each sees itself alone, and the pointer moves at once or not at all."""

from __future__ import annotations

import itertools

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from stream_consumer.compaction import Compaction
from stream_consumer.consume import consume
from stream_consumer.generations import (
    FIRST,
    Generation,
    Generations,
    Pointer,
    Refused,
    State,
    generation_of,
    move,
    prefix_of,
    scoped,
)
from stream_consumer.items import quarantine_item
from stream_consumer.kinesis_batch import Poison
from stream_consumer.table import Tables
from tests.builders import NOON, a_batch, an_event
from tests.fake_dynamodb import NAMES, FakeDynamo, MemoryTables


def of(dynamo: FakeDynamo, generation: str) -> dict[str, dict[tuple[str, str], dict]]:
    """What the tables hold of a generation, as the first one would hold it."""
    prefix = prefix_of(generation)
    return {
        name: {
            (key[0][len(prefix) :], key[1]): move(item, generation, FIRST)
            for key, item in rows.items()
            if key[0].startswith(prefix) and (prefix or not key[0].startswith("#"))
        }
        for name, rows in dynamo.tables.items()
        if name != NAMES.quarantine
    }


def a_log(count: int = 12) -> list:
    return [an_event(n, session_id=f"s{n % 4}", user_id=f"u{n % 2}") for n in range(1, count)]


def test_generations_of_the_same_events_hold_the_same_bytes_and_do_not_touch_each_other() -> None:
    dynamo = FakeDynamo()
    log = a_log()
    consume(a_batch(log), MemoryTables(dynamo))
    first = of(dynamo, FIRST)
    for generation, borders in (("g2", (0, 4, 11)), ("g13", (0, 1, 2, 9, 11))):
        tables = Tables(scoped(dynamo, NAMES, generation), NAMES, writers=1)  # type: ignore[arg-type]
        for start, end in itertools.pairwise(borders):
            assert consume(a_batch(log[start:end], first=start + 1), tables).applied == end - start
        found = of(dynamo, generation)
        for table in (NAMES.sessions, NAMES.rollups):
            assert found[table] == first[table]
        assert of(dynamo, FIRST) == first


def test_compaction_of_a_generation_merges_it_alone() -> None:
    dynamo = FakeDynamo()
    log = a_log()
    consume(a_batch(log), MemoryTables(dynamo))
    second = scoped(dynamo, NAMES, "g2")  # type: ignore[arg-type]
    consume(a_batch(log), Tables(second, NAMES, writers=1))
    before = of(dynamo, FIRST)
    after = NOON + 3 * 86_400_000
    done = Compaction(second, NAMES, iter("abcdef").__next__).run(after)
    assert (done.sites, done.hours, done.left) == (1, 1, 0)
    assert of(dynamo, FIRST) == before
    Compaction(dynamo, NAMES, iter("ghijkl").__next__).run(after)  # type: ignore[arg-type]
    assert of(dynamo, FIRST) == of(dynamo, "g2")


def test_the_quarantine_is_of_the_stream_not_of_a_generation_and_a_replay_changes_nothing_in_it() -> None:
    dynamo = FakeDynamo()
    poison = Poison("0011.000000", "1", 5, "not_json", "", b"{")
    consume(a_batch([poison]), MemoryTables(dynamo))
    ((key, item),) = dynamo.tables[NAMES.quarantine].items()
    item["redriven"] = {"S": "77"}
    consume(a_batch([poison]), Tables(scoped(dynamo, NAMES, "g2"), NAMES, writers=1))  # type: ignore[arg-type]
    assert dynamo.tables[NAMES.quarantine] == {key: quarantine_item(poison, key[0]) | {"redriven": {"S": "77"}}}


@given(st.sampled_from(["g2", "g999"]), st.text("#g2site~", min_size=1, max_size=12))
def test_a_key_moves_to_a_generation_and_back(generation: str, key: str) -> None:
    item = {"pk": {"S": key}, "active_bucket": {"S": key}, "other": {"S": key}}
    moved = move(item, FIRST, generation)
    assert moved["pk"]["S"] == moved["active_bucket"]["S"] == f"#{generation}#{key}"
    assert moved["other"] == item["other"]
    assert move(moved, generation, FIRST) == item


@pytest.mark.parametrize(
    ("arn", "generation"),
    [
        ("arn:aws:lambda:us-east-1:123456789012:function:consumer", "g1"),
        ("arn:aws:lambda:us-east-1:123456789012:function:consumer:g2", "g2"),
        ("arn:aws:lambda:us-east-1:123456789012:function:consumer:live", "g1"),
        ("arn:aws:lambda:us-east-1:123456789012:function:consumer:17", "g1"),
        ("", "g1"),
    ],
)
def test_an_alias_that_is_a_generations_name_is_what_an_invocation_writes(arn: str, generation: str) -> None:
    assert generation_of(arn) == generation


@pytest.fixture
def table():
    with mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
        for name in NAMES.sessions, NAMES.session_events, NAMES.rollups:
            client.create_table(
                TableName=name,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
                KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            )
        yield client


def test_the_first_generation_is_there_and_served_without_being_written_anywhere(table) -> None:
    generations = Generations(table, NAMES)
    assert generations.pointer() == Pointer("g1")
    assert generations.all() == [Generation("g1")]
    assert generations.get("g1") == Generation("g1")
    assert generations.get("g2") is None


def test_names_are_taken_once_and_a_change_needs_what_it_was_made_of(table) -> None:
    generations = Generations(table, NAMES)
    second = Generation("g2", State.PREPARING, base="g1", start=5)
    assert generations.add(second)
    assert not generations.add(Generation("g2", State.PREPARING, base="g1", start=6))
    consuming = generations.change(second, Generation("g2", State.CONSUMING, base="g1", start=5))
    assert generations.get("g2") == consuming
    assert consuming.consumes
    with pytest.raises(Refused, match="g2 was changed by another command"):
        generations.change(second, Generation("g2", State.DROPPING))
    first = generations.change(Generation("g1"), Generation("g1", State.DROPPING))
    assert generations.all() == [first, consuming]


def test_the_pointer_moves_by_compare_and_set(table) -> None:
    generations = Generations(table, NAMES)
    generations.point(Pointer(), Pointer("g2", "g1", 7))
    generations.point(Pointer(), Pointer("g2", "g1", 7))  # as when the answer was lost
    assert generations.pointer() == Pointer("g2", "g1", 7)
    with pytest.raises(Refused, match="another command"):
        generations.point(Pointer(), Pointer("g3", "g1", 8))
    generations.point(Pointer("g2", "g1", 7), Pointer("g1", "g2", 9))
    assert generations.pointer().serving == "g1"


def test_what_dynamodb_leaves_unprocessed_can_be_asked_again_as_it_was_given_back() -> None:
    """The keys of such answers are the generation's too."""

    class Partial:
        def batch_get_item(self, RequestItems):
            (wanted,) = RequestItems["rollups"]["Keys"]
            assert wanted["pk"]["S"] == "#g2#a"
            return {"Responses": {}, "UnprocessedKeys": RequestItems}

        def batch_write_item(self, RequestItems):
            (request,) = RequestItems["rollups"]
            assert request["PutRequest"]["Item"]["pk"]["S"] == "#g2#a"
            return {"UnprocessedItems": RequestItems}

    client = scoped(Partial(), NAMES, "g2")  # type: ignore[arg-type]
    asked = {"rollups": {"Keys": [{"pk": {"S": "a"}, "sk": {"S": "b"}}], "ConsistentRead": True}}
    assert client.batch_get_item(RequestItems=asked)["UnprocessedKeys"] == asked
    puts = {"rollups": [{"PutRequest": {"Item": {"pk": {"S": "a"}, "sk": {"S": "b"}}}}]}
    assert client.batch_write_item(RequestItems=puts)["UnprocessedItems"] == puts
