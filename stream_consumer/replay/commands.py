"""``python -m stream_consumer replay start|status|diff|promote|rollback|drop``."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from producer.client import local_or_environ_kinesis
from stream_consumer.archive.reader import Archive, DamagedObject, local_or_environ_archive
from stream_consumer.generations import Refused, State, is_name
from stream_consumer.merged import HOUR_MS
from stream_consumer.replay.differences import Comparison
from stream_consumer.replay.lag import AT_THE_TIP_MS, Stream, longest
from stream_consumer.replay.mapping import Mappings
from stream_consumer.replay.operation import Reading, Replays, moment, prepared
from stream_consumer.replay.report import diff_lines, status_facts, status_lines
from stream_consumer.table import TableNames, local_or_environ_dynamodb
from stream_consumer.terminal import bars

_ABOUT = """\
Compute the past again, into a generation of its own, while the serving one goes on; compare; switch over.

  python -m stream_consumer replay start --from 24h            from a day ago on, and on into live traffic
  python -m stream_consumer replay start --from TRIM_HORIZON   everything that the stream holds
  python -m stream_consumer replay start --from 2026-01-01T00:00Z --archive
                                                               older than that: from the archive, then the stream
  python -m stream_consumer replay status --watch              how far each shard is, how fast, time left
  python -m stream_consumer replay diff g2                     what it says otherwise than the serving one
  python -m stream_consumer replay promote g2                  serve it; readers see one or the other, never a mix
  python -m stream_consumer replay rollback                    serve again what was served before
  python -m stream_consumer replay drop g1                     delete a generation

A replay begins at a full hour. What was received before it is copied from the serving generation: sessions that were
under way then are folded anew from their stored events, roll-ups of earlier quarters of an hour stay as they were
counted. So after a change of a definition, begin where it is to hold from, or with TRIM_HORIZON.
Every command may be interrupted and given again. A generation is consumed until it is dropped, served or not, so that
a rollback loses nothing; each costs what the first one costs.

On AWS, LIVEINSIGHT_CONSUMER_FUNCTION names the consumer's function: `start` gives it an alias and an event source
mapping for the generation, `drop` removes them (g1's mapping is its stack's: after `drop g1`, deploy the stack with
FirstGeneration=false). Without it, what drives the consumers follows the list of generations, as `make run` does.
LIVEINSIGHT_STREAM and LIVEINSIGHT_..._TABLE name the rest, AWS_* as boto3 reads it; where nothing is named, it is a
`make run` on this machine.
"""
_FROM = re.compile(r"([0-9]+)\s*(m|min|h|d)")
_UNITS_MS = {"m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def add(areas: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``replay`` to the operator's commands."""
    replay = areas.add_parser(
        "replay",
        help="compute the past again, compare, switch over",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = replay.add_subparsers(required=True, metavar="COMMAND")

    start = commands.add_parser("start", help="begin a replay, or go on with one that was interrupted")
    start.add_argument(
        "--from",
        dest="start",
        metavar="WHEN",
        help="24h, 90m or 7d ago, a time (2026-01-31T08:00Z), or TRIM_HORIZON: all that the stream holds; "
        "left out, the replay that is being prepared goes on",
    )
    start.add_argument(
        "--archive",
        action="store_true",
        help="read what the stream does not hold any more from the archive (LIVEINSIGHT_ARCHIVE_BUCKET); --from may be "
        "as early as its first full hour, which TRIM_HORIZON means then",
    )
    start.add_argument("--skip-bad-lines", action="store_true", help="of the archive, naming each; else they stop it")
    start.add_argument(
        "--accept-failed", action="store_true", help="go on without what the delivery stream could not archive"
    )
    start.add_argument(
        "--lookahead", type=_hours, default=1.0, metavar="HOURS", help="how late an archived object may be (default: 1)"
    )
    start.add_argument(
        "--another", action="store_true", help="also if one that begins there is consumed and was never served"
    )
    start.add_argument("--to", choices=["now"], default="now", help="a replay goes on into live traffic (the default)")
    start.add_argument("--version", default="", help="on AWS: the function's version to run (default: publish one)")
    start.add_argument("--fan-out", action="store_true", help="on AWS: read with enhanced fan-out, beside the others")
    start.set_defaults(run=_start)

    status = commands.add_parser("status", help="the generations, and how far their consumers are")
    status.add_argument("generation", nargs="?", type=_name, help="only this one")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    status.add_argument("--watch", action="store_true", help="again and again, until every shard is at its tip")
    status.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="with --watch (default: 2)")
    status.set_defaults(run=_status)

    diff = commands.add_parser("diff", help="what a generation says otherwise (exit status 1 if anything)")
    diff.add_argument("generation", type=_name)
    diff.add_argument("--with", dest="other", type=_name, help="compare with this one (default: the serving one)")
    diff.add_argument("--site", default="", help="only of this site")
    diff.add_argument("--examples", type=int, default=20, help="sessions and roll-ups to name (default: 20)")
    diff.add_argument("--json", action="store_true", help="as one JSON object")
    diff.set_defaults(run=_diff)

    promote = commands.add_parser("promote", help="serve a generation, at once for all readers")
    promote.add_argument("generation", type=_name)
    promote.add_argument(
        "--max-lag",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="refuse if it is further behind the stream than this (default: 10)",
    )
    promote.set_defaults(run=_promote)

    rollback = commands.add_parser("rollback", help="serve again what was served before")
    rollback.set_defaults(run=_rollback)

    drop = commands.add_parser("drop", help="delete all of a generation that is not served")
    drop.add_argument("generation", type=_name)
    drop.add_argument(
        "--rate", type=float, default=0, metavar="N", help="at most so many items a second in each of 4 segments"
    )
    drop.set_defaults(run=_drop)


