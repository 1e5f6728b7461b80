"""Bytes and PUT payload units of 1,000,000 events on the stream: what Kinesis bills, and what a shard can take.

A PUT payload unit is 25 KB of one record, rounded up (https://aws.amazon.com/kinesis/data-streams/pricing/). Nothing
is measured: the producer's own batcher packs real events, and time is a number. So the figures are the same each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from producer.batching import ENTRY_OVERHEAD, Batch, Batcher, lane_of
from producer.client import ProducerSettings
from producer.event import encode
from tests.benchmarks.api_data import Plan, events_of
from tests.benchmarks.measuring import Ratio, Row, Spread

NOW = 1_772_323_200_000
EVENTS = 1_000_000
#: Bytes.
PUT_UNIT = 25 * 1024
#: Events/s that come evenly to one process while it keeps up.
RATES = (1_000, 10_000, 100_000)
#: Seconds of one PutRecords call; what comes meanwhile waits for the next one.
CALL = 0.02

_BULK = "a backlog"
_PLAIN = "un-aggregated"


@dataclass
class Bill:
    """What some events are on the stream. Bytes are those of data and partition keys, as Kinesis counts them."""

    events: int = 0
    records: int = 0
    bytes: int = 0
    units: int = 0

    def add(self, events: int, size: int) -> None:
        """Count one record."""
        self.events += events
        self.records += 1
        self.bytes += size
        self.units += -(-size // PUT_UNIT)

    def of(self, figure: str) -> float:
        """``figure`` of EVENTS such events."""
        return float(getattr(self, figure)) * EVENTS / self.events


#: An event's bytes, its lane, and its session.
_Sent = tuple[bytes, int, str]


def rows(quick: bool) -> list[Row]:
    """The rows of the table: units, and bytes."""
    settings = ProducerSettings()
    some = [
        (encode(event), lane_of(event.session_id, settings.lanes), event.session_id)
        for event in events_of(Plan(5_000 if quick else 100_000, NOW, shards=1), 0)
    ]
    # A day's events come here within seconds or minutes: as they are, few sessions would have most of them meanwhile.
    random.Random(1).shuffle(some)
    plain = Bill()
    for data, _, session in some:
        plain.add(1, len(data) + len(session))
    bills = {_BULK: backlog(islice(cycle(some), 30_000 if quick else EVENTS), settings)}
    for rate in RATES:
        # For half a second at least: what waits at the end is not counted.
        bills[f"{rate:,}/s live"] = live(islice(cycle(some), max(len(some), rate // 2)), rate, settings)
    bills[_PLAIN] = plain
    return [
        _row("PUT units", "units", bills, bound=1 / 40, note=_note(bills, settings)),
        _row("bytes", "bytes", bills, note="Of data and partition keys; PutRecords sends 4/3 of them, as base64."),
    ]


def _row(what: str, figure: str, bills: dict[str, Bill], *, note: str, bound: float | None = None) -> Row:
    figures = {way: bill.of(figure) for way, bill in bills.items()}
    return Row(
        name=f"{what} for {EVENTS:,} events",
        unit=what,
        ours=_BULK,
        figures={way: Spread.of([value]) for way, value in figures.items()},
        ratios=[
            Ratio(
                _PLAIN if way == _BULK else f"{_PLAIN}, {way}",
                Spread.of([value / figures[_PLAIN]]),
                bound if way == _BULK else None,
                at_most=True,
            )
            for way, value in figures.items()
            if way != _PLAIN
        ],
        note=note,
    )


def _note(bills: dict[str, Bill], settings: ProducerSettings) -> str:
    held = ", ".join(f"{bill.events / bill.records:.1f} ({way})" for way, bill in bills.items() if way != _PLAIN)
    return (
        f"Computed, with events of {bills[_PLAIN].bytes / bills[_PLAIN].events:.0f} bytes. Events in a record: {held}."
        f" What comes live waits for {settings.linger * 1000:.0f} ms and shares it with its lane alone, of"
        f" {settings.lanes}: so it is the rate of one process that fills records."
    )


def backlog(sent: Iterable[_Sent], settings: ProducerSettings) -> Bill:
    """Events that are all there: the buffer is as full as it may be before each call, as when a log is imported."""
    bill, batcher = Bill(), _batcher(settings)
    for data, lane, _ in sent:
        if batcher.buffered + len(data) + ENTRY_OVERHEAD > settings.max_buffer_bytes:
            _settle(batcher, batcher.take(0.0), bill)
        batcher.add(data, lane, None, 0.0)
    while batcher:
        _settle(batcher, batcher.take(0.0), bill)
    return bill


def live(sent: Iterable[_Sent], rate: int, settings: ProducerSettings) -> Bill:
    """Events that come at ``rate`` a second, with one call at a time."""
    bill, batcher = Bill(), _batcher(settings)
    under_way: list[Batch[None]] = []
    answered = 0.0
    for number, (data, lane, _) in enumerate(sent):
        now = number / rate
        if under_way and answered <= now:
            _settle(batcher, under_way, bill)
            under_way = []
        # Looked at as each event comes, so at rates of some hundred the linger is longer by the time to the next.
        if not under_way and batcher and batcher.due() <= now:
            under_way = batcher.take(now)
            answered = now + CALL
        batcher.add(data, lane, None, now)
    return bill


def _batcher(settings: ProducerSettings) -> Batcher[None]:
    return Batcher(
        lanes=settings.lanes,
        linger=settings.linger,
        deadline=float("inf"),
        max_aggregate_bytes=settings.max_aggregate_bytes,
        max_aggregate_events=settings.max_aggregate_events,
    )


def _settle(batcher: Batcher[None], batches: Sequence[Batch[None]], bill: Bill) -> None:
    for batch in batches:
        bill.add(len(batch.payloads), batch.size)
        batcher.settle(batch)
