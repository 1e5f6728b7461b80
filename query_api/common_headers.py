"""What every response carries: security headers, and for the API whose pages may read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from query_api.answering import OWN_HEADERS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Scripts and styles come from this server's files only; nothing from another site, nothing inline.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
_ALWAYS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Content-Security-Policy", _POLICY),
]
_PREFLIGHT_SECONDS = 86_400
_EXPOSED = ("Access-Control-Expose-Headers", ", ".join(("ETag", "Retry-After", *OWN_HEADERS)))
_PREFLIGHT = [
    ("Access-Control-Allow-Methods", "GET, HEAD"),
    ("Access-Control-Allow-Headers", "Authorization, If-None-Match"),
    ("Access-Control-Max-Age", str(_PREFLIGHT_SECONDS)),
]
_READABLE = ("/api/", "/health", "/openapi.json")


class CommonHeaders:
    """A WSGI application with these headers on every response. ``allowed``: origins in lower case, or ``*``."""

    def __init__(self, application: WSGIApplication, allowed: tuple[str, ...]) -> None:
        self._application = application
        self._allowed = frozenset(allowed)
        self._everybody = "*" in allowed
        self._public = [*_ALWAYS, ("Access-Control-Allow-Origin", "*"), _EXPOSED]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        more = self._headers(environ)

        def start(status: str, headers: list[tuple[str, str]], *error: object) -> object:
            return start_response(status, headers + more, *error)  # type: ignore[arg-type]

        return self._application(environ, start)  # type: ignore[arg-type]

    def _headers(self, environ: WSGIEnvironment) -> list[tuple[str, str]]:
        if not environ["PATH_INFO"].startswith(_READABLE):
            return _ALWAYS
        if self._everybody:
            more = self._public
        else:
            more = [*_ALWAYS, ("Vary", "Origin")]
            origin = environ.get("HTTP_ORIGIN", "")
            if origin.lower() not in self._allowed:
                return more
            more += [("Access-Control-Allow-Origin", origin), _EXPOSED]
        return more + _PREFLIGHT if environ["REQUEST_METHOD"] == "OPTIONS" else more
