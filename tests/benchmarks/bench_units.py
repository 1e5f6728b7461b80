"""What a unit of traffic costs LiveInsight of each service: sizes of what the real producer and consumer make, units of
DynamoDB as it bills them, CPU. What `python -m infra cost` multiplies.

Sizes and units are the same each time. CPU is this machine's; the lowest of some rounds is taken, as others run here.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from producer.batching import Batch, partition_key_of
from producer.event import Event, encode
from stream_consumer import metrics
from stream_consumer.compaction import GRACE_MS, Compaction
from stream_consumer.consume import Outcome, consume
from stream_consumer.items import (
    hour_mark,
    read_rollup,
    rollup_item,
    session_item,
    session_items,
    shard_item,
)
from stream_consumer.kinesis_batch import read
from stream_consumer.merged import DAY_MS, HOUR_MS
from stream_consumer.progress import ShardProgress
from stream_consumer.rollup import QUARTER_MS
from stream_consumer.session import Session
from stream_consumer.stored_events import item_size
from tests.benchmarks.api_data import Plan, events_of
from tests.builders import a_batch, a_lambda_event, an_aggregate
from tests.fake_dynamodb import NAMES, FakeDynamo, MemoryTables

UNITS = Path(__file__).parents[2] / "infra" / "units.json"
_END = 1_772_323_200_000
_SHARD = "shardId-000000000000"
_LANES = 64
#: As long as those of Kinesis are.
_SEQUENCE = 49_600_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000
_EVENTS = (1, 2, 5, 10, 20, 50)
_IN_A_ROLLUP = (1, 10, 100, 1_000, 10_000, 50_000)


class CountingDynamo(FakeDynamo):
    """A table that answers at once, and counts units: writes by what is written, reads by KB."""

    def __init__(self) -> None:
        super().__init__()
        self.units: dict[str, int] = {"writes": 0, "reads": 0, "index": 0, "calls": 0}

    def put_item(self, *, TableName: str, Item: dict[str, Any], **condition: Any) -> dict[str, Any]:
        key = (Item["pk"]["S"], Item["sk"]["S"] if "sk" in Item else "")
        before = self.tables[TableName].get(key)
        answer = super().put_item(TableName=TableName, Item=Item, **condition)
        larger = max(item_size(Item), item_size(before) if before else 0)
        self.units["writes"] += write_units(larger)
        self.units["calls"] += 1
        if TableName == NAMES.sessions:
            self.units["index"] += _index_writes(before, Item)
        return answer

    def batch_write_item(self, *, RequestItems: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        for requests in RequestItems.values():
            self.units["writes"] += sum(write_units(item_size(one["PutRequest"]["Item"])) for one in requests)
        self.units["calls"] += 1
        return super().batch_write_item(RequestItems=RequestItems)

    def batch_get_item(self, *, RequestItems: dict[str, Any]) -> dict[str, Any]:
        answer = super().batch_get_item(RequestItems=RequestItems)
        ((table, wanted),) = RequestItems.items()
        found = answer["Responses"][table]
        self.units["reads"] += sum(map(_read_units, found)) + len(wanted["Keys"]) - len(found)
        self.units["calls"] += 1
        return answer

    def query(self, **query: Any) -> dict[str, Any]:
        answer = super().query(**query)
        self.units["reads"] += max(1, math.ceil(sum(map(item_size, answer["Items"])) / 4096))
        self.units["calls"] += 1
        return answer

    def delete_item(self, *, TableName: str, Key: dict[str, Any], **condition: Any) -> dict[str, Any]:
        self.units["writes"] += 1
        self.units["calls"] += 1
        return super().delete_item(TableName=TableName, Key=Key, **condition)


def write_units(size: int) -> int:
    """Of one item."""
    return max(1, math.ceil(size / 1024))


def _read_units(item: dict[str, Any]) -> int:
    return max(1, math.ceil(item_size(item) / 4096))


def _index_writes(before: dict[str, Any] | None, after: dict[str, Any]) -> int:
    """An index whose key is new is written once, one whose key moves twice."""
    found = 0
    for names in (("active_bucket", "active_minute"), ("user_key", "started_at")):
        old, new = (tuple((of or {}).get(name, {}).get(_kind(name)) for name in names) for of in (before, after))
        had, has = all(old), all(new)
        if old != new:
            found += had + has
    return found


def _kind(name: str) -> str:
    return "N" if name in {"active_minute", "started_at"} else "S"


def sessions(number: int) -> list[list[Event]]:
    """So many sessions, each in order, of one site, with ids as long and as random as real ones."""
    plan = Plan(round(number * 7.5), _END, active=number, shards=1)
    found: dict[str, list[Event]] = {}
    for event in events_of(plan, 0):
        found.setdefault(event.session_id, []).append(
            msgspec.structs.replace(
                event,
                site_id="shop",
                session_id=_id(event.session_id),
                event_id=_id(event.event_id),
                source=_id(event.session_id)[:8],
            )
        )
    return list(found.values())


def _id(of: str) -> str:
    return hashlib.blake2b(of.encode(), digest_size=16).hexdigest()


def lengthened(events: Sequence[Event], count: int) -> list[Event]:
    """A session of ``count`` events that goes on as it began, 15 s between them."""
    first = events[0]
    return [
        msgspec.structs.replace(
            events[at % len(events)],
            event_id=_id(f"{first.event_id} {at}"),
            seq=at + 1,
            timestamp=first.timestamp + at * 15_000,
            received_at=first.received_at + at * 15_000,
        )
        for at in range(count)
    ]


def positions(count: int) -> list[str]:
    """Places of events in the stream, as long as real ones are."""
    return [f"56{_SEQUENCE + at}.000000" for at in range(count)]


def stream_units(some: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Bytes that an event adds to a record, and those of a record besides."""
    payloads = [encode(event) for one in some for event in one][:500]
    batch: Batch[None] = Batch(7, _LANES, tuple(payloads), tuple(None for _ in payloads), 0)
    alone: Batch[None] = Batch(7, _LANES, (payloads[0],), (None,), 0)
    # The key counts as well, as Kinesis bills and limits it.
    key = len(partition_key_of(7))
    event_bytes = (len(batch.encode()) - len(alone.encode())) / (len(payloads) - 1)
    return {"event_bytes": event_bytes, "record_bytes": len(alone.encode()) + key - len(payloads[0]) - 8}