def _replays() -> Replays:
    return Replays(*_tables(), _stream(), now_ms, mappings=_mappings())


def _tables() -> tuple[Any, TableNames]:
    return local_or_environ_dynamodb(os.environ, "LIVEINSIGHT_ROLLUPS_TABLE", "LIVEINSIGHT_STREAM")


def _stream() -> Stream:
    kinesis, settings = local_or_environ_kinesis(os.environ)
    return Stream(kinesis, settings.stream)


def _mappings() -> Mappings | None:
    function = os.environ.get("LIVEINSIGHT_CONSUMER_FUNCTION", "").strip()
    if not function:
        return None
    import boto3

    kinesis, _ = local_or_environ_kinesis(os.environ)
    return Mappings(boto3.client("lambda", region_name=os.environ.get("AWS_REGION") or None), kinesis, function)


def _start(given: argparse.Namespace) -> int:
    replays = _replays()
    archive = _archive() if given.archive else None
    if given.start is None:
        generation = replays.unfinished()
        archive = _archive() if generation.archive else None
    else:
        generation = replays.begin(_when(given.start, now_ms()), archive, another=given.another)
    print(f"{generation.name}: from {moment(generation.start)}, based on {generation.base}", file=sys.stderr)
    reading = Reading(
        bad=_say_bad if given.skip_bad_lines else None,
        accept_failed=given.accept_failed,
        lookahead=round(given.lookahead * HOUR_MS),
    )
    with bars("preparing") as seen:
        generation = replays.prepare(
            generation, seen, archive=archive, reading=reading, version=given.version, fan_out=given.fan_out
        )
    copied, folded = prepared(generation).base, prepared(generation).archive
    if generation.start:
        print(
            "copied " + ", ".join(f"{copied.counts.get(what, 0):,} {name}" for what, name in _COPIED), file=sys.stderr
        )
    if generation.archive:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(folded.counts.items()))
        print(f"folded from the archive: {counts or 'nothing'}", file=sys.stderr)
    if copied.inexact:
        print(
            f"{copied.counts['inexact']} sessions hold more events than are stored, or are dated after their arrival: "
            f"their figures may differ. Such as {', '.join(copied.inexact)}",
            file=sys.stderr,
        )
    print(generation.name)
    print(f"it is consumed from now on: see `replay status {generation.name} --watch`", file=sys.stderr)
    return 0


