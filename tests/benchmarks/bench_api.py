"""1,000 dashboards at a time on a `make run` of this machine, which holds a day of 1,000,000 events.

A dashboard asks for the realtime figures every 2 s (If-None-Match), or holds a stream of them, and every 10 s asks
for what its panels show. So requests come at a constant rate, whether or not the answers to those before have come;
some events a second go on coming in. Then, as fast as it goes: one path with the cache, and without it, in turn.

The load comes from wrk (https://github.com/wg/wrk; apt install wrk, brew install wrk), which needs little of the
machine that it shares with the server; the streams come from this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.benchmarks.api_data import HOUR_MS, SITES, Plan, stored, write_state
from tests.flow.load import post
from tests.flow.running import Running, running
from tests.free_ports import free_ports

POLL_SECONDS = 2
PANEL_SECONDS = 10
SATURATING_CONNECTIONS = 64
MISSING = "skipped: wrk is not installed (apt install wrk, brew install wrk, or --wrk PATH)"
#: What a dashboard's panels ask for, beside the site and the range.
PANELS = [
    ("summary", {"compare": "previous"}),
    ("timeseries", {"metrics": "visitors,sessions,page_views", "compare": "previous"}),
    ("breakdown", {"dimension": "page", "metrics": "page_views"}),
    ("breakdown", {"dimension": "source", "metrics": "sessions,bounce_rate"}),
    ("breakdown", {"dimension": "country", "metrics": "sessions"}),
    ("breakdown", {"dimension": "device", "metrics": "sessions"}),
]
#: Ranges that dashboards look at, in hours until now (the default's answer is asked for without from and to).
_RANGES = [None, None, None, 1, 6]

# wrk calls setup and done in its main state, the rest in its thread's. It measures from the moment of sending.
_SCRIPT = r"""
local ffi = require("ffi")
ffi.cdef[[ typedef struct { long s; long us; } bench_time; int gettimeofday(bench_time *, void *); ]]
local clock = ffi.new("bench_time")
local function now()
  ffi.C.gettimeofday(clock, nil)
  return tonumber(clock.s) * 1000 + tonumber(clock.us) / 1000
end

local threads, paths, etags, sent = {}, {}, {}, 0
codes, next_at = {}, 0

