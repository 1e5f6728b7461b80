"""Figures from roll-ups and sessions: sums, rates, rankings, steps of time. Pure.

An event counts in the minute of its event time; a session counts, with all that it did, where it
began. So ``page_views`` and ``conversions`` of a range are those that happened in it, while rates
and averages (bounces, duration, pages per session, conversion rate) are of the sessions that began
in it, whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple, TypeVar

from stream_consumer.rollup import (
    EVENT_DIMENSIONS,
    EVENT_MEASURES,
    MINUTE_MS,
    SESSION_MEASURES,
    RollUp,
)
from stream_consumer.session import MICROS, SESSION_TIMEOUT_MS, Session
from stream_consumer.visitors import RELATIVE_STANDARD_ERROR, Visitors

#: The steps in which figures over time are kept, in ms; a divisor of the roll-ups' quarter of an hour.
STEP_MS = 5 * MINUTE_MS
#: Who did something within this time (ms) is here now.
NOW_MS = 5 * 60 * 1000
#: Entries of the index of active sessions that one answer counts at most.
MAX_ACTIVE = 10_000
#: Active sessions that are read whole, the newest first. The order beyond them is by minute only.
MAX_ACTIVE_READ = 1000

_Key = TypeVar("_Key")


class Step(NamedTuple):
    """What happened in one step of time. ``at``: its start in ms; ``sessions``: those that began in it."""

    at: int
    events: int = 0
    page_views: int = 0
    conversions: int = 0
    sessions: int = 0


class Ranking(NamedTuple):
    """Labels with their amounts, the greatest first; ``other`` is what roll-ups had no room to hold apart."""

    rows: list[tuple[str, int]]
    other: int


@dataclass(frozen=True)
class Summary:
    """Totals of a range. Times in seconds, rates as fractions; rates and averages of no sessions are 0.

    ``conversion_rate`` is conversions per session, at most 1: which sessions converted is not kept.
    ``as_of``: the latest arrival counted (ms), None if nothing is.
    """

    sessions: int
    events: int
    page_views: int
    visitors: int
    visitors_error: float
    average_seconds: float
    bounce_rate: float
    pages_per_session: float
    conversions: int
    conversion_rate: float
    conversion_values: dict[str, float]
    as_of: int | None


@dataclass
class Figures:
    """Everything that is counted of a range: the sum of its roll-ups.

    ``steps`` maps the start (ms) of each step in which something was to EVENT_MEASURES and the sessions begun;
    ``sessions`` holds SESSION_MEASURES; ``counters`` maps each dimension to its labels' rows, ``others`` to what
    is beyond them. ``received``: the latest arrival (ms), 0 for none.
    """

    steps: dict[int, list[int]] = field(default_factory=dict)
    sessions: list[int] = field(default_factory=lambda: [0] * len(SESSION_MEASURES))
    counters: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    others: dict[str, list[int]] = field(default_factory=dict)
    visitors: Visitors = field(default_factory=Visitors)
    received: int = 0

    def add(self, rollup: RollUp) -> None:
        """Add one roll-up."""
        for minute, (counts, began) in enumerate(zip(rollup.minutes, rollup.began, strict=True)):
            if began or any(counts):
                at = rollup.quarter + minute * MINUTE_MS
                _add_row(self.steps, at - at % STEP_MS, [*counts, began])
        self.sessions[:] = map(add, self.sessions, rollup.sessions)
        for dimension, counter in rollup.counters.items():
            rows = self.counters.setdefault(dimension, {})
            for label, amounts in counter.rows.items():
                _add_row(rows, label, amounts)
            if counter.other:
                _add_row(self.others, dimension, counter.other)
        self.visitors.merge(Visitors.from_bytes(rollup.visitors))
        self.received = max(self.received, rollup.received)


def total(rollups: Iterable[RollUp]) -> Figures:
    """The sum of roll-ups of one site, of any shards and quarters."""
    figures = Figures()
    for rollup in rollups:
        figures.add(rollup)
    return figures


def summarise(figures: Figures) -> Summary:
    """The totals, averages and rates."""
    happened = dict(zip(EVENT_MEASURES, _totals(figures.steps.values(), len(EVENT_MEASURES)), strict=True))
    began = dict(zip(SESSION_MEASURES, figures.sessions, strict=True))
    sessions = began["sessions"]
    micros = EVENT_DIMENSIONS["currency"][1].index("micros")
    values = Counter({currency: row[micros] for currency, row in figures.counters.get("currency", {}).items()})
    if other := figures.others.get("currency"):
        values["other"] += other[micros]
    return Summary(
        sessions=sessions,
        events=happened["events"],
        page_views=happened["page_views"],
        visitors=figures.visitors.estimate(),
        visitors_error=0.0 if figures.visitors.exact else RELATIVE_STANDARD_ERROR,
        average_seconds=_per(began["duration"], sessions) / 1000,
        bounce_rate=_per(began["bounces"], sessions),
        pages_per_session=_per(began["page_views"], sessions),
        conversions=happened["conversions"],
        conversion_rate=min(1.0, _per(began["conversions"], sessions)),
        conversion_values={currency: value / MICROS for currency, value in sorted(values.items()) if value},
        as_of=figures.received or None,
    )


def rank(figures: Figures, dimension: str, limit: int) -> Ranking:
    """The ``limit`` greatest labels of a dimension by its first measure, ties in the labels' order."""
    rows = ((label, row[0]) for label, row in figures.counters.get(dimension, {}).items() if row[0] > 0)
    ranked = sorted(rows, key=lambda row: (-row[1], row[0]))
    return Ranking(ranked[:limit], figures.others.get(dimension, [0])[0])


