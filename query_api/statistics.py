"""Figures as sums, and who is active. Pure.

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
from typing import NamedTuple

from stream_consumer.rollup import MINUTE_MS
from stream_consumer.session import SESSION_TIMEOUT_MS, Session
from stream_consumer.visitors import Visitors

#: Who did something within this time (ms) is here now.
NOW_MS = 5 * 60 * 1000
#: Entries of the index of active sessions that one answer counts at most.
MAX_ACTIVE = 10_000
#: Active sessions that are read whole, the newest first. The order beyond them is by minute only.
MAX_ACTIVE_READ = 1000


class Began(NamedTuple):
    """SESSION_MEASURES of the sessions that began somewhere: what they did, whole. ``duration`` in ms."""

    sessions: int = 0
    bounces: int = 0
    duration: int = 0
    events: int = 0
    page_views: int = 0
    conversions: int = 0
    converted: int = 0


NOTHING_BEGAN = Began()


@dataclass
class Figures:
    """Sums, from which every figure is read: of a stretch of time, or of one label of a dimension.

    ``events``, ``page_views`` and ``conversions`` happened in the stretch (of a session dimension's label: in its
    sessions); ``began`` is of the sessions that began in it. ``values`` are millionths by currency, ``durations``
    counts by bucket. ``received``: the latest arrival counted (ms), 0 for none.
    """

    events: int = 0
    page_views: int = 0
    conversions: int = 0
    began: Began = NOTHING_BEGAN
    durations: dict[str, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    visitors: Visitors = field(default_factory=Visitors)
    received: int = 0

    @property
    def sessions(self) -> int:
        """How many began."""
        return self.began.sessions


def total(some: Iterable[Figures]) -> Figures:
    """The sum of figures of stretches that do not overlap."""
    found = Figures()
    for figures in some:
        found.events += figures.events
        found.page_views += figures.page_views
        found.conversions += figures.conversions
        found.began = Began(*map(add, found.began, figures.began))
        for sums, more in ((found.durations, figures.durations), (found.values, figures.values)):
            for key, amount in more.items():
                sums[key] = sums.get(key, 0) + amount
        found.visitors.merge(figures.visitors)
        found.received = max(found.received, figures.received)
    return found


@dataclass
class Breakdown:
    """The figures of each label of a dimension in a stretch of time; ``other`` is what storage does not hold apart.

    ``received``: the latest arrival counted (ms), 0 for none.
    """

    rows: dict[str, Figures] = field(default_factory=dict)
    other: Figures | None = None
    received: int = 0


def join(one: Breakdown, other: Breakdown) -> Breakdown:
    """The sum of two breakdowns of stretches that do not overlap; cheap where the second one is small."""
    rows = dict(one.rows)
    for label, figures in other.rows.items():
        rows[label] = total([rows[label], figures]) if label in rows else figures
    rest = [found for found in (one.other, other.other) if found]
    return Breakdown(rows, total(rest) if rest else None, max(one.received, other.received))


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