function setup(thread) threads[#threads + 1] = thread end

function init(args)
  for path in io.lines(args[1]) do paths[#paths + 1] = path end
  rate, conditional = tonumber(args[2]), args[3] == "conditional"
  math.randomseed(1)
  next_at = now()
end

-- The ETag that a dashboard would have, which asked 2 s ago.
local function known(path)
  local found
  for _, seen in ipairs(etags[path:match("site=([^&]+)")] or {}) do
    if seen.at > now() - 2000 then break end
    found = seen.etag
  end
  return found
end

function request()
  local path = paths[math.random(#paths)]
  local etag = conditional and known(path)
  return wrk.format("GET", path, etag and { ["If-None-Match"] = etag } or {})
end

function response(status, headers, body)
  codes[status] = (codes[status] or 0) + 1
  if conditional and status == 200 then
    local site, etag = body:match('"site":"([^"]+)"'), headers["etag"] or headers["ETag"]
    local seen = etags[site] or {}
    if #seen == 0 or seen[#seen].etag ~= etag then seen[#seen + 1] = { at = now(), etag = etag } end
    if #seen > 20 then table.remove(seen, 1) end
    etags[site] = seen
  end
end

function done(summary, latency, requests)
  local seen = {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("codes")) do seen[#seen + 1] = string.format('"%d": %d', status, count) end
  end
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %f, "p50": %f, "p95": %f, "p99": %f, "max": %f, "codes": {%s}, ' ..
    '"connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(95) / 1000,
    latency:percentile(99) / 1000, latency.max / 1000, table.concat(seen, ", "),
    errors.connect, errors.read, errors.write, errors.timeout))
end
"""
# Arrivals at random, `rate` a second: the next free connection takes the next one.
_PACED = r"""
function delay()
  next_at = next_at - math.log(1 - math.random()) * 1000 / rate
  return math.max(0, next_at - now())
end
"""


@dataclass(frozen=True)
class Options:
    """``rounds`` of ``saturate`` s each, with the cache and without."""

    events: int = 1_000_000
    dashboards: int = 1_000
    streams: int = 100
    seconds: float = 60
    saturate: float = 6
    rounds: int = 3
    arriving: int = 20
    wrk: str = "wrk"


@dataclass
class Load:
    """What came of one kind of requests. Times in ms, rates a second; ``asked`` is None where it was all that goes."""

    kind: str
    asked: float | None
    rate: float
    p50: float
    p95: float
    p99: float
    max: float
    codes: dict[str, int]
    errors: dict[str, int]


@dataclass
class Streams:
    """What came of the streams. ``first``: ms until the first event, of each."""

    wanted: int
    opened: int = 0
    broken: int = 0
    refused: int = 0
    events: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)


def measure(options: Options) -> dict[str, Any]:
    """Everything, as JSON."""
    _allow_files(4 * options.dashboards + 1024)
    others = os.getloadavg()[0]  # now, before there is anything of ours
    with tempfile.TemporaryDirectory(prefix="bench-api-") as name:
        directory = Path(name)
        _say(f"making {options.events:,} events' tables")
        began = time.time()
        dynamo = stored(Plan(options.events, int(time.time() * 1000)))
        items = write_state(dynamo, directory / "run" / "aws-state", time.time())
        _say(f"{items:,} items in {time.time() - began:.0f} s; starting a make run with them")
        with running(directory / "run", DEMO="0") as system:
            polls = [f"/api/realtime/?site={site}" for site, part in SITES.items() for _ in range(part)]
            panels = list(panel_paths(int(time.time() * 1000)))
            found: dict[str, Any] = {
                "options": vars(options) | {"wrk": "wrk"},
                "processors": os.cpu_count(),
                "others": others,
                "items": items,
                "cold_ms": _warm(system, sorted({*polls, *panels})),
            }
            with _arriving(system, options):
                found |= _dashboards(system, options, directory, polls, panels)
            found["saturated"] = _saturated(system, options, directory)
    return found


def panel_paths(now: int) -> Iterator[str]:
    """Every panel of every range, as often as the site's part is."""
    for site, part in SITES.items():
        for hours in _RANGES:
            span = {} if hours is None else {"from": now - hours * HOUR_MS, "to": now}
            for name, asked in PANELS:
                path = f"/api/statistics/{name}/?" + urlencode({"site": site, **span, **asked})
                yield from [path] * part


def _dashboards(
    system: Running, options: Options, directory: Path, polls: Sequence[str], panels: Sequence[str]
) -> dict[str, Any]:
    polling = options.dashboards - options.streams
    _say(f"{options.dashboards} dashboards, {options.streams} with a stream, for {options.seconds:.0f} s")
    streams = Streams(options.streams)
    watching = threading.Thread(
        target=lambda: asyncio.run(_watch(system.ports["QUERY_PORT"], streams, options.seconds))
    )
    watching.start()
    load = [
        _wrk(options, directory, system.api, "realtime poll", polls, polling, polling / POLL_SECONDS),
        _wrk(
            options,
            directory,
            system.api,
            "panels",
            panels,
            options.dashboards,
            options.dashboards * len(PANELS) / PANEL_SECONDS,
        ),
    ]
    done = [vars(_loaded(*one)) for one in load]
    watching.join()
    return {"load": done, "streams": vars(streams)}


def _saturated(system: Running, options: Options, directory: Path) -> dict[str, dict[str, list[Any]]]:
    """Per path, with and without the cache: what each round gave, taken in turn."""
    port = free_ports(1)[0]
    off = {f"LIVEINSIGHT_API_{what}_SECONDS": "0" for what in ("LIVE", "SESSION", "RECENT", "CLOSED", "STALE")}
    aws = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{system.ports['AWS_PORT']}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "embedded",
        "AWS_SECRET_ACCESS_KEY": "embedded",
    }
    uncached = subprocess.Popen(
        [sys.executable, "-m", "query_api", "--port", str(port)],
        env=system.environ | aws | off,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        apis = {"cache": system.api, "no cache": f"http://127.0.0.1:{port}"}
        _wait_for(apis["no cache"] + "/health/")
        # Not realtime: those who ask for one answer at the same time share its making, cached or not.
        paths = {
            "summary": "/api/statistics/summary/?site=shop",
            "breakdown": "/api/statistics/breakdown/?site=shop&dimension=page",
        }
        alone = {name: min(_seconds(apis["no cache"] + path) for _ in range(3)) for name, path in paths.items()}
        found: dict[str, dict[str, list[Any]]] = {name: {way: [] for way in apis} for name in paths}
        for turn in range(options.rounds):
            for name, path in paths.items():
                for way, api in apis.items():
                    _say(f"as fast as it goes: {name}, {way}, {turn + 1} of {options.rounds}")
                    # What the last round asked for without a cache may keep the tables busy for a while.
                    deadline = time.monotonic() + 10
                    while _seconds(apis["no cache"] + path) > 2 * alone[name] and time.monotonic() < deadline:
                        pass
                    _seconds(apis["cache"] + path)
                    one = _wrk(options, directory, api, way, [path], SATURATING_CONNECTIONS, None)
                    found[name][way].append(vars(_loaded(*one)))
        return found
    finally:
        uncached.terminate()
        uncached.wait(30)


def _wrk(
    options: Options,
    directory: Path,
    api: str,
    kind: str,
    paths: Sequence[str],
    connections: int,
    rate: float | None,
) -> tuple[str, float | None, subprocess.Popen[str]]:
    script, asked = directory / f"{kind}.lua", directory / f"{kind}.paths"
    script.write_text(_SCRIPT + (_PACED if rate else ""))
    asked.write_text("\n".join(paths))
    seconds = options.seconds if rate else options.saturate
    command = [options.wrk, "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", str(script), api]
    command += ["--", str(asked), str(rate or 0), "conditional" if kind == "realtime poll" else "plain"]
    return kind, rate, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _loaded(kind: str, rate: float | None, process: subprocess.Popen[str]) -> Load:
    said, _ = process.communicate()
    results = [line for line in said.splitlines() if line.startswith("RESULT ")]
    assert results, f"wrk failed: {said}"
    found = json.loads(results[0].removeprefix("RESULT "))
    times = {name: found[name] for name in ("p50", "p95", "p99", "max")}
    errors = {name: found[name] for name in ("connect", "read", "write", "timeout") if found[name]}
    errors |= {status: count for status, count in found["codes"].items() if status not in {"200", "304"}}
    return Load(kind, rate, found["requests"] / found["seconds"], **times, codes=found["codes"], errors=errors)


async def _watch(port: int, streams: Streams, seconds: float) -> None:
    sites = [site for site, part in SITES.items() for _ in range(part)]
    clients = [_client(port, sites[number % len(sites)], streams) for number in range(streams.wanted)]
    tasks = [asyncio.create_task(client) for client in clients]
    began = time.monotonic()
    await asyncio.sleep(seconds)
    streams.seconds = time.monotonic() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _client(port: int, site: str, streams: Streams) -> None:
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        writer.write(f"GET /api/realtime/stream?site={site} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        if b" 200 " not in await reader.readline():
            streams.refused += 1
            return
        streams.opened += 1
        first = True
        while line := await reader.readline():
            if line.startswith(b"data: "):
                streams.events += 1
                if first:
                    streams.first.append((time.monotonic() - began) * 1000)
                    first = False
        streams.broken += 1
    except OSError:
        streams.broken += 1
    finally:
        writer.close()


@contextmanager
def _arriving(system: Running, options: Options) -> Iterator[None]:
    """Events come in meanwhile, so that figures change."""
    seconds = options.seconds + 2
    posting = threading.Thread(
        target=post, args=(system.collector, "shop", options.arriving, seconds), kwargs={"threads": 2}
    )
    posting.start()
    try:
        yield
    finally:
        posting.join()


def _warm(system: Running, paths: Sequence[str]) -> dict[str, float]:
    """Ask for each once: nothing is in the cache yet. How long that took (ms)."""
    times = []
    for path in paths:
        began = time.monotonic()
        with urllib.request.urlopen(system.api + path, timeout=60) as answer:
            answer.read()
        times.append((time.monotonic() - began) * 1000)
    return {"median": statistics.median(times), "max": max(times)}


def _seconds(url: str) -> float:
    began = time.monotonic()
    urllib.request.urlopen(url, timeout=60).close()
    return time.monotonic() - began


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)
        else:
            return


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == -1 else min(wanted, hard), hard))


def report(found: dict[str, Any]) -> list[str]:
    """The figures as a table."""
    lines = [
        f"{'':22} {'asked/s':>8} {'done/s':>8} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'max ms':>8}  answers; errors"
    ]
    for load in found["load"]:
        errors = ", ".join(f"{count} {kind}" for kind, count in load["errors"].items()) or "no errors"
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(load["codes"].items()))
        lines.append(
            f"{load['kind']:22} {load['asked']:8.0f} {load['rate']:8.0f} {load['p50']:8.1f} {load['p95']:8.1f}"
            f" {load['p99']:8.1f} {load['max']:8.1f}  {codes}; {errors}"
        )
    streams = found["streams"]
    first = sorted(streams["first"]) or [float("nan")]
    lines.append(
        f"streams: {streams['opened']} of {streams['wanted']} open, {streams['broken']} broken, {streams['refused']}"
        f" refused, {streams['events'] / max(streams['seconds'], 1):.0f} events/s,"
        f" first event after {first[len(first) // 2]:.0f} ms (median), {first[-1]:.0f} ms (max)"
    )
    cold = found["cold_ms"]
    lines.append(f"each path asked for the first time: median {cold['median']:.0f} ms, max {cold['max']:.0f} ms")
    lines.append("as fast as it goes, requests/s: median (least - most) of the rounds")
    for name, ways in found["saturated"].items():
        medians = {}
        for way, rounds in ways.items():
            rates = sorted(one["rate"] for one in rounds)
            medians[way] = statistics.median(rates)
            errors = sum(sum(one["errors"].values()) for one in rounds)
            p99 = statistics.median(one["p99"] for one in rounds)
            lines.append(
                f"  {name:10} {way:10} {medians[way]:8.0f} ({rates[0]:.0f} - {rates[-1]:.0f}), p99 {p99:.0f} ms,"
                f" {errors} errors"
            )
        lines.append(f"  {name:10} the cache is worth {medians['cache'] / max(medians['no cache'], 0.1):.0f} times")
    return lines


