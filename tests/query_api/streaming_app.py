"""A small application with a stream, for the gateway's tests."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from flask import Flask, Response, request

from query_api.live import Live, Stream, TooManyStreams

MOST = 60


def app() -> Flask:
    """``/stream?site=quick``: 40 KB fifty times a second; of another site: one event and no more."""
    made = Flask("streaming")
    streams: list[Stream] = []

    def answer(site: str) -> Any:
        state = time.monotonic_ns() // 20_000_000 if site == "quick" else 0
        body = b'{"state":%d,"filler":"%s"}' % (state, b"x" * (40_000 if site == "quick" else 0))
        return SimpleNamespace(value=SimpleNamespace(body=body, etag=str(state)))

    live = Live(answer, MOST, period=0.02, beat=3600, lifetime=3600)

    @made.get("/stream")
    def stream() -> Response:
        stream = live.stream(request.args["site"])
        streams.append(stream)
        return Response(stream, headers={"Content-Type": "text/event-stream"})

    @made.get("/open")
    def still_open() -> Response:
        return Response(str(sum(not stream.over for stream in streams)))

    @made.get("/environ/<path:rest>")
    def environ(rest: str) -> dict[str, str]:
        return {name: str(value) for name, value in request.environ.items() if name.isupper()}

    @made.get("/body")
    def body() -> Response:
        return Response("0123456789")

    @made.errorhandler(TooManyStreams)
    def too_many(error: TooManyStreams) -> Response:
        return Response(str(error), 429)

    # Not Flask's own handler of errors: what is raised here, is raised to the server.
    inside = made.wsgi_app

    def outside(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/fails":
            raise RuntimeError("the application failed")
        return inside(environ, start_response)

    made.wsgi_app = outside  # type: ignore[method-assign]
    return made
