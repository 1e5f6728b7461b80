"""``python -m stream_consumer compact``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from stream_consumer.compaction import Compacted, of_generations
from stream_consumer.table import Unavailable, local_or_environ_dynamodb

_ABOUT = """\
Merge the roll-ups of hours that are over, and hours of days, so that long stretches are read from few items.
Figures are the same before and after; only what changed since the last time is merged, of every generation. It may
be interrupted, and several may run at once. On AWS a scheduled function does it.

  python -m stream_consumer compact               what is due now, with its progress
  python -m stream_consumer compact --every 10    again and again, until SIGTERM or Ctrl-C (what `make run` does)
"""


def add(areas: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compact`` to the operator's commands."""
    compact = areas.add_parser(
        "compact",
        help="merge the roll-ups of hours and days that are over",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compact.add_argument("--site", action="append", help="only this site; may be given several times")
    compact.add_argument("--every", type=_seconds, metavar="SECONDS", help="go on, with this long between two runs")
    compact.set_defaults(run=_compact)


def _compact(given: argparse.Namespace) -> int:
    client, names = local_or_environ_dynamodb(os.environ, "LIVEINSIGHT_ROLLUPS_TABLE")
    if given.every is None:
        for generation, compaction in of_generations(client, names):
            print(_line(generation, compaction.run(_now(), given.site, _progress)))
        return 0
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    while not stopping.is_set():
        try:
            for generation, compaction in of_generations(client, names):
                done = compaction.run(_now(), given.site, lambda due: _until(stopping, due))
                if done.hours or done.days:
                    print(_line(generation, done), flush=True)
        except Unavailable as why:
            print(f"compact: {why}; trying again", file=sys.stderr, flush=True)
        stopping.wait(given.every)
    return 0


def _until(stopping: threading.Event, due: Iterable[Any]) -> Iterable[Any]:
    for one in due:
        if stopping.is_set():
            return
        yield one


def _progress(due: Sequence[Any]) -> Iterable[Any]:
    if not due:
        return due
    from tqdm import tqdm

    whole_days = not isinstance(due[0], str)
    return tqdm(due, unit=" days" if whole_days else " hours", disable=None, file=sys.stderr)


def _line(generation: str, done: Compacted) -> str:
    left = f"; {done.left} changed meanwhile and are left for the next time" if done.left else ""
    return f"{generation}: merged {done.hours} hours and {done.days} days of {done.sites} sites{left}"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("from 0.1 to 86400")
    return seconds


def _now() -> int:
    return time.time_ns() // 1_000_000
