"""The query API's WSGI application: the API's routes, the dashboard's files, and what every answer has in common."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from flask import Flask, Response, request
from flask_caching import Cache
from werkzeug.exceptions import HTTPException, InternalServerError

from query_api.parameters import ParameterError
from query_api.reader import Reader
from query_api.routes import Api, NotFound
from query_api.settings import ApiSettings
from stream_consumer.table import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

DASHBOARD = Path(__file__).parent / "dashboard"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
#: Scripts and styles come from this server's files only; nothing from another site, nothing inline.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
#: Answers kept at a time. Each has 256 KiB at most, and nearly all have a few.
_CACHED_ANSWERS = 400
_RETRY_SECONDS = 5
_PREFLIGHT_SECONDS = 86_400

_log = logging.getLogger("liveinsight.query_api")


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def create_app(reader: Reader, settings: ApiSettings, clock: Callable[[], int] = now_ms) -> Flask:
    """The application. ``reader`` stays its maker's, who closes it; ``clock`` gives ms since 1970 UTC."""
    app = Flask("liveinsight.query_api", static_folder=None)
    app.url_map.merge_slashes = False
    cache = Cache(
        app,
        with_jinja2_ext=False,
        config={
            "CACHE_TYPE": "SimpleCache",
            "CACHE_THRESHOLD": _CACHED_ANSWERS,
            "CACHE_KEY_PREFIX": "liveinsight:",
        },
    )
    app.register_blueprint(Api(reader, settings, cache, clock).blueprint())

    @app.get("/")
    def dashboard() -> Response:
        return _file("index.html")

    @app.get("/dashboard/<name>")
    def dashboard_file(name: str) -> Response:
        return _file(name)

    @app.after_request
    def in_common(response: Response) -> Response:
        headers = response.headers
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "same-origin"
        headers["Content-Security-Policy"] = _POLICY
        if response.status_code >= 400:
            headers["Cache-Control"] = "no-store"
        if request.path.startswith(("/api/", "/health")):
            _allow_origin(response, settings.allowed_origins)
        return response

    @app.errorhandler(ParameterError)
    def bad_parameter(error: ParameterError) -> Response:
        return _error(400, str(error))

    @app.errorhandler(NotFound)
    def not_found(error: NotFound) -> Response:
        return _error(404, str(error))

    @app.errorhandler(Unavailable)
    def unavailable(error: Unavailable) -> Response:
        _log.warning("%s %s: %s (%s)", request.method, request.path, error, error.__cause__)
        headers = {"Retry-After": str(_RETRY_SECONDS)}
        if request.path.startswith("/health"):
            return _json(503, {"status": "unavailable", "error": str(error)}, headers)
        return _error(503, str(error), headers)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        headers = {name: value for name, value in error.get_headers() if name in {"Allow", "Location"}}
        status = error.code or InternalServerError.code
        return _error(status, _SENTENCES.get(status) or error.description or error.name, headers)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.path, exc_info=error)
        return _error(500, "something went wrong here; the server's log says what")

    return app


def app() -> Flask:
    """The application of a server process, from the process's environment. Raises what :func:`create_client` does."""
    import datasketches  # noqa: F401 - the sketch of visitors loads numpy: now, not within the first request

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    settings = ApiSettings.from_environ(os.environ)
    reader = Reader(create_client(settings), settings.tables, clock=now_ms, readers=settings.readers)
    # A server's worker process runs multiprocessing's exit functions, but not those of atexit.
    Finalize(None, reader.close, exitpriority=100)
    return create_app(reader, settings)


def create_client(settings: ApiSettings) -> DynamoDBClient:
    """The DynamoDB client, from boto3's standard environment. Raises ``BotoCoreError`` where that says too little."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=1,
        read_timeout=3,
        # A dashboard asks again by itself; what waits longer than this only holds up others.
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=settings.readers + 2,
        # What is sent is built in reader.py alone, from checked parameters; checking it again costs a third of a call.
        parameter_validation=False,
    )
    return boto3.client("dynamodb", region_name=settings.region, config=config)


_SENTENCES = {
    404: "there is nothing at this path",
    405: "this path takes GET only",
}


def _file(name: str) -> Response:
    content_type = _CONTENT_TYPES.get(Path(name).suffix)
    path = DASHBOARD / name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not content_type or not path.is_file():
        return _error(404, f"the dashboard has no file {name[:100]!r}")
    content = path.read_bytes()
    response = Response(content, content_type=content_type)
    response.set_etag(hashlib.blake2b(content, digest_size=16).hexdigest())
    # To be asked for each time, and answered with 304: so a new release is seen at once, whole.
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(request)
    return response


def _allow_origin(response: Response, allowed: tuple[str, ...]) -> None:
    headers = response.headers
    if "*" in allowed:
        headers["Access-Control-Allow-Origin"] = "*"
    else:
        headers["Vary"] = "Origin"
        origin = request.headers.get("Origin", "")
        if origin.lower() not in allowed:
            return
        headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Expose-Headers"] = "ETag, Retry-After"
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = "GET, HEAD"
        headers["Access-Control-Allow-Headers"] = "If-None-Match"
        headers["Access-Control-Max-Age"] = str(_PREFLIGHT_SECONDS)


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json(status, {"error": sentence}, headers)


def _json(status: int, answer: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(answer), status=status, headers=headers, content_type="application/json")
