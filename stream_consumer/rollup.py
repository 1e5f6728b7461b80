"""The roll-up: what happened on one site in one quarter of an hour, as seen by one shard.

Two kinds of figure add up in it. An **event** counts in the quarter (and minute) of its event time.
A **session** counts in the quarter in which it began; when it changes, the roll-up gets the
difference, so a bounce undone is -1. Everything is a sum of whole numbers or a union, so roll-ups
of shards and quarters merge into those of a day or a site by adding.
"""

from __future__ import annotations

import struct
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache
from operator import add
from typing import Any

from msgspec import Struct, field

from producer.event import CONVERSION, PAGE_VIEW, Event
from stream_consumer.acquisition import Acquisition, page_of
from stream_consumer.durations import bucket_of
from stream_consumer.session import MICROS, Landing, Session
from stream_consumer.user_agent import Agent
from stream_consumer.visitors import Visitors

#: The span of one roll-up in ms. Time zones' offsets are multiples of it, so quarters add up to any local day.
QUARTER_MS = 15 * 60 * 1000
MINUTE_MS = 60 * 1000
MINUTES = QUARTER_MS // MINUTE_MS

#: What is counted of an event, for each minute.
EVENT_MEASURES = ("events", "page_views", "conversions")
#: What is counted of a session, for each minute and for each label of a session dimension. Times in ms;
#: ``converted`` is 1 if it has a conversion.
SESSION_MEASURES = ("sessions", "bounces", "duration", "events", "page_views", "conversions", "converted")

#: Dimensions whose labels count sessions, with how many labels a roll-up holds apart.
SESSION_DIMENSIONS = {
    "entry_page": 400,
    "exit_page": 400,
    "referrer": 300,
    "source": 200,
    "channel": 16,
    "utm_source": 100,
    "utm_medium": 100,
    "utm_campaign": 100,
    "utm_term": 100,
    "utm_content": 100,
    "country": 260,
    "language": 100,
    "device": 8,
    "browser": 100,
    "os": 100,
}
#: Dimensions whose labels count events: (what, labels held apart, measures).
EVENT_DIMENSIONS = {
    "page": (400, ("page_views",)),
    "event_type": (100, ("events",)),
    "conversion": (200, ("conversions", "micros")),
}
#: What a label of the dimension ``conversion`` is made of: sums of money add up within a currency only.
_BETWEEN = "\x1f"
#: A label longer than this many bytes of UTF-8 is cut: a roll-up stays far below DynamoDB's 400 KB.
MAX_LABEL_BYTES = 128
# Campaign labels count only where they are set; elsewhere '' is a label too (direct, unknown).
_OPTIONAL = frozenset(name for name in SESSION_DIMENSIONS if name.startswith("utm_"))
_PAGES = frozenset({"entry_page", "exit_page"})
# Dimensions whose labels come together: sessions of equal ones are summed before they are taken apart.
_GROUPS = (
    ("entry_page",),
    ("exit_page",),
    ("referrer", "source", "channel", "utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"),
    ("country",),
    ("language",),
    ("device", "browser", "os"),
)


class Counter(Struct, array_like=True):
    """Sums for each label, bounded. The first labels to come, up to a limit, have rows of their own;
    once one finds no room no more are admitted and ``other`` takes the rest, so that a later
    difference always meets the row that its sum went to, and the total is always right. From then on rows stay, also
    at 0: what is in them does not depend on the order of what is added.
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    other: list[int] = field(default_factory=list)

    def add(self, label: str, amounts: Sequence[int], room: int) -> None:
        """Add ``amounts``, one for each measure, to the label's row."""
        row = self.rows.get(label)
        if row is not None:
            self.rows[label] = row = list(map(add, row, amounts))
        elif not self.other and len(self.rows) < room:
            self.rows[label] = row = list(amounts)
        else:
            self.other = list(map(add, self.other, amounts)) if self.other else list(amounts)
            return
        if not self.other and not any(row):
            del self.rows[label]

    def has_room(self, labels: Set[str], room: int) -> bool:
        """Whether adding to ``labels`` gives the same in any order."""
        return bool(self.other) or len(self.rows) + len(labels) <= room or len(self.rows.keys() | labels) <= room


