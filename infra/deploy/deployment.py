"""A deploy and a rollback of one stage, step by step; the clients are passed in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from infra.deploy import package, parameters, permissions
from infra.deploy.canary import Alarms, Canary
from infra.deploy.code_bucket import CodeBucket
from infra.deploy.problems import Failed, explained, is_code
from infra.deploy.services import Services
from infra.deploy.stack import LARGEST_BODY, ChangeSet, Stacks, rows
from infra.deploy.terminal import table
from infra.local.stacks import TEMPLATES, load_template

#: Outputs of web.yaml that name a service.
_SERVICES = ("CollectorServiceName", "ApiServiceName")
_NEEDS_CODE = "CodeKey"
_ECR_IMAGE = re.compile(r"(\d+)\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com/([^:@]+):([^:@]+)")


@dataclass(frozen=True)
class Plan:
    """What is asked for. ``templates``: only these, () for all there are. ``image_tag`` '': what runs, runs on.

    The canary gets a ``share`` (0 to 1) for ``seconds``; share 0 shifts at once. ``accept_drift``,
    ``accept_replacement`` and ``accept_alarms`` go on where a deploy else refuses.
    """

    stage: str
    image_tag: str = ""
    templates: tuple[str, ...] = ()
    code_bucket: str = ""
    share: float = 0.1
    seconds: float = 300.0
    accept_drift: bool = False
    accept_replacement: bool = False
    accept_alarms: bool = False


@dataclass
class Session:
    """One caller's way to AWS: ``client(service, region)`` makes clients; the rest is how it talks and waits."""

    client: Callable[[str, str], Any]
    region: str
    say: Callable[[str], None]
    agreed: Callable[[str], bool]
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    directory: Path = TEMPLATES

    @cached_property
    def caller(self) -> Mapping[str, str]:
        """Who calls: ``Account`` and ``Arn``."""
        found = self.client("sts", self.region).get_caller_identity()
        return {"Account": found["Account"], "Arn": found["Arn"]}

    def stacks(self, region: str) -> Stacks:
        return Stacks(self.client("cloudformation", region), self.say, self.pause)

    def services(self, cluster: str) -> Services:
        return Services(self.client("ecs", self.region), cluster, self.say, pause=self.pause, clock=self.clock)

    def canary(self, function: str, alias: str) -> Canary:
        client = self.client("lambda", self.region)
        return Canary(client, function, alias, self.say, pause=self.pause, clock=self.clock)

    def alarms(self, stage: str) -> Alarms:
        return Alarms(self.client("cloudwatch", self.region), f"liveinsight-{stage}-")


@dataclass(frozen=True)
class Part:
    """One template of the deploy: its body, what it declares, and its stack's name and region."""

    name: str
    body: str
    declared: Mapping[str, Any] = field(repr=False)
    stack: str
    region: str

    @property
    def runs_code(self) -> bool:
        return _NEEDS_CODE in self.declared.get("Parameters", {})


class Declined(Exception):  # noqa: N818 - no error: it was asked, and the answer was no
    """The user did not agree; nothing of the stack at hand was changed."""


def parts_of(session: Session, stage: str, only: Sequence[str] = ()) -> list[Part]:
    """The templates that there are (``only`` these), in the order of their stacks. Raises :class:`Failed` for one that
    is asked for and not there.
    """
    found = []
    for name in parameters.ORDER:
        path = session.directory / f"{name}.yaml"
        if only and name not in only:
            continue
        if not path.exists():
            if name in only:
                raise Failed(f"there is no template {path}")
            continue
        declared = load_template(path)
        region = parameters.region_of(declared, session.region)
        found.append(Part(name, path.read_text(encoding="utf-8"), declared, f"liveinsight-{stage}-{name}", region))
    return found


def outputs_of(session: Session, stage: str) -> dict[str, dict[str, str]]:
    """The outputs of the stage's stacks, by template."""
    return {part.name: session.stacks(part.region).outputs(part.stack) for part in parts_of(session, stage)}


