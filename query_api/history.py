"""Figures of stretches of time, from the fewest stored items that hold them.

A stretch is covered by merged days, where it reaches over whole ones, by merged hours, and by quarters at its
ends and where something came since the last merge (see :mod:`stream_consumer.compaction`): what is marked as
changed is read as the consumer wrote it, so figures are never those of an old merge.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import add

from query_api.definitions import DIMENSIONS
from query_api.parameters import Span
from query_api.reader import Marks, Reader
from query_api.statistics import Began, Breakdown, Figures
from stream_consumer.merged import DAY_MS, HOUR_MS, Labels, Totals, columns, labels_of, totals_of
from stream_consumer.rollup import (
    EVENT_MEASURES,
    QUARTER_MS,
    SESSION_MEASURES,
    conversion_label,
    split_conversion,
)
from stream_consumer.visitors import Visitors


@dataclass
class Cover:
    """The starts (ms) of the merged days and hours, and of the quarters, that make up a stretch."""

    days: list[int] = field(default_factory=list)
    hours: list[int] = field(default_factory=list)
    quarters: list[int] = field(default_factory=list)


def cover(borders: Sequence[int], marks: Marks, *, fine_days: bool = False, fine_hours: bool = False) -> Cover:
    """What to read to tell what is between each two ``borders`` (ms, ascending).

    A day or hour with a border inside cannot be told apart, unless it is fine: a fine day is told by its quarters,
    a fine hour by its minutes.
    """
    chosen = Cover()
    at, end = borders[0], borders[-1]
    while at < end:
        if at % DAY_MS == 0 and at + DAY_MS <= end and not marks.in_day(at) and _uncut(borders, at, DAY_MS, fine_days):
            chosen.days.append(at)
            at += DAY_MS
        elif (
            at % HOUR_MS == 0
            and at + HOUR_MS <= end
            and not marks.in_hour(at)
            and (fine_hours or _uncut(borders, at, HOUR_MS, fine=False))
        ):
            chosen.hours.append(at)
            at += HOUR_MS
        else:
            chosen.quarters.append(at)
            at += QUARTER_MS
    return chosen


def _uncut(borders: Sequence[int], start: int, length: int, fine: bool) -> bool:
    inside = borders[bisect_right(borders, start) : bisect_right(borders, start + length - 1)]
    return not inside or (fine and not any(border % QUARTER_MS for border in inside))


class History:
    """What is stored of a site's past, read and summed."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def over_time(self, site_id: str, borders: Sequence[int], *, visitors: bool = True) -> list[Figures]:
        """The figures between each two ``borders`` (ms, ascending; whole minutes, the outermost whole quarters).

        Of stretches with a border inside a quarter of an hour, what is kept by the quarter is left out: visitors,
        durations, values. Without ``visitors`` they are left out too, which needs fewer items.
        """
        sums = [_Sums() for _ in borders[1:]]
        marks = self._reader.marks(site_id, borders[0], borders[-1])
        chosen = cover(borders, marks, fine_days=not visitors, fine_hours=True)
        merged = self._reader.merged_totals(site_id, chosen.days, chosen.hours)
        for part in chain(merged, map(totals_of, self._reader.rollups(site_id, chosen.quarters))):
            _add_totals(sums, borders, part, visitors)
        return [one.figures() for one in sums]

    def over_time_of(self, site_id: str, borders: Sequence[int], dimension: str, label: str) -> list[Figures]:
        """The figures of one label of a dimension between each two ``borders`` (ms, ascending, whole quarters)."""
        sums = [Figures() for _ in borders[1:]]
        wanted = DIMENSIONS[dimension]
        for part in self._labels(site_id, borders, wanted.stored):
            into = sums[bisect_right(borders, part.start) - 1]
            into.received = max(into.received, part.received)
            for stored, row in part.counter.rows.items():
                if _label(dimension, stored) == label:
                    _add_row(into, wanted.stored, stored, row)
        return sums

    def by_label(self, site_id: str, span: Span, dimension: str) -> Breakdown:
        """The figures of every label of a dimension. ``dimension`` is one of DIMENSIONS' names."""
        stored = DIMENSIONS[dimension].stored
        sums: dict[str, list[int]] = {}
        other: list[int] = []
        found = Breakdown()
        for part in self._labels(site_id, span, stored):
            for label, row in part.counter.rows.items():
                held = sums.get(label)
                sums[label] = row if held is None else list(map(add, held, row))
            if part.counter.other:
                other = list(map(add, other, part.counter.other)) if other else part.counter.other
            found.received = max(found.received, part.received)
        for label, row in sums.items():
            if any(row):
                _add_row(found.rows.setdefault(_label(dimension, label), Figures()), stored, label, row)
        if any(other):
            found.other = Figures()
            _add_row(found.other, stored, conversion_label("other", "") if stored == "conversion" else "", other)
        return found

    def _labels(self, site_id: str, borders: Sequence[int], stored: str) -> Iterator[Labels]:
        marks = self._reader.marks(site_id, borders[0], borders[-1])
        chosen = cover(borders, marks)
        merged = self._reader.merged_labels(site_id, stored, chosen.days, chosen.hours)
        rollups = self._reader.rollups(site_id, chosen.quarters)
        return chain(merged, (labels_of(rollup, stored) for rollup in rollups))


