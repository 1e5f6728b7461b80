"""A stream in memory, and consumers that bring generations forward in it, a batch at a time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from producer.erasure import Erasure
from producer.event import Event
from stream_consumer.consume import consume
from stream_consumer.generations import FIRST, move, prefix_of, scoped
from stream_consumer.items import Item, read_rollup, read_session, shard_item
from stream_consumer.kinesis_batch import Arrived, Batch, ErasureArrived
from stream_consumer.merged import COUNTERS, HOUR_MS, hour_totals, labels_of, merge_labels, totals_of
from stream_consumer.progress import ShardProgress
from stream_consumer.rollup import RollUp
from stream_consumer.stored_events import read_chunk
from stream_consumer.table import Tables
from tests.builders import NOON, an_entry, an_event
from tests.fake_dynamodb import NAMES, FakeDynamo, bare

#: The cut of the tests' replays: a full hour with traffic before and after it.
CUT = NOON - NOON % HOUR_MS


@dataclass(frozen=True)
class Record:
    sequence_number: int
    arrived: int
    event: Event | Erasure


@dataclass
class MemoryStream:
    """Stands in for :class:`stream_consumer.replay.lag.Stream`."""

    records: dict[str, list[Record]]
    created: int = CUT - 72 * HOUR_MS
    retention: int = 24 * HOUR_MS
    name: str = "events"

    def described(self) -> tuple[str, int, int]:
        return "arn:aws:kinesis:us-east-1:123456789012:stream/events", self.created, self.retention

    def shards(self, **which: object) -> list[dict]:
        return [{"ShardId": shard_id, "SequenceNumberRange": {}} for shard_id in self.records]

    def oldest(self, shard_id: str) -> tuple[str, int] | None:
        return next(((str(one.sequence_number), one.arrived) for one in self.records[shard_id]), None)

    def expire(self, before: int) -> None:
        """Drop what arrived before then (ms)."""
        for shard_id, log in self.records.items():
            self.records[shard_id] = [one for one in log if one.arrived >= before]

    def next_arrived(self, shard_id: str, after: str, read_from: int) -> int:
        return next(
            (
                record.arrived
                for record in self.records[shard_id]
                if (record.sequence_number > int(after) if after else record.arrived >= read_from)
            ),
            0,
        )


def a_stream(rng: random.Random, count: int, sessions: int = 8, erasures: int = 0) -> MemoryStream:
    """Two shards and a child that takes over from the second, with events received from two hours before CUT to two
    hours after, some of them dated hours before that; two users; some events unnumbered, some sent twice. So many
    sessions are erased, somewhere on the way.
    """
    erased = dict(zip(rng.sample(range(1, count + 1), erasures), range(erasures), strict=True))
    records: dict[str, list[Record]] = {f"shard-{n}": [] for n in range(3)}
    sent: list[Event] = []
    numbers = [0] * sessions
    for number in range(1, count + 1):
        received = CUT + round((number / count - 0.5) * 4 * HOUR_MS) + rng.randint(-60_000, 60_000)
        session = rng.randrange(sessions)
        numbers[session] += 1
        event = an_event(
            number,
            session_id=f"s{session}",
            user_id=rng.choice(("", f"u{session % 2}")),
            event_type=rng.choice(("page_view", "page_view", "click", "conversion", "scroll")),
            page_url=f"https://example.com/{rng.randrange(4)}?utm_source={rng.choice('ab')}",
            conversion_value=rng.choice((0.0, 9.5)),
            title="" if number % 3 else random.Random(number).randbytes(150).hex(),  # some outgrow their session's item
            timestamp=received - rng.choice((0, 500, 60_000, 20 * 60_000, 3 * HOUR_MS)),
            received_at=received,
            **({"seq": numbers[session], "source": "tab"} if session % 3 else {}),
        )
        if sent and rng.random() < 0.1:
            event = rng.choice(sent)
        sent.append(event)
        lane = int(event.session_id[1:]) % 2
        shard = "shard-0" if lane == 0 else "shard-1" if number < count * rng.choice((0.4, 0.6)) else "shard-2"
        if shard == "shard-1" and records["shard-2"]:
            shard = "shard-2"
        log = records[shard]
        arrived = max([received + rng.randint(0, 2000), *(record.arrived for record in log[-1:])])
        log.append(Record(len(log) + 1, arrived, event))
        if number in erased:
            session = erased[number]
            log = records["shard-0" if session % 2 == 0 else "shard-2" if records["shard-2"] else "shard-1"]
            at = max([arrived, *(record.arrived for record in log[-1:])])
            log.append(Record(len(log) + 1, at, Erasure("blog", f"s{session}", at)))
    return MemoryStream(records)


@dataclass
class Consumer:
    """Brings one generation forward. ``read_from``: records that arrived before are passed over."""

    dynamo: FakeDynamo
    stream: MemoryStream
    generation: str = FIRST
    read_from: int = 0
    done: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = scoped(self.dynamo, NAMES, self.generation)  # type: ignore[arg-type]
        self.tables = Tables(self.client, NAMES, writers=1)

    def left(self, shard: str) -> list[Record]:
        behind = self.done.get(shard, 0)
        log = self.stream.records[shard]
        return [one for one in log if one.sequence_number > behind and one.arrived >= self.read_from]

    def step(self, rng: random.Random, most: int = 5, before: int | None = None) -> bool:
        """Consume one batch of some shard, of what arrived ``before``; whether there was any. A child waits for its parent."""
        shards = [name for name in self.stream.records if self.left(name)]
        if "shard-1" in shards and "shard-2" in shards:
            shards.remove("shard-2")
        if before is not None:
            shards = [name for name in shards if self.left(name)[0].arrived < before]
        if not shards:
            return False
        shard = rng.choice(shards)
        some = self.left(shard)[: rng.randint(1, most)]
        if before is not None:
            some = [one for one in some if one.arrived < before]
        entries = [_entry(one) for one in some]
        outcome = consume(Batch(shard, str(some[0].sequence_number), len(some), entries), self.tables)
        assert outcome.failed_from is None, outcome.failure
        self.done[shard] = some[-1].sequence_number
        last = some[-1]
        progress = ShardProgress(shard, last.arrived + 100, 100, str(last.sequence_number), last.arrived, 5.0, 3.0)
        self.tables.put_shard(shard_item(progress))
        return True

    def run(self, rng: random.Random, most: int = 5, before: int | None = None) -> None:
        while self.step(rng, most, before):
            pass


def _entry(record: Record) -> Arrived | ErasureArrived:
    return an_entry(record.sequence_number, record.event)


def items_of(dynamo: FakeDynamo, generation: str, table: str) -> dict[tuple[str, str], Item]:
    """What a table holds of a generation, under the keys that the first one's would have."""
    prefix = prefix_of(generation)
    return {
        (key[0][len(prefix) :], key[1]): move(item, generation, FIRST)
        for key, item in dynamo.tables[table].items()
        if key[0].startswith(prefix) and (prefix or not key[0].startswith("#"))
    }


