"""Who is here now, and sessions one by one: /api/realtime/, /api/sessions/, /api/users/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any
from urllib.parse import quote

from query_api import answers, pagination, parameters, representation, statistics
from query_api.endpoints import EVENT_STREAM, Asked, Endpoint, Made
from query_api.errors import Problem
from query_api.pagination import Listing, Place, Wanted
from query_api.parameters import MAX_USER_ID, Arguments, ParameterError
from query_api.reader import MAX_USER_SESSIONS
from query_api.sources import Sources
from query_api.statistics import Active
from stream_consumer.items import SESSION_LIFETIME_S
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS, quarter_of
from stream_consumer.session import Session

REALTIME_MINUTES = 30
_REALTIME_PAGES = 10
_REALTIME_SESSIONS = 50
_LIMIT = 100
_FAILS = ("bad_parameter", "key_missing", "key_unknown", "other_site", "unavailable")
_PAGES = (parameters.PAGE, parameters.PAGE_SIZE, parameters.CURSOR)

ENDPOINTS = (
    Endpoint(
        path="/api/realtime/",
        name="realtime",
        group="Now",
        title="Who is here now",
        description=f"Visitors, the last {REALTIME_MINUTES} minutes, the pages that most are on, the newest sessions.",
        answer=answers.Realtime,
        parameters=(parameters.SITE,),
        errors=_FAILS,
    ),
    Endpoint(
        path="/api/realtime/stream",
        name="realtime",
        group="Now",
        title="Who is here now, as it changes",
        description="Server-sent events. `event: realtime` comes at once and whenever something changed: its `data` is"
        " the JSON of /api/realtime/, its `id` that answer's ETag. A comment comes every 15 seconds.",
        answer=answers.Realtime,
        parameters=(parameters.SITE,),
        errors=(*_FAILS, "too_many_streams"),
        content_types=(EVENT_STREAM,),
    ),
    Endpoint(
        path="/api/sessions/active/",
        name="active_sessions",
        group="Sessions",
        title="Active sessions",
        description="Those with an event in the last 30 minutes, the last active first: a list of `limit` sessions,"
        " or with `page` or `cursor` a page of them all.",
        answer=list[answers.SessionRow] | answers.SessionPage,
        parameters=(parameters.SITE, parameters.limit_of(_LIMIT), *_PAGES),
        errors=_FAILS,
    ),
    Endpoint(
        path="/api/sessions/<session_id>/",
        name="session",
        group="Sessions",
        title="One session",
        description=f"It is kept for {SESSION_LIFETIME_S // 86_400} days after its last event arrived.",
        answer=answers.SessionDetails,
        parameters=(parameters.SESSION_ID, parameters.SITE),
        errors=(*_FAILS, "no_such_session"),
    ),
    Endpoint(
        path="/api/sessions/<session_id>/events/",
        name="session_events",
        group="Sessions",
        title="The events of a session",
        description="In the order of their times: a list of all, or with `page` or `cursor` a page.",
        answer=list[answers.EventRow] | answers.EventPage,
        parameters=(parameters.SESSION_ID, parameters.SITE, *_PAGES),
        errors=(*_FAILS, "no_such_session"),
    ),
    Endpoint(
        path="/api/users/<any_text:user_id>/sessions/",
        name="user_sessions",
        group="Sessions",
        title="The sessions of a user",
        description=f"The last begun first, {MAX_USER_SESSIONS} at most. A user without sessions has none.",
        answer=answers.SessionPage,
        parameters=(parameters.USER_ID, parameters.SITE, *_PAGES),
        errors=_FAILS,
    ),
)


class SessionRoutes:
    """Understands the requests of ENDPOINTS."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._clock: Callable[[], int] = sources.clock

    def realtime(self, site: str, arguments: Arguments) -> Asked:
        return Asked(("realtime", site), lambda: self._realtime(site))

    def active_sessions(self, site: str, arguments: Arguments) -> Asked:
        limit, page = parameters.limit(arguments, _LIMIT), parameters.page_or_list(arguments)
        if page:
            asked = pagination.wanted(Listing("active", "/api/sessions/active/", site), page)
            return Asked(("active page", asked), lambda: self._active_page(asked))
        return Asked(("active", site, limit), lambda: self._active_list(site, limit))

    def session(self, site: str, arguments: Arguments, session_id: str) -> Asked:
        def make() -> Made:
            session = self._session(site, session_id)
            active = statistics.is_active(session, self._clock())
            return self._made(representation.session_details(session, active), [session])

        return Asked(("session", site, session_id), make)

    def session_events(self, site: str, arguments: Arguments, session_id: str) -> Asked:
        path = f"/api/sessions/{quote(session_id, safe='')}/events/"
        page = parameters.page_or_list(arguments)
        asked = pagination.wanted(Listing("events", path, site), page) if page else None

        def make() -> Made:
            session = self._session(site, session_id)
            events = self._sources.reader.events(site, session_id)
            if asked is None:
                return self._made([representation.event_row(event) for event in events], [session])
            places = [(event.timestamp, event.event_id) for event in events]
            shown = pagination.window(places, asked)
            after, before = pagination.links(places, asked, shown)
            rows = [representation.event_row(event) for event in events[shown.start : shown.stop]]
            return self._made(
                answers.EventPage(count=len(events), next=after, previous=before, results=rows), [session]
            )

        return Asked(("events", site, session_id, asked), make)

    def user_sessions(self, site: str, arguments: Arguments, user_id: str) -> Asked:
        if len(user_id) > MAX_USER_ID:
            raise ParameterError(f"user_id: at most {MAX_USER_ID} characters")
        path = f"/api/users/{quote(user_id, safe='')}/sessions/"
        asked = pagination.wanted(Listing("user", path, site), parameters.page(arguments))

        def make() -> Made:
            found = self._sources.reader.user_sessions(site, user_id)
            sessions = {(-session.start, session.session_id): session for session in found}
            made = self._shown(asked, sorted(sessions), sessions, len(sessions))
            return made._replace(partial=len(found) >= MAX_USER_SESSIONS)

        return Asked(("user", user_id, asked), make)

    def _realtime(self, site: str) -> Made:
        # Sessions are read for this alone: what others share may be a second old before it is looked at here.
        active, now = self._sources.active_now(site), self._clock()
        first = now - now % MINUTE_MS - (REALTIME_MINUTES - 1) * MINUTE_MS
        borders = range(quarter_of(first), quarter_of(now) + QUARTER_MS + 1, MINUTE_MS)
        found = self._sources.over_time(site, borders, visitors=False)
        minutes = {at: one for at, one in zip(borders[:-1], found.value, strict=True) if first <= at <= now}
        sessions = _read(active)
        received = max(*(one.received for one in minutes.values()), *(one.received for one in sessions), 0)
        lag = self._sources.lag()
        shown = answers.Realtime(
            site=site,
            as_of=representation.arrival(received),
            lag=lag,
            visitors_now=active.recent,
            active_sessions=len(active.order),
            minutes=representation.live_minutes(minutes),
            top_pages=representation.current_pages(sessions, _REALTIME_PAGES),
            sessions=[representation.session_row(one, True) for one in sessions[:_REALTIME_SESSIONS]],
        )
        return Made(shown, now + self._sources.realtime_ms, received, lag)

    def _active_list(self, site: str, limit: int) -> Made:
        active = self._sources.active(site)
        shown = _read(active.value)[:limit]
        rows = [representation.session_row(one, True) for one in shown]
        made = self._made(rows, shown)
        return made._replace(until=active.until, partial=len(rows) < len(active.value.order))

    def _active_page(self, asked: Wanted) -> Made:
        site = asked.listing.site
        active = self._sources.active(site)
        sessions = {(-one.end, one.session_id): one for one in _read(active.value)}
        count = len(active.value.order)
        places = sorted(sessions)
        if len(places) < count:
            # Those of the last minute that was read may have to be among others of it that were not.
            places = [place for place in places if -place[0] // MINUTE_MS > -places[-1][0] // MINUTE_MS]
            shown = pagination.window(places, asked)
            if shown.stop - shown.start < asked.size or shown.stop >= len(places):
                everyone, now = self._sources.all_active(site).value.values(), self._clock()
                sessions = {(-one.end, one.session_id): one for one in everyone if statistics.is_active(one, now)}
                places = sorted(sessions)
        made = self._shown(asked, places, sessions, count)
        return made._replace(until=active.until, partial=count >= statistics.MAX_ACTIVE)

    def _shown(self, asked: Wanted, places: Sequence[Place], sessions: Mapping[Place, Session], count: int) -> Made:
        """One page of a list of sessions, in the order of ``places``."""
        shown = pagination.window(places, asked)
        after, before = pagination.links(places, asked, shown)
        found, now = [sessions[place] for place in places[shown.start : shown.stop]], self._clock()
        rows = [representation.session_row(one, statistics.is_active(one, now)) for one in found]
        return self._made(answers.SessionPage(count=count, next=after, previous=before, results=rows), found)

    def _session(self, site: str, session_id: str) -> Session:
        session = self._sources.reader.session(site, session_id) if parameters.is_session_id(session_id) else None
        if session is None:
            sentence = f"site {site} has no session {session_id[:128]!r}; site= names another site"
            raise Problem("no_such_session", sentence)
        return session

    def _made(self, shown: Any, of: Iterable[Session]) -> Made:
        received = max((one.received for one in of), default=0)
        return Made(shown, self._clock() + self._sources.session_ms, received, self._sources.lag())


def _read(active: Active) -> list[Session]:
    """The active sessions that were read without one between them that was not, the newest first."""
    return [active.sessions[session_id] for session_id in takewhile(active.sessions.__contains__, active.order)]
