"""``python -m stream_consumer quarantine list|show|redrive``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from producer.client import local_or_environ_kinesis
from stream_consumer.quarantine import Quarantine, Quarantined, Unredrivable
from stream_consumer.table import local_or_environ_dynamodb
from stream_consumer.terminal import printable

_ABOUT = """\
Look after what the consumer has put in quarantine: payloads of the stream that are no events.

  python -m stream_consumer quarantine list --reason not_json
  python -m stream_consumer quarantine show shardId-000000000000 00242.000000
  python -m stream_consumer quarantine show shardId-000000000000 00242.000000 --payload > event.json
  python -m stream_consumer quarantine redrive shardId-000000000000 00242.000000 --repaired event.json
  python -m stream_consumer quarantine redrive --all --reason too_long
"""


def add(areas: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``quarantine`` to the operator's commands."""
    quarantine = areas.add_parser(
        "quarantine",
        help="what was no event: look at it, put it back",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = quarantine.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="what is there, a line each")
    listing.add_argument("--reason", default="", help="only those put aside for this reason")
    listing.add_argument("--shard", default="", help="only those of this shard")
    listing.add_argument("--limit", type=int, default=100, help="at most so many (default: %(default)s)")
    listing.add_argument("--redriven", action="store_true", help="also those that went back already")
    listing.add_argument("--json", action="store_true", help="a JSON object a line")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="one of them, whole")
    show.add_argument("shard")
    show.add_argument("position")
    show.add_argument("--payload", action="store_true", help="print the payload alone, byte for byte")
    show.set_defaults(run=_show)

    redrive = commands.add_parser("redrive", help="put one of them, or all, on the stream again")
    redrive.add_argument("shard", nargs="?")
    redrive.add_argument("position", nargs="?")
    redrive.add_argument("--repaired", metavar="FILE", help="the event to put in its place, a JSON object; - is stdin")
    redrive.add_argument("--as-it-was", action="store_true", help="put it back even if it is still no event")
    redrive.add_argument("--all", action="store_true", help="all that `list` would name")
    redrive.add_argument("--reason", default="", help="with --all: only those put aside for this reason")
    redrive.set_defaults(run=_redrive)


def _quarantine() -> Quarantine:
    client, names = local_or_environ_dynamodb(os.environ, "LIVEINSIGHT_QUARANTINE_TABLE", "LIVEINSIGHT_STREAM")
    return Quarantine(client, names.quarantine)


def _list(given: argparse.Namespace) -> int:
    quarantine = _quarantine()
    found = quarantine.list(reason=given.reason, shard_id=given.shard, redriven=given.redriven)
    count = 0
    for one in found:
        count += 1
        if count > given.limit:
            print(f"... and more: --limit {given.limit} was reached", file=sys.stderr)
            break
        print(json.dumps(_facts(one)) if given.json else _line(one))
    if not count:
        print("nothing is in quarantine" + (f" for {given.reason}" if given.reason else ""), file=sys.stderr)
    return 0


def _show(given: argparse.Namespace) -> int:
    quarantine = _quarantine()
    one = quarantine.get(given.shard, given.position)
    if one is None:
        return _nothing_at(given)
    if given.payload:
        sys.stdout.buffer.write(one.payload)
        return 0
    for name, value in _facts(one).items():
        print(f"{name:16} {value}")
    return 0


def _redrive(given: argparse.Namespace) -> int:
    quarantine = _quarantine()
    if given.all == bool(given.position) or (given.all and given.repaired):
        print("redrive: name one by shard and position, or --all without --repaired", file=sys.stderr)
        return 2
    if given.all:
        chosen = list(quarantine.list(reason=given.reason))
    else:
        one = quarantine.get(given.shard, given.position)
        if one is None:
            return _nothing_at(given)
        chosen = [one]
    repaired = None
    if given.repaired:
        repaired = sys.stdin.buffer.read() if given.repaired == "-" else Path(given.repaired).read_bytes()
    kinesis, settings = local_or_environ_kinesis(os.environ)
    failed = 0
    for one in chosen:
        try:
            at = quarantine.redrive(
                one, kinesis, settings.stream, settings.lanes, repaired=repaired, as_it_was=given.as_it_was
            )
        except Unredrivable as why:
            failed += 1
            print(f"{one.shard_id} {one.position}: {why}", file=sys.stderr)
        else:
            print(f"{one.shard_id} {one.position}: on the stream again at {at}")
    print(f"{len(chosen) - failed} redriven, {failed} not", file=sys.stderr)
    return 1 if failed else 0


def _nothing_at(given: argparse.Namespace) -> int:
    print(f"nothing is in quarantine at {given.shard} {given.position}; `list` names what is", file=sys.stderr)
    return 1


def _facts(one: Quarantined) -> dict[str, Any]:
    return {
        "shard": one.shard_id,
        "position": one.position,
        "sequence_number": one.sequence_number,
        "reason": one.reason,
        "detail": one.detail,
        "arrived": datetime.fromtimestamp(one.arrived, UTC).isoformat().replace("+00:00", "Z"),
        "size": one.size,
        "redriven": one.redriven,
        "payload": _printable(one.payload),
    }


def _line(one: Quarantined) -> str:
    return f"{one.shard_id} {one.position}  {one.reason:18} {one.size:>8} B  {_printable(one.payload)[:80]}"


def _printable(payload: bytes) -> str:
    return printable(payload.decode("utf-8", "backslashreplace"))
