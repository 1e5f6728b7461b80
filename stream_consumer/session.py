"""The Session, and the law by which events merge into it.

Every field is a sum, a minimum, a maximum, or the value at one of them, with ties broken by the
event id. So events may come late and in any order and give the same session, byte for byte (as
long as no bound of its memory of events is reached: see :mod:`stream_consumer.seen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct, field

from producer.event import CONVERSION, HEARTBEAT, NO_PROPERTIES, PAGE_EXIT, PAGE_VIEW, SCROLL, Event
from stream_consumer.acquisition import Acquisition, acquire, page_of
from stream_consumer.seen import Seen, Verdict
from stream_consumer.user_agent import Agent, recognise

#: A session ends after this long without an event, in ms.
SESSION_TIMEOUT_MS = 30 * 60 * 1000
#: Events that show a page being open, not a visitor doing something on it.
_PASSIVE = frozenset({PAGE_VIEW, HEARTBEAT, PAGE_EXIT, SCROLL})
#: Sums of money are kept in millionths of a unit of currency: whole numbers add up in any order.
MICROS = 1_000_000
_MAX_SUM = 2**63 - 1
_MAX_CURRENCIES = 8

_ZERO = (2, 0, "")


class Landing(Struct, frozen=True, array_like=True):
    """What the earliest page view (else the earliest event) says of the whole session.

    ``at`` is what it is the minimum of: (0 for a page view else 1, event time, event id).
    """

    at: tuple[int, int, str] = _ZERO
    page_url: str = ""
    title: str = ""
    country: str = ""
    language: str = ""
    agent: Agent = Agent()
    acquisition: Acquisition = Acquisition("", "", "", "", "", "", "", "")


class Exit(Struct, frozen=True, array_like=True):
    """The latest page view: ``at`` is the maximum of (event time, event id)."""

    at: tuple[int, str] = (-1, "")
    page_url: str = ""
    title: str = ""


class User(Struct, frozen=True, array_like=True):
    """The visitor, as the earliest event that names one does: ``at`` is the minimum of (event time, event id)."""

    at: tuple[int, str]
    user_id: str


class Merged(NamedTuple):
    """What became of some events: a verdict for each, and which were applied. Of those: the earliest and the latest
    event time, the earliest arrival (ms), and the landings that the session had on the way.
    """

    verdicts: list[Verdict]
    applied: Sequence[Event]
    earliest: int = 0
    latest: int = 0
    oldest_received: int = 0
    landings: Sequence[Landing] = ()


class Session(Struct, array_like=True):
    """One visit of one visitor to one site. Times in ms since 1970 UTC; counts of applied events only.

    With ``erased`` (when that was asked for) it is a tombstone: nothing is left of the visit but its id, and nothing
    comes to it any more.
    """

    site_id: str
    session_id: str
    start: int = -1
    end: int = -1
    received: int = -1
    events: int = 0
    page_views: int = 0
    interactions: int = 0
    conversions: int = 0
    scroll_depth: int = 0
    values: dict[str, int] = field(default_factory=dict)
    landing: Landing = Landing()
    exit: Exit = Exit()
    user: User | None = None
    seen: Seen = field(default_factory=Seen)
    erased: int = 0

    @property
    def duration(self) -> int:
        """From the first event to the last, in ms."""
        return self.end - self.start

    @property
    def bounced(self) -> bool:
        """One page view at most, and no click, conversion or custom event."""
        return self.page_views <= 1 and self.interactions == 0

    @property
    def user_id(self) -> str:
        """Who it was, '' if no event said."""
        return self.user.user_id if self.user else ""

    @property
    def entry_page(self) -> str:
        """The page of the first page view, '' without one."""
        return page_of(self.landing.page_url) if self.landing.at[0] == 0 else ""

    @property
    def exit_page(self) -> str:
        """The page of the last page view, '' without one."""
        return page_of(self.exit.page_url)

    def apply(self, event: Event) -> Verdict:
        """Merge one event of this session; anything but APPLIED changes no figure."""
        if self.erased:
            return Verdict.ERASED
        verdict = self.seen.admit(event)
        if verdict is Verdict.APPLIED:
            self._merge(event)
        return verdict

    def apply_all(self, events: Sequence[Event]) -> Merged:
        """As :meth:`apply` for each of them in order, of which there is at least one, in a fraction of the time."""
        if self.erased:
            return Merged([Verdict.ERASED] * len(events), ())
        times = [event.timestamp for event in events]
        if len(set(times)) == len(times) and times == sorted(times) and self.seen.admit_run(events):
            landings = self._passing_by(events)
            return Merged(
                [Verdict.APPLIED] * len(events), events, times[0], times[-1], self._merge_run(events, times), landings
            )
        verdicts, passed = [], []
        for event in events:
            before = self.landing
            verdicts.append(self.apply(event))
            if self.landing is not before:
                passed.append(self.landing)
        applied = [event for event, verdict in zip(events, verdicts, strict=True) if verdict is Verdict.APPLIED]
        if not applied:
            return Merged(verdicts, ())
        times = [event.timestamp for event in applied]
        return Merged(
            verdicts, applied, min(times), max(times), min([event.received_at for event in applied]), passed[:-1]
        )

    def _passing_by(self, run: Sequence[Event]) -> Sequence[Landing]:
        """The landing that a first event makes which is no page view, where a page view follows that makes another."""
        first = run[0]
        if first.event_type == PAGE_VIEW or self.landing.at[0] == 0 or not _landing_at(first) < self.landing.at:
            return ()
        return (_landing(first),) if any(event.event_type == PAGE_VIEW for event in run) else ()

    def tombstone(self, erased_at: int) -> Session:
        """What is left of this session once it is erased. It is as old as its erasure: it expires so long after it."""
        return Session(self.site_id, self.session_id, received=erased_at, erased=erased_at)

    def _merge(self, event: Event) -> None:
        kind = event.event_type
        at = event.timestamp
        self.start = at if self.events == 0 else min(self.start, at)
        self.end = max(self.end, at)
        self.received = max(self.received, event.received_at)
        self.events += 1
        if kind == PAGE_VIEW:
            self.page_views += 1
            self._exit_at(event)
        elif kind not in _PASSIVE:
            self.interactions += 1
        if kind == CONVERSION:
            self.conversions += 1
            self._add_value(event)
        elif kind == SCROLL:
            self.scroll_depth = max(self.scroll_depth, scroll_depth(event))
        self._land_at(event)
        self._name(event)

    def _merge_run(self, events: Sequence[Event], times: Sequence[int]) -> int:
        """Merge applied events whose ``times`` ascend; their earliest arrival. What is the value at a minimum or
        maximum is that of the first or last one, so that no event is looked at by itself.
        """
        arrivals = [event.received_at for event in events]
        kinds = [event.event_type for event in events]
        self.start = times[0] if self.events == 0 else min(self.start, times[0])
        self.end = max(self.end, times[-1])
        self.received = max(self.received, *arrivals)
        self.events += len(events)
        if views := kinds.count(PAGE_VIEW):
            self.page_views += views
            first = kinds.index(PAGE_VIEW)
            last = first if views == 1 else len(kinds) - 1 - kinds[::-1].index(PAGE_VIEW)
            self._exit_at(events[last])
            self._land_at(events[first])
        else:
            self._land_at(events[0])
        if len(kinds) != views:
            scrolls = kinds.count(SCROLL)
            active = len(kinds) - views - scrolls - kinds.count(HEARTBEAT) - kinds.count(PAGE_EXIT)
            self.interactions += active
            if scrolls or (active and CONVERSION in kinds):
                for kind, event in zip(kinds, events, strict=True):
                    if kind == CONVERSION:
                        self.conversions += 1
                        self._add_value(event)
                    elif kind == SCROLL and event.properties != NO_PROPERTIES:
                        self.scroll_depth = max(self.scroll_depth, scroll_depth(event))
        if named := [event for event in events if event.user_id]:
            self._name(named[0])
        return min(arrivals)

    def _exit_at(self, view: Event) -> None:
        at = view.timestamp, view.event_id
        if at > self.exit.at:
            self.exit = Exit(at, view.page_url, view.title)

    def _land_at(self, event: Event) -> None:
        if _landing_at(event) < self.landing.at:
            self.landing = _landing(event)

    def _name(self, event: Event) -> None:
        at = event.timestamp, event.event_id
        if event.user_id and (self.user is None or at < self.user.at):
            self.user = User(at, event.user_id)

    def _add_value(self, event: Event) -> None:
        micros = round(event.conversion_value * MICROS)
        if not micros:
            return
        currency = event.conversion_currency
        if currency not in self.values and len(self.values) >= _MAX_CURRENCIES:
            currency = "other"
        self.values[currency] = max(-_MAX_SUM, min(_MAX_SUM, self.values.get(currency, 0) + micros))


def _landing_at(event: Event) -> tuple[int, int, str]:
    return (0 if event.event_type == PAGE_VIEW else 1, event.timestamp, event.event_id)


def _landing(event: Event) -> Landing:
    return Landing(
        _landing_at(event),
        event.page_url,
        event.title,
        event.country,
        event.language,
        recognise(event.user_agent),
        acquire(event.page_url, event.referrer),
    )


def scroll_depth(event: Event) -> int:
    """How far down the page a scroll event went, in per cent; 0 where it does not say."""
    properties = msgspec.json.decode(event.properties)
    depth = properties.get("depth") if isinstance(properties, dict) else None
    return min(max(int(depth), 0), 100) if isinstance(depth, int | float) and not isinstance(depth, bool) else 0
