"""The roll-up: what happened on one site in one quarter of an hour, as seen by one shard.

Two kinds of figure add up in it. An **event** counts in the quarter (and minute) of its event time.
A **session** counts in the quarter in which it began; when it changes, the roll-up gets the
difference, so a bounce undone is -1. Everything is a sum of whole numbers or a union, so roll-ups
of shards and quarters merge into those of a day or a site by adding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct, field

from producer.event import CONVERSION, PAGE_VIEW, Event
from stream_consumer.acquisition import page_of
from stream_consumer.durations import bucket_of
from stream_consumer.session import MICROS, Session
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


class Counter(Struct, array_like=True):
    """Sums for each label, bounded. The first labels to come, up to a limit, have rows of their own;
    once one finds no room no more are admitted and ``other`` takes the rest, so that a later
    difference always meets the row that its sum went to, and the total is always right.
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    other: list[int] = field(default_factory=list)

    def add(self, label: str, amounts: tuple[int, ...], room: int) -> None:
        """Add ``amounts``, one for each measure, to the label's row."""
        row = self.rows.get(label)
        if row is None:
            if not self.other and len(self.rows) < room:
                row = self.rows[label] = [0] * len(amounts)
            else:
                row = self.other = self.other or [0] * len(amounts)
        for place, amount in enumerate(amounts):
            row[place] += amount
        if row is not self.other and not any(row):
            del self.rows[label]


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
    """What a session adds to roll-ups as it stands: where, under which labels, how much, and in which
    bucket of the durations.
    """

    quarter: int
    minute: int
    labels: tuple[str, ...]
    amounts: tuple[int, ...]
    duration: str


def quarter_of(at: int) -> int:
    """The start (ms) of the quarter of an hour in which ``at`` (ms) lies."""
    return at - at % QUARTER_MS


def standing(session: Session) -> Standing | None:
    """The session's share of the roll-ups, a function of the session alone; None before its first event."""
    if not session.events:
        return None
    came = session.landing.acquisition
    agent = session.landing.agent
    labels = (
        session.entry_page,
        session.exit_page,
        came.referrer,
        came.source,
        came.channel,
        came.utm_source,
        came.utm_medium,
        came.utm_campaign,
        came.utm_term,
        came.utm_content,
        session.landing.country,
        session.landing.language,
        agent.device,
        agent.browser,
        agent.os,
    )
    amounts = (
        1,
        int(session.bounced),
        session.duration,
        session.events,
        session.page_views,
        session.conversions,
        int(session.conversions > 0),
    )
    return Standing(
        quarter_of(session.start),
        session.start % QUARTER_MS // MINUTE_MS,
        tuple(map(bounded, labels)),
        amounts,
        bucket_of(session.duration),
    )


def conversion_label(currency: str, conversion_type: str) -> str:
    """The label under which a conversion is counted."""
    return f"{currency.replace(_BETWEEN, ' ')}{_BETWEEN}{conversion_type}"


def split_conversion(label: str) -> tuple[str, str]:
    """(currency, conversion type): the inverse of :func:`conversion_label`."""
    currency, _, conversion_type = label.partition(_BETWEEN)
    return currency, conversion_type


class Folding:
    """A roll-up while events are folded into it: its visitors are a set, not bytes."""

    def __init__(self, rollup: RollUp) -> None:
        self._rollup = rollup
        self._visitors = Visitors.from_bytes(rollup.visitors)

    def count_event(self, event: Event, visitor: str) -> None:
        """Count one applied event of this roll-up's quarter."""
        self._add_event(event, 1)
        self._visitors.add(visitor)
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

    def move_sessions(self, moves: Sequence[tuple[str, Standing | None, Standing | None]]) -> None:
        """Each of ``(session id, before, after)`` in order. Where no bound can be reached on the way, sums do
        not depend on the way, and each session is moved once, from its first standing to its last.
        """
        if not self._has_room(moves):
            for _, before, after in moves:
                self.move_session(before, after)
            return
        first: dict[str, Standing | None] = {}
        last: dict[str, Standing | None] = {}
        for session_id, before, after in moves:
            first.setdefault(session_id, before)
            last[session_id] = after
        for session_id, before in first.items():
            self.move_session(before, last[session_id])

    def _has_room(self, moves: Sequence[tuple[str, Standing | None, Standing | None]]) -> bool:
        """Whether every label of the moves has room in its counter, whichever come first."""
        standings = {stand.labels for _, *both in moves for stand in both if stand}
        for at, (dimension, room) in enumerate(SESSION_DIMENSIONS.items()):
            counter = self._rollup.counters.get(dimension) or _EMPTY
            if counter.other:
                return False
            may_be = len(counter.rows) + len(standings)
            if may_be > room and len(counter.rows.keys() | {labels[at] for labels in standings}) > room:
                return False
        return True

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
            amounts = (times, times * round(event.conversion_value * MICROS))
            self._count(
                rollup, "conversion", conversion_label(event.conversion_currency, event.conversion_type), amounts
            )

    @staticmethod
    def _count(rollup: RollUp, dimension: str, label: str, amounts: tuple[int, ...]) -> None:
        rollup.counter(dimension).add(bounded(label), amounts, EVENT_DIMENSIONS[dimension][0])

    def _add_session(self, place: Standing, amounts: tuple[int, ...]) -> None:
        rollup = self._rollup
        began = rollup.began[place.minute]
        for at, amount in enumerate(amounts):
            began[at] += amount
        for (dimension, room), label in zip(SESSION_DIMENSIONS.items(), place.labels, strict=True):
            if label or dimension not in _OPTIONAL:
                rollup.counter(dimension).add(label, amounts, room)

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


def visitor_of(event: Event) -> str:
    """Who counts as one visitor: the user if the event names one, else the session."""
    return f"u{event.user_id}" if event.user_id else f"s{event.session_id}"
