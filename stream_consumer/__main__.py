"""The operator's commands: ``python -m stream_consumer quarantine|compact|replay|erase``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer import compaction_commands, erase_commands, quarantine_commands
from stream_consumer.generations import Refused
from stream_consumer.replay import commands as replay_commands
from stream_consumer.table import Unavailable

_ABOUT = """\
Look after what the consumer has stored.

  python -m stream_consumer quarantine list     payloads of the stream that were no events
  python -m stream_consumer compact             merge the roll-ups of hours and days that are over
  python -m stream_consumer replay start        compute the past again, compare, switch over
  python -m stream_consumer erase               forget a visitor: sessions, events, and what was counted of them

Tables and stream are those that the environment names (LIVEINSIGHT_..._TABLE, LIVEINSIGHT_STREAM, and
AWS_ENDPOINT_URL, AWS_REGION and credentials as boto3 reads them); where it names none, those of a `make run` on
this machine. Exit status: 0 done; 1 something could not be done; 2 the command line is wrong.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Messages go to stderr, results to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m stream_consumer",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    areas = parser.add_subparsers(required=True, metavar="COMMAND", dest="area")
    quarantine_commands.add(areas)
    compaction_commands.add(areas)
    replay_commands.add(areas)
    erase_commands.add(areas)
    given = parser.parse_args(argv)
    try:
        status: int = given.run(given)
    except Refused as refused:
        print(f"{given.area}: {refused}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{given.area}: interrupted; given again, it goes on", file=sys.stderr)
        return 130
    except (ClientError, BotoCoreError, Unavailable, ValueError) as error:
        print(
            f"{given.area}: {error}\nIs `make run` running, or do AWS_* and LIVEINSIGHT_* name the tables?",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
