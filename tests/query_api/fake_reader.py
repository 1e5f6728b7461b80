"""A reader without tables: what it is given, as the consumer would have stored it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from producer.event import Event
from query_api import statistics
from query_api.reader import MAX_USER_SESSIONS, Marks
from query_api.statistics import Active, Entry
from stream_consumer.rollup import MINUTE_MS, Folding, RollUp, quarter_of, standing
from stream_consumer.session import Session
from stream_consumer.table import Unavailable


class FakeReader:
    """Answers as :class:`query_api.reader.Reader` does. With ``fails`` set, every read raises Unavailable."""

    def __init__(self, clock, events: Iterable[Event] = ()) -> None:
        self._clock = clock
        self._sessions: dict[tuple[str, str], Session] = {}
        self._events: dict[tuple[str, str], list[Event]] = {}
        self._folding: dict[tuple[str, int], Folding] = {}
        self.fails = False
        self.behind: float | None = None
        self.add(*events)

    def add(self, *events: Event) -> None:
        """Store more events."""
        for event in events:
            key = event.site_id, event.session_id
            session = self._sessions.setdefault(key, Session(*key))
            before = standing(session)
            session.apply(event)
            self._events.setdefault(key, []).append(event)
            after = standing(session)
            self._fold(event.site_id, quarter_of(event.timestamp)).count_event(event)
            for quarter in {stand.quarter for stand in (before, after) if stand}:
                self._fold(event.site_id, quarter).move_session(before, after)

    def _fold(self, site_id: str, quarter: int) -> Folding:
        return self._folding.setdefault((site_id, quarter), Folding(RollUp(site_id, quarter, "shard")))

    def _read(self) -> None:
        if self.fails:
            raise Unavailable("DynamoDB cannot be reached; try again in some seconds")

    def check(self) -> None:
        self._read()

    def lag(self) -> float | None:
        self._read()
        return self.behind

    def sites(self) -> list[str]:
        self._read()
        return sorted({site_id for site_id, _ in self._sessions})

    def marks(self, site_id: str, start: int, end: int) -> Marks:
        self._read()
        return AllMarked(())

    def rollups(self, site_id: str, quarters: Sequence[int]) -> Iterator[RollUp]:
        self._read()
        return (self._folding[site_id, at].rollup() for at in quarters if (site_id, at) in self._folding)

    def merged_totals(self, site_id, days, hours):
        assert not days
        assert not hours
        return iter(())

    def merged_labels(self, site_id, part, days, hours):
        return self.merged_totals(site_id, days, hours)

    def session(self, site_id: str, session_id: str) -> Session | None:
        self._read()
        return self._sessions.get((site_id, session_id))

    def sessions(self, site_id: str, session_ids: Sequence[str]) -> dict[str, Session]:
        self._read()
        found = ((name, self._sessions.get((site_id, name))) for name in session_ids)
        return {name: session for name, session in found if session}

    def user_sessions(self, site_id: str, user_id: str) -> list[Session]:
        self._read()
        found = [one for (site, _), one in self._sessions.items() if site == site_id and one.user_id == user_id]
        return sorted(found, key=lambda one: (-one.start, one.session_id))[:MAX_USER_SESSIONS]

    def events(self, site_id: str, session_id: str) -> list[Event]:
        self._read()
        return sorted(self._events.get((site_id, session_id), []), key=lambda event: (event.timestamp, event.event_id))

    def active(self, site_id: str) -> Active:
        self._read()
        now = self._clock()
        entries = statistics.newest(
            Entry(session.end // MINUTE_MS, name)
            for (site, name), session in self._sessions.items()
            if site == site_id and session.end // MINUTE_MS >= statistics.oldest_active_minute(now)
        )
        return statistics.active(entries, self.sessions(site_id, statistics.to_read(entries, now)), now)


class AllMarked(Marks):
    """Nothing is merged."""

    def in_day(self, day: int) -> bool:
        return True

    def in_hour(self, hour: int) -> bool:
        return True
