"""``python -m query_api``: serve the query API and the dashboard."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from producer.serving import at_least_one, free_address, port_number, serve, url_of

_ABOUT = """\
Serve LiveInsight's query API and its dashboard over HTTP:

  GET /                                the dashboard
  GET /api/sites/                      the sites of which there are figures
  GET /api/realtime/                   who is here now, and the last 30 minutes
  GET /api/sessions/active/            active sessions, the newest first (limit=, or page= and page_size=)
  GET /api/sessions/ID/                one session; /api/sessions/ID/events/ its events
  GET /api/statistics/summary/         totals, averages and rates
  GET /api/statistics/hourly/          figures in steps of 5 minutes
  GET /api/statistics/pages/           rankings (limit=); also referrers/ sources/ channels/ devices/ browsers/
                                       countries/
  GET /health/                         200, or 503 where the tables cannot be read

All take site= (default: default); statistics take from= and to=, ISO 8601 or milliseconds since 1970 (default:
the last 24 hours), and widen them to whole quarters of an hour in UTC.

  curl 'http://127.0.0.1:8000/api/statistics/summary/?site=blog&from=2015-05-17&to=2015-05-21'

DynamoDB is found through the settings that boto3 reads (AWS_ENDPOINT_URL, AWS_REGION, credentials). On SIGTERM or
Ctrl-C it answers what it has begun, and exits with 0. Give it TLS, and a limit on slow clients, by a proxy in front.
"""

_ENVIRONMENT = """\
environment:
  LIVEINSIGHT_SESSIONS_TABLE, LIVEINSIGHT_SESSION_EVENTS_TABLE, LIVEINSIGHT_ROLLUPS_TABLE
                                  the tables (default: those of `make run`)
  LIVEINSIGHT_API_ALLOWED_ORIGINS web sites whose pages may read: https://a.example,https://b.example (default: *)
  LIVEINSIGHT_API_LIVE_SECONDS    how long an answer about active sessions or one session is kept (default: 1.5)
  LIVEINSIGHT_API_RECENT_SECONDS  ... figures that may still change (default: 2)
  LIVEINSIGHT_API_CLOSED_SECONDS  ... figures of past hours to which nothing has come lately (default: 60)
  LIVEINSIGHT_API_READERS         calls to DynamoDB at a time (default: 16)

exit status: 0 stopped; 1 the server failed; 2 the command line or the environment is wrong, or the port is taken.
"""

#: Seconds in which requests under way may end after SIGTERM.
_GRACE = 15


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit status. Messages go to stderr."""
    arguments = _parser().parse_args(argv)
    from botocore.exceptions import BotoCoreError, NoRegionError

    from query_api.app import create_client
    from query_api.settings import ApiSettings

    try:
        address = free_address(arguments.host, arguments.port)
        endpoint = create_client(ApiSettings.from_environ(os.environ)).meta.endpoint_url
    except NoRegionError:
        print("query_api: no AWS region; set AWS_REGION", file=sys.stderr)
        return 2
    except (ValueError, BotoCoreError) as error:
        print(f"query_api: {error}", file=sys.stderr)
        return 2
    print(f"query_api: {url_of(address)}/ reads DynamoDB at {endpoint}", file=sys.stderr, flush=True)
    serve("query_api.app:app", address, workers=arguments.workers, threads=arguments.threads, grace=_GRACE)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m query_api",
        description=_ABOUT,
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--workers", type=at_least_one, default=1, help="server processes, each with its cache (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=at_least_one, default=32, help="requests at a time in each (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