def failures(found: dict[str, Any]) -> int:
    """Errors of the dashboards: there should be none."""
    streams = found["streams"]
    return sum(sum(load["errors"].values()) for load in found["load"]) + streams["wanted"] - streams["opened"]


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured (or skipped, which it says); 1: the dashboards met errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Options()
    parser.add_argument("--events", type=int, default=default.events)
    parser.add_argument("--dashboards", type=int, default=default.dashboards)
    parser.add_argument("--streams", type=int, default=default.streams, help="of them; the others poll")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="of the dashboards")
    parser.add_argument("--saturate", type=float, default=default.saturate, help="seconds of each saturating round")
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--quick", action="store_true", help="small and short: does it work?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there")
    parser.add_argument("--wrk", default="wrk", help="the program, if it is not on the PATH")
    given = vars(parser.parse_args(argv))
    wrk, quick, file = shutil.which(given["wrk"]), given.pop("quick"), given.pop("json")
    if not wrk:
        _say(MISSING)
        return 0
    options = Options(**given | {"wrk": wrk})
    if quick:
        options = Options(5_000, 50, 10, seconds=2, saturate=1, rounds=1, wrk=wrk)
    found = measure(options)
    print("\n".join(report(found)))
    if file:
        file.write_text(json.dumps(found, indent=2))
    if failed := failures(found):
        _say(f"{failed} errors")
        return 1
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
