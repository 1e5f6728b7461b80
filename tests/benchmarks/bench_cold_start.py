"""How long a function's cold start takes of ours: the handler's imports, and its clients, from the unpacked package.

Each start is a fresh process that sees only the package, with the bytecode in it and without writing any, as on Lambda;
the files are in the system's cache. What Lambda itself needs (the sandbox, the download) comes on top, and is not ours.
The package is this machine's (`python -m infra package --local`); the ways take turns. The peer is the same handler
with what most have: a `Tracer()` and boto3's resource, made when the module is loaded, and a package of sources alone (the
bytecode that pip makes goes by the files' times, and is none once a zip has changed those).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3

from infra.deploy import package
from tests.benchmarks.measuring import Ratio, Row, Spread, ratios

#: The bound of imports and clients together, in ms.
BOUND_MS = 700.0
_IMPORTS = """\
import time
began, busy = time.perf_counter(), time.process_time()
import stream_consumer.lambda_handler as handler
"""
_CLIENTS = "handler._tables('g1')\n"
_PEER = """\
import boto3
from aws_lambda_powertools import Tracer
tracer = Tracer(service="liveinsight")
tables = [boto3.resource("dynamodb").Table(name) for name in ("sessions", "rollups")]
"""
_TELL = "print((time.perf_counter() - began) * 1000, (time.process_time() - busy) * 1000)\n"
WAYS = {
    "imports": _IMPORTS + _TELL,
    "imports and clients": _IMPORTS + _CLIENTS + _TELL,
    "and X-Ray": _IMPORTS + _CLIENTS + "handler._tracer()\n" + _TELL,
    "Tracer() and boto3.resource": _IMPORTS + _PEER + _TELL,
    "the same from our package": _IMPORTS + _PEER + _TELL,
    "ours from sources": _IMPORTS + _CLIENTS + _TELL,
}
#: Those that a quick run starts.
QUICK = ("imports", "imports and clients")
_OURS, _PEER_WAY, _PEER_PACKED, _SOURCES = ("imports and clients", *list(WAYS)[3:])
#: Those that find X-Ray listening, as a function does that Lambda traces.
_TRACED = frozenset({"and X-Ray", _PEER_WAY, _PEER_PACKED})
#: All that a start gets of the environment. Nothing is called, so nobody is asked.
ENVIRON = {
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_XRAY = {"AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1:2000", "LAMBDA_TASK_ROOT": "/var/task"}


def start(code: str, directory: Path, *, tracing: bool = False) -> tuple[float, float]:
    """Milliseconds of one start, and those of them on the processor: the rest went to reading and to neighbours."""
    environ = {**ENVIRON, **(_XRAY if tracing else {}), "PYTHONPATH": str(directory)}
    # -S: not what this Python has installed, which would stand in for what is missing in the package.
    # There, as modules of the directory that one is in come before all others.
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    took, busy = map(float, done.stdout.split())
    return took, busy


@cache
def _package() -> bytes:
    return package.build(local=True).data


def measure(data: bytes, ways: Iterable[str], rounds: int) -> dict[str, Any]:
    """Medians and spreads of some ways."""
    return {
        "bytes": len(data),
        "ways": {way: _figures(took) for way, took in starts(data, ways, rounds, warm=rounds > 1).items()},
    }


def starts(data: bytes, ways: Iterable[str], rounds: int, *, warm: bool) -> dict[str, list[tuple[float, float]]]:
    """What :func:`start` tells of each way, taking turns. ``warm``: after one turn that fills the system's cache."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with TemporaryDirectory() as name:
        unpacked, sources = Path(name, "package"), Path(name, "sources")
        with zipfile.ZipFile(BytesIO(data)) as archive:
            archive.extractall(unpacked)
        # The package has no descriptions of boto3's resources, as no function of ours uses them.
        described = Path("data", "dynamodb")
        shutil.copytree(Path(boto3.__file__).parent / described, unpacked / "boto3" / described)
        shutil.copytree(unpacked, sources, ignore=shutil.ignore_patterns("__pycache__"))
        for turn in range(rounds + warm):
            for way, took_before in found.items():
                took = start(WAYS[way], sources if way in {_PEER_WAY, _SOURCES} else unpacked, tracing=way in _TRACED)
                if turn >= warm:
                    took_before.append(took)
    return found


def rows(quick: bool) -> list[Row]:
    """The row of the table: ms of CPU time."""
    ways = (_OURS, _PEER_WAY) if quick else tuple(WAYS)
    took = starts(_package(), ways, 1 if quick else 11, warm=not quick)
    busy = {way: [busy for _, busy in both] for way, both in took.items()}
    ours = busy[_OURS]
    return [
        Row(
            name="cold start of the handler",
            unit="ms of CPU time",
            ours=_OURS,
            figures={way: Spread.of(figures) for way, figures in busy.items()},
            ratios=[
                Ratio(_PEER_WAY, ratios(ours, busy[_PEER_WAY]), bound=0.6, at_most=True),
                *(Ratio(way, ratios(ours, busy[way])) for way in ways if way not in {_OURS, _PEER_WAY}),
            ],
            note="Fresh processes that see only the package. Most of the difference is the bytecode that our package has: a"
            " function's file system keeps none. What is left is botocore, loaded and made a client, in all ways alike.",
        )
    ]


def _figures(starts: Sequence[tuple[float, float]]) -> dict[str, Any]:
    took, busy = zip(*starts, strict=True)
    return {
        "ms": statistics.median(took),
        "spread": [min(took), max(took)],
        "cpu_ms": statistics.median(busy),
        "cpu_spread": [min(busy), max(busy)],
    }


def report(found: dict[str, Any]) -> list[str]:
    """The figures as a table."""
    lines = [f"package of {found['bytes']:,} bytes", f"{'':27} {'ms':>6} {'spread':>14} {'CPU ms':>8} {'spread':>14}"]
    for way, one in found["ways"].items():
        spread, busy = (f"{low:.0f} - {high:.0f}" for low, high in (one["spread"], one["cpu_spread"]))
        lines.append(f"{way:27} {one['ms']:6.0f} {spread:>14} {one['cpu_ms']:8.0f} {busy:>14}")
    reached = found["ways"]["imports and clients"]["ms"]
    return [
        *lines,
        f"imports and clients: {reached:.0f} ms, {'within' if reached <= BOUND_MS else 'OVER'} {BOUND_MS:.0f}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 1 if imports and clients take longer than they may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round: does it work?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there")
    given = parser.parse_args(argv)
    found = measure(_package(), QUICK if given.quick else WAYS, 1 if given.quick else given.rounds)
    print("\n".join(report(found)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    return 0 if found["ways"]["imports and clients"]["ms"] <= BOUND_MS or given.quick else 1


if __name__ == "__main__":
    sys.exit(main())
