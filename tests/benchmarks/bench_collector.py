"""POSTs that the collector acknowledges, for each second of its processor, and its memory when ten times too many come.

Three applications on the same server with the same settings and one worker each, pinned to one core, take turns: the
collector; the ordinary design, a Flask view that checks the event and calls put_record for it; and the floor, a Flask
view that answers 202 at once. Each request holds one page view, as the tracker sends it. The load and the AWS, which
answers at once, have the other core.

What is counted are the 2xx for each second of processor time of the server's processes: where load, AWS and other
programs share a machine with a server, that is what does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flask import Flask, Response, request

from producer.client import ProducerSettings
from producer.collector import MAX_WAITING_ANSWERS
from producer.serving import serve
from tests.benchmarks.measuring import Ratio, Row, Spread, in_turns, ratios
from tests.benchmarks.stub_aws import stub
from tests.free_ports import free_ports

ROOT = Path(__file__).parents[2]
CONNECTIONS = (100, 1_000)
#: Of the ordinary design's and the floor's server: what the collector had before it needed no thread for a request.
THREADS = 64
#: Each PutRecords call takes so long (s) while there is overload; so many connections send so many events each time.
OVERLOAD_DELAY = 2.0
OVERLOAD_CONNECTIONS = 1_000
OVERLOAD_EVENTS = 100
#: What the collector may hold at most besides what it does when idle, in MiB.
ALLOWANCES = {
    "buffer": ProducerSettings.max_buffer_bytes / 2**20,
    "one call": 15,
    "waiting answers": MAX_WAITING_ANSWERS / 2**20,
    "long bodies": 64,
    "read ahead": OVERLOAD_CONNECTIONS * 32 / 1024,
}
MISSING = "skipped: wrk is not installed (apt install wrk, brew install wrk)"
NO_PROC = "skipped: this system has no /proc"

# Page views as the tracker sends them, those of a request of a visitor of its own; so many in each. Batches are made
# beforehand.
_SCRIPT = r"""
local threads, codes_of = {}, {}
codes = {}
function setup(thread)
  threads[#threads + 1] = thread
  thread:set("seed", #threads)
end
local function hex(digits)
  local made = {}
  for at = 1, digits, 6 do made[#made + 1] = string.format("%06x", math.random(0, 16777215)) end
  return table.concat(made):sub(1, digits)
end
local function view(session, seq)
  return string.format(
    '{"event_type":"page_view","event_id":"%s","site_id":"shop","session_id":"%s","user_id":"%s","source":"%s",' ..
    '"seq":%d,"timestamp":%.0f,"page_url":"https://shop.example/products/walking-boots?colour=brown",' ..
    '"referrer":"https://www.google.com/","title":"Walking boots, brown - The Example Shop","language":"en-GB"}',
    hex(32), session, hex(32), hex(12), seq, os.time() * 1000)
end
local function body(events)
  local session, views = hex(32), {}
  for seq = 1, events do views[seq] = view(session, seq) end
  return string.format('{"events":[%s],"sent_at":%.0f}', table.concat(views, ","), os.time() * 1000)
end
local headers = {
  ["Content-Type"] = "text/plain;charset=UTF-8",
  ["Origin"] = "https://shop.example",
  ["Accept-Language"] = "en-GB,en;q=0.9",
  ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
}
local batches, size = {}, 1
function init(args)
  math.randomseed(os.time() + seed)
  size = tonumber(args[1])
  for number = 1, size > 1 and 100 or 0 do batches[number] = wrk.format("POST", "/events", headers, body(size)) end
end
function request()
  if size > 1 then return batches[math.random(#batches)] end
  return wrk.format("POST", "/events", headers, body(1))
end
function response(status) codes[status] = (codes[status] or 0) + 1 end
function done(summary, latency)
  local seen = {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("codes")) do seen[#seen + 1] = string.format('"%d": %d', status, count) end
  end
  local errors = summary.errors
  io.write(string.format('RESULT {"seconds": %f, "p50": %f, "p99": %f, "codes": {%s}, "errors": %d}\n',
    summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000, table.concat(seen, ", "),
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""


def peer() -> Flask:
    """The ordinary design: each event is checked and put on the stream by a call of its own."""
    import boto3
    from botocore.config import Config

    kinesis = boto3.client("kinesis", config=Config(max_pool_connections=THREADS))
    app = Flask("peer")

    @app.post("/events")
    def events() -> tuple[Response, int] | Response:
        body = request.get_json(force=True, silent=True)
        if not isinstance(body, dict) or not isinstance(body.get("events"), list):
            return Response('{"error": "no events"}', 400, content_type="application/json")
        for event in body["events"]:
            if not all(isinstance(event.get(name), str) for name in ("event_type", "event_id", "session_id")):
                return Response('{"error": "an event is incomplete"}', 400, content_type="application/json")
        for event in body["events"]:
            kinesis.put_record(StreamName="events", Data=json.dumps(event).encode(), PartitionKey=event["session_id"])
        response = Response(json.dumps({"accepted": len(body["events"])}), content_type="application/json")
        response.headers["Access-Control-Allow-Origin"] = "*"
        return response

    return app


def floor() -> Flask:
    """The least that a Flask view does."""
    app = Flask("floor")

    @app.post("/events")
    def events() -> tuple[str, int]:
        return "", 202

    return app


@dataclass
class Server:
    """One that runs: a process and its children, at a port of this machine."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        """Return once it answers."""
        deadline = time.monotonic() + 30
        while not _answers(f"{self.url}/health"):
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """What its processes have used since they began."""
        ticks = 0
        for pid in self._pids():
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(after_name[11]) + int(after_name[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self, which: str) -> float:
        """MiB of its largest process: what it holds now (VmRSS), or held at most (VmHWM)."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in self._pids()]
        return max(int(re.findall(rf"{which}:\s+(\d+)", text)[0]) for text in status) / 1024

    def threads(self) -> int:
        """How many its processes have."""
        return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in self._pids())

    def _pids(self) -> list[int]:
        pids = [self.process.pid]
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (thread / "children").read_text().split())
        return pids


@dataclass
class Load:
    """What came of one run of the load: 2xx a second of the clock, the median wait and the 99th percentile (ms)."""

    rate: float
    p50: float
    p99: float
    codes: Counter[str] = field(default_factory=Counter)
    errors: int = 0


@contextmanager
def server(
    command: Sequence[str], environ: Mapping[str, str], core: int | None = None, *, ready: bool = True
) -> Iterator[Server]:
    """A server until the block ends; ``core``: the only one that it runs on. ``ready``: once it answers."""
    [port] = free_ports(1)
    process = subprocess.Popen(
        [*_pinned(core), sys.executable, *command, "--port", str(port)],
        env={**os.environ, **environ},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        made = Server(process, port)
        if ready:
            made.wait()
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError:
        return True  # only the collector has this path
    except OSError:
        return False
    return True


def environ_for(aws: str, **settings: str) -> dict[str, str]:
    """Of a server that puts events into the AWS at a URL."""
    return {
        "AWS_ENDPOINT_URL": aws,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "LIVEINSIGHT_STREAM": "events",
        **settings,
    }


def _load(script: Path, url: str, connections: int, seconds: float, core: int | None, events: int = 1) -> Load:
    """``events`` in each request."""
    said = subprocess.run(
        [
            *_pinned(core),
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:.0f}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
            url,
            "--",
            str(events),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = json.loads(re.findall("^RESULT (.*)", said, re.MULTILINE)[0])
    codes = Counter(found["codes"])
    good = sum(count for code, count in codes.items() if code.startswith("2"))
    return Load(good / found["seconds"], found["p50"], found["p99"], codes, found["errors"])


def _pinned(core: int | None) -> list[str]:
    """What comes before a command that is to run on one core."""
    return [] if core is None or not shutil.which("taskset") else ["taskset", "-c", str(core)]


def _cores() -> tuple[int | None, int | None]:
    """The server's, and the others'."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[-1], usable[0]) if len(usable) > 1 else (None, None)


def posts(quick: bool) -> list[Row]:
    """POSTs of one event, acknowledged; nothing where wrk is not installed, which stderr says."""
    if not shutil.which("wrk"):
        print(MISSING, file=sys.stderr)
        return []
    ours_on, others_on = _cores()
    rounds, seconds = (1, 1) if quick else (5, 3)
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-collector-")))
        script = directory / "post.lua"
        script.write_text(_SCRIPT)
        aws = running.enter_context(stub(core=others_on))
        module = "tests.benchmarks.bench_collector"
        servers = {
            name: running.enter_context(server(command, environ_for(aws.url), ours_on, ready=False))
            for name, command in {
                "LiveInsight": ["-m", "producer", "collector"],
                "Flask, put_record each": ["-m", module, "--serve", "peer"],
                "Flask, 202 at once": ["-m", module, "--serve", "floor"],
            }.items()
        }
        for one in servers.values():
            one.wait()
        return [
            _posts_row(servers, script, connections, rounds, seconds, others_on)
            for connections in (CONNECTIONS[:1] if quick else CONNECTIONS)
        ]


def _posts_row(
    servers: Mapping[str, Server], script: Path, connections: int, rounds: int, seconds: float, core: int | None
) -> Row:
    loads: dict[str, list[Load]] = {name: [] for name in servers}

    def for_cpu_second(name: str) -> float:
        one = servers[name]
        before = one.cpu_seconds()
        load = _load(script, one.url, connections, seconds, core)
        loads[name].append(load)
        good = sum(count for code, count in load.codes.items() if code.startswith("2"))
        return good / (one.cpu_seconds() - before)

    ways: dict[str, Callable[[], float]] = {name: partial(for_cpu_second, name) for name in servers}
    found = in_turns(ways, rounds, f"collector, {connections} connections", warm=rounds > 1)
    ours, ordinary, least = found
    told = []
    for name in found:
        codes = sum((load.codes for load in loads[name][-rounds:]), Counter[str]())
        refused = sum(count for code, count in codes.items() if not code.startswith("2"))
        broken = sum(load.errors for load in loads[name][-rounds:])
        rate, p50, p99 = (
            Spread.of([getattr(load, of) for load in loads[name][-rounds:]]).median for of in ("rate", "p50", "p99")
        )
        told.append(
            f"{name}: {rate:,.0f}/s of the clock, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {codes['503']:,} x 503, "
            f"{refused - codes['503']:,} other refusals, {broken:,} broken"
        )
    return Row(
        name=f"collector, acknowledged POSTs for each core, {connections:,} connections",
        unit="POSTs/CPU-s",
        ours=ours,
        figures={name: Spread.of(figures) for name, figures in found.items()},
        ratios=[
            Ratio(ordinary, ratios(found[ours], found[ordinary]), bound=3),
            Ratio(least, ratios(found[ours], found[least]), bound=0.4),
        ],
        note="2xx for each second of processor time of the server's processes, which does not depend on the load's "
        f"own core nor on other programs. {'; '.join(told)}.",
    )


def overload() -> list[Row]:
    """Its memory while far more comes than the stream takes; nothing where wrk is not installed."""
    if not shutil.which("wrk"):
        return []
    ours_on, others_on = _cores()
    rounds, seconds = 3, 10
    idle, peak, acknowledged, refused = [], [], [], []
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-collector-")))
        script = directory / "post.lua"
        script.write_text(_SCRIPT)
        aws = running.enter_context(stub(delay=OVERLOAD_DELAY, core=others_on))
        for _ in range(rounds):
            with server(["-m", "producer", "collector"], environ_for(aws.url), ours_on) as one:
                idle.append(one.memory("VmRSS"))
                load = _load(script, one.url, OVERLOAD_CONNECTIONS, seconds, others_on, events=OVERLOAD_EVENTS)
                peak.append(one.memory("VmHWM"))
                acknowledged.append(load.codes["200"] / seconds)
                refused.append(load.codes["503"] / seconds)
                assert not load.errors
                assert load.codes.keys() <= {"200", "503"}
    allowed = ", ".join(f"{what} {size:.0f}" for what, size in ALLOWANCES.items())
    bounds = [before + sum(ALLOWANCES.values()) for before in idle]
    times = sum(acknowledged + refused) / max(sum(acknowledged), 1 / seconds)
    return [
        Row(
            name="collector, memory when more comes than the stream takes",
            unit="MiB",
            ours="peak",
            figures={"peak": Spread.of(peak), "idle": Spread.of(idle), "bound": Spread.of(bounds)},
            ratios=[
                Ratio("bound", ratios(peak, bounds), bound=1, at_most=True),
                Ratio("idle", ratios(peak, idle)),
            ],
            note=f"{OVERLOAD_CONNECTIONS} connections send {OVERLOAD_EVENTS} events each time, as fast as they are "
            f"answered, and each PutRecords call takes {OVERLOAD_DELAY:g} s: {Spread.of(acknowledged).median:,.0f} "
            f"requests/s are acknowledged and {Spread.of(refused).median:,.0f}/s answered with 503, {times:.0f} times "
            f"what the stream takes. The bound is what is held when idle and, in MiB: {allowed}.",
        )
    ]


def rows(quick: bool) -> list[Row]:
    """``quick``: with 100 connections only. That memory is bounded is tested in any case."""
    if not Path("/proc/self/stat").exists():
        print(NO_PROC, file=sys.stderr)
        return []
    return posts(quick) if quick else [*posts(quick), *overload()]


def main(argv: Sequence[str] | None = None) -> int:
    """Be one of the peers' servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=["peer", "floor"], required=True, help="which, at --port")
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args(argv)
    application = f"tests.benchmarks.bench_collector:{given.serve}"
    serve(application, ("127.0.0.1", given.port), workers=1, threads=THREADS, grace=10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
