"""The roll-up: what happened on one site in one quarter of an hour, as seen by one shard.

Two kinds of figure add up in it. An **event** counts in the quarter (and minute) of its event time.
A **session** counts in the quarter in which it began; when it changes, the roll-up gets the
difference, so a bounce undone is -1. Everything is a sum of whole numbers or a union, so roll-ups
of shards and quarters merge into those of a day or a site by adding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from operator import add
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from producer.event import CONVERSION, PAGE_VIEW, Event
from stream_consumer.acquisition import Acquisition, page_of
from stream_consumer.durations import bucket_of
from stream_consumer.session import MICROS, Landing, Session
from stream_consumer.user_agent import Agent
from stream_consumer.visitors import Visitors

if TYPE_CHECKING:
    from stream_consumer.share import Passed, Share

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
OPTIONAL_DIMENSIONS = frozenset(name for name in SESSION_DIMENSIONS if name.startswith("utm_"))
# Dimensions whose labels come together: sessions of equal ones are summed before they are taken apart.
LABEL_GROUPS = (
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
    """What a session adds to roll-ups as it stands: where, under which labels (in LABEL_GROUPS), how much, and in which
    bucket of the durations.
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
        landing_labels(landing, _page_label(session.exit.page_url)),
        (1, int(session.bounced), duration, session.events, page_views, conversions, 1 if conversions else 0),
        bucket_of(duration),
    )


_NO_PAGE = ("",)


def landing_labels(landing: Landing, exit_page: tuple[str] = _NO_PAGE) -> tuple[tuple[str, ...], ...]:
    """In the order of LABEL_GROUPS."""
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
    *_, group = (group for group in LABEL_GROUPS if hasattr(said, group[0]))
    return tuple(bounded(getattr(said, name)) for name in group)


def conversion_label(currency: str, conversion_type: str) -> str:
    """The label under which a conversion is counted."""
    return f"{currency.replace(_BETWEEN, ' ')}{_BETWEEN}{conversion_type}"


def split_conversion(label: str) -> tuple[str, str]:
    """(currency, conversion type): the inverse of :func:`conversion_label`."""
    currency, _, conversion_type = label.partition(_BETWEEN)
    return currency, conversion_type


def conversion_of(event: Event, times: int = 1) -> tuple[str, tuple[int, int]]:
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
        for minute, began in share.began().items():
            rollup.began[minute] = list(map(add, rollup.began[minute], began))
        for dimension, sums in events.items():
            for label, amounts in sums.items():
                rollup.counter(dimension).add(label, amounts, EVENT_DIMENSIONS[dimension][0])
        for dimension, moved in sessions.items():
            for label, sums_of_sessions in moved.items():
                rollup.counter(dimension).add(label, sums_of_sessions, SESSION_DIMENSIONS[dimension])
        for bucket, count in share.durations.items():
            self._add_duration(bucket, count)
        for visitor in share.visitors:
            self._visitors.add(visitor)
        rollup.received = max(rollup.received, share.received)
        return True

    def _has_room(
        self, events: Mapping[str, Mapping[str, Any]], sessions: Mapping[str, Mapping[str, Any]], passed: Passed
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
            self._count(rollup, "conversion", *conversion_of(event, times))

    @staticmethod
    def _count(rollup: RollUp, dimension: str, label: str, amounts: tuple[int, ...]) -> None:
        rollup.counter(dimension).add(bounded(label), amounts, EVENT_DIMENSIONS[dimension][0])

    def _add_session(self, place: Standing, amounts: tuple[int, ...]) -> None:
        rollup = self._rollup
        began = rollup.began[place.minute]
        for at, amount in enumerate(amounts):
            began[at] += amount
        for group, labels in zip(LABEL_GROUPS, place.labels, strict=True):
            for dimension, label in zip(group, labels, strict=True):
                if label or dimension not in OPTIONAL_DIMENSIONS:
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
