"""What answers are made of: each read once for all who want it at the same time, so that panels agree."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar, cast

from query_api import statistics
from query_api.caching import Fresh, Newest, Served, Shared
from query_api.history import History
from query_api.parameters import Span
from query_api.reader import Marks, Reader
from query_api.settings import ApiSettings
from query_api.statistics import Active, Breakdown, Figures
from stream_consumer.merged import DAY_MS, HOUR_MS, Labels, Totals
from stream_consumer.rollup import RollUp
from stream_consumer.session import Session
from stream_consumer.table import Unavailable

#: Ranges whose figures, and sites whose sessions, are held at a time.
_HELD_FIGURES = 64
_HELD_SITES = 256
#: Of how many slots or labels at most: more are shared by those who ask at the same time, but take no room.
_LARGEST_FIGURES = 1000
#: Stretches whose roll-ups are held, of how many quarters and with how many rows at most (about 15 MB of them).
_HELD_STRETCHES = 8
_LONGEST_STRETCH = 700
_MOST_ROWS = 50_000
#: Figures that got something within this time (ms) may be about to get more, however old their range.
SETTLED_AFTER_MS = 60 * 1000
#: A browser's event may come this late (ms): the collector takes none that are older than a day.
FINAL_AFTER_MS = 25 * HOUR_MS
#: How long (ms) figures are good of a range that is over, and to which something may still come, or does.
_OVER_MS = 60 * 1000
_UNSETTLED_MS = 10 * 1000
#: What came up to here (ms) before now is told apart from what is going on, and summed less often.
_PAST_MS = 10 * 60 * 1000
#: What part of an answer's time the reads that it is made of are shared for; the rest is the answer's own.
_READ_SHARE = 0.4

_T = TypeVar("_T")


def _rows(rollups: Sequence[RollUp]) -> int:
    return sum(len(counter.rows) for rollup in rollups for counter in rollup.counters.values())


def _no_jitter() -> float:
    return 0.0  # it is the answers that vary their lifetimes


class Sources:
    """Shared reads. Each gives its value and until when it is good; all raise :class:`Unavailable`."""

    def __init__(self, reader: Reader, settings: ApiSettings, clock: Callable[[], int]) -> None:
        self.reader = reader
        self.clock = clock
        self.live_ms = round(settings.live_lifetime * 1000)
        self.realtime_ms = round(settings.realtime_lifetime * 1000)
        self.session_ms = round(settings.session_lifetime * 1000)
        self.recent_ms = round(settings.recent_lifetime * 1000)
        self._closed_ms = round(settings.closed_lifetime * 1000)
        self._shared_ms = round(self.recent_ms * _READ_SHARE)
        self._actives: Shared[Active] = Shared(Newest(_HELD_SITES), clock, jitter=_no_jitter)
        self._all_active: Shared[dict[str, Session]] = Shared(Newest(_HELD_SITES), clock, jitter=_no_jitter)
        self._figures: Shared[list[Figures]] = Shared(
            Newest(_HELD_FIGURES), clock, jitter=_no_jitter, keep=lambda found: len(found) <= _LARGEST_FIGURES
        )
        self._breakdowns: Shared[Breakdown] = Shared(
            Newest(_HELD_FIGURES), clock, jitter=_no_jitter, keep=lambda found: len(found.rows) <= _LARGEST_FIGURES
        )
        self._lags: Shared[float | None] = Shared(Newest(1), clock, jitter=_no_jitter)
        self._marks: Shared[Marks] = Shared(Newest(_HELD_SITES), clock, jitter=_no_jitter)
        self._rollups: Shared[list[RollUp]] = Shared(
            Newest(_HELD_STRETCHES), clock, jitter=_no_jitter, keep=lambda found: _rows(found) <= _MOST_ROWS
        )

    def active(self, site_id: str) -> Served[Active]:
        """Who is on the site."""
        shared_ms = round(self.live_ms * _READ_SHARE)
        found = self._actives.get(site_id, lambda: self.fresh(self.reader.active(site_id), shared_ms))
        return self._for_an_answer(found, self.live_ms)

    def active_now(self, site_id: str) -> Active:
        """Who is on the site, read for whoever asks, and then shared with those who may have it a little older."""
        found = self.reader.active(site_id)
        self._actives.put(site_id, self.fresh(found, round(self.live_ms * _READ_SHARE)))
        return found

    def all_active(self, site_id: str) -> Served[dict[str, Session]]:
        """Every active session by its id, also those beyond the newest that :meth:`active` reads."""

        def read() -> Fresh[dict[str, Session]]:
            active = self.active(site_id)
            unread = [session_id for session_id in active.value.order if session_id not in active.value.sessions]
            return Fresh(active.value.sessions | self.reader.sessions(site_id, unread), active.until)

        return self._all_active.get(site_id, read)

    def over_time(self, site_id: str, borders: Sequence[int], *, visitors: bool) -> Served[list[Figures]]:
        """The figures between each two borders (ms); of a stretch of no length nothing."""
        return self._stretches(
            f"{site_id} {visitors}",
            borders,
            lambda history, distinct: history.over_time(site_id, distinct, visitors=visitors),
        )

    def over_time_of(self, site_id: str, borders: Sequence[int], dimension: str, label: str) -> Served[list[Figures]]:
        """The figures of one label between each two borders (ms)."""
        return self._stretches(
            f"{site_id} {dimension} {label}",
            borders,
            lambda history, distinct: history.over_time_of(site_id, distinct, dimension, label),
        )

    def by_label(self, site_id: str, span: Span, dimension: str) -> Served[Breakdown]:
        """The figures of every label of a dimension."""

        past, rest = self._parted(span)
        found = self._breakdown(site_id, rest, dimension)
        if past:
            before = self._breakdown(site_id, past, dimension, over=True)
            found = Served(statistics.join(before.value, found.value), min(before.until, found.until))
        return self._for_an_answer(found, self.recent_ms)

    def _breakdown(
        self, site_id: str, borders: Sequence[int], dimension: str, *, over: bool = False
    ) -> Served[Breakdown]:
        span = Span(borders[0], borders[-1])

        def read() -> Fresh[Breakdown]:
            reads = _Reads(self)
            found = History(reads.as_reader()).by_label(site_id, span, dimension)
            return Fresh(found, self._until(span.end, found.received, reads, over=over))

        return self._breakdowns.get(f"{site_id} {dimension} {span.start} {span.end}", read)

    def lag(self) -> float | None:
        """Whole seconds that the consumer is behind the stream, None where that is not known."""

        def read() -> Fresh[float | None]:
            try:
                behind = self.reader.lag()
            except Unavailable:
                behind = None
            # Finer, an answer that says nothing new would never be the same.
            return self.fresh(None if behind is None else round(behind), self._shared_ms)

        return self._lags.get("lag", read).value

    def marks(self, site_id: str, start: int, end: int) -> Served[Marks]:
        """What is not merged as it is now, of all days that the stretch touches."""
        start, end = start - start % DAY_MS, end + -end % DAY_MS
        return self._marks.get(
            f"{site_id} {start} {end}", lambda: self.fresh(self.reader.marks(site_id, start, end), self._shared_ms)
        )

    def rollups(self, site_id: str, quarters: Sequence[int]) -> Served[list[RollUp]]:
        """The roll-ups of these quarters; nobody may change them."""
        return self._rollups.get(
            f"{site_id} {quarters}", lambda: self.fresh(list(self.reader.rollups(site_id, quarters)), self._shared_ms)
        )

    def fresh(self, value: _T, lifetime_ms: int) -> Fresh[_T]:
        """A value that is good from now on."""
        return Fresh(value, self.clock() + lifetime_ms)

    def _stretches(
        self, name: str, borders: Sequence[int], read: Callable[[History, list[int]], list[Figures]]
    ) -> Served[list[Figures]]:
        past, rest = self._parted(borders)
        found = self._stretch(name, rest, read)
        if past:
            before = self._stretch(name, past, read, over=True)
            figures = [*before.value, *found.value]
            if past[-1] not in borders:
                at = len(before.value)
                figures[at - 1 : at + 1] = [statistics.total(figures[at - 1 : at + 1])]
            found = Served(figures, min(before.until, found.until))
        return self._for_an_answer(found, self.recent_ms)

    def _stretch(
        self,
        name: str,
        borders: Sequence[int],
        read: Callable[[History, list[int]], list[Figures]],
        *,
        over: bool = False,
    ) -> Served[list[Figures]]:
        def compute() -> Fresh[list[Figures]]:
            reads = _Reads(self)
            found = iter(read(History(reads.as_reader()), sorted(set(borders))))
            figures = [next(found) if end > start else Figures() for start, end in pairwise(borders)]
            received = max(one.received for one in figures)
            return Fresh(figures, self._until(borders[-1], received, reads, over=over))

        return self._figures.get(f"{name} {borders}", compute)

    def _for_an_answer(self, found: Served[_T], lifetime_ms: int) -> Served[_T]:
        """What was read, and until when an answer made of it is good: longer than others may share it."""
        own = round(lifetime_ms * (1 - _READ_SHARE))
        return Served(found.value, max(found.until, min(found.until + own, self.clock() + lifetime_ms)))

    def _parted(self, borders: Sequence[int]) -> tuple[list[int], Sequence[int]]:
        """The borders of what is over, and of what is going on: with one in common, between the hours."""
        edge = self.clock() - _PAST_MS
        edge -= edge % HOUR_MS
        if not borders[0] < edge < borders[-1]:
            return [], borders
        return [*(at for at in borders if at < edge), edge], [edge, *(at for at in borders if at > edge)]

    def _until(self, end: int, received: int, reads: _Reads, *, over: bool) -> int:
        """Until when figures of a range up to ``end`` are good, to which something came last at ``received``.

        ``over``: something may come to it, but it is no longer what is looked at first.
        """
        now = self.clock()
        if end > now - now % HOUR_MS or not 0 < received < now - SETTLED_AFTER_MS:
            return now + min(_UNSETTLED_MS, self._closed_ms) if over else min(now + self._shared_ms, reads.until)
        return now + (self._closed_ms if end <= now - FINAL_AFTER_MS else min(_OVER_MS, self._closed_ms))


class _Reads:
    """The reads of one computation. Those that others need too are shared; ``until``: when the first is too old."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.until = sys.maxsize

    def as_reader(self) -> Reader:
        """It, as whoever reads with it knows it: it has what :class:`History` needs."""
        return cast(Reader, self)

    def marks(self, site_id: str, start: int, end: int) -> Marks:
        return self._of(self._sources.marks(site_id, start, end))

    def rollups(self, site_id: str, quarters: Sequence[int]) -> Iterator[RollUp]:
        if len(quarters) > _LONGEST_STRETCH:
            return self._sources.reader.rollups(site_id, quarters)
        return iter(self._of(self._sources.rollups(site_id, quarters)))

    def merged_totals(self, site_id: str, days: Sequence[int], hours: Sequence[int]) -> Iterator[Totals]:
        return self._sources.reader.merged_totals(site_id, days, hours)

    def merged_labels(self, site_id: str, part: str, days: Sequence[int], hours: Sequence[int]) -> Iterator[Labels]:
        return self._sources.reader.merged_labels(site_id, part, days, hours)

    def _of(self, served: Served[_T]) -> _T:
        self.until = min(self.until, served.until)
        return served.value
