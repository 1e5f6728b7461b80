"""``python -m infra smoke``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from infra.deploy.problems import Failed, explained
from infra.deploy.terminal import say, tell_problem
from infra.smoke.checks import CHECKS, MOST_LOAD, READ_KEY, Result, Smoke, run
from infra.smoke.report import as_html, as_json
from infra.smoke.web import Address, checked_url

_ABOUT = f"""\
Check a running deployment through its addresses: an event posted is read back (end to end), pages of other sites may
send and read (CORS), events sent once and twice count once (consistency), cursors neither repeat nor hide (pagination),
every documented path answers (API), and some events a second are all counted (load, at most {MOST_LOAD:,} events).

  python -m infra smoke --stage prod                        the addresses are its stacks' outputs
  python -m infra smoke --api http://127.0.0.1:8000 --collector http://127.0.0.1:8080     of a `make run`

It writes into one site (--site), whose figures stay; nothing else is touched. Where read keys are on, {READ_KEY}
holds that site's key. Exit status: 0 all passed; 1 a check failed; 2 the command line is wrong.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``smoke`` to the commands."""
    smoke = commands.add_parser(
        "smoke",
        help="post events to a deployment, and read them back",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    smoke.add_argument("--api", type=_url, metavar="URL", help="of the query API (default: output ApiUrl)")
    smoke.add_argument("--collector", type=_url, metavar="URL", help="of the collector (default: output CollectorUrl)")
    smoke.add_argument("--stage", default="prod", help="whose stacks have the addresses (default: %(default)s)")
    smoke.add_argument("--site", default=Smoke.site, help="(default: %(default)s)")
    smoke.add_argument(
        "--within", type=_positive, default=Smoke.within, metavar="S", help="for an event to be read (default: 30)"
    )
    smoke.add_argument("--events", type=_count, default=Smoke.events, metavar="N", help="to be counted (default: 60)")
    smoke.add_argument(
        "--rate", type=float, default=Smoke.rate, metavar="N", help="load in events/s, 0 for none (default: 20)"
    )
    smoke.add_argument("--seconds", type=float, default=Smoke.seconds, metavar="S", help="of the load (default: 3)")
    smoke.add_argument("--report", type=Path, metavar="DIR", help="write smoke.html and smoke.json there")
    smoke.set_defaults(run=_smoke, usage_error=smoke.error)


def _smoke(given: argparse.Namespace) -> int:
    if given.rate < 0 or given.seconds < 0 or given.rate * given.seconds > MOST_LOAD:
        given.usage_error(
            f"--rate {given.rate:g} for --seconds {given.seconds:g} is not from 0 to {MOST_LOAD:,} events: this is no "
            "load test of a live deployment (make load is, for one machine)"
        )
    api, collector = given.api, given.collector
    if not (api and collector):
        try:
            found = addresses(given.stage)
        except (ClientError, BotoCoreError) as error:
            return tell_problem("smoke", f"{explained(error)}\nOr give --api and --collector.")
        except Failed as problem:
            return tell_problem("smoke", str(problem))
        api, collector = api or found.get("ApiUrl"), collector or found.get("CollectorUrl")
    if not (api and collector):
        return tell_problem(
            "smoke",
            f"no stack of stage {given.stage} has the outputs ApiUrl and CollectorUrl: give --api and --collector",
        )
    return check(
        api,
        collector,
        os.environ,
        site=given.site,
        within=given.within,
        events=given.events,
        rate=given.rate,
        seconds=given.seconds,
        report=given.report,
    )


def check(
    api: str,
    collector: str,
    environ: Mapping[str, str],
    *,
    site: str = Smoke.site,
    within: float = Smoke.within,
    events: int = Smoke.events,
    rate: float = Smoke.rate,
    seconds: float = Smoke.seconds,
    report: Path | None = None,
) -> int:
    """Run all checks and tell each as it is done; returns the exit status."""
    key = environ.get(READ_KEY, "").strip()
    smoke = Smoke(
        Address(collector),
        Address(api, {"Authorization": f"Bearer {key}"} if key else None),
        site=site,
        within=within,
        events=events,
        rate=rate,
        seconds=seconds,
    )
    say(f"smoke: collector {collector}, API {api}")
    results: list[Result] = []
    for result in run(smoke):
        say(f"  {'ok    ' if result.ok else 'FAILED'} {result.name:12} {result.seconds:6.2f} s  {result.detail}")
        results.append(result)
    began = datetime.fromtimestamp(smoke.began / 1000, UTC).isoformat(timespec="seconds")
    about = {"began": began, "collector": collector, "api": api, "site": site, "run": smoke.run}
    found = as_json(results, about, list(CHECKS))
    if report:
        try:
            report.mkdir(parents=True, exist_ok=True)
            (report / "smoke.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            (report / "smoke.html").write_text(as_html(found), encoding="utf-8")
        except OSError as error:
            return tell_problem("smoke", f"the report cannot be written to {report}: {error.strerror}")
        say(f"report: {report / 'smoke.html'}")
    failed = [one.name for one in results if not one.ok]
    if failed:
        print(f"smoke: failed: {', '.join(failed)}", file=sys.stderr)
    return 0 if found["ok"] else 1


def addresses(stage: str) -> dict[str, str]:
    """The outputs of a stage's stacks. Raises :class:`Failed` and botocore's errors."""
    from infra.deploy.aws import session_of
    from infra.deploy.deployment import outputs_of

    return {name: value for found in outputs_of(session_of(), stage).values() for name, value in found.items()}


def _url(text: str) -> str:
    try:
        return checked_url(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


def _positive(text: str) -> float:
    if (number := float(text)) <= 0:
        raise ValueError
    return number


def _count(text: str) -> int:
    if not 1 <= (number := int(text)) <= MOST_LOAD:
        raise ValueError
    return number
