"""What an answer from the cache costs the query API, beside no cache, a usual one, and the least that the server needs.

One server as `python -m query_api` runs it (granian, one worker, 32 threads), on one processor where the system lets one
choose, with the load of wrk from another. It holds every way below a path of its own, in tables of its memory, so that
reading them costs no network. What is told are requests for each second of processor time of the server's processes:
what else the machine does blurs that less than it does requests/s.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Flask, Response, jsonify, request
from flask_caching import Cache

from producer.serving import free_address, serve
from query_api.app import create_app, now_ms
from query_api.gateway import Gateway
from query_api.reader import Reader
from query_api.serving import Serving
from query_api.settings import ApiSettings
from query_api.sources import Sources
from query_api.statistics_routes import StatisticsRoutes
from stream_consumer.generations import Pointer
from tests.benchmarks.api_data import Plan, stored
from tests.benchmarks.bench_api import MISSING
from tests.benchmarks.bench_reads import Items
from tests.benchmarks.measuring import Ratio, Row, Spread, in_turns, ratios
from tests.fake_dynamodb import NAMES

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SITE = "shop"
PATH = f"/api/statistics/summary/?site={SITE}"
CONNECTIONS = 32
#: The kernel counts processor time in so many parts of a second.
_TICKS = os.sysconf("SC_CLK_TCK")
NO_PROC = "skipped: processor time of another process is read from /proc, which there is not here"

_OURS = "cached"
_UNCACHED = "uncached"
_DICT = "flask-caching over a dict"
_FLASK = "Flask with constant bytes"
_WSGI = "raw WSGI bytes"
#: Below which path each way is.
_PREFIXES = {_OURS: "/ours", _UNCACHED: "/uncached", _DICT: "/dict", _FLASK: "/flask", _WSGI: "/wsgi"}


def rows(quick: bool) -> list[Row]:
    """The row of the table; none without wrk or /proc, which it says. ``quick``: some requests, one by one, no wrk."""
    if not Path("/proc/self/stat").exists():
        print(NO_PROC, file=sys.stderr)
        return []
    wrk = shutil.which(os.environ.get("WRK", "wrk"))
    if not wrk and not quick:
        print(MISSING, file=sys.stderr)
        return []
    with _served(500 if quick else 20_000) as (process, url):
        load: Callable[[str], float] = _some if quick or not wrk else lambda url: _saturated(wrk, url, 2)

        def measure(way: str) -> Callable[[], float]:
            return lambda: _for_each_second(process, load, f"{url}{_PREFIXES[way]}{PATH}")

        ways = {way: measure(way) for way in _PREFIXES}
        found = in_turns(ways, 1 if quick else 5, "cached reads", warm=not quick)
    ours = found[_OURS]
    return [
        Row(
            name="query API, cached reads",
            unit="requests/s of CPU time",
            ours=_OURS,
            figures={way: Spread.of(figures) for way, figures in found.items()},
            ratios=[
                Ratio(_UNCACHED, ratios(ours, found[_UNCACHED])),
                Ratio(_DICT, ratios(ours, found[_DICT])),
                Ratio(_FLASK, ratios(ours, found[_FLASK]), bound=0.5),
                Ratio(_WSGI, ratios(ours, found[_WSGI])),
            ],
            note=f"GET {PATH}, {CONNECTIONS} connections, one worker of granian; CPU time of the server alone. Ours is"
            " made anew every 2 s, and has its ETag, all its headers and a look at which generation is served. Without the"
            " cache the tables are in memory: what DynamoDB would cost, in time and in money, comes on top of that.",
        )
    ]


@contextmanager
def _served(events: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server, and its URL."""
    host, port = free_address("127.0.0.1", 0)
    command = [sys.executable, "-m", "tests.benchmarks.bench_cached_reads", "--serve", str(port)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"BENCH_EVENTS": str(events)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://{host}:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                bodies = {
                    way: urllib.request.urlopen(url + prefix + PATH, timeout=30).read()
                    for way, prefix in _PREFIXES.items()
                }
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.1)
        summaries = [msgspec.json.decode(body) for body in bodies.values()]
        assert all(one.keys() == summaries[0].keys() for one in summaries), "all ways answer the same"
        yield process, url
    finally:
        process.terminate()
        process.wait(30)