_EMPTY = Counter()


class RollUp(Struct, array_like=True):
    """``minutes`` holds EVENT_MEASURES for each minute, ``began`` SESSION_MEASURES of the sessions begun in
    each; ``durations`` the histogram of how long these lasted (:mod:`stream_consumer.durations`);
    ``received`` is the latest arrival counted, in ms.
    """

    site_id: str
    quarter: int
    shard_id: str
    minutes: list[list[int]] = field(default_factory=lambda: [[0] * len(EVENT_MEASURES) for _ in range(MINUTES)])
    began: list[list[int]] = field(default_factory=lambda: [[0] * len(SESSION_MEASURES) for _ in range(MINUTES)])
    durations: dict[str, int] = field(default_factory=dict)
    counters: dict[str, Counter] = field(default_factory=dict)
    visitors: bytes = b""
    received: int = 0

    def counter(self, dimension: str) -> Counter:
        """The counter of a dimension, made when first asked for."""
        counter = self.counters.get(dimension)
        if counter is None:
            counter = self.counters[dimension] = Counter()
        return counter


class Standing(Struct, frozen=True):
    """What a session adds to roll-ups as it stands: where, under which labels (a group of them for each of _GROUPS),
    how much, and in which bucket of the durations.
    """

    quarter: int
    minute: int
    labels: tuple[tuple[str, ...], ...]
    amounts: tuple[int, ...]
    duration: str


def quarter_of(at: int) -> int:
    """The start (ms) of the quarter of an hour in which ``at`` (ms) lies."""
    return at - at % QUARTER_MS


def standing(session: Session) -> Standing | None:
    """The session's share of the roll-ups, a function of the session alone; None before its first event."""
    if not session.events:
        return None
    landing, start, page_views, conversions = session.landing, session.start, session.page_views, session.conversions
    duration = session.end - start
    return Standing(
        start - start % QUARTER_MS,
        start % QUARTER_MS // MINUTE_MS,
        _landing_labels(landing, _page_label(session.exit.page_url)),
        (1, int(session.bounced), duration, session.events, page_views, conversions, 1 if conversions else 0),
        bucket_of(duration),
    )


_NO_PAGE = ("",)


def _landing_labels(landing: Landing, exit_page: tuple[str] = _NO_PAGE) -> tuple[tuple[str, ...], ...]:
    """In the order of _GROUPS."""
    return (
        _page_label(landing.page_url) if landing.at[0] == 0 else _NO_PAGE,
        exit_page,
        _labels_of(landing.acquisition),
        _label(landing.country),
        _label(landing.language),
        _labels_of(landing.agent),
    )


@lru_cache(maxsize=8192)
def _page_label(url: str) -> tuple[str]:
    return (bounded(page_of(url)),)


@lru_cache(maxsize=4096)
def _label(label: str) -> tuple[str]:
    return (bounded(label),)


@lru_cache(maxsize=8192)
def _labels_of(said: Acquisition | Agent) -> tuple[str, ...]:
    """In the order of its group."""
    *_, group = (group for group in _GROUPS if hasattr(said, group[0]))
    return tuple(bounded(getattr(said, name)) for name in group)


def conversion_label(currency: str, conversion_type: str) -> str:
    """The label under which a conversion is counted."""
    return f"{currency.replace(_BETWEEN, ' ')}{_BETWEEN}{conversion_type}"


def split_conversion(label: str) -> tuple[str, str]:
    """(currency, conversion type): the inverse of :func:`conversion_label`."""
    currency, _, conversion_type = label.partition(_BETWEEN)
    return currency, conversion_type


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
        for group, labels in zip(_GROUPS, _landing_labels(landing), strict=True):
            for dimension, label in zip(group, labels, strict=True):
                self._labels[dimension].add(label)
        self._labels["exit_page"].add("")  # until its first page view

    def add_pages(self, pages: Set[str]) -> None:
        """Sessions were at these pages."""
        for dimension in _PAGES:
            self._labels[dimension] |= pages

    def of(self, dimension: str) -> Set[str]:
        """The labels of one session dimension."""
        return self._labels[dimension]