class _Sums:
    """Figures while they are summed."""

    def __init__(self) -> None:
        self.happened = [0] * len(EVENT_MEASURES)
        self.began = [0] * len(SESSION_MEASURES)
        self.durations: dict[str, int] = {}
        self.values: dict[str, int] = {}
        self.visitors = Visitors()
        self.received = 0

    def add(self, happened: Sequence[int], began: Sequence[int]) -> None:
        self.happened = list(map(add, self.happened, happened))
        self.began = list(map(add, self.began, began))

    def figures(self) -> Figures:
        events, page_views, conversions = self.happened
        began = Began(*self.began)
        return Figures(
            events, page_views, conversions, began, self.durations, self.values, self.visitors, self.received
        )


def _add_totals(sums: Sequence[_Sums], borders: Sequence[int], part: Totals, visitors: bool) -> None:
    first = bisect_right(borders, part.start) - 1
    if part.end <= borders[first + 1]:
        sums[first].add(columns(part.happened), columns(part.began))
    else:
        for row, (happened, began) in enumerate(zip(part.happened, part.began, strict=True)):
            sums[bisect_right(borders, part.start + row * part.step) - 1].add(happened, began)
    for quarter, (durations, values) in enumerate(zip(part.durations, part.values, strict=True)):
        start = part.start + quarter * QUARTER_MS
        at = bisect_right(borders, start) - 1
        into = sums[at]
        into.received = max(into.received, part.received)
        if start + QUARTER_MS > borders[at + 1]:
            continue
        _add_up(into.durations, durations)
        _add_up(into.values, values)
        if visitors and len(part.visitors) > 1:
            into.visitors.merge_bytes(part.visitors[quarter])
    if visitors and len(part.visitors) == 1 and part.end <= borders[first + 1]:
        sums[first].visitors.merge_bytes(part.visitors[0])


def _add_row(into: Figures, stored: str, label: str, row: Sequence[int]) -> None:
    """Add the row of a stored counter's label."""
    if stored == "page":
        into.page_views += row[0]
    elif stored == "event_type":
        into.events += row[0]
    elif stored == "conversion":
        into.conversions += row[0]
        _add_up(into.values, {split_conversion(label)[0]: row[1]})
    else:
        into.began = Began(*map(add, into.began, row))
        into.events, into.page_views, into.conversions = into.began[3:6]


def _label(dimension: str, stored: str) -> str:
    """The label of a dimension that a stored counter's label stands for."""
    if dimension == "currency":
        return split_conversion(stored)[0]
    return split_conversion(stored)[1] if dimension == "conversion_type" else stored


def _add_up(sums: dict[str, int], more: Mapping[str, int]) -> None:
    for key, amount in more.items():
        sums[key] = sums.get(key, 0) + amount