def deploy(session: Session, plan: Plan, build: Callable[[], package.Package]) -> dict[str, str]:
    """Bring the stage up to date; returns the outputs of all its stacks. Raises :class:`Failed`, :class:`Declined`, and
    botocore's errors.
    """
    say = session.say
    given = parameters.of_stage(session.directory, plan.stage)
    parts = parts_of(session, plan.stage, plan.templates)
    say(f"stage {plan.stage}: account {session.caller['Account']}, {session.region}, as {session.caller['Arn']}")
    made: dict[str, str] = {"Stage": plan.stage}
    if plan.image_tag:
        of_stage = given.get("web", {}).get("Image", "")
        made["Image"] = parameters.image(plan.image_tag, of_stage, session.caller["Account"], session.region)
        check_image(session, made["Image"])
    known = check(session, plan, parts)
    bucket = CodeBucket(
        session.client("s3", session.region),
        plan.code_bucket or f"liveinsight-{plan.stage}-code-{session.caller['Account']}",
        session.caller["Account"],
        session.region,
        say,
    )
    if any(part.runs_code for part in parts):
        say("package ...")
        made |= upload(session, bucket, build())
    outputs: dict[str, str] = {}
    for name, found in outputs_of(session, plan.stage).items():
        if name not in {part.name for part in parts}:
            outputs |= found
    for part in parts:
        source = source_of(part, bucket)
        if "TemplateURL" in source:  # too large to be looked at before the bucket was there
            session.stacks(part.region).validate(part.stack, source)
        values = parameters.resolve(
            part.declared, made, given.get(part.name, {}), outputs, existing_parameters(session, part)
        )
        outputs |= bring_up(session, plan, part, source, values)
        if part.name == "consumer" and outputs.get("AliasName"):
            session.canary(outputs["FunctionName"], outputs["AliasName"]).shift(
                session.alarms(plan.stage), share=plan.share, seconds=plan.seconds, known=known
            )
    return outputs


def check(session: Session, plan: Plan, parts: Sequence[Part]) -> frozenset[str]:
    """Look before anything is touched: permissions, templates, stacks' states, drift, alarms. Returns the alarms that
    ring already. Raises :class:`Failed`.
    """
    say = session.say
    missing, unasked = permissions.denied(session.client("iam", session.region), session.caller["Arn"])
    if missing:
        raise Failed(
            f"{session.caller['Arn']} may not {', '.join(missing)}: have these allowed to the role that you deploy with"
        )
    say(f"check: permissions {'not asked for (' + unasked + ')' if unasked else 'as far as IAM tells'}")
    drifted = []
    for part in parts:
        stacks = session.stacks(part.region)
        if len(part.body.encode()) <= LARGEST_BODY:
            stacks.validate(part.stack, {"TemplateBody": part.body})
        found = stacks.settle(part.stack)
        if not found or found["StackStatus"] == "REVIEW_IN_PROGRESS":
            continue
        for one in stacks.drift(part.stack):
            how = f"{part.stack}: {one.resource} ({one.kind}): {one.how}"
            say(f"check: differs from its template{', as it may' if one.expected else ''}: {how}")
            if not one.expected:
                drifted.append(how)
    say("check: templates are valid")
    if drifted and not plan.accept_drift:
        raise Failed(
            f"{len(drifted)} resources were changed by hand, and a deploy may undo that:\n  "
            + "\n  ".join(drifted)
            + "\nBring the change into the template or take it back; --accept-drift deploys all the same."
        )
    ringing = session.alarms(plan.stage).ringing()
    # Where an alarm's actions are off (a stage without traffic has some that always ring), it is known to ring.
    loud = sorted(name for name, acts in ringing.items() if acts)
    if loud and not plan.accept_alarms:
        raise Failed(
            f"in ALARM already: {', '.join(loud)}. A canary could not tell its own trouble from that. "
            "Look at these first; if this deploy is what mends them, --accept-alarms takes them as known."
        )
    say(f"check: alarms {'that ring and are known: ' + ', '.join(sorted(ringing)) if ringing else 'are silent'}")
    return frozenset(ringing)


def check_image(session: Session, image: str) -> None:
    """See that an image of ECR is there, before a service tries to run it. Raises :class:`Failed`."""
    found = _ECR_IMAGE.fullmatch(image)
    if not found:
        return
    account, region, repository, tag = found.groups()
    try:
        session.client("ecr", region).describe_images(
            registryId=account, repositoryName=repository, imageIds=[{"imageTag": tag}]
        )
    except ClientError as error:
        if is_code(error, "ImageNotFoundException", "RepositoryNotFoundException"):
            raise Failed(
                f"there is no image {image}: build it for linux/arm64, push it, and deploy again. "
                f"({error.response['Error'].get('Message', '')})"
            ) from error
        raise
    session.say(f"check: image {image} is there")


def upload(session: Session, bucket: CodeBucket, made: package.Package) -> dict[str, str]:
    """Put the package into the bucket; the parameters that lead to it."""
    bucket.ensure()
    fresh = bucket.upload(made)
    session.say(f"package {made.key}, {len(made.data):,} bytes: {'uploaded' if fresh else 'there already'}")
    if package.BYTECODE not in made.weights:
        session.say(f"the package is {package.NO_BYTECODE}")
    return {"CodeBucket": bucket.name, _NEEDS_CODE: made.key}


