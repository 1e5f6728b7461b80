"""The paths of the API: parameters in, a cached answer out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from flask import Blueprint, Response, request

from query_api import parameters, representation, statistics
from query_api.caching import Fresh, Newest, Shared, Store
from query_api.parameters import Page, Span
from query_api.reader import Reader
from query_api.settings import ApiSettings
from query_api.statistics import Active, Figures, Ranking
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS, quarter_of

#: The longest range of figures over time, in days.
MAX_STEP_DAYS = 7
REALTIME_MINUTES = 30
REALTIME_PAGES = 10
#: Ranges and sites whose figures are held at a time, to make several answers of.
_HELD_FIGURES = 32
_HELD_SITES = 256
#: A larger answer (in bytes) is shared by those who wait for it, but takes no room in the cache.
MAX_CACHED_BYTES = 256 * 1024
_HOUR_MS = 3600 * 1000
#: Figures that got something within this time (ms) may be about to get more, however old their range.
SETTLED_AFTER_MS = 60 * 1000

_encode = msgspec.json.Encoder().encode


class NotFound(LookupError):  # noqa: N818 - an answer, not a fault
    """What was asked for is not there; a sentence for the client."""


class Answer(NamedTuple):
    """The bytes of an answer, and the hash that names them."""

    body: bytes
    etag: str


class Api:
    """Each path's answer. ``store`` keeps encoded answers; ``clock`` gives ms since 1970 UTC.

    Answers made of the same reads share them, so that the panels of a dashboard cost one read and agree.
    """

    def __init__(self, reader: Reader, settings: ApiSettings, store: Store, clock: Callable[[], int]) -> None:
        self._reader = reader
        self._clock = clock
        self._live_ms = round(settings.live_lifetime * 1000)
        self._recent_ms = round(settings.recent_lifetime * 1000)
        self._closed_ms = round(settings.closed_lifetime * 1000)
        self._answers: Shared[Answer] = Shared(store, clock, keep=lambda answer: len(answer.body) <= MAX_CACHED_BYTES)
        self._figures: Shared[Figures] = Shared(Newest(_HELD_FIGURES), clock)
        self._actives: Shared[Active] = Shared(Newest(_HELD_SITES), clock)

    def blueprint(self) -> Blueprint:
        """The routes."""
        views: dict[str, Callable[..., Response]] = {
            "/api/sites/": self.sites,
            "/api/realtime/": self.realtime,
            "/api/sessions/active/": self.active_sessions,
            "/api/sessions/<session_id>/": self.session,
            "/api/sessions/<session_id>/events/": self.session_events,
            "/api/statistics/summary/": self.summary,
            "/api/statistics/hourly/": self.hourly,
            "/health/": self.health,
        }
        for name, (dimension, represent) in _RANKINGS.items():
            views[f"/api/statistics/{name}/"] = self._ranking_view(dimension, represent)
        blueprint = Blueprint("api", __name__)
        for path, view in views.items():
            # Two rules, not strict_slashes=False: with that, a wrong method is 404 where the slash is missing.
            for written in (path, path.rstrip("/")):
                blueprint.add_url_rule(written, endpoint=path.strip("/").replace("/", "-"), view_func=view)
        return blueprint

    def sites(self) -> Response:
        return self._answer(("sites",), lambda: self._fresh({"sites": self._reader.sites()}, self._recent_ms))

    def realtime(self) -> Response:
        site_id = parameters.site(request.args)
        return self._answer(("realtime", site_id), lambda: self._realtime(site_id))

    def active_sessions(self) -> Response:
        site_id, page = parameters.site(request.args), parameters.page(request.args)
        if page:
            return self._answer(("active page", site_id, *page), lambda: self._active_page(site_id, page))
        limit = parameters.limit(request.args, 100)
        return self._answer(("active", site_id, limit), lambda: self._active_list(site_id, limit))

    def session(self, session_id: str) -> Response:
        site_id = parameters.site(request.args)
        return self._answer(("session", site_id, session_id), lambda: self._session(site_id, session_id))

    def session_events(self, session_id: str) -> Response:
        site_id, page = parameters.site(request.args), parameters.page(request.args)
        key = ("events", site_id, session_id, *(page or ()))
        return self._answer(key, lambda: self._session_events(site_id, session_id, page))

    def summary(self) -> Response:
        site_id, span = parameters.site(request.args), parameters.span(request.args, self._clock())
        return self._answer(("summary", site_id, *span), lambda: self._summary(site_id, span))

    def hourly(self) -> Response:
        site_id = parameters.site(request.args)
        span = parameters.span(request.args, self._clock(), MAX_STEP_DAYS)

        def make() -> Fresh[Any]:
            found = self._figures_of(site_id, span)
            return Fresh(representation.steps(statistics.steps(found.value, *span)), found.until)

        return self._answer(("hourly", site_id, *span), make)

    def health(self) -> Response:
        def make() -> Fresh[Any]:
            self._reader.check()
            return self._fresh({"status": "ok"}, self._live_ms)

        return self._answer(("health",), make)

    def _ranking_view(self, dimension: str, represent: Callable[[Ranking], Any]) -> Callable[[], Response]:
        def view() -> Response:
            site_id, span = parameters.site(request.args), parameters.span(request.args, self._clock())
            limit = parameters.limit(request.args, 10)

            def make() -> Fresh[Any]:
                found = self._figures_of(site_id, span)
                return Fresh(represent(statistics.rank(found.value, dimension, limit)), found.until)

            return self._answer((dimension, site_id, *span, limit), make)

        return view

    def _realtime(self, site_id: str) -> Fresh[Any]:
        active = self._active_on(site_id)
        now = self._clock()
        first = now - now % MINUTE_MS - (REALTIME_MINUTES - 1) * MINUTE_MS
        rollups = list(self._reader.rollups(site_id, quarter_of(first), quarter_of(now) + QUARTER_MS))
        sessions = active.value.sessions.values()
        shown = representation.realtime(
            site_id,
            as_of=max((one.received for some in (rollups, sessions) for one in some), default=0),
            visitors_now=active.value.recent,
            active_sessions=len(active.value.order),
            minutes=statistics.minutes(rollups, first, REALTIME_MINUTES),
            top_pages=statistics.current_pages(sessions, REALTIME_PAGES),
        )
        return Fresh(shown, active.until)

    def _active_list(self, site_id: str, limit: int) -> Fresh[Any]:
        active = self._active_on(site_id)
        sessions = (active.value.sessions[session_id] for session_id in active.value.order[:limit])
        return Fresh([representation.session_row(session, True) for session in sessions], active.until)

    def _active_page(self, site_id: str, page: Page) -> Fresh[Any]:
        active = self._active_on(site_id)
        order = active.value.order[page.offset : page.offset + page.size]
        unread = [session_id for session_id in order if session_id not in active.value.sessions]
        sessions = active.value.sessions | (self._reader.sessions(site_id, unread) if unread else {})
        shown = [session for session_id in order if (session := sessions.get(session_id))]
        rows = [representation.session_row(session, True) for session in shown]
        count = len(active.value.order)
        paginated = representation.paginated("/api/sessions/active/", [("site", site_id)], page, count, rows)
        return Fresh(paginated, active.until)

    def _session(self, site_id: str, session_id: str) -> Fresh[Any]:
        session = self._reader.session(site_id, session_id) if parameters.is_session_id(session_id) else None
        if session is None:
            raise NotFound(f"site {site_id} has no session {session_id[:128]!r}; site= names another site")
        active = statistics.is_active(session, self._clock())
        return self._fresh(representation.session_details(session, active), self._live_ms)

    def _session_events(self, site_id: str, session_id: str, page: Page | None) -> Fresh[Any]:
        self._session(site_id, session_id)
        events = self._reader.events(site_id, session_id)
        if page is None:
            return self._fresh([representation.event_row(event) for event in events], self._live_ms)
        rows = [representation.event_row(event) for event in events[page.offset : page.offset + page.size]]
        path = f"/api/sessions/{session_id}/events/"
        paginated = representation.paginated(path, [("site", site_id)], page, len(events), rows)
        return self._fresh(paginated, self._live_ms)

    def _summary(self, site_id: str, span: Span) -> Fresh[Any]:
        found, active = self._figures_of(site_id, span), self._active_on(site_id)
        summarised = statistics.summarise(found.value)
        shown = representation.summary(site_id, span, summarised, len(active.value.order))
        return Fresh(shown, min(found.until, active.until))

    def _active_on(self, site_id: str) -> Fresh[Active]:
        return self._actives.get(site_id, lambda: self._fresh(self._reader.active(site_id), self._live_ms))

    def _figures_of(self, site_id: str, span: Span) -> Fresh[Figures]:
        def read() -> Fresh[Figures]:
            found = statistics.total(self._reader.rollups(site_id, *span))
            now = self._clock()
            closed = span.end <= now - now % _HOUR_MS and 0 < found.received < now - SETTLED_AFTER_MS
            return self._fresh(found, self._closed_ms if closed else self._recent_ms)

        return self._figures.get(f"{site_id} {span.start} {span.end}", read)

    def _fresh(self, value: Any, lifetime_ms: int) -> Fresh[Any]:
        return Fresh(value, self._clock() + lifetime_ms)

    def _answer(self, key: tuple[object, ...], make: Callable[[], Fresh[Any]]) -> Response:
        """The answer that ``key`` names. ``make`` is called if it is not cached, and gives what is to be encoded."""

        def encoded() -> Fresh[Answer]:
            made = make()
            body = _encode(made.value)
            return Fresh(Answer(body, hashlib.blake2b(body, digest_size=16).hexdigest()), made.until)

        fresh = self._answers.get(" ".join(map(str, key)), encoded)
        response = Response(fresh.value.body, content_type="application/json")
        response.set_etag(fresh.value.etag)
        # A browser or proxy may keep it for as long as we would.
        response.headers["Cache-Control"] = f"public, max-age={max(0, fresh.until - self._clock()) // 1000}"
        response.make_conditional(request)
        return response


def _referrers(found: Ranking) -> Any:
    return representation.shares(found, unknown=representation.DIRECT)


#: Path -> dimension, and how its ranking is shown.
_RANKINGS: dict[str, tuple[str, Callable[[Ranking], Any]]] = {
    "pages": ("page", representation.pages),
    "referrers": ("referrer", _referrers),
    "sources": ("source", representation.shares),
    "channels": ("channel", representation.shares),
    "devices": ("device", representation.shares),
    "browsers": ("browser", representation.shares),
    "countries": ("country", representation.shares),
}
