"""``python -m infra deploy`` and ``python -m infra rollback``."""

from __future__ import annotations

import argparse
import os
import re
import sys

from botocore.exceptions import BotoCoreError, ClientError

from infra.deploy import package
from infra.deploy.aws import session_of
from infra.deploy.deployment import Declined, Plan, deploy, rollback
from infra.deploy.parameters import ORDER
from infra.deploy.problems import Failed, explained
from infra.deploy.terminal import say, tell_problem
from infra.smoke import command as smoke_command

_DEPLOY = f"""\
Bring a stage up to date, its stacks one after another: {", ".join(ORDER)}
(those whose templates there are).

1. Check: credentials, permissions, templates, stacks' states, what was changed by hand (drift), alarms that ring.
2. Make the functions' zip and put it into the code bucket, which is made if it is absent.
3. For each stack: make the change set, show it, ask, carry it out and tell each event as it comes.
4. Lead the function's alias to the new version by a canary: a share of the invocations first, then all. An alarm of the
   stage (liveinsight-STAGE-*) that rings meanwhile puts the routing back. Services go blue/green as web.yaml says; if
   ECS rolls one back, the deploy says so and fails.
5. Post an event through the edge and read it back (see `smoke`).

Parameters are those of infra/cloudformation/stages/STAGE.json, as in {{"data": {{"RetentionHours": "168"}}}}, and else
the templates' defaults. What is up to date is left alone, so an interrupted deploy is given again.

  python -m infra deploy --stage prod --image-tag 2026-01-31
  python -m infra deploy --stage dev --templates data consumer --yes

Exit status: 0 done; 1 refused, failed or put back; 2 the command line is wrong; 130 interrupted.
"""
_ROLLBACK = """\
Undo the last deploy's change of what runs: the function's alias goes back to the version before, the services to the
task definition before; a canary or a deployment that is under way is ended. Stacks, tables and their data stay as they
are. Given again, it changes nothing. The next deploy goes forward from here.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``deploy`` and ``rollback`` to the commands."""
    ship = commands.add_parser(
        "deploy",
        help="bring a stage up to date",
        description=_DEPLOY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ship.add_argument("--stage", type=_stage, required=True, help="dev, staging, prod, ...")
    ship.add_argument("--image-tag", default="", metavar="T", help="of the services' image (default: as it runs)")
    ship.add_argument("--templates", nargs="+", default=[], choices=ORDER, metavar="NAME", help="only these")
    ship.add_argument("--yes", action="store_true", help="do not ask")
    ship.add_argument(
        "--code-bucket", default="", metavar="NAME", help="(default: liveinsight-STAGE-code-ACCOUNT; made if absent)"
    )
    ship.add_argument(
        "--canary", type=_percent, default=0.1, metavar="PERCENT", help="of the invocations; 0: no canary (default: 10)"
    )
    ship.add_argument(
        "--canary-minutes", type=float, default=5.0, metavar="N", help="until all are led there (default: 5)"
    )
    ship.add_argument("--no-smoke", action="store_true", help="do not post an event afterwards")
    ship.add_argument("--accept-drift", action="store_true", help="deploy over what was changed by hand")
    ship.add_argument("--accept-replacement", action="store_true", help="let stores be removed or made anew")
    ship.add_argument("--accept-alarms", action="store_true", help="take alarms that ring already as known")
    ship.set_defaults(run=_deploy)

    back = commands.add_parser(
        "rollback",
        help="the function and the services as before the last deploy",
        description=_ROLLBACK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    back.add_argument("--stage", type=_stage, required=True, help="dev, staging, prod, ...")
    back.set_defaults(run=_rollback)


def _deploy(given: argparse.Namespace) -> int:
    plan = Plan(
        given.stage,
        image_tag=given.image_tag,
        templates=tuple(given.templates),
        code_bucket=given.code_bucket,
        share=given.canary,
        seconds=given.canary_minutes * 60,
        accept_drift=given.accept_drift,
        accept_replacement=given.accept_replacement,
        accept_alarms=given.accept_alarms,
    )
    try:
        outputs = deploy(session_of(yes=given.yes), plan, package.build)
    except Declined as answer:
        return tell_problem("deploy", f"{answer}; what came before it is done")
    except Failed as problem:
        return tell_problem("deploy", str(problem))
    except (ClientError, BotoCoreError) as error:
        return tell_problem("deploy", explained(error))
    for name in ("CollectorUrl", "ApiUrl", "DashboardUrl"):
        if name in outputs:
            say(f"{name}: {outputs[name]}")
    if given.no_smoke:
        return 0
    if not (outputs.get("ApiUrl") and outputs.get("CollectorUrl")):
        say("no smoke test: no stack has the outputs ApiUrl and CollectorUrl")
        return 0
    status = smoke_command.check(outputs["ApiUrl"], outputs["CollectorUrl"], os.environ)
    if status:
        print(
            f"deploy: it is out, and does not do what it should; back: python -m infra rollback --stage {given.stage}",
            file=sys.stderr,
        )
    return status


def _rollback(given: argparse.Namespace) -> int:
    try:
        done = rollback(session_of(yes=True), given.stage)
    except Failed as problem:
        return tell_problem("rollback", str(problem))
    except (ClientError, BotoCoreError) as error:
        return tell_problem("rollback", explained(error))
    if not done:
        say("nothing was left to be put back")
    return 0


def _stage(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,19}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no stage: small letters, digits and -, at most 20")
    return text


def _percent(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 50:
        raise argparse.ArgumentTypeError("give 0 to 50")
    return number / 100