def source_of(part: Part, bucket: CodeBucket) -> dict[str, str]:
    """How CloudFormation gets the template."""
    if len(part.body.encode()) <= LARGEST_BODY:
        return {"TemplateBody": part.body}
    bucket.ensure()
    return {"TemplateURL": bucket.put_template(part.name, part.body)}


def existing_parameters(session: Session, part: Part) -> list[str]:
    """The names of the parameters that the part's stack has values for."""
    found = session.stacks(part.region).find(part.stack) or {}
    if found.get("StackStatus") == "REVIEW_IN_PROGRESS":
        return []
    return [one["ParameterKey"] for one in found.get("Parameters", [])]


def bring_up(
    session: Session, plan: Plan, part: Part, source: Mapping[str, str], values: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Show the change set of one stack, ask, and carry it out; the stack's outputs then."""
    stacks = session.stacks(part.region)
    changes = stacks.prepare(part.stack, source, values, {"liveinsight:stage": plan.stage})
    if changes is None:
        session.say(f"{part.stack}: no changes")
    else:
        agree(session, stacks, plan, changes)
        try:
            stacks.execute(changes, service_watch(session, stacks, part))
        except KeyboardInterrupt:
            session.say(f"{part.stack}: AWS goes on with the change set; given again, the command waits for it")
            raise
    outputs = stacks.outputs(part.stack)
    if part.name == "web":
        services = session.services(outputs.get("ClusterName", ""))
        for name in _SERVICES:
            if outputs.get(name):
                services.wait(outputs[name])
    return outputs


def agree(session: Session, stacks: Stacks, plan: Plan, changes: ChangeSet) -> None:
    """Show the changes and ask. Raises :class:`Declined`, or :class:`Failed` for a loss of data that nobody accepted;
    the change set is gone then.
    """
    session.say(f"{changes.stack}: {'to be created' if changes.new else 'to be changed'}")
    for line in table(rows(changes.changes)):
        session.say(line)
    try:
        lost = [one for one in changes.changes if one.loses_data]
        if lost and not plan.accept_replacement:
            raise Failed(
                f"{changes.stack}: {', '.join(one.resource for one in lost)} would be removed or made anew, and what "
                "it holds would be lost or left behind. --accept-replacement does it all the same."
            )
        if not session.agreed(f"Change {changes.stack} like this?"):
            raise Declined(f"{changes.stack} is left as it was")
    except BaseException:
        stacks.discard(changes.stack)
        raise


def service_watch(session: Session, stacks: Stacks, part: Part) -> Callable[[], Iterable[str]]:
    """What the services do while their stack is being changed."""
    if part.name != "web":
        return tuple
    outputs = stacks.outputs(part.stack)
    names = [outputs[name] for name in _SERVICES if outputs.get(name)]
    if not names:  # not before its first deploy
        return tuple
    services = session.services(outputs["ClusterName"])

    def told() -> list[str]:
        try:
            return [line for name in names for line in services.progress(name)]
        except ClientError as error:
            if is_code(error, "ServiceNotFoundException", "ClusterNotFoundException"):
                return []
            return [explained(error)]

    return told


def rollback(session: Session, stage: str) -> bool:
    """Put the function's alias and the services back to what was before the last deploy, and wait for the services.
    Whether anything was put back. Raises :class:`Failed`; each part is tried even if another could not be put back.
    """
    outputs = outputs_of(session, stage)
    consumer, web = outputs.get("consumer", {}), outputs.get("web", {})
    problems: list[str] = []
    done = False
    if consumer.get("AliasName"):
        try:
            done |= session.canary(consumer["FunctionName"], consumer["AliasName"]).put_back()
        except (Failed, ClientError) as problem:
            problems.append(explained(problem) if isinstance(problem, ClientError) else str(problem))
    services = session.services(web.get("ClusterName", ""))
    going = []
    for name in _SERVICES:
        if web.get(name):
            try:
                if services.put_back(web[name]):
                    going.append(web[name])
            except (Failed, ClientError) as problem:
                problems.append(explained(problem) if isinstance(problem, ClientError) else str(problem))
    for name in going:
        try:
            services.wait(name)
        except Failed as problem:
            # A deployment that was going on ends as rolled back: that is what was wanted.
            if "ROLLBACK_SUCCESSFUL" not in str(problem):
                problems.append(str(problem))
    if problems:
        raise Failed("\n".join(problems))
    if not consumer.get("AliasName") and not any(web.get(name) for name in _SERVICES):
        raise Failed(f"stage {stage} has neither an alias nor services in {session.region}: is it the right region?")
    return done or bool(going)
