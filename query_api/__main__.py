"""``python -m query_api``: serve the query API and the dashboard; ``python -m query_api keys``: who may read."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from producer.serving import at_least_one, free_address, port_number, serve, url_of
from stream_consumer.table import Unavailable

if TYPE_CHECKING:
    from query_api.read_keys import ReadKey, ReadKeys

_ABOUT = """\
Serve LiveInsight's query API and its dashboard over HTTP:

  GET /                                the dashboard
  GET /docs/  /openapi.json            the API described, for people and for programs
  GET /api/sites/                      the sites of which there are figures
  GET /api/metrics/                    what is measured: metrics, dimensions, intervals
  GET /api/realtime/                   who is here now, and the last 30 minutes
  GET /api/realtime/stream             the same whenever it changes, as server-sent events
  GET /api/statistics/summary/         totals, averages and rates
  GET /api/statistics/timeseries/      metrics over time: interval= metrics= compare= dimension= label=
  GET /api/statistics/breakdown/       metrics by a dimension: dimension= metrics= limit= compare= format=csv
  GET /api/statistics/hourly/          figures in steps of 5 minutes
  GET /api/statistics/pages/           rankings (limit=); also referrers/ sources/ channels/ devices/ browsers/
                                       countries/
  GET /api/dashboard/hourly-details/   one hour (hour=); also page-details/ (page=) and referrer-details/ (referrer=)
  GET /api/sessions/active/            active sessions, the newest first (limit=, or page= or cursor=, page_size=)
  GET /api/sessions/ID/                one session; /api/sessions/ID/events/ its events
  GET /api/users/ID/sessions/          the sessions of a known user, the newest first
  GET /health/                         200, or 503 where the tables cannot be read

All of /api/ take site= (default: default); statistics take from= and to=, ISO 8601 or milliseconds since 1970, and
tz= (default: the last 24 hours, UTC), and widen them to whole quarters of an hour in UTC.

  curl 'http://127.0.0.1:8000/api/statistics/summary/?site=blog&from=2015-05-17&to=2015-05-21'

DynamoDB is found through the settings that boto3 reads (AWS_ENDPOINT_URL, AWS_REGION, credentials). On SIGTERM or
Ctrl-C it answers what it has begun, ends streams, and exits with 0. Give it TLS by a proxy in front.

With LIVEINSIGHT_API_READ_KEYS=on, every request of /api/ needs a read key of its site, but for /api/metrics/:

  python -m query_api keys create --site blog --name 'the wall in the hall'
  curl -H 'Authorization: Bearer li_...' 'http://127.0.0.1:8000/api/realtime/?site=blog'
"""

_ENVIRONMENT = """\
environment:
  LIVEINSIGHT_SESSIONS_TABLE, LIVEINSIGHT_SESSION_EVENTS_TABLE, LIVEINSIGHT_ROLLUPS_TABLE
                                  the tables (default: those of `make run`)
  LIVEINSIGHT_API_ALLOWED_ORIGINS web sites whose pages may read: https://a.example,https://b.example (default: *)
  LIVEINSIGHT_API_READ_KEYS       on: who reads needs a key of the site (default: off)
  LIVEINSIGHT_API_REALTIME_SECONDS  how long an answer about who is here now is kept (default: 1.2)
  LIVEINSIGHT_API_LIVE_SECONDS    ... a list of active sessions (default: 2)
  LIVEINSIGHT_API_SESSION_SECONDS ... one session and its events (default: 2)
  LIVEINSIGHT_API_RECENT_SECONDS  ... figures that may still change (default: 2)
  LIVEINSIGHT_API_CLOSED_SECONDS  ... figures of past hours to which nothing has come lately (default: 86400)
  LIVEINSIGHT_API_STALE_SECONDS   for how long after that an answer does while DynamoDB cannot be read (default: 3600)
  LIVEINSIGHT_API_GENERATION      answer from this generation, such as g2, to look at a replay before it is promoted
                                  (default: the one that is served)
  LIVEINSIGHT_API_STREAMS         streams of server-sent events open at a time in a process (default: 1000)
  LIVEINSIGHT_API_READERS         calls to DynamoDB at a time (default: 16)
  CACHE_URL                       a Redis in which processes share their answers: redis://host:6379/0 (default: none)

exit status: 0 stopped; 1 the server failed; 2 the command line or the environment is wrong, or the port is taken.
"""

_ABOUT_KEYS = """\
Read keys: who may read which site, where LIVEINSIGHT_API_READ_KEYS is on.

  python -m query_api keys create --site blog --name 'the wall in the hall'
  python -m query_api keys list --site blog
  python -m query_api keys revoke 0123456789abcdef