def steps(figures: Figures, start: int, end: int) -> list[Step]:
    """Every step from ``start`` to before ``end`` (ms, on the border of a step), the empty ones too."""
    return [Step(at, *figures.steps.get(at, ())) for at in range(start, end, STEP_MS)]


def minutes(rollups: Iterable[RollUp], first: int, count: int) -> list[Step]:
    """``count`` minutes from ``first`` (ms, on the border of a minute), the empty ones too."""
    rows: dict[int, list[int]] = {}
    for rollup in rollups:
        for minute, (counts, began) in enumerate(zip(rollup.minutes, rollup.began, strict=True)):
            _add_row(rows, rollup.quarter + minute * MINUTE_MS, [*counts, began])
    wanted = range(first, first + count * MINUTE_MS, MINUTE_MS)
    return [Step(at, *rows.get(at, ())) for at in wanted]


class Entry(NamedTuple):
    """One entry of the index of active sessions: the whole minute (since 1970) of the last event."""

    minute: int
    session_id: str


@dataclass(frozen=True)
class Active:
    """Who is here. ``order``: all active sessions' ids, the newest first; ``sessions``: those that were read,
    the newest MAX_ACTIVE_READ at least; ``recent``: how many did something within NOW_MS.
    """

    order: list[str]
    sessions: dict[str, Session]
    recent: int


def is_active(session: Session, now: int) -> bool:
    """Whether the session's last event is less than SESSION_TIMEOUT_MS ago."""
    return now - session.end < SESSION_TIMEOUT_MS


def oldest_active_minute(now: int) -> int:
    """The first minute (since 1970) in which an active session's last event can be."""
    return (now - SESSION_TIMEOUT_MS) // MINUTE_MS


def newest(entries: Iterable[Entry]) -> list[Entry]:
    """The newest MAX_ACTIVE entries, the newest first."""
    return sorted(entries, key=lambda entry: (-entry.minute, entry.session_id))[:MAX_ACTIVE]


def to_read(entries: Sequence[Entry], now: int) -> list[str]:
    """The sessions that must be read to tell count and order; ``entries`` as from :func:`newest`.

    A whole minute cannot tell on which side of a limit within it an event is.
    """
    limits = {oldest_active_minute(now), (now - NOW_MS) // MINUTE_MS}
    return [
        entry.session_id for place, entry in enumerate(entries) if place < MAX_ACTIVE_READ or entry.minute in limits
    ]


def active(entries: Sequence[Entry], read: Mapping[str, Session], now: int) -> Active:
    """The active sessions, from ``entries`` as from :func:`newest` and the sessions that :func:`to_read` named."""
    wanted = set(to_read(entries, now))
    sessions = {session_id: session for session_id, session in read.items() if is_active(session, now)}
    # Where a session was read it is the truth; the index may be a little behind it.
    places = [(-(session.end // MINUTE_MS), -session.end, session_id) for session_id, session in sessions.items()]
    unread = [entry for entry in entries if entry.session_id not in wanted]
    places += [(-entry.minute, 0, entry.session_id) for entry in unread]
    recent = sum(now - session.end < NOW_MS for session in sessions.values())
    recent += sum(entry.minute > (now - NOW_MS) // MINUTE_MS for entry in unread)
    return Active([session_id for _, _, session_id in sorted(places)], sessions, recent)


def current_pages(sessions: Iterable[Session], limit: int) -> list[tuple[str, int]]:
    """The pages that most of the sessions are on, with how many; sessions without a page view count for none."""
    visitors = Counter(session.exit_page for session in sessions if session.page_views)
    return sorted(visitors.items(), key=lambda row: (-row[1], row[0]))[:limit]


def _totals(rows: Iterable[Sequence[int]], width: int) -> list[int]:
    totals = [0] * width
    for row in rows:
        for place in range(width):
            totals[place] += row[place]
    return totals


def _add_row(rows: dict[_Key, list[int]], key: _Key, amounts: Sequence[int]) -> None:
    row = rows.get(key)
    if row is None:
        rows[key] = list(amounts)
        return
    row[:] = map(add, row, amounts)


def _per(amount: int, count: int) -> float:
    return amount / count if count > 0 else 0.0
