"""The API's paths: a request is understood once, permitted each time, and answered from the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Blueprint, Response, request
from werkzeug.routing import BaseConverter

from query_api import answers, details_routes, parameters, representation, session_routes, statistics_routes
from query_api.answering import Answering, key_of
from query_api.caching import Answer, Newest, Served
from query_api.details_routes import DetailsRoutes
from query_api.endpoints import EVENT_STREAM, Ask, Asked, Endpoint, Made
from query_api.live import Live
from query_api.parameters import Arguments
from query_api.session_routes import SessionRoutes
from query_api.settings import ApiSettings
from query_api.sources import Sources
from query_api.statistics_routes import StatisticsRoutes
from stream_consumer.generations import Pointer
from stream_consumer.rollup import QUARTER_MS

if TYPE_CHECKING:
    from query_api.read_keys import ReadKeys

#: Requests that are remembered as they were understood, if they are not longer than this (in characters).
_UNDERSTOOD = 2000
_LONGEST = 1000

_OWN = (
    Endpoint(
        path="/api/sites/",
        name="sites",
        group="Sites and definitions",
        title="Sites",
        description="The sites of which there are figures; with a read key, the key's own.",
        answer=answers.Sites,
        errors=("key_missing", "key_unknown", "unavailable"),
        of_site=False,
    ),
    Endpoint(
        path="/api/metrics/",
        name="metrics",
        group="Sites and definitions",
        title="Metrics and dimensions",
        description="What every figure means, and for which intervals and dimensions there is it.",
        answer=answers.Definitions,
        of_site=False,
    ),
    Endpoint(
        path="/health/",
        name="health",
        group="Sites and definitions",
        title="Health",
        description="200 where the tables can be read.",
        answer=answers.Health,
        errors=("unavailable",),
        of_site=False,
        may_be_stale=False,
    ),
)

#: Every path of the API.
ENDPOINTS = (*_OWN, *session_routes.ENDPOINTS, *statistics_routes.ENDPOINTS, *details_routes.ENDPOINTS)


class AnyText(BaseConverter):
    """A part of a path that sites make as they like: it may hold slashes and line breaks."""

    regex = "(?s:.+?)"
    part_isolating = False


class _Understood(NamedTuple):
    """A request's site and question, as good as the quarter of an hour: a range may end now."""

    quarter: int
    site: str
    key: str
    make: Callable[[], Made]


