"""Every schedule of a small log: each log over a small alphabet, each way to cut it into batches, each fault at
each write, and each second fault at each write after it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from producer import erasure
from producer.erasure import Erasure
from producer.event import Event, encode
from stream_consumer.consume import consume
from stream_consumer.kinesis_batch import Arrived, Batch, ErasureArrived, Poison, position
from tests.builders import an_entry
from tests.fake_dynamodb import FAULTS, Crash, FakeDynamo, MemoryTables
from tests.simulation.fold import Folded
from tests.simulation.logs import erasing_events, small_events
from tests.simulation.world import Shard

SHARD = "shard-0"
Log = tuple[Event | Erasure | bytes, ...]
Plan = tuple[tuple[int, str], ...]
Store = Callable[[FakeDynamo], MemoryTables]


@dataclass(frozen=True)
class Schedule:
    """One run: a log, where its batches are cut, and the faults by number of the write. Replays alone. ``store`` makes
    the tables that it writes.
    """

    log: Log
    cuts: tuple[int, ...]
    plan: Plan
    store: Store = MemoryTables

    def run(self) -> MemoryTables:
        """Deliver the log as a mapping does: what failed comes again, in halves if its function ended."""
        faults = dict(self.plan)
        dynamo = FakeDynamo(lambda write: faults.get(write, ""))
        store = self.store(dynamo)
        entries = [_entry(number, one) for number, one in enumerate(self.log, 1)]
        todo = [range(*span) for span in itertools.pairwise((0, *self.cuts, len(self.log)))]
        while todo:
            span = todo[0]
            try:
                outcome = consume(Batch(SHARD, str(span[0] + 1), len(span), entries[span.start : span.stop]), store)
            except Crash:
                half = span.start + len(span) // 2
                todo[:1] = [range(span.start, half), range(half, span.stop)] if len(span) > 1 else [span]
                continue
            if outcome.failed_from is None:
                assert outcome.received == len(span)
                todo.pop(0)
            else:
                todo[0] = range(int(outcome.failed_from) - 1, span.stop)
        dynamo.land_all()
        return store


def _entry(number: int, one: Event | Erasure | bytes) -> Arrived | ErasureArrived | Poison:
    if isinstance(one, bytes):
        one = Poison(position(str(number), 0), str(number), 0, "not_json", "", one)
    return an_entry(number, one)


def small_logs(size: int) -> list[Log]:
    """Every log of ``size`` records over the alphabet, that tells more than a shorter one."""
    return [log for log in itertools.product(small_events(), repeat=size) if len(set(map(id, log))) > 1 or size == 1]


def erasing_logs(size: int) -> list[Log]:
    """Every log of ``size`` records over the alphabet with an erasure that has one, and not alone."""
    logs = itertools.product(erasing_events(), repeat=size)
    return [log for log in logs if any(isinstance(one, Erasure) for one in log) and len(set(map(id, log))) > 1]


def expected(log: Log) -> Folded:
    return Folded([Shard(SHARD, tuple(map(_bytes, log)))])


def _bytes(one: Event | Erasure | bytes) -> bytes:
    if isinstance(one, bytes):
        return one
    return encode(one) if isinstance(one, Event) else erasure.encode(one)


def schedules(log: Log, faults_at_once: int, store: Store) -> Iterator[tuple[Schedule, MemoryTables]]:
    """Every schedule of ``log`` with up to ``faults_at_once`` faults, run."""
    places = range(1, len(log))
    for count in range(len(log)):
        for cuts in itertools.combinations(places, count):
            yield from _from(Schedule(log, cuts, (), store), faults_at_once)


def _from(schedule: Schedule, more: int) -> Iterator[tuple[Schedule, MemoryTables]]:
    tables = schedule.run()
    yield schedule, tables
    if not more:
        return
    after = schedule.plan[-1][0] if schedule.plan else 0
    for write in range(after + 1, tables.writes + 1):
        for fault in FAULTS:
            yield from _from(replace(schedule, plan=(*schedule.plan, (write, fault))), more - 1)


def check(
    logs: Sequence[Log], faults_at_once: int = 2, store: Store = MemoryTables
) -> tuple[int, Counter[str], list[str]]:
    """(schedules run, faults injected, what went wrong)."""
    ran, injected, wrong = 0, Counter[str](), []
    for log in logs:
        wanted = expected(log)
        wrong += wanted.not_taken_back()
        for schedule, tables in schedules(log, faults_at_once, store):
            ran += 1
            injected.update(tables.dynamo.faults)
            if differences := wanted.differences(tables):
                wrong.append(f"{schedule}: {differences}")
    return ran, injected, wrong