def written_units(some: Sequence[Sequence[Event]]) -> dict[str, dict[str, dict[str, float]]]:
    """What sessions of so many events, of which so many come together, are written as; averages. ``session_units`` are
    for each write of a session, ``session_bytes`` of its item in the end (``bare_bytes`` without the events in it); the
    others for each event: units, bytes and number of chunks.
    """
    return {
        str(count): {str(together): _written(some, count, together) for together in _EVENTS if together <= count}
        for count in _EVENTS
    }


def _written(some: Sequence[Sequence[Event]], count: int, together: int) -> dict[str, float]:
    sums = dict.fromkeys(("session_units", "session_bytes", "bare_bytes", "chunk_units", "chunk_bytes", "chunks"), 0.0)
    for events in some:
        session = Session(events[0].site_id, events[0].session_id)
        held: list[tuple[str, bytes]] = []
        its = lengthened(events, count)
        places = [f"{_SHARD}={at}" for at in positions(count)]
        for first in range(0, count, together):
            for event in its[first : first + together]:
                session.apply(event)
            held += zip(places[first : first + together], map(encode, its[first : first + together]), strict=True)
            done = {_SHARD: positions(count)[min(count, first + together) - 1]}
            item, chunks = session_items(session, done, None, held)
            sums["session_units"] += write_units(item_size(item)) / math.ceil(count / together)
            if chunks:
                held = []
                sums["chunk_units"] += sum(write_units(item_size(chunk)) for chunk in chunks) / count
                sums["chunk_bytes"] += sum(map(item_size, chunks)) / count
                sums["chunks"] += len(chunks) / count
        sums["session_bytes"] += item_size(item)
        sums["bare_bytes"] += item_size(session_item(session, done))
    return {name: value / len(some) for name, value in sums.items()}