class Share:
    """What a batch adds to one roll-up, whatever the order in which it came: sums of its events, and for each of its
    sessions the difference between what it stood for and what it stands for.
    """

    __slots__ = ("_events", "_moves", "began", "durations", "passed", "visitors")

    def __init__(self, passed: Passed) -> None:
        self.passed = passed
        self._events: list[Event] = []
        self.visitors: set[str] = set()
        self._moves: list[tuple[tuple[tuple[str, ...], ...], int]] = []  # labels, and the packed amounts that they get
        self.began: defaultdict[int, int] = defaultdict(int)
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
            self.began[before.minute] -= packed
            self.durations[before.duration] -= 1
        if after:
            packed = _pack(after.amounts)
            self._moves.append((after.labels, packed))
            self.began[after.minute] += packed
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
        of_minutes = Tally([(event.event_type, event.timestamp // MINUTE_MS) for event in self._events])
        for (kind, minute), count in of_minutes.items():
            kinds[kind] = kinds.get(kind, 0) + count
            row = minutes[minute % MINUTES]
            row[0] += count
            if kind == PAGE_VIEW:
                row[1] += count
            elif kind == CONVERSION:
                row[2] += count
        viewed = Tally([event.page_url for event in self._events if event.event_type == PAGE_VIEW])
        conversions = [event for event in self._events if event.event_type == CONVERSION] if CONVERSION in kinds else ()
        return minutes, {
            "event_type": _summed((bounded(kind), (count,)) for kind, count in kinds.items()),
            "page": _summed((bounded(page_of(url)), (count,)) for url, count in viewed.items()),
            "conversion": _summed(map(_conversion, conversions)),
        }

    def session_sums(self) -> dict[str, dict[str, int]]:
        """By session dimension and label, the packed sum of its measures."""
        found: dict[str, dict[str, int]] = {}
        for at, group in enumerate(_GROUPS):
            grouped: defaultdict[tuple[str, ...], int] = defaultdict(int)
            for labels, packed in self._moves:
                grouped[labels[at]] += packed
            for place, dimension in enumerate(group):
                sums: defaultdict[str, int] = defaultdict(int)
                for labels_of_group, packed in grouped.items():
                    sums[labels_of_group[place]] += packed
                if dimension in _OPTIONAL:
                    sums.pop("", None)
                found[dimension] = sums
        return found


def _summed(amounts: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for label, more in amounts:
        known = found.get(label)
        found[label] = more if known is None else tuple(map(add, known, more))
    return found


def _conversion(event: Event, times: int = 1) -> tuple[str, tuple[int, int]]:
    """The label of a conversion, and what it counts there ``times`` over."""
    label = bounded(conversion_label(event.conversion_currency, event.conversion_type))
    return label, (times, times * round(event.conversion_value * MICROS))


class Folding:
    """A roll-up while events are folded into it: its visitors are a set, not bytes."""

    def __init__(self, rollup: RollUp) -> None:
        self._rollup = rollup
        self._visitors = Visitors.from_bytes(rollup.visitors)

    def count_event(self, event: Event) -> None:
        """Count one applied event of this roll-up's quarter."""
        self._add_event(event, 1)
        self._visitors.add(visitor_of(event.user_id, event.session_id))
        self._rollup.received = max(self._rollup.received, event.received_at)

    def take_back_event(self, event: Event) -> None:
        """Undo :meth:`count_event` for an event of this quarter that was counted here or by another shard: what adds
        up over shards is then as if it had never come. Its visitor stays, whom other events may have brought too.
        """
        self._add_event(event, -1)

    def move_session(self, before: Standing | None, after: Standing | None) -> None:
        """Take a session's share from what it was to what it is, as far as this roll-up has part in it."""
        quarter = self._rollup.quarter
        old = before if before and before.quarter == quarter else None
        new = after if after and after.quarter == quarter else None
        if old and new and old.minute == new.minute and old.labels == new.labels:
            self._add_session(new, tuple(now - then for now, then in zip(new.amounts, old.amounts, strict=True)))
        else:
            if old:
                self._add_session(old, tuple(-amount for amount in old.amounts))
            if new:
                self._add_session(new, new.amounts)
        if old:
            self._add_duration(old.duration, -1)
        if new:
            self._add_duration(new.duration, 1)

    def take(self, share: Share) -> bool:
        """Add all of a batch's share; False, and nothing is added, where bounds might be reached on the way: then it
        matters in which order events came, and they are to be counted and moved one by one.
        """
        (minutes, events), sessions = share.event_sums(), share.session_sums()
        if not self._has_room(events, sessions, share.passed):
            return False
        rollup = self._rollup
        rollup.minutes = [list(map(add, *rows)) for rows in zip(rollup.minutes, minutes, strict=True)]
        for minute, packed in share.began.items():
            rollup.began[minute] = list(map(add, rollup.began[minute], _unpack(packed)))
        for dimension, sums in events.items():
            for label, amounts in sums.items():
                rollup.counter(dimension).add(label, amounts, EVENT_DIMENSIONS[dimension][0])
        for dimension, moved in sessions.items():
            for label, packed in moved.items():
                rollup.counter(dimension).add(label, _unpack(packed), SESSION_DIMENSIONS[dimension])
        for bucket, count in share.durations.items():
            self._add_duration(bucket, count)
        for visitor in share.visitors:
            self._visitors.add(visitor)
        rollup.received = max(rollup.received, share.received)
        return True

    def _has_room(
        self, events: Mapping[str, Mapping[str, Any]], sessions: Mapping[str, Mapping[str, int]], passed: Passed
    ) -> bool:
        """Whether no counter can fill up, in whatever order these sums come together."""
        counters = self._rollup.counters
        return all(
            counters.get(dimension, _EMPTY).has_room(sums.keys(), EVENT_DIMENSIONS[dimension][0])
            for dimension, sums in events.items()
        ) and all(
            counters.get(dimension, _EMPTY).has_room(moved.keys() | passed.of(dimension), SESSION_DIMENSIONS[dimension])
            for dimension, moved in sessions.items()
        )

    def rollup(self) -> RollUp:
        """The roll-up as folded so far, ready to be stored: what sessions left behind empty is not in it."""
        rollup = self._rollup
        rollup.visitors = self._visitors.to_bytes()
        rollup.counters = {name: counter for name, counter in rollup.counters.items() if counter.rows or counter.other}
        return rollup

    def _add_event(self, event: Event, times: int) -> None:
        rollup = self._rollup
        minute = rollup.minutes[event.timestamp % QUARTER_MS // MINUTE_MS]
        minute[0] += times
        self._count(rollup, "event_type", event.event_type, (times,))
        if event.event_type == PAGE_VIEW:
            minute[1] += times
            self._count(rollup, "page", page_of(event.page_url), (times,))
        elif event.event_type == CONVERSION:
            minute[2] += times
            self._count(rollup, "conversion", *_conversion(event, times))

    @staticmethod
    def _count(rollup: RollUp, dimension: str, label: str, amounts: tuple[int, ...]) -> None:
        rollup.counter(dimension).add(bounded(label), amounts, EVENT_DIMENSIONS[dimension][0])

    def _add_session(self, place: Standing, amounts: tuple[int, ...]) -> None:
        rollup = self._rollup
        began = rollup.began[place.minute]
        for at, amount in enumerate(amounts):
            began[at] += amount
        for group, labels in zip(_GROUPS, place.labels, strict=True):
            for dimension, label in zip(group, labels, strict=True):
                if label or dimension not in _OPTIONAL:
                    rollup.counter(dimension).add(label, amounts, SESSION_DIMENSIONS[dimension])

    def _add_duration(self, bucket: str, count: int) -> None:
        durations = self._rollup.durations
        durations[bucket] = durations.get(bucket, 0) + count
        if not durations[bucket]:
            del durations[bucket]


@lru_cache(maxsize=16384)
def bounded(label: str) -> str:
    """The label, cut (and marked as cut) where its UTF-8 is longer than MAX_LABEL_BYTES."""
    encoded = label.encode()
    if len(encoded) <= MAX_LABEL_BYTES:
        return label
    return encoded[: MAX_LABEL_BYTES - 3].decode(errors="ignore") + "…"


def visitor_of(user_id: str, session_id: str) -> str:
    """Who counts as one visitor: the user if an event names one, else the session."""
    return f"u{user_id}" if user_id else f"s{session_id}"