_COPIED = (
    ("sessions", "sessions"),
    ("events", "chunks of events"),
    ("rollups", "roll-ups"),
    ("merged", "merged items"),
)


def _archive() -> Archive:
    return local_or_environ_archive(os.environ)


def _say_bad(damage: DamagedObject) -> None:
    print(f"passed over: {damage}", file=sys.stderr)


def _status(given: argparse.Namespace) -> int:
    replays = _replays()
    while True:
        pointer = replays.generations.pointer()
        some = [one for one in replays.generations.all() if given.generation in (None, one.name)]
        if given.generation and not some:
            raise Refused(f"there is no generation {given.generation}")
        now = now_ms()
        lags = {one.name: replays.lags(one) for one in some if one.consumes}
        if given.json:
            print(json.dumps(status_facts(pointer, some, lags, now)))
        else:
            print("\n".join(status_lines(pointer, some, lags, now)), flush=True)
        waits = any(longest(shards, now) >= AT_THE_TIP_MS for shards in lags.values()) or any(
            one.state in (State.PREPARING, State.DROPPING) for one in some
        )
        if not given.watch or not waits:
            return 0
        time.sleep(given.every)


def _diff(given: argparse.Namespace) -> int:
    replays = _replays()
    other = given.generation
    one = given.other or replays.generations.pointer().serving
    for name in (one, other):
        generation = replays.generations.get(name)
        if generation is None or not generation.consumes:
            raise Refused(f"{name} cannot be compared: it is {generation.state if generation else 'no generation'}")
    if one == other:
        raise Refused(f"{one} is served: name another one to compare with it, --with g1")
    comparison = Comparison(*_tables(), one, other, site=given.site, examples=given.examples)
    with bars("comparing") as seen:
        found = comparison.run(seen)
    print(msgspec.json.encode(found).decode() if given.json else "\n".join(diff_lines(found)))
    return 0 if found.none else 1


def _promote(given: argparse.Namespace) -> int:
    replays = _replays()
    pointer = replays.promote(given.generation, round(given.max_lag * 1000))
    if unswept := replays.unswept(pointer.serving):
        print(
            f"visitors of {', '.join(unswept)} who were erased are in its visitor sets (nowhere else): "
            "erase them again",
            file=sys.stderr,
        )
    print(
        f"{pointer.serving} is served" + (f"; `replay rollback` serves {pointer.previous}" if pointer.previous else "")
    )
    return 0


def _rollback(given: argparse.Namespace) -> int:
    pointer, behind = _replays().rollback()
    lag = f"; it is {behind / 1000:,.0f} s behind the stream" if behind >= AT_THE_TIP_MS else ""
    print(f"{pointer.serving} is served{lag}")
    return 0


def _drop(given: argparse.Namespace) -> int:
    with bars("deleting") as seen:
        _replays().drop(given.generation, seen, items_per_second=given.rate)
    print(f"{given.generation} is dropped")
    return 0


def _when(text: str, now: int) -> int | None:
    """A time in ms since 1970; None for the stream's oldest record."""
    if text == "TRIM_HORIZON":
        return None
    if ago := _FROM.fullmatch(text):
        return now - int(ago[1]) * _UNITS_MS[ago[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--from {text!r}: 24h, 90m or 7d, a time like 2026-01-31T08:00Z, or TRIM_HORIZON") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _hours(text: str) -> float:
    hours = float(text)
    if not 1 <= hours <= 24 * 7:
        raise argparse.ArgumentTypeError("from 1 to 168")
    return hours


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no generation; `replay status` names them")
    return text


def now_ms() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000