def in_a_quarter(count: int) -> list[Event]:
    """So many events of one quarter of an hour, in order of arrival."""
    quarter = _END - QUARTER_MS
    log = [event for one in sessions(max(1, math.ceil(count / 7))) for event in one]
    span = 20 * 60_000
    log = [
        msgspec.structs.replace(event, timestamp=at, received_at=at + 300)
        for event in log
        for at in [quarter + max(0, event.timestamp - (_END - span)) * (QUARTER_MS - 1) // span]
    ]
    return sorted(log, key=lambda event: event.received_at)[:count]


def rollup_units(most: int) -> dict[str, float]:
    """Bytes of a roll-up of so many events: of one site, quarter and shard."""
    sizes = {}
    for count in _IN_A_ROLLUP:
        if count <= most:
            sizes[str(count)] = float(item_size(_a_rollup(count)))
    return sizes


def _a_rollup(count: int) -> dict[str, Any]:
    tables = MemoryTables()
    consume(a_batch(in_a_quarter(count)), tables)
    (item,) = (one for one in tables.rollups.values())
    return item


def small_items() -> dict[str, float]:
    """Bytes of what is put beside them."""
    mark = hour_mark("a-site.example", _END - HOUR_MS, _SHARD, positions(1)[0])
    progress = ShardProgress(_SHARD, _END, 1_000, str(_SEQUENCE), _END, 100.0, 1.0)
    entry = {
        "pk": {"S": "a-site.example#" + "0" * 32},
        "active_bucket": {"S": "a-site.example#0"},
        "active_minute": {"N": "29538721"},
    }
    # An entry of an index takes 100 bytes more, as an item does.
    return {
        "mark_bytes": item_size(mark),
        "progress_bytes": item_size(shard_item(progress)),
        "index_entry_bytes": item_size(entry) + 100,
    }


def log_units() -> dict[str, float]:
    """What the consumer writes to its log about a batch, with its metrics; and how many metrics there are."""
    from stream_consumer import lambda_handler

    printed = io.StringIO()
    batch = a_batch(in_a_quarter(10))
    outcome = Outcome(applied=10, sessions=5, rollups=2, oldest_received=_END)
    handler = lambda_handler.logger.handlers[0]
    stream = handler.setStream(printed)  # type: ignore[attr-defined]
    try:
        with contextlib.redirect_stdout(printed):
            lambda_handler._report(batch, outcome, 12.3, "g1")
    finally:
        handler.setStream(stream)  # type: ignore[attr-defined]
    return {"bytes_per_batch": len(printed.getvalue().encode()), "metrics": len(metrics.Metric)}


def consumer_units(rounds: int, events: int) -> dict[str, float]:
    """CPU (ms) of an event, of a session in a batch and of the batch itself, without calls of DynamoDB; and of a KB of
    roll-up read and written again.
    """
    some = [lengthened(one, 10) for one in sessions(math.ceil(events / 10))]
    alone = [one[0] for one in sessions(events)]
    together = [event for at in range(10) for event in (one[at] for one in some)]
    with_sessions = _lowest(rounds, _consuming(alone)) / len(alone)
    in_tens = _lowest(rounds, _consuming(together)) / len(together)
    event = max(0.0, (10 * in_tens - with_sessions) / 9)
    single = _consuming(alone[:1])
    small = _lowest(rounds, lambda: [single() for _ in range(100)]) / 100
    item = _a_rollup(events)
    stored = read_rollup(item)
    rewritten = _lowest(rounds, lambda: [rollup_item(stored.rollup, stored.position) for _ in range(20)]) / 20
    return {
        "cpu_ms_per_event": event,
        "cpu_ms_per_session": with_sessions - event,
        "cpu_ms_per_batch": max(0.0, small - with_sessions),
        "cpu_ms_per_rollup_kb": rewritten / (item_size(item) / 1024),
    }


def _consuming(log: Sequence[Event]) -> Callable[[], object]:
    """Consumes these, in aggregates of ten, into empty tables."""
    given = a_lambda_event([an_aggregate(log[at : at + 10]) for at in range(0, len(log), 10)])
    return lambda: consume(read(given), MemoryTables())


def _lowest(rounds: int, work: Callable[[], object]) -> float:
    found = []
    for _ in range(rounds + 1):
        began = time.process_time()
        work()
        found.append((time.process_time() - began) * 1000)
    return min(found)


def compaction_units(events: int) -> dict[str, float]:
    """What merging an hour, and a day of such hours, of one site takes, besides marks and roll-ups, which depend on
    the shards. Two shards; ``events`` in each quarter.
    """
    dynamo = CountingDynamo()
    tables = MemoryTables(dynamo)
    day = _END - _END % DAY_MS - DAY_MS
    log = in_a_quarter(events)
    shards = [f"shardId-{number:012d}" for number in range(2)]
    for hour in range(24):
        for shard_id in shards:
            for quarter in range(4):
                moved = day + hour * HOUR_MS + quarter * QUARTER_MS - (_END - QUARTER_MS)
                batch = [
                    msgspec.structs.replace(
                        event,
                        timestamp=event.timestamp + moved,
                        received_at=event.received_at + moved,
                        session_id=f"{event.session_id}-{hour}-{quarter}-{shard_id}",
                    )
                    for event in log
                ]
                outcome = consume(a_batch(batch, 1 + (hour * 4 + quarter) * events, shard_id), tables)
                assert outcome.failed_from is None
    took = {}
    compaction = Compaction(dynamo, NAMES)  # type: ignore[arg-type]
    for what, now in (("hours", day + DAY_MS - HOUR_MS + GRACE_MS), ("day", day + DAY_MS + HOUR_MS)):
        dynamo.units = dict.fromkeys(dynamo.units, 0)
        began = time.process_time()
        done = compaction.run(now)
        took[what] = {"cpu": (time.process_time() - began) * 1000, "done": done, **dynamo.units}
    hours, whole = took["hours"], took["day"]
    assert hours["done"].hours == 23, hours
    assert whole["done"].hours == 1, whole
    assert whole["done"].days == 1, whole
    each = {name: hours[name] / 23 for name in ("writes", "reads", "calls", "cpu")}
    merged = [item for (pk, _), item in dynamo.tables[NAMES.rollups].items() if "#hour#" in pk or "#day#" in pk]
    rollup_reads = sum(map(_read_units, tables.rollups.values())) / 24
    return {
        "write_units_per_site_hour": each["writes"] - 2 * len(shards),
        "read_units_per_site_hour": max(0.0, each["reads"] - rollup_reads),
        "calls_per_site_hour": each["calls"],
        "cpu_ms_per_site_hour": each["cpu"],
        "write_units_per_site_day": whole["writes"] - each["writes"],
        "read_units_per_site_day": whole["reads"] - each["reads"],
        "stored_bytes_per_site_hour": sum(map(item_size, merged)) / 24,
    }


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Every unit. ``quick``: the same of less traffic."""
    some = sessions(40 if quick else 400)
    return {
        "stream": stream_units(some),
        "written": written_units(some[:100]),
        "rollup_bytes": rollup_units(1_000 if quick else 50_000),
        **small_items(),
        "log": log_units(),
        "consumer": consumer_units(2 if quick else 7, 500 if quick else 5_000),
        "compaction": compaction_units(50 if quick else 500),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write infra/units.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less traffic: does it work?")
    parser.add_argument("--json", metavar="FILE", type=Path, default=UNITS, help="(default: infra/units.json)")
    given = parser.parse_args(argv)
    found = {
        "measured": {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": "make bench-units",
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        **_rounded(measure(quick=given.quick)),
    }
    given.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {given.json.name}")
    return 0


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