def figures(dynamo: FakeDynamo, generation: str) -> dict[tuple[str, str], Item]:
    """A generation's sessions, without the events in them, and roll-ups."""
    rollups = items_of(dynamo, generation, NAMES.rollups)
    wanted = {key: item for key, item in rollups.items() if len(key[0].rpartition("#")[2]) == 6}
    sessions = items_of(dynamo, generation, NAMES.sessions)
    return {key: bare(item) for key, item in sessions.items()} | {
        key: item for key, item in wanted.items() if key[0].rpartition("#")[2].isdigit()
    }


def events_of(dynamo: FakeDynamo, generation: str) -> dict[str, bytes]:
    """A generation's stored events by position."""
    recent = (read_session(item).events for item in items_of(dynamo, generation, NAMES.sessions).values())
    chunks = map(read_chunk, items_of(dynamo, generation, NAMES.session_events).values())
    return dict(event for some in (*recent, *chunks) for event in some)


def sums(dynamo: FakeDynamo, generation: str) -> dict[int, tuple[Any, ...]]:
    """What a generation's roll-ups come to, by hour, without sums that came to nothing: one shard adds what another
    one takes back.
    """
    by_hour: dict[int, list[RollUp]] = {}
    for key, item in figures(dynamo, generation).items():
        if key[1]:
            rollup = read_rollup(item).rollup
            by_hour.setdefault(rollup.quarter - rollup.quarter % HOUR_MS, []).append(rollup)
    found = {}
    for hour, rollups in by_hour.items():
        totals = hour_totals(hour, map(totals_of, rollups))
        quarters = [{key: amount for key, amount in row.items() if amount} for row in totals.durations + totals.values]
        labels = {
            name: {
                label: row
                for label, row in merge_labels(hour, [labels_of(one, name) for one in rollups]).counter.rows.items()
                if any(row)
            }
            for name in COUNTERS
        }
        if any(map(any, totals.happened)) or any(map(any, totals.began)):
            found[hour] = totals.happened, totals.began, quarters, labels
    return found
