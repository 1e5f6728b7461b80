"""Roll-ups merged over shards and time: what an hour and a day are read from, instead of hundreds of quarters.

An hour, and then a day, is merged into several parts, an item each: ``totals``, and one for each
counter, so that a reader of a year of referrers reads referrers. Each is a function of the roll-ups
it is made of: merged again it is the same, byte for byte.

What a time zone's day needs is kept finer: a day's totals by the quarter of an hour, an hour's by the
minute. Distinct visitors do not add up: a day has them for the whole day, an hour for each quarter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import add
from typing import TypeVar

from msgspec import Struct, field

from stream_consumer.rollup import (
    EVENT_DIMENSIONS,
    EVENT_MEASURES,
    MINUTE_MS,
    QUARTER_MS,
    SESSION_DIMENSIONS,
    SESSION_MEASURES,
    Counter,
    RollUp,
    split_conversion,
)
from stream_consumer.visitors import Visitors

HOUR_MS = 4 * QUARTER_MS
DAY_MS = 24 * HOUR_MS

#: The part of a merged stretch that holds what is counted of the whole site.
TOTALS = "totals"
#: The parts that hold a counter each.
COUNTERS = (*SESSION_DIMENSIONS, *EVENT_DIMENSIONS)
#: Labels that a merged counter holds apart: with the longest labels there are, it still fits into an item.
MAX_LABELS = 2000

_Key = TypeVar("_Key")


class Totals(Struct, array_like=True):
    """What is counted of a whole site from ``start`` (ms) on.

    ``happened`` (EVENT_MEASURES) and ``began`` (SESSION_MEASURES of the sessions that began) have a row for each
    ``step`` (ms); ``durations`` (sessions by bucket) and ``values`` (millionths by currency) one for each quarter of
    an hour. ``visitors`` is one set of the whole, or one for each quarter. ``received``: the latest arrival (ms).
    """

    start: int
    step: int
    happened: list[list[int]]
    began: list[list[int]]
    durations: list[dict[str, int]]
    values: list[dict[str, int]]
    visitors: list[bytes]
    received: int = 0

    @property
    def end(self) -> int:
        """Where it ends, in ms."""
        return self.start + self.step * len(self.happened)


class Labels(Struct, array_like=True):
    """A counter of a stretch of time from ``start`` (ms) on; ``received``: the latest arrival (ms) in the stretch."""

    start: int
    counter: Counter = field(default_factory=Counter)
    received: int = 0


def totals_of(rollup: RollUp) -> Totals:
    """The totals of one roll-up."""
    values: dict[str, int] = {}
    conversions = rollup.counters.get("conversion") or Counter()
    for label, (_, micros) in conversions.rows.items():
        currency, _ = split_conversion(label)
        values[currency] = values.get(currency, 0) + micros
    if conversions.other:
        values["other"] = values.get("other", 0) + conversions.other[1]
    return Totals(
        rollup.quarter,
        MINUTE_MS,
        rollup.minutes,
        rollup.began,
        [rollup.durations],
        [{currency: micros for currency, micros in values.items() if micros}],
        [rollup.visitors],
        rollup.received,
    )


def labels_of(rollup: RollUp, dimension: str) -> Labels:
    """One counter of a roll-up."""
    return Labels(rollup.quarter, rollup.counters.get(dimension) or Counter(), rollup.received)


def hour_totals(start: int, quarters: Iterable[Totals]) -> Totals:
    """The totals of the hour from ``start`` on, of totals of its quarters (of any shards)."""
    merged = Totals(
        start,
        MINUTE_MS,
        _zeros(HOUR_MS // MINUTE_MS, EVENT_MEASURES),
        _zeros(HOUR_MS // MINUTE_MS, SESSION_MEASURES),
        [{} for _ in range(4)],
        [{} for _ in range(4)],
        [],
    )
    visitors = [Visitors() for _ in range(4)]
    for part in quarters:
        first = (part.start - start) // MINUTE_MS
        for at, (happened, began) in enumerate(zip(part.happened, part.began, strict=True), first):
            merged.happened[at] = list(map(add, merged.happened[at], happened))
            merged.began[at] = list(map(add, merged.began[at], began))
        quarter = (part.start - start) // QUARTER_MS
        _add_up(merged.durations[quarter], part.durations[0])
        _add_up(merged.values[quarter], part.values[0])
        visitors[quarter].merge_bytes(part.visitors[0])
        merged.received = max(merged.received, part.received)
    merged.visitors = [one.to_bytes() for one in visitors]
    return merged


def day_totals(start: int, hours: Iterable[Totals]) -> Totals:
    """The totals of the UTC day from ``start`` on, of totals of its hours."""
    merged = Totals(
        start,
        QUARTER_MS,
        _zeros(DAY_MS // QUARTER_MS, EVENT_MEASURES),
        _zeros(DAY_MS // QUARTER_MS, SESSION_MEASURES),
        [{} for _ in range(DAY_MS // QUARTER_MS)],
        [{} for _ in range(DAY_MS // QUARTER_MS)],
        [],
    )
    visitors = Visitors()
    steps = QUARTER_MS // MINUTE_MS
    for hour in hours:
        first = (hour.start - start) // QUARTER_MS
        for part in range(4):
            rows = slice(part * steps, (part + 1) * steps)
            merged.happened[first + part] = columns(hour.happened[rows])
            merged.began[first + part] = columns(hour.began[rows])
            merged.durations[first + part] = hour.durations[part]
            merged.values[first + part] = hour.values[part]
            visitors.merge_bytes(hour.visitors[part])
        merged.received = max(merged.received, hour.received)
    merged.visitors = [visitors.to_bytes()]
    return merged


def merge_labels(start: int, parts: Iterable[Labels]) -> Labels:
    """The sum of counters; of more than MAX_LABELS labels, the greatest by their first measure are held apart."""
    merged = Labels(start)
    rows = merged.counter.rows
    for part in parts:
        for label, amounts in part.counter.rows.items():
            row = rows.get(label)
            rows[label] = list(amounts) if row is None else list(map(add, row, amounts))
        _add_other(merged.counter, part.counter.other)
        merged.received = max(merged.received, part.received)
    if len(rows) > MAX_LABELS:
        ranked = sorted(rows.items(), key=lambda row: (-row[1][0], row[0]))
        merged.counter.rows = dict(ranked[:MAX_LABELS])
        for _, amounts in ranked[MAX_LABELS:]:
            _add_other(merged.counter, amounts)
    return merged


def columns(rows: Sequence[Sequence[int]]) -> list[int]:
    """The sums of the columns of rows of equal length; there is at least one row."""
    return list(map(sum, zip(*rows, strict=True)))


def _zeros(rows: int, measures: Sequence[str]) -> list[list[int]]:
    return [[0] * len(measures) for _ in range(rows)]


def _add_other(counter: Counter, amounts: Sequence[int]) -> None:
    if amounts:
        counter.other = list(map(add, counter.other, amounts)) if counter.other else list(amounts)


def _add_up(sums: dict[_Key, int], more: Mapping[_Key, int]) -> None:
    for key, amount in more.items():
        sums[key] = sums.get(key, 0) + amount
