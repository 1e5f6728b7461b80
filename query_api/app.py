"""The query API's WSGI application: the API's routes, its documentation, the dashboard, and how each answer ends."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from query_api import docs_page
from query_api.answering import Answering
from query_api.caching import answer_store
from query_api.common_headers import CommonHeaders
from query_api.errors import Problem, refusal
from query_api.live import TooManyStreams
from query_api.read_keys import ReadKeys, Refused
from query_api.reader import Reader, unavailable
from query_api.routes import AnyText, Routes
from query_api.serving import Serving
from query_api.settings import ApiSettings
from query_api.sources import Sources
from query_api.static_files import StaticFiles, respond
from stream_consumer.generations import Generations, Pointer, scoped
from stream_consumer.table import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

DASHBOARD = Path(__file__).parent / "dashboard"
#: The largest body of a request, in bytes. None is read.
MAX_BODY_BYTES = 64 * 1024
_RETRY_SECONDS = 5

_log = logging.getLogger("liveinsight.query_api")


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def create_app(
    reader: Reader | Callable[[str], Reader],
    settings: ApiSettings,
    clock: Callable[[], int] = now_ms,
    read_keys: ReadKeys | None = None,
    *,
    serving: Callable[[], Pointer] = Pointer,
    jitter: Callable[[], float] = random.random,
    ahead: float = 0.4,
    patience: float = 0.3,
) -> Flask:
    """The application. ``reader``, or what makes a generation's by its name, stays its maker's, who closes it.

    It answers from the generation that the pointer ``serving`` names. ``clock`` gives ms since 1970 UTC.
    Without ``read_keys`` everybody may read. ``jitter`` gives numbers from 0 to 1. ``ahead``: the last part of an
    answer's time, in which it is made anew if it is asked for. ``patience``: how long (s) a new answer is waited for
    where an old one could stand in.
    """
    app = Flask("liveinsight.query_api", static_folder=None)
    app.url_map.merge_slashes = False
    app.url_map.converters["any_text"] = AnyText
    store = answer_store(app, settings.cache_url)
    answering = Answering(
        store, settings, clock, jitter, shared_caches=read_keys is None, ahead=ahead, patience=patience
    )

    def sources(generation: str) -> Sources:
        return Sources(reader(generation) if callable(reader) else reader, settings, clock)

    routes = Routes(serving, sources, answering, read_keys=read_keys, settings=settings, clock=clock)
    app.register_blueprint(routes.blueprint())
    app.extensions["liveinsight"] = answering, routes.live
    _add_files(app)
    _add_errors(app)
    app.wsgi_app = CommonHeaders(app.wsgi_app, settings.allowed_origins)  # type: ignore[method-assign]
    return app


def app() -> Flask:
    """The application of a server process, from the process's environment. Raises what :func:`create_client` does."""
    import _datasketches  # noqa: F401 - the sketch of visitors: now, not within the first request

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    settings = ApiSettings.from_environ(os.environ)
    client = create_client(settings)
    read_keys = ReadKeys(client, settings.tables, now_ms) if settings.read_keys else None

    @cache
    def reader_of(generation: str) -> Reader:
        own = scoped(client, settings.tables, generation)
        reader = Reader(own, settings.tables, clock=now_ms, readers=settings.readers)
        # A server's worker process runs multiprocessing's exit functions, but not those of atexit.
        Finalize(None, reader.close, exitpriority=100)
        return reader

    made = create_app(reader_of, settings, read_keys=read_keys, serving=serving(client, settings))
    for closed in made.extensions["liveinsight"]:
        Finalize(None, closed.close, exitpriority=100)
    return made


def serving(client: DynamoDBClient, settings: ApiSettings) -> Callable[[], Pointer]:
    """Points to the generation to answer from: the one that the settings name, else the one that is served."""
    if settings.generation:
        pinned = Pointer(settings.generation)
        return lambda: pinned
    generations = Generations(client, settings.tables)

    def look() -> Pointer:
        try:
            return generations.pointer()
        except Unavailable as why:
            cause = why.__cause__
            raise unavailable(cause) if isinstance(cause, ClientError | BotoCoreError) else why from cause

    return Serving(look, now_ms)


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


def _add_files(app: Flask) -> None:
    dashboard, described = StaticFiles(DASHBOARD), StaticFiles(docs_page.DIRECTORY)

    def file(files: StaticFiles, name: str) -> Response:
        found = files.get(name)
        if found is None:
            raise Problem("no_such_path", f"there is no file {name[:100]!r} here")
        return respond(found, request.environ)

    @app.get("/")
    def start() -> Response:
        return file(dashboard, "index.html")

    @app.get("/dashboard/<name>")
    def dashboard_file(name: str) -> Response:
        return file(dashboard, name)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return respond(docs_page.document(), request.environ)

    def docs() -> Response:
        return respond(docs_page.page(), request.environ)

    for path in ("/docs", "/docs/"):
        app.add_url_rule(path, endpoint="docs", view_func=docs)

    @app.get("/docs/docs.css")
    def docs_style() -> Response:
        return file(described, "docs.css")


def _add_errors(app: Flask) -> None:
    @app.before_request
    def bounded() -> None:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise Problem("too_large", f"a request here has no body of more than {MAX_BODY_BYTES // 1024} KiB")

    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        return _refuse(error.reason, str(error), error.headers)

    @app.errorhandler(Refused)
    def refused(error: Refused) -> Response:
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        return _refuse(error.reason, error.message, headers)

    @app.errorhandler(TooManyStreams)
    def too_many_streams(error: TooManyStreams) -> Response:
        return _refuse("too_many_streams", str(error), {"Retry-After": str(_RETRY_SECONDS)})

    @app.errorhandler(Unavailable)
    def unavailable(error: Unavailable) -> Response:
        _log.warning("%s %s: %s (%s)", request.method, request.path, error, error.__cause__)
        return _refuse("unavailable", str(error), {"Retry-After": str(_RETRY_SECONDS)})

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        headers = {name: value for name, value in error.get_headers() if name in {"Allow", "Location"}}
        status = error.code or 500
        reason, sentence = _HTTP.get(status, ("bad_parameter" if status < 500 else "internal", ""))
        return _refuse(reason, sentence or error.description or error.name, headers, status)

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.path, exc_info=error)
        return _refuse("internal", "something went wrong here; the server's log says what")


_HTTP = {
    404: ("no_such_path", "there is nothing at this path; /docs/ lists those that there are"),
    405: ("method_not_allowed", "this path takes GET only"),
    413: ("too_large", "the request is too large"),
}


def _refuse(
    reason: str, sentence: str, headers: Mapping[str, str] | None = None, status: int | None = None
) -> Response:
    refused = refusal(reason, sentence, status)
    all_headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})}
    return Response(refused.body, refused.status, all_headers)
