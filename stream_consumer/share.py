"""What a batch adds to one roll-up, as sums: what a session or an event counts is looked up once for many of them."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from operator import add

from producer.event import CONVERSION, PAGE_VIEW, Event
from stream_consumer.acquisition import page_of
from stream_consumer.rollup import (
    EVENT_MEASURES,
    LABEL_GROUPS,
    MINUTE_MS,
    MINUTES,
    OPTIONAL_DIMENSIONS,
    SESSION_DIMENSIONS,
    SESSION_MEASURES,
    Standing,
    bounded,
    conversion_of,
    landing_labels,
    visitor_of,
)
from stream_consumer.session import Landing

# The measures of a session in one number, of 64 bits each, so that one addition adds them all.
_measures = struct.Struct(f"<{len(SESSION_MEASURES)}Q")
# What keeps each of them above 0 while it is taken out, as sums of differences may be below.
_BIAS = 1 << 62
_BIASES = int.from_bytes(_measures.pack(*[_BIAS] * len(SESSION_MEASURES)), "little")


def _pack(amounts: tuple[int, ...]) -> int:
    """Of measures of one session, none of which is below 0."""
    return int.from_bytes(_measures.pack(*amounts), "little")


def _unpack(packed: int) -> list[int]:
    """The inverse of :func:`_pack`, and of any sum of what it returns as long as no measure takes more than 62 bits."""
    return [amount - _BIAS for amount in _measures.unpack((packed + _BIASES).to_bytes(_measures.size, "little"))]


class Passed:
    """The labels that sessions of a site may have had on their way through a batch, besides before and after it."""

    def __init__(self) -> None:
        self._labels: dict[str, set[str]] = {dimension: set() for dimension in SESSION_DIMENSIONS}

    def add_landing(self, landing: Landing) -> None:
        """A session had this landing."""
        for group, labels in zip(LABEL_GROUPS, landing_labels(landing), strict=True):
            for dimension, label in zip(group, labels, strict=True):
                self._labels[dimension].add(label)
        self._labels["exit_page"].add("")  # until its first page view

    def add_pages(self, pages: Set[str]) -> None:
        """Sessions were at these pages."""
        for dimension in ("entry_page", "exit_page"):
            self._labels[dimension] |= pages

    def of(self, dimension: str) -> Set[str]:
        """The labels of one session dimension."""
        return self._labels[dimension]


class Share:
    """What a batch adds to one roll-up, whatever the order in which it came: sums of its events, and for each of its
    sessions the difference between what it stood for and what it stands for.
    """

    __slots__ = ("_began", "_events", "_moves", "durations", "passed", "visitors")

    def __init__(self, passed: Passed) -> None:
        self.passed = passed
        self._events: list[Event] = []
        self.visitors: set[str] = set()
        self._moves: list[tuple[tuple[tuple[str, ...], ...], int]] = []  # labels, and the packed amounts that they get
        self._began: defaultdict[int, int] = defaultdict(int)
        self.durations: defaultdict[str, int] = defaultdict(int)

    def count_events(self, events: Sequence[Event]) -> None:
        """Count applied events, at least one, of this quarter and of one session."""
        self._events.extend(events)
        session_id = events[0].session_id
        self.visitors.update([visitor_of(user_id, session_id) for user_id in {event.user_id for event in events}])

    def move_session(self, before: Standing | None, after: Standing | None) -> None:
        """A session stood for ``before``, and stands for ``after``; either in this quarter, or None."""
        if before:
            packed = _pack(before.amounts)
            self._moves.append((before.labels, -packed))
            self._began[before.minute] -= packed
            self.durations[before.duration] -= 1
        if after:
            packed = _pack(after.amounts)
            self._moves.append((after.labels, packed))
            self._began[after.minute] += packed
            self.durations[after.duration] += 1

    @property
    def received(self) -> int:
        """The latest arrival of its events (ms), 0 without any."""
        return max([event.received_at for event in self._events], default=0)

    def pages(self) -> set[str]:
        """The labels of the pages that were viewed."""
        return {bounded(page_of(event.page_url)) for event in self._events if event.event_type == PAGE_VIEW}

    def event_sums(self) -> tuple[list[list[int]], dict[str, dict[str, tuple[int, ...]]]]:
        """EVENT_MEASURES of each minute; and by event dimension and label, the sums of its measures."""
        minutes = [[0] * len(EVENT_MEASURES) for _ in range(MINUTES)]
        kinds: dict[str, int] = {}
        of_minutes = Counter([(event.event_type, event.timestamp // MINUTE_MS) for event in self._events])
        for (kind, minute), count in of_minutes.items():
            kinds[kind] = kinds.get(kind, 0) + count
            row = minutes[minute % MINUTES]
            row[0] += count
            if kind == PAGE_VIEW:
                row[1] += count
            elif kind == CONVERSION:
                row[2] += count
        viewed = Counter([event.page_url for event in self._events if event.event_type == PAGE_VIEW])
        conversions = [event for event in self._events if event.event_type == CONVERSION] if CONVERSION in kinds else ()
        return minutes, {
            "event_type": _summed((bounded(kind), (count,)) for kind, count in kinds.items()),
            "page": _summed((bounded(page_of(url)), (count,)) for url, count in viewed.items()),
            "conversion": _summed(map(conversion_of, conversions)),
        }

    def began(self) -> dict[int, list[int]]:
        """SESSION_MEASURES of the sessions begun in each minute, less what they were before."""
        return {minute: _unpack(packed) for minute, packed in self._began.items()}

    def session_sums(self) -> dict[str, dict[str, list[int]]]:
        """By session dimension and label, the sums of SESSION_MEASURES."""
        found: dict[str, dict[str, list[int]]] = {}
        for at, group in enumerate(LABEL_GROUPS):
            grouped: defaultdict[tuple[str, ...], int] = defaultdict(int)
            for labels, packed in self._moves:
                grouped[labels[at]] += packed
            for place, dimension in enumerate(group):
                sums: defaultdict[str, int] = defaultdict(int)
                for labels_of_group, packed in grouped.items():
                    sums[labels_of_group[place]] += packed
                if dimension in OPTIONAL_DIMENSIONS:
                    sums.pop("", None)
                found[dimension] = {label: _unpack(packed) for label, packed in sums.items()}
        return found


def _summed(amounts: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for label, more in amounts:
        known = found.get(label)
        found[label] = more if known is None else tuple(map(add, known, more))
    return found
