"""``python -m stream_consumer erase``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from producer.client import local_or_environ_kinesis
from producer.event import Label, SiteId
from stream_consumer.erasure import Erased, Erasures, Found, NotConsumed
from stream_consumer.table import Conflict, local_or_environ_dynamodb

_ABOUT = """\
Erase a visitor: the sessions that a user of a site has now. Their details and events are deleted, and what was counted
of them is taken back, exactly, in every generation of the figures. Tombstones, which hold the sessions' ids alone, keep
redeliveries and later replays of the stream from bringing them back.

  python -m stream_consumer erase --site shop --user mia@example.com --dry-run     what would go
  python -m stream_consumer erase --site shop --user mia@example.com > hours.txt   erase, and list the archive's part

It puts an erasure of each session on the stream and waits until the consumers have come to them, so they must be
running. It may be interrupted anywhere, and run again with the same arguments: it goes on where it was. A second time
it does nothing, unless the user has come back; run it again after a replay too, before its figures are served, as that
counts the visitor anew.

The result, on stdout, is the hours in which events of the user came into the stream, as YYYY/MM/DD/HH/ (UTC): an
archive of the stream holds them there, and it is for the archive's own job to rewrite these.

What it does not do:
  - The stream itself holds the events until its retention is over; nobody can delete records there.
  - A user who comes back is a new one: only sessions that are known now are erased, and later events of theirs (a page
    that is still open goes on sending) are counted nowhere.
  - A session is its first named user's. Events of this user in a session that began as another's stay; so does the
    other, as a visitor, in a session of this user's.
  - Of a session of more than 10,000 events, those beyond are not known, and stay in the counts of events and pages.
  - Above 256 visitors in a quarter of an hour on a shard, their number is kept as a sketch, which cannot forget. It
    holds nothing that tells who was there.
  - What was merged of those hours is merged anew when the compaction runs next. The query API may answer from its
    cache for as long as LIVEINSIGHT_API_CLOSED_SECONDS says (a day).
  - Payloads in quarantine are no events, and nobody's; `quarantine list` shows them. Backups of the tables are kept.
"""

_user = msgspec.json.Decoder(tuple[SiteId, Annotated[Label, msgspec.Meta(min_length=1)]])


def add(areas: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``erase`` to the operator's commands."""
    erase = areas.add_parser(
        "erase",
        help="forget a visitor: sessions, events, and what was counted of them",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    erase.add_argument("--site", required=True, help="the site whose user it is")
    erase.add_argument("--user", required=True, help="the user id that the site's events name")
    erase.add_argument("--dry-run", action="store_true", help="say what would be erased, and erase nothing")
    erase.add_argument("--json", action="store_true", help="print everything as one JSON object")
    erase.add_argument(
        "--timeout",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="wait this long for the consumers (default: %(default)s)",
    )
    erase.set_defaults(run=_erase)


def _erase(given: argparse.Namespace) -> int:
    try:
        site_id, user_id = _user.decode(json.dumps([given.site, given.user]))
    except msgspec.ValidationError as why:
        print(f"erase: {'--site' if '$[0]' in str(why) else '--user'}: {why}", file=sys.stderr)
        return 2
    dynamodb, names = local_or_environ_dynamodb(os.environ, "LIVEINSIGHT_SESSIONS_TABLE", "LIVEINSIGHT_STREAM")
    kinesis, settings = local_or_environ_kinesis(os.environ)
    erasures = Erasures(dynamodb, names, kinesis, settings.stream, settings.lanes)
    if given.dry_run:
        _show_found(erasures.find(site_id, user_id), given.json)
        return 0
    try:
        with _bar() as progress:
            done = erasures.erase(site_id, user_id, given.timeout, progress)
    except NotConsumed as why:
        print(f"erase: {why}. Are their consumers running? Run it again: it goes on where it was", file=sys.stderr)
        return 1
    except Conflict:
        print("erase: another command erases the same user; run it again when that has ended", file=sys.stderr)
        return 1
    _show_erased(done, given.json)
    return 0


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(total=0, unit=" sessions", desc="erased", disable=None, file=sys.stderr) as bar:

        def progress(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        yield progress


def _show_found(found: Found, as_json: bool) -> None:
    hours = _prefixes(found.arrivals)
    if as_json:
        print(json.dumps({"sessions": found.sessions, "events": found.events, "archive": hours}))
        return
    if not found.sessions:
        print("the user has no sessions: nothing would be erased", file=sys.stderr)
        return
    print(f"would erase {len(found.sessions)} sessions with {found.events} events, of these hours:", file=sys.stderr)
    _print_lines(hours)


def _show_erased(done: Erased, as_json: bool) -> None:
    hours = _prefixes(done.arrivals)
    if as_json:
        asked = datetime.fromtimestamp(done.erased_at / 1000, UTC).isoformat() if done.erased_at else None
        facts = {
            "sessions": done.sessions,
            "generations": done.generations,
            "rollups": done.rollups,
            "erased_at": asked,
            "archive": hours,
        }
        print(json.dumps(facts))
        return
    if done.sessions:
        print(
            f"erased {len(done.sessions)} sessions, and their visitor from {done.rollups} roll-ups, "
            f"in {', '.join(done.generations)}",
            file=sys.stderr,
        )
    elif done.rollups:
        print(f"the user has no sessions; the visitor was erased from {done.rollups} roll-ups", file=sys.stderr)
    else:
        print("the user has no sessions: nothing is left to erase", file=sys.stderr)
    if hours:
        print(f"an archive of the stream holds the user's events in these {len(hours)} hours:", file=sys.stderr)
    _print_lines(hours)


def _prefixes(arrivals: Sequence[int]) -> list[str]:
    return [datetime.fromtimestamp(hour / 1000, UTC).strftime("%Y/%m/%d/%H/") for hour in arrivals]


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("from 0 to 86400")
    return seconds