def _for_each_second(process: subprocess.Popen[bytes], load: Callable[[str], float], url: str) -> float:
    began = _cpu_seconds(process.pid)
    requests = load(url)
    return requests / max(_cpu_seconds(process.pid) - began, 1 / _TICKS)


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process and of those that it started, without any that end meanwhile."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # What follows the name, which may hold spaces: its parent, user's and system's time (man 5 proc).
            fields = stat.read_text().rpartition(")")[2].split()
            if str(pid) in (stat.parent.name, fields[1]):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def _saturated(wrk: str, url: str, seconds: int) -> float:
    """Requests that wrk was answered."""
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=lambda: _pin(-1)).stdout
    assert "Non-2xx" not in said, said
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    return int(found[1])


def _some(url: str) -> float:
    """How many requests, one after the other, are answered in some clock ticks."""
    address, path = re.fullmatch(r"http://([^/]+)(/.*)", url).groups()  # type: ignore[union-attr]
    connection = HTTPConnection(address, timeout=10)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < 0.05:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.read()
        assert answer.status == 200
        count += 1
    connection.close()
    return count


def _pin(core: int) -> None:
    """Let this process run on the first processor alone (0), or on the last (-1), where the system lets one choose."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


class Ways:
    """Every way below its path. To the gateway it is a Flask application."""

    def __init__(self, ways: dict[str, WSGIApplication]) -> None:
        self._ways = {_PREFIXES[way].removeprefix("/"): application for way, application in ways.items()}

    def after_request(self, change: Any) -> None:
        """Streams, which it is for, are none here."""

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        _, way, path = environ["PATH_INFO"].split("/", 2)
        environ["PATH_INFO"] = f"/{path}"
        return self._ways[way](environ, start_response)


def app() -> Ways:
    """Made in the server's worker."""
    tables = stored(Plan(int(os.environ["BENCH_EVENTS"]), now_ms())).tables
    client = Items(item for rows in tables.values() for item in rows.values() if "sk" in item)
    reader = Reader(client, NAMES, clock=now_ms)  # type: ignore[arg-type]
    pointer = Serving(Pointer, now_ms)
    settings = ApiSettings(NAMES)
    off = replace(settings, recent_lifetime=0, live_lifetime=0, closed_lifetime=0, stale_lifetime=0)
    cached = create_app(reader, settings, serving=pointer)
    body = cached.test_client().get(PATH).data
    return Ways(
        {
            _OURS: cached.wsgi_app,
            _UNCACHED: create_app(reader, off, serving=pointer).wsgi_app,
            _DICT: over_a_dict(Sources(reader, settings, now_ms)).wsgi_app,
            _FLASK: constant(body).wsgi_app,
            _WSGI: raw(body),
        }
    )


def over_a_dict(sources: Sources) -> Flask:
    """The same figures, kept by flask-caching as the view's dict for as long as ours are."""
    made = Flask("over_a_dict")
    cache = Cache(made, config={"CACHE_TYPE": "SimpleCache", "CACHE_DEFAULT_TIMEOUT": 2})
    routes = StatisticsRoutes(sources)

    @cache.memoize()
    def summary(site: str) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(routes.summary(site, {}).make().value)
        return found

    @made.get("/api/statistics/summary/")
    def view() -> Response:
        return jsonify(summary(request.args["site"]))

    return made


def constant(body: bytes) -> Flask:
    """Flask's own ceiling."""
    made = Flask("constant")

    @made.get("/api/statistics/summary/")
    def view() -> Response:
        return Response(body, 200, {"Content-Type": "application/json"})

    return made


def raw(body: bytes) -> WSGIApplication:
    """The server's ceiling."""
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [body]

    return application


def main(argv: Sequence[str] | None = None) -> int:
    """Be the server of all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=int, metavar="PORT", required=True, help="where")
    given = parser.parse_args(argv)
    _pin(0)
    where = ("127.0.0.1", given.serve)
    serve("tests.benchmarks.bench_cached_reads:app", where, workers=1, threads=32, grace=1, gateway=Gateway)
    return 0


if __name__ == "__main__":
    sys.exit(main())
