"""One hour, one page, one referrer in full: /api/dashboard/."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from query_api import answers, calendar, parameters, ranges, representation
from query_api.caching import Served
from query_api.definitions import DIMENSIONS, INTERVALS, METRICS
from query_api.endpoints import Asked, Endpoint, Made
from query_api.parameters import Arguments, Span
from query_api.ranges import FROM, TO, TZ
from query_api.representation import moment
from query_api.sources import Sources
from query_api.statistics import Active, Breakdown
from query_api.statistics_routes import is_partial, made
from stream_consumer.acquisition import page_of
from stream_consumer.rollup import MINUTE_MS, bounded
from stream_consumer.session import Session

_ROWS = 10
#: Rows of what is happening now.
_RECENT = 20
#: Active sessions of a page whose events are read.
_SESSIONS_READ = 10
_DAYS = INTERVALS["hour"].most_days
_FAILS = ("bad_parameter", "key_missing", "key_unknown", "other_site", "unavailable")

ENDPOINTS = (
    Endpoint(
        path="/api/dashboard/hourly-details/",
        name="hourly_details",
        group="Details",
        title="One hour",
        description="The local hour in which a moment lies, minute by minute, and what was most of in it.",
        answer=answers.HourDetails,
        parameters=(parameters.SITE, ranges.HOUR, TZ),
        errors=_FAILS,
    ),
    Endpoint(
        path="/api/dashboard/page-details/",
        name="page_details",
        group="Details",
        title="One page",
        description="Its views hour by hour, the sessions that began or ended on it, and what those that are on it now"
        f" did there lately. At most {_DAYS} days.",
        answer=answers.PageDetails,
        parameters=(parameters.SITE, parameters.VIEWED, FROM, TO, TZ),
        errors=_FAILS,
    ),
    Endpoint(
        path="/api/dashboard/referrer-details/",
        name="referrer_details",
        group="Details",
        title="One referrer",
        description=f"Its sessions hour by hour, and those that are active now. At most {_DAYS} days.",
        answer=answers.ReferrerDetails,
        parameters=(parameters.SITE, parameters.REFERRER, FROM, TO, TZ),
        errors=_FAILS,
    ),
)


class DetailsRoutes:
    """Understands the requests of ENDPOINTS."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._clock: Callable[[], int] = sources.clock

    def hourly_details(self, site: str, arguments: Arguments) -> Asked:
        asked = ranges.hour(arguments)
        span = asked.span

        def make() -> Made:
            borders = range(span.start, span.end + 1, MINUTE_MS)
            read = self._sources
            total, minutes = read.over_time(site, span, visitors=True), read.over_time(site, borders, visitors=False)
            by = {name: read.by_label(site, span, name) for name in ("page", "referrer", "source", "event_type")}
            received = total.value[0].received
            head = self._head(span, received)
            shown = answers.HourDetails(
                site=site,
                hour=moment(span.start),
                **head,
                totals=answers.Values(**representation.values(total.value[0], METRICS)),
                minutes=representation.minutes(borders, minutes.value),
                top_pages=[answers.PageViews(*row) for row in _top(by["page"].value, "page_views")],
                referrers=[answers.LabelSessions(*row) for row in _top(by["referrer"].value, "sessions")],
                sources=[answers.LabelSessions(*row) for row in _top(by["source"].value, "sessions")],
                event_types=[answers.LabelEvents(*row) for row in _top(by["event_type"].value, "events")],
            )
            return made(shown, asked, _until((total, minutes, *by.values())), received, head)

        return Asked(("hourly-details", site, *asked.key), make)

    def page_details(self, site: str, arguments: Arguments) -> Asked:
        page = parameters.viewed(arguments)
        asked = ranges.span(arguments, self._clock(), _DAYS)

        def make() -> Made:
            hours = calendar.borders(*asked.span, INTERVALS["hour"], asked.zone)
            read = self._sources
            views = read.over_time_of(site, hours, "page", page)
            entries = read.over_time_of(site, asked.span, "entry_page", page)
            exits = read.over_time_of(site, asked.span, "exit_page", page)
            active = read.active(site)
            received = max(one.received for one in views.value)
            head = self._head(asked.span, received)
            shown = answers.PageDetails(
                site=site,
                start=moment(asked.span.start),
                end=moment(asked.span.end),
                **head,
                page_url=page,
                total_views=sum(one.page_views for one in views.value),
                recent_events=self._recent_events(site, page, active.value),
                hourly_distribution=[
                    answers.HourViews(moment(at), one.page_views)
                    for at, one in zip(hours[:-1], views.value, strict=True)
                ],
                entries=answers.Values(**representation.values(entries.value[0], DIMENSIONS["entry_page"].metrics)),
                exits=answers.Values(**representation.values(exits.value[0], DIMENSIONS["exit_page"].metrics)),
            )
            return made(shown, asked, _until((views, entries, exits, active)), received, head)

        return Asked(("page-details", site, page, *asked.key), make)

    def referrer_details(self, site: str, arguments: Arguments) -> Asked:
        referrer = parameters.referrer(arguments)
        asked = ranges.span(arguments, self._clock(), _DAYS)

        def make() -> Made:
            hours = calendar.borders(*asked.span, INTERVALS["hour"], asked.zone)
            read = self._sources
            total = read.over_time_of(site, asked.span, "referrer", referrer)
            sessions = read.over_time_of(site, hours, "referrer", referrer)
            active = read.active(site)
            received = total.value[0].received
            head = self._head(asked.span, received)
            came = (one for one in _newest(active.value) if bounded(one.landing.acquisition.referrer) == referrer)
            shown = answers.ReferrerDetails(
                site=site,
                start=moment(asked.span.start),
                end=moment(asked.span.end),
                **head,
                referrer=referrer,
                totals=answers.Values(**representation.values(total.value[0], DIMENSIONS["referrer"].metrics)),
                hourly_distribution=[
                    answers.HourSessions(moment(at), one.sessions)
                    for at, one in zip(hours[:-1], sessions.value, strict=True)
                ],
                recent_sessions=[representation.session_row(one, True) for one in islice(came, _RECENT)],
            )
            return made(shown, asked, _until((total, sessions, active)), received, head)

        return Asked(("referrer-details", site, referrer, *asked.key), make)

    def _recent_events(self, site: str, page: str, active: Active) -> list[answers.EventRow]:
        on_it = (one for one in _newest(active) if one.page_views and bounded(one.exit_page) == page)
        events = [
            event
            for session in islice(on_it, _SESSIONS_READ)
            for event in self._sources.reader.events(site, session.session_id)
            if bounded(page_of(event.page_url)) == page
        ]
        events.sort(key=lambda event: (-event.timestamp, event.event_id))
        return [representation.event_row(event) for event in events[:_RECENT]]

    def _head(self, span: Span, received: int) -> dict[str, Any]:
        return {
            "as_of": representation.arrival(received),
            "lag": self._sources.lag(),
            "partial": is_partial(span, self._clock()),
        }


def _top(found: Breakdown, metric: str) -> list[tuple[str, int]]:
    held = Breakdown(found.rows)
    return representation.amounts(held, metric, _ROWS, unknown="")


def _newest(active: Active) -> Iterable[Session]:
    """Those of the active sessions that were read, the newest first."""
    return (session for session_id in active.order if (session := active.sessions.get(session_id)))


def _until(of: Iterable[Served[Any]]) -> int:
    return min(one.until for one in of)
