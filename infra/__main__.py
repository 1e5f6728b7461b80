"""LiveInsight on AWS: ``python -m infra package|deploy|rollback|smoke|cost``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from infra import cost
from infra.deploy import deploy_command, package_command
from infra.smoke import command as smoke_command

_ABOUT = """\
LiveInsight on AWS.

  python -m infra package                     make the functions' zip, and see what is in it
  python -m infra deploy --stage prod         bring templates, functions and services of a stage up to date
  python -m infra rollback --stage prod       the function and the services as they were before the last deploy
  python -m infra smoke --stage prod          post events to a deployment, and read them back
  python -m infra cost --events-per-day 1e7   what that costs a month, by service

Credentials and region are what boto3 finds (AWS_PROFILE, AWS_REGION, ...). Every command may be interrupted and given
again. Exit status: 0 done; 1 something could not be done, or was put back; 2 the command line is wrong; 130
interrupted. One machine needs none of this: make run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Messages go to stderr, progress and results to stdout."""
    parser = argparse.ArgumentParser(
        prog="python -m infra", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    package_command.add(commands)
    deploy_command.add(commands)
    smoke_command.add(commands)
    cost.add(commands)
    given = parser.parse_args(argv)
    try:
        status: int = given.run(given)
    except KeyboardInterrupt:
        print(f"{given.command}: interrupted; given again, it goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return status


if __name__ == "__main__":
    # A canary that is ended by its machine's shutdown must put its routing back, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