The table is the one that the environment names (LIVEINSIGHT_ROLLUPS_TABLE, and AWS_ENDPOINT_URL, AWS_REGION and
credentials as boto3 reads them); where it names none, that of a `make run` on this machine. Exit status: 0 done;
1 it could not be done; 2 the command line is wrong.
"""

#: Seconds in which requests under way may end after SIGTERM.
_GRACE = 15


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal, or run one command; returns the exit status. Messages go to stderr, results to stdout."""
    given = _parser().parse_args(argv)
    status: int = given.run(given)
    return status


def _serve(given: argparse.Namespace) -> int:
    from botocore.exceptions import BotoCoreError, NoRegionError

    from query_api.app import create_client
    from query_api.gateway import Gateway
    from query_api.settings import ApiSettings

    try:
        address = free_address(given.host, given.port)
        endpoint = create_client(ApiSettings.from_environ(os.environ)).meta.endpoint_url
    except NoRegionError:
        print("query_api: no AWS region; set AWS_REGION", file=sys.stderr)
        return 2
    except (ValueError, BotoCoreError) as error:
        print(f"query_api: {error}", file=sys.stderr)
        return 2
    print(f"query_api: {url_of(address)}/ reads DynamoDB at {endpoint}", file=sys.stderr, flush=True)
    serve("query_api.app:app", address, workers=given.workers, threads=given.threads, grace=_GRACE, gateway=Gateway)
    return 0


def _keys(given: argparse.Namespace) -> int:
    from botocore.exceptions import BotoCoreError

    from query_api.read_keys import NoSuchKey

    try:
        status: int = given.command(_read_keys(os.environ), given)
    except (NoSuchKey, ValueError) as error:
        print(f"keys: {error}", file=sys.stderr)
        return 1
    except (Unavailable, BotoCoreError) as error:
        print(
            f"keys: {error.__cause__ or error}\nIs `make run` running, or do AWS_* and LIVEINSIGHT_* name the table?",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        return 1
    return status


def _read_keys(environ: Mapping[str, str]) -> ReadKeys:
    from query_api.read_keys import ReadKeys
    from stream_consumer.table import local_or_environ_dynamodb

    return ReadKeys(
        *local_or_environ_dynamodb(environ, "LIVEINSIGHT_ROLLUPS_TABLE"), lambda: time.time_ns() // 1_000_000
    )


def _create(keys: ReadKeys, given: argparse.Namespace) -> int:
    print(keys.create(given.site, given.name))
    print(f"Keep it: it is not shown again. It reads site {given.site} alone.", file=sys.stderr)
    return 0


def _list(keys: ReadKeys, given: argparse.Namespace) -> int:
    found = list(keys.listing(given.site))
    for key in found:
        print(json.dumps(_facts(key)) if given.json else "  ".join(_facts(key).values()))
    if not found:
        print("there are no read keys" + (f" of site {given.site}" if given.site else ""), file=sys.stderr)
    return 0


def _revoke(keys: ReadKeys, given: argparse.Namespace) -> int:
    keys.revoke(given.key)
    print("revoked; within a minute no server takes it any more", file=sys.stderr)
    return 0


def _facts(key: ReadKey) -> dict[str, str]:
    created = datetime.fromtimestamp(key.created / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {"id": key.key_id, "created": created, "site": key.site_id, "name": key.name}


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m query_api", description=_ABOUT, epilog=_ENVIRONMENT, formatter_class=as_written
    )
    parser.set_defaults(run=_serve)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--workers", type=at_least_one, default=1, help="server processes, each with its cache (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=at_least_one, default=32, help="requests at a time in each (default: %(default)s)"
    )
    keys = parser.add_subparsers(metavar="COMMAND").add_parser(
        "keys", help="read keys: create, list, revoke", description=_ABOUT_KEYS, formatter_class=as_written
    )
    keys.set_defaults(run=_keys)
    commands = keys.add_subparsers(required=True, metavar="COMMAND")

    create = commands.add_parser("create", help="make a key, and print it")
    create.add_argument("--site", required=True, help="the site that it may read")
    create.add_argument("--name", default="", help="what it is for, to tell it from others")
    create.set_defaults(command=_create)

    listing = commands.add_parser("list", help="the keys there are, a line each")
    listing.add_argument("--site", help="only those of this site")
    listing.add_argument("--json", action="store_true", help="a JSON object a line")
    listing.set_defaults(command=_list)

    revoke = commands.add_parser("revoke", help="take a key back")
    revoke.add_argument("key", metavar="KEY_ID", help="its id, as `list` shows it; the key itself does, too")
    revoke.set_defaults(command=_revoke)
    return parser


if __name__ == "__main__":
    sys.exit(main())
