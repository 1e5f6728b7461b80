"""Every schedule of a small log: each log over a small alphabet, each way to cut it into batches, each fault at
each write, and each second fault at each write after it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest import mock

from producer import erasure
from producer.erasure import Erasure
from producer.event import Event, encode
from stream_consumer import stored_events
from stream_consumer.consume import consume
from stream_consumer.kinesis_batch import Arrived, Batch, ErasureArrived, Poison, position
from tests.builders import an_entry
from tests.fake_dynamodb import FAULTS, Crash, FakeDynamo, Kept, MemoryTables
from tests.simulation.fold import Folded
from tests.simulation.logs import ROOM_FOR_ONE, erasing_events, small_events
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
        """Deliver the log from its begin."""
        delivery = Delivery(self.log, self.cuts, self.store)
        delivery.run(delivery.begin, self.plan)
        return delivery.store


class Moment(NamedTuple):
    """Between two batches: what is still to be delivered, and what the tables hold."""

    todo: tuple[range, ...]
    kept: Kept


class Delivery:
    """Delivers a log in batches as a mapping does: what failed comes again, in halves if its function ended.

    Two schedules do the same until the first write that meets something else, so the second one goes on from a moment
    before that write.
    """

    def __init__(self, log: Log, cuts: tuple[int, ...], store: Store) -> None:
        self.dynamo = FakeDynamo()
        self.store = store(self.dynamo)
        self._entries = [_entry(number, one) for number, one in enumerate(log, 1)]
        spans = itertools.pairwise((0, *cuts, len(log)))
        self.begin = Moment(tuple(range(*span) for span in spans), self.dynamo.kept())

    def run(self, since: Moment, plan: Plan) -> list[Moment]:
        """Deliver what is left to the end; the moments on the way, from ``since`` on."""
        faults = dict(plan)
        self.dynamo.restore(since.kept)
        self.dynamo.choose = lambda write: faults.get(write, "")
        moments = []
        todo = list(since.todo)
        while todo:
            moments.append(Moment(tuple(todo), self.dynamo.kept()))
            span = todo[0]
            entries = self._entries[span.start : span.stop]
            try:
                outcome = consume(Batch(SHARD, str(span[0] + 1), len(span), entries), self.store)
            except Crash:
                half = span.start + len(span) // 2
                todo[:1] = [range(span.start, half), range(half, span.stop)] if len(span) > 1 else [span]
                continue
            if outcome.failed_from is None:
                assert outcome.received == len(span)
                todo.pop(0)
            else:
                todo[0] = range(int(outcome.failed_from) - 1, span.stop)
        self.dynamo.land_all()
        return moments


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
    """Every schedule of ``log`` with up to ``faults_at_once`` faults, run; its tables until the next one."""
    places = range(1, len(log))
    for count in range(len(log)):
        for cuts in itertools.combinations(places, count):
            delivery = Delivery(log, cuts, store)
            yield from _from(Schedule(log, cuts, (), store), delivery, delivery.begin, faults_at_once)


def _from(schedule: Schedule, delivery: Delivery, since: Moment, more: int) -> Iterator[tuple[Schedule, MemoryTables]]:
    moments = delivery.run(since, schedule.plan)
    writes = delivery.dynamo.writes
    yield schedule, delivery.store
    if not more:
        return
    after = schedule.plan[-1][0] if schedule.plan else 0
    for write in range(after + 1, writes + 1):
        before = next(moment for moment in reversed(moments) if moment.kept.writes < write)
        for fault in FAULTS:
            yield from _from(replace(schedule, plan=(*schedule.plan, (write, fault))), delivery, before, more - 1)


def check(
    logs: Sequence[Log], faults_at_once: int = 2, store: Store = MemoryTables, room: int = ROOM_FOR_ONE
) -> tuple[int, Counter[str], list[str]]:
    """(schedules run, faults injected, what went wrong). ``room``: how many bytes of events a session's item may hold."""
    ran, injected, wrong = 0, Counter[str](), []
    with mock.patch.object(stored_events, "MAX_RECENT_BYTES", room):
        for log in logs:
            wanted = expected(log)
            wrong += wanted.not_taken_back()
            for schedule, tables in schedules(log, faults_at_once, store):
                ran += 1
                injected.update(tables.dynamo.faults)
                if differences := wanted.differences(tables):
                    wrong.append(f"{schedule}: {differences}")
    return ran, injected, wrong