class _OwnRoutes:
    """Understands the requests of _OWN."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def sites(self, site: str, arguments: Arguments) -> Asked:
        def make() -> Made:
            read = self._sources
            return Made(answers.Sites(read.reader.sites()), read.clock() + read.recent_ms)

        return Asked(("sites",), make)

    def metrics(self, site: str, arguments: Arguments) -> Asked:
        def make() -> Made:
            return Made(representation.definitions(), self._sources.clock() + QUARTER_MS)

        return Asked(("metrics",), make)

    def health(self, site: str, arguments: Arguments) -> Asked:
        def make() -> Made:
            self._sources.reader.check()
            return Made(answers.Health("ok"), self._sources.clock() + self._sources.live_ms)

        return Asked(("health",), make)


class _Generation:
    """The API over the generation that a pointer names: what understands its requests, and those that were understood.

    A generation that is served again after another one is a new one: what was read of it then is too old, and as a
    stale answer it would make figures jump back.
    """

    def __init__(self, pointer: Pointer, sources: Sources) -> None:
        self.pointer = pointer
        self.sources = sources
        self._prefix = "" if pointer == Pointer() else f"{pointer.serving}.{pointer.since} "
        self.sessions = SessionRoutes(sources)
        self.understood = Newest(_UNDERSTOOD)
        self._owners: dict[str, object] = {
            endpoint.path: owner
            for endpoints, owner in (
                (_OWN, _OwnRoutes(sources)),
                (session_routes.ENDPOINTS, self.sessions),
                (statistics_routes.ENDPOINTS, StatisticsRoutes(sources)),
                (details_routes.ENDPOINTS, DetailsRoutes(sources)),
            )
            for endpoint in endpoints
        }

    def ask(self, endpoint: Endpoint) -> Ask:
        """What understands the requests of an endpoint."""
        understands: Ask = getattr(self._owners[endpoint.path], endpoint.name)
        return understands

    def key(self, asked: Asked) -> str:
        """What the answer is kept under: those of other generations have other keys."""
        return self._prefix + key_of(asked)


class Routes:
    """Answers requests for ENDPOINTS, each from the generation that the pointer ``serving`` names when it comes.

    ``sources`` gives a generation's, by its name. Without ``read_keys`` everybody may read.
    """

    def __init__(
        self,
        serving: Callable[[], Pointer],
        sources: Callable[[str], Sources],
        answering: Answering,
        *,
        read_keys: ReadKeys | None,
        settings: ApiSettings,
        clock: Callable[[], int],
    ) -> None:
        self._serving = serving
        self._sources = sources
        self._answering = answering
        self._read_keys = read_keys
        self._clock = clock
        self._generation: _Generation | None = None
        self._making = threading.Lock()
        # Twice in a lifetime: an event is seen at most one and a half of them after it can be read.
        self.live = Live(self._realtime, settings.streams, period=max(0.2, settings.realtime_lifetime / 2))

    def blueprint(self) -> Blueprint:
        """The routes."""
        blueprint = Blueprint("api", __name__)
        for endpoint in ENDPOINTS:
            view = self._view(endpoint)
            bare = endpoint.path.rstrip("/")
            # Two rules, not strict_slashes=False: with that, a wrong method is 404 where the slash is missing.
            for written in (bare, f"{bare}/"):
                blueprint.add_url_rule(written, endpoint=bare.strip("/").replace("/", "-"), view_func=view)
        return blueprint

    def _served(self) -> _Generation:
        pointer, known = self._serving(), self._generation
        if known is None or known.pointer != pointer:
            with self._making:
                known = self._generation
                if known is None or known.pointer != pointer:
                    known = self._generation = _Generation(pointer, self._sources(pointer.serving))
        return known

    def _view(self, endpoint: Endpoint) -> Callable[..., Response]:
        known = endpoint.known
        streams = EVENT_STREAM in endpoint.content_types

        def understand(served: _Generation, quarter: int, query: str, parts: dict[str, str]) -> _Understood:
            arguments = parameters.read(query.encode("latin-1", "replace").decode("utf-8", "replace"), known)
            site = parameters.site(arguments) if endpoint.of_site else ""
            asked = served.ask(endpoint)(site, arguments, **endpoint.bound, **parts)
            return _Understood(quarter, site, served.key(asked), asked.make)

        def view(**parts: str) -> Response:
            # Of one generation from here to the answer, whatever is promoted meanwhile.
            served = self._served()
            environ = request.environ
            query = environ.get("QUERY_STRING", "")
            # A query has no line break.
            written = f"{environ['PATH_INFO']}\n{query}"
            quarter = self._clock() // QUARTER_MS
            understood: _Understood | None = served.understood.get(written)
            if understood is None or understood.quarter != quarter:
                understood = understand(served, quarter, query, parts)
                if len(written) <= _LONGEST:
                    served.understood.set(written, understood, 0)
            if self._read_keys is not None:
                if endpoint.of_site:
                    self._read_keys.check(environ.get("HTTP_AUTHORIZATION"), understood.site)
                elif endpoint.name == "sites":
                    understood = self._own_site(served, self._read_keys.site_of(environ.get("HTTP_AUTHORIZATION")))
            if streams:
                return self._stream(understood.site)
            answer = self._answering.served(understood.key, understood.make, may_be_stale=endpoint.may_be_stale)
            return self._answering.response(answer, environ, served.pointer.serving)

        return view

    def _own_site(self, served: _Generation, site: str) -> _Understood:
        def make() -> Made:
            return Made(answers.Sites([site]), self._clock() + served.sources.recent_ms)

        return _Understood(0, site, served.key(Asked(("own site", site), make)), make)

    def _realtime(self, site: str) -> Served[Answer]:
        served = self._served()
        asked = served.sessions.realtime(site, {})
        return self._answering.served(served.key(asked), asked.make)

    def _stream(self, site: str) -> Response:
        headers: dict[str, Any] = {"Content-Type": EVENT_STREAM, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(status=200, headers=headers)
        return Response(self.live.stream(site), 200, headers)
