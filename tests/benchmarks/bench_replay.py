"""How fast a replay is beside live consumption: the same events, the same consumer, other batches.

A live batch is what a shard gets in the mapping's window of a second; a replay's is as much as Lambda hands over, 10,000
records or 6 MB. Both start with empty tables each time, and take turns. The client of DynamoDB is a dictionary that
answers at once, so this is the consumer's own cost; how many writes each needs is counted beside it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from stream_consumer import kinesis_batch
from stream_consumer.consume import consume
from stream_consumer.folding import Fold, by_session
from stream_consumer.generations import scoped
from stream_consumer.lambda_handler import without_collection
from stream_consumer.replay.mapping import BATCH_SIZE
from stream_consumer.table import Tables
from tests.benchmarks.api_data import Plan, events_of
from tests.benchmarks.measuring import Ratio, Row, Spread, in_turns, ratios
from tests.builders import an_aggregate
from tests.fake_dynamodb import NAMES, FakeDynamo

#: Events of one record, and what of Lambda's 6 MB is left for records.
_AGGREGATE = 10
_MOST_BYTES = 6 * 1024 * 1024 - 1024
_END = 1_772_323_200_000
_SHARD = "shardId-000000000000"


def records(events: int) -> list[dict[str, Any]]:
    """About so many events of sessions of the last 20 minutes, in records as Lambda hands them over."""
    plan = Plan(events, _END, active=events, shards=1)
    log = events_of(plan, 0)
    aggregates = [an_aggregate(log[at : at + _AGGREGATE]) for at in range(0, len(log), _AGGREGATE)]
    return [
        {
            "kinesis": {
                "sequenceNumber": str(number),
                "data": base64.b64encode(data).decode(),
                "approximateArrivalTimestamp": _END / 1000,
            },
            "eventID": f"{_SHARD}:{number}",
        }
        for number, data in enumerate(aggregates, 1)
    ]


def live(some: Sequence[dict[str, Any]], events_per_second: int) -> Iterator[Sequence[dict[str, Any]]]:
    """Batches of one second each."""
    size = max(1, events_per_second // _AGGREGATE)
    return (some[at : at + size] for at in range(0, len(some), size))


def replayed(some: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    """Batches as large as they may be."""
    batch: list[dict[str, Any]] = []
    size = 0
    for record in some:
        length = len(json.dumps(record)) + 1
        if batch and (size + length > _MOST_BYTES or len(batch) == BATCH_SIZE):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch


def consumed(
    batches: Sequence[Sequence[dict[str, Any]]], generation: str, dynamo: FakeDynamo | None = None
) -> tuple[float, int, int]:
    """(CPU seconds, events, writes) of consuming the batches into ``dynamo``, or else into empty tables."""
    dynamo = dynamo or FakeDynamo()
    tables = Tables(scoped(dynamo, NAMES, generation), NAMES, writers=1)  # type: ignore[arg-type]
    events = 0
    began = time.process_time()
    for batch in batches:
        with without_collection():
            outcome = consume(kinesis_batch.read({"Records": batch}), tables)
        assert outcome.failed_from is None, outcome.failure
        events += outcome.applied
    return time.process_time() - began, events, dynamo.writes


def folded(batches: Sequence[Sequence[dict[str, Any]]]) -> float:
    """CPU seconds of decoding the batches and folding each by itself: the least that a replay must do."""
    began = time.process_time()
    for records_ in batches:
        with without_collection():
            batch = kinesis_batch.read({"Records": records_})
            fold = Fold(by_session(batch.entries), batch.shard_id, {}, {})
            for name in fold.rollups:
                fold.onto(name, None)
    return time.process_time() - began


def rows(quick: bool) -> list[Row]:
    """Events a CPU second."""
    some = records(2_000 if quick else 60_000)
    seconds, large = list(live(some, 100)), list(replayed(some))
    written: dict[str, int] = {}

    def rate(name: str, batches: Sequence[Sequence[dict[str, Any]]], generation: str) -> float:
        took, events, written[name] = consumed(batches, generation)
        return events / took

    ways = {
        "live": lambda: rate("live", seconds, "g1"),
        "replay": lambda: rate("replay", large, "g2"),
        "decode and fold": lambda: len(some) * _AGGREGATE / folded(large),
    }
    found = in_turns(ways, 1 if quick else 7, "replay")
    return [
        Row(
            "replay",
            "events/s of CPU",
            "replay",
            {name: Spread.of(rates) for name, rates in found.items()},
            [
                Ratio("live", ratios(found["replay"], found["live"]), 5),
                Ratio("decode and fold", ratios(found["replay"], found["decode and fold"])),
            ],
            "Live: a batch of 100 events each second. Replay: 6 MB a batch, into another generation. A DynamoDB in "
            f"memory, whose own cost is in both; {written['live']:,} and {written['replay']:,} calls of it. A session takes "
            "80 to 100 us a batch (load, merge, compress, write), an event 8. Live most batches have one event of a session, "
            "a replay's four, so even events that cost nothing would give 7 times.",
        )
    ]
