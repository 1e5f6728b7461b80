"""What the consumer does to an event before anything is written: decode and fold, no I/O.

Ours is what :func:`stream_consumer.consume.consume` does, up to the folded sessions and roll-ups. The peer is the
ordinary loop: powertools' BatchProcessor hands each record to a function, which reads it with ``data_as_json`` and folds
that one event onto the same sessions and roll-ups; its stream has one record for each event. The floor does the least
that any reader of aggregates must do, and counts pages in a dictionary. CPU time; all read the same events.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aws_kinesis_agg import MAGIC

from producer.event import Event, encode
from stream_consumer import kinesis_batch
from stream_consumer.folding import Fold, by_session
from stream_consumer.lambda_handler import without_collection
from stream_consumer.rollup import Folding, RollUp, Standing, quarter_of, standing
from stream_consumer.seen import Verdict
from stream_consumer.session import Session
from tests.benchmarks.api_data import Plan, events_of
from tests.benchmarks.measuring import Ratio, Row, Spread, in_turns, ratios
from tests.builders import a_lambda_event, an_aggregate

_END = 1_772_323_200_000
#: Events of one record: what a lane holds of a batch of this size.
_AGGREGATE = 100
#: How long a session lasts is 9 minutes at most.
_BEGIN_WITHIN_MS = 300_000
_SHARD = "shardId-000000000000"
NOTE = (
    "Batches of 2,500 events, 10 of each session, up to the folded sessions and roll-ups. Microseconds for an event: read "
    "and check 2.8 (MD5 0.5, JSON 0.7, protobuf 0.6), group by session 0.3, fold sessions 2.2, roll-ups 1.1, free it all 0.6; "
    "the floor takes 1.9, and keeps and checks nothing. No step stands out: tests/benchmarks/NOTES.md."
)


def events(count: int, seed: int = 0) -> list[Event]:
    """So many events, 10 of each session, in the order in which they come in: all within a quarter of an hour."""
    log = events_of(Plan(count, _END, active=0, shards=1, seed=seed, per_session=10), 0)
    began: dict[str, int] = {}
    for event in log:
        began.setdefault(event.session_id, event.timestamp)
    moved = []
    for event in log:
        by = _END + began[event.session_id] % _BEGIN_WITHIN_MS - began[event.session_id]
        moved.append(msgspec.structs.replace(event, timestamp=event.timestamp + by, received_at=event.received_at + by))
    return sorted(moved, key=lambda event: event.received_at)


def ours(lambda_event: Mapping[str, Any]) -> int:
    """Decode and fold a batch; how many events that were."""
    with without_collection():
        batch = kinesis_batch.read(lambda_event)
        fold = Fold(by_session(batch.entries), batch.shard_id, {}, {})
        rollups = [fold.onto(name, None) for name in fold.rollups]
        assert all(rollups)
        return sum(one.verdicts.count(Verdict.APPLIED) for one in fold.sessions.values())


def peer() -> Callable[[Mapping[str, Any]], int]:
    """The ordinary function of the same fold, with nothing folded yet at each call."""
    from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
    from aws_lambda_powertools.utilities.data_classes.kinesis_stream_event import KinesisStreamRecord

    processor = BatchProcessor(event_type=EventType.KinesisDataStreams)

    def handle(lambda_event: Mapping[str, Any]) -> int:
        sessions: dict[tuple[str, str], Session] = {}
        standings: dict[tuple[str, str], Standing | None] = {}
        rollups: dict[tuple[str, int], Folding] = {}

        def handle_record(record: KinesisStreamRecord) -> None:
            said = record.kinesis.data_as_json()
            properties = said.pop("properties", None)
            if properties:
                said["properties"] = msgspec.Raw(msgspec.json.encode(properties))
            event = Event(**said)
            name = event.site_id, event.session_id
            session = sessions.get(name)
            if session is None:
                session = sessions[name] = Session(*name)
            session.apply(event)
            before, after = standings.get(name), standing(session)
            standings[name] = after
            quarters = {quarter_of(event.timestamp)} | {one.quarter for one in (before, after) if one}
            for quarter in quarters:
                folding = rollups.get((event.site_id, quarter))
                if folding is None:
                    folding = rollups[event.site_id, quarter] = Folding(RollUp(event.site_id, quarter, _SHARD))
                if quarter == quarter_of(event.timestamp):
                    folding.count_event(event)
                folding.move_session(before, after)

        answer = process_partial_response(
            event=dict(lambda_event), record_handler=handle_record, processor=processor, context=None
        )
        assert answer == {"batchItemFailures": []}
        return len(lambda_event["Records"])

    return handle


def floor() -> Callable[[Mapping[str, Any]], int]:
    """The least: base64, MD5, protobuf, JSON, and a count of each page."""
    import pybase64

    from producer.kpl import _AggregatedRecord as AggregatedRecord

    fields = [
        (field.name, object if field.name == "properties" else field.type) for field in msgspec.structs.fields(Event)
    ]
    plain = {str: str, int: int, float: float}

    def bare(kind: Any) -> Any:
        kind = getattr(kind, "__origin__", kind)
        return plain.get(kind, msgspec.Raw)

    loose = msgspec.defstruct(
        "Loose", [(name, bare(kind), msgspec.field(default=None)) for name, kind in fields], gc=False
    )
    decode = msgspec.json.Decoder(loose).decode

    def handle(lambda_event: Mapping[str, Any]) -> int:
        counts: dict[tuple[str, str], int] = {}
        found = 0
        for record in lambda_event["Records"]:
            raw = pybase64.b64decode(record["kinesis"]["data"], validate=True)
            body = raw[len(MAGIC) : -16]
            assert hashlib.md5(body, usedforsecurity=False).digest() == raw[-16:]
            message = AggregatedRecord()
            message.ParseFromString(body)
            for one in message.records:
                event = decode(one.data)
                key = event.site_id, event.page_url
                counts[key] = counts.get(key, 0) + 1
                found += 1
        return found

    return handle


def rows(quick: bool) -> list[Row]:
    """Events a CPU second, of batches of what a shard takes in a second at its full rate."""
    logs = [events(500 if quick else 2_500, seed) for seed in range(1 if quick else 8)]
    aggregated = [
        a_lambda_event([an_aggregate(log[at : at + _AGGREGATE]) for at in range(0, len(log), _AGGREGATE)])
        for log in logs
    ]
    plain = [a_lambda_event([encode(event) for event in log]) for log in logs]
    ways: dict[str, tuple[Callable[[Mapping[str, Any]], int], Sequence[Mapping[str, Any]]]] = {
        "LiveInsight": (ours, aggregated),
        "BatchProcessor, event by event": (peer(), plain),
        "floor": (floor(), aggregated),
    }

    def timed(way: Callable[[Mapping[str, Any]], int], batches: Sequence[Mapping[str, Any]]) -> float:
        gc.collect()
        began = time.process_time()
        count = sum(map(way, batches))
        took = time.process_time() - began
        assert count == sum(map(len, logs))
        return count / took

    found = in_turns({name: lambda way=way: timed(*way) for name, way in ways.items()}, 1 if quick else 15, "fold")  # type: ignore[misc]
    mine, others, least = found.values()
    return [
        Row(
            "consumer, decode and fold",
            "events/s of CPU",
            "LiveInsight",
            {name: Spread.of(rates) for name, rates in found.items()},
            [Ratio("peer", ratios(mine, others), 2.5), Ratio("floor", ratios(mine, least), 1 / 3)],
            NOTE,
        )
    ]
