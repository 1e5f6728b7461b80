"""How cost grows with its input: the real consumer and the real query API over tables in memory that answer at once.

CPU is that of this process; memory is the peak of a process of its own (:mod:`tests.benchmarks.peak_memory`). The points
of a curve take turns. Shards share no state but the tables, so a batch's memory depends neither on how many there are
nor on what the tables hold, and is not measured against these.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from producer.event import Event
from stream_consumer.lambda_handler import without_collection
from stream_consumer.merged import DAY_MS
from stream_consumer.rollup import QUARTER_MS
from tests.benchmarks import bench_reads, peak_memory
from tests.benchmarks.bench_replay import consumed, live, records
from tests.benchmarks.curve import Curve, Point
from tests.benchmarks.measuring import Spread, in_turns
from tests.builders import NOON, a_lambda_event, an_aggregate, an_event
from tests.fake_dynamodb import NAMES, FakeDynamo

_AGGREGATE = 10
#: Of live consumption that are measured, after as many that fill the tables.
_SECONDS = 3
#: It hardly varies.
_MEMORY_ROUNDS = 2
_SITE = bench_reads.SITE


@dataclass(frozen=True)
class Sizes:
    """``events`` are those of a batch whose other sizes vary; ``rate``: events/s of all shards together. ``stored``:
    sessions that the tables hold; ``days`` of a site that they hold, with ``of_a_day`` events each.
    ``memory_of_all``: also against sessions and pages, not only against a batch's size; it takes a process each time.
    """

    batches: Sequence[int] = (100, 1_000, 3_000, 10_000, 30_000, 100_000)
    memory: Sequence[int] = (1_000, 3_000, 10_000, 30_000, 100_000)
    sessions: Sequence[int] = (1, 10, 100, 1_000, 3_000, 10_000)
    pages: Sequence[int] = (1, 10, 100, 1_000, 2_000, 6_000, 20_000)
    shards: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    stored: Sequence[int] = (0, 1_000, 10_000, 100_000, 300_000, 1_000_000)
    days: Sequence[int] = (1, 3, 10, 40, 120, 365)
    events: int = 10_000
    rate: int = 6_400
    of_a_day: int = 20_000
    memory_of_all: bool = True
    rounds: int = 3


QUICK = Sizes(
    batches=(100, 400),
    memory=(500, 2_000),
    sessions=(1, 100),
    pages=(1, 100),
    shards=(1, 4),
    stored=(0, 10, 1_000),
    days=(1, 4),
    events=400,
    rate=200,
    of_a_day=400,
    memory_of_all=False,
    rounds=1,
)


def curves(quick: bool) -> list[Curve]:
    """All of them; ``quick`` is too small to mean anything."""
    sizes = QUICK if quick else Sizes()
    return [
        *by_batch(sizes),
        *by_sessions(sizes),
        *by_pages(sizes),
        *by_shards(sizes),
        by_stored_sessions(sizes),
        *by_days(sizes),
    ]


def log(events: int, *, sessions: int, pages: int) -> list[Event]:
    """Page views of one site within a quarter of an hour, dealt out to sessions and to pages."""
    return [
        an_event(
            at,
            site_id=_SITE,
            session_id=f"visit-{at % sessions}",
            timestamp=NOON + at * (QUARTER_MS - 1) // events,
            received_at=NOON + at * (QUARTER_MS - 1) // events + 500,
            source="tab",
            seq=at // sessions + 1,
            page_url=f"https://shop.example/p/{at * 7919 % pages}",  # another page than the session's number has
            user_agent=peak_memory.AGENT,
            country="DE",
            language="de",
        )
        for at in range(events)
    ]


def batch_of(events: Sequence[Event], first: int = 1, shard: int = 0) -> dict[str, Any]:
    """What Lambda hands over: the events in aggregates, from the sequence number ``first`` on."""
    datas = [an_aggregate(events[at : at + _AGGREGATE]) for at in range(0, len(events), _AGGREGATE)]
    return a_lambda_event(datas, first, f"shardId-{shard:012d}")


def by_batch(sizes: Sizes) -> list[Curve]:
    """CPU of batches of more events of one log, its first 10,000 or as many as one batch has; and memory of one batch."""
    some = records(max(*sizes.batches, *sizes.memory))

    def cpu(size: int) -> Callable[[], float]:
        batches = list(live(some[: max(size, sizes.events) // _AGGREGATE], size))
        return lambda: _us_an_event(batches)

    def memory(size: int) -> tuple[int, Callable[[], float]]:
        event = {"Records": some[: size // _AGGREGATE]}
        length = len(json.dumps(event))
        return length, lambda: peak_memory.of_batch(event).on_top / length

    return [
        Curve.of(
            "CPU of a batch",
            "events in a batch",
            "us/event",
            _points({size: cpu(size) for size in sizes.batches}, sizes.rounds, "batch size"),
            of_each=True,
        ),
        Curve.of(
            "memory of a batch",
            "bytes of a batch",
            "bytes/byte",
            _memory_points(dict(map(memory, sizes.memory)), min(_MEMORY_ROUNDS, sizes.rounds), "memory by batch size"),
            of_each=True,
        ),
    ]


def by_sessions(sizes: Sizes) -> list[Curve]:
    """A batch of as many events, of more sessions."""
    events = {n: batch_of(log(sizes.events, sessions=n, pages=100)) for n in sizes.sessions}
    return _of_batches(sizes, events, "sessions in a batch", "sessions")


def by_pages(sizes: Sizes) -> list[Curve]:
    """A batch of as many events, on more pages; and what the roll-up takes in the table."""
    views = max(sizes.events, *sizes.pages)
    events = {n: batch_of(log(views, sessions=views // 10, pages=n)) for n in sizes.pages}

    def stored(event: dict[str, Any]) -> Spread:
        dynamo = FakeDynamo()
        consumed([event["Records"]], "g1", dynamo)
        size = float(sum(len(item["body"]["B"]) for item in dynamo.tables[NAMES.rollups].values() if "body" in item))
        return Spread(size, size, size)

    x = "pages in a quarter"
    points = [Point(n, stored(event)) for n, event in events.items()]
    return [*_of_batches(sizes, events, x, "pages"), Curve.of("stored roll-up", x, "bytes", points)]


def by_shards(sizes: Sizes) -> list[Curve]:
    """As many events a second, over more shards: a batch a second each, in the midst of a quarter, whose roll-ups are full
    of labels by then. And a summary of these, not merged yet.
    """
    a_second = sizes.rate
    before = _SECONDS * a_second
    events = log(2 * before, sessions=max(a_second // 2, 1), pages=1_000)
    seconds = [(first, first + a_second) for first in range(before, 2 * before, a_second)]
    batches = {n: _spread_over(events, n, seconds) for n in sizes.shards}
    tables: dict[int, FakeDynamo] = {}
    for shards in sizes.shards:
        tables[shards] = FakeDynamo()
        consumed(_spread_over(events, shards, [(0, before)]), "g1", tables[shards])

    def read(shards: int) -> Callable[[], float]:
        dynamo = _copied(tables[shards])
        consumed(batches[shards], "g1", dynamo)
        client = bench_reads.Items(iter(dynamo.tables[NAMES.rollups].values()))
        path = f"/api/statistics/summary/?site={_SITE}&from={NOON}&to={NOON + QUARTER_MS}"
        return lambda: _read(client, path, len(events))

    return [
        Curve.of(
            "CPU of consuming",
            "shards for the same events/s",
            "us/event",
            _points(
                {n: lambda n=n: _us_an_event(batches[n], _copied(tables[n])) for n in sizes.shards},  # type: ignore[misc]
                sizes.rounds,
                "shards",
            ),
        ),
        Curve.of(
            "CPU of a cold summary",
            "shards of a quarter not merged",
            "ms",
            _points({n: read(n) for n in sizes.shards}, sizes.rounds, "reads by shards"),
        ),
    ]


def by_stored_sessions(sizes: Sizes) -> Curve:
    """A batch into tables that hold more sessions already, as many chunks of events, and a tenth as many roll-ups."""
    batch = batch_of(log(sizes.events, sessions=sizes.events // 5, pages=100))["Records"]
    made = FakeDynamo()
    consumed([batch], "g1", made)
    # Nobody looks at them, so one item stands for all.
    some = {table: next(iter(rows.items())) for table, rows in made.tables.items() if rows}

    def cpu(sessions: int) -> Callable[[], float]:
        held = {
            table: {(f"{pk}-{n}", sk): item for n in range(sessions // (10 if table == NAMES.rollups else 1))}
            for table, ((pk, sk), item) in some.items()
        }

        filled = FakeDynamo()
        filled.tables |= held
        return lambda: _us_an_event([batch], _copied(filled))

    points = _points({n: cpu(n) for n in sizes.stored}, sizes.rounds, "size of the tables")
    return Curve.of("CPU of a batch", "sessions in the tables", "us/event", points)


def by_days(sizes: Sizes) -> list[Curve]:
    """A cold summary of a day of tables that hold more days, and of more days of the largest of them."""
    clients = {n: bench_reads.tables(sizes.of_a_day, n) for n in sizes.days}
    most, of_a_day = clients[max(sizes.days)]
    at_midnight = bench_reads.END

    def path(days: int) -> str:
        start = at_midnight - days * DAY_MS
        return f"/api/statistics/summary/?site={_SITE}&from={start}&to={at_midnight}"

    def read(client: bench_reads.Items, days: int) -> Callable[[], float]:
        return lambda: _read(client, path(days), days * of_a_day)

    rounds, y, name = sizes.rounds, "ms", "CPU of a cold summary"
    of_one_day = {n: read(client, 1) for n, (client, _) in clients.items()}
    of_more = {n: read(most, n) for n in sizes.days}
    return [
        Curve.of(
            f"{name} of a day", "days in the tables", y, _points(of_one_day, rounds, "reads by size of the tables")
        ),
        Curve.of(name, "days of the range", y, _points(of_more, rounds, "reads by range")),
    ]


def _points(measures: Mapping[int, Callable[[], float]], rounds: int, what: str) -> list[Point]:
    found = in_turns({str(x): measure for x, measure in measures.items()}, rounds, what, warm=rounds > 1)
    return [Point(x, Spread.of(found[str(x)])) for x in measures]


def _memory_points(measures: Mapping[int, Callable[[], float]], rounds: int, what: str) -> list[Point]:
    """Each in processes of its own, which have nothing to warm."""
    some = tqdm(measures.items(), desc=what, unit="size", disable=None, leave=False)
    return [Point(x, Spread.of([measure() for _ in range(rounds)])) for x, measure in some]


def _of_batches(sizes: Sizes, events: Mapping[int, dict[str, Any]], x: str, what: str) -> list[Curve]:
    cpu = {n: lambda some=event["Records"]: _us_an_event([some]) for n, event in events.items()}  # type: ignore[misc]
    memory = {n: lambda some=event: peak_memory.of_batch(some).on_top / 1e6 for n, event in events.items()}  # type: ignore[misc]
    found = [Curve.of("CPU of a batch", x, "us/event", _points(cpu, sizes.rounds, what))]
    if sizes.memory_of_all:
        found.append(
            Curve.of("memory of a batch", x, "MB", _memory_points(memory, _MEMORY_ROUNDS, f"memory by {what}"))
        )
    return found


def _us_an_event(batches: Sequence[Sequence[dict[str, Any]]], dynamo: FakeDynamo | None = None) -> float:
    seconds, events, _ = consumed(batches, "g1", dynamo)
    return seconds / events * 1e6


def _read(client: bench_reads.Items, path: str, events: int) -> float:
    with without_collection():  # it would look through this process' tables, which no server holds
        seconds, answer = bench_reads.cold(client, path)
    assert answer["total_events"] == events, (answer["total_events"], events)
    return seconds * 1000


def _spread_over(
    events: Sequence[Event], shards: int, stretches: Sequence[tuple[int, int]]
) -> list[list[dict[str, Any]]]:
    """A batch of each shard for each stretch of the events, of sessions that each lie in one shard."""
    batches = []
    for first, last in stretches:
        by_shard: dict[int, list[Event]] = defaultdict(list)
        for event in events[first:last]:
            # A session's number, as log() deals them out, says where it lies.
            by_shard[int(event.session_id.removeprefix("visit-")) % shards].append(event)
        batches += [batch_of(some, 1 + first, shard)["Records"] for shard, some in sorted(by_shard.items())]
    return batches


def _copied(dynamo: FakeDynamo) -> FakeDynamo:
    """Tables of their own with the same items, which are replaced and never changed."""
    copy = FakeDynamo()
    for table, rows in dynamo.tables.items():
        copy.tables[table] = rows.copy()
    return copy
