"""CloudFormation stacks brought up to date: change sets, their execution as it goes, drift."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from infra.deploy.problems import Failed, is_code

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient

#: One deploy at a time has a change set of this name in a stack; what an interrupted one left is replaced.
CHANGE_SET = "liveinsight-deploy"
#: The largest template that can be sent with the request, in bytes; a larger one is read from the code bucket.
LARGEST_BODY = 51_200
#: Losing or replacing one of these loses what it holds.
KEEPS_DATA = frozenset(
    {"AWS::DynamoDB::Table", "AWS::Kinesis::Stream", "AWS::S3::Bucket", "AWS::SQS::Queue", "AWS::KMS::Key"}
)
#: What differs from the template because a deploy, a rollback, a replay or autoscaling has done its work.
MOVES_BY_ITSELF: Mapping[str, tuple[str, ...]] = {
    "AWS::Lambda::Alias": ("/FunctionVersion", "/RoutingConfig", "/Description"),
    "AWS::Lambda::EventSourceMapping": ("/Enabled",),
    "AWS::ECS::Service": ("/DesiredCount", "/TaskDefinition"),
    "AWS::Kinesis::Stream": ("/ShardCount",),
    # A blue/green deployment of ECS shifts the rules' weights.
    "AWS::ElasticLoadBalancingV2::ListenerRule": ("/Actions",),
}
_NOTHING = ("didn't contain changes", "No updates are to be performed")
_UNUSABLE = {
    "ROLLBACK_COMPLETE": "its creation failed; look into its events, delete the stack, and deploy again",
    "ROLLBACK_FAILED": "its creation failed, and so did the way back; delete the stack, and deploy again",
    "CREATE_FAILED": "its creation failed; delete the stack, and deploy again",
    "DELETE_FAILED": "it could not be deleted; delete what holds it, then the stack, and deploy again",
    "UPDATE_ROLLBACK_FAILED": "mend what its events name, then `aws cloudformation continue-update-rollback`",
    "UPDATE_FAILED": "roll it back (`aws cloudformation rollback-stack`), and deploy again",
}


@dataclass(frozen=True)
class Change:
    """What a change set does to one resource. ``replacement``: '' for none, 'Conditional' if only AWS will know."""

    action: str
    resource: str
    kind: str
    replacement: str

    @property
    def loses_data(self) -> bool:
        return self.kind in KEEPS_DATA and (self.action == "Remove" or self.replacement == "True")


@dataclass(frozen=True)
class ChangeSet:
    """A change set that can be executed, with its changes; ``new``: it makes the stack."""

    stack: str
    new: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Drifted:
    """A resource that is not as its template says. ``expected``: in what moves by itself only."""

    resource: str
    kind: str
    how: str
    expected: bool


class Stacks:
    """The stacks of one region. ``say`` gets a line for each step; ``pause`` waits so many seconds."""

    def __init__(
        self,
        client: CloudFormationClient,
        say: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
        every: float = 3.0,
    ) -> None:
        self._client = client
        self._say = say
        self._pause = pause
        self._every = every

    def find(self, name: str) -> dict[str, Any] | None:
        """The stack, if it exists."""
        try:
            (found,) = self._client.describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise
        return dict(found)

    def outputs(self, name: str) -> dict[str, str]:
        """The stack's outputs; none if it does not exist."""
        found = self.find(name) or {}
        return {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", [])}

    def validate(self, name: str, source: Mapping[str, str]) -> None:
        """Have AWS read a stack's template (``TemplateBody`` or ``TemplateURL``). Raises :class:`Failed`."""
        try:
            self._client.validate_template(**source)
        except ClientError as error:
            if is_code(error, "ValidationError"):
                raise Failed(f"{name}: AWS refuses the template: {error.response['Error']['Message']}") from error
            raise

    def settle(self, name: str, watch: Callable[[], Iterable[str]] = tuple) -> dict[str, Any] | None:
        """The stack once nobody is changing it, a deploy that was interrupted before for example; None: there is none.

        Raises :class:`Failed` for one that cannot be updated.
        """
        found = self.find(name)
        if found and found["StackStatus"].endswith("_IN_PROGRESS") and found["StackStatus"] != "REVIEW_IN_PROGRESS":
            self._say(f"{name} is being changed ({found['StackStatus']}): waiting for that")
            self._follow(name, self._latest_event(name), watch)
            found = self.find(name)
        if found and (why := _UNUSABLE.get(found["StackStatus"])):
            raise Failed(f"stack {name} is {found['StackStatus']}: {why}")
        return found

    def prepare(
        self, name: str, source: Mapping[str, str], parameters: Sequence[Mapping[str, Any]], tags: Mapping[str, str]
    ) -> ChangeSet | None:
        """Make the change set that brings the stack up to date; None if it is. Nothing of the stack has changed yet."""
        found = self.find(name)
        new = found is None or found["StackStatus"] == "REVIEW_IN_PROGRESS"
        if found:
            self.discard(name)
        self._client.create_change_set(
            StackName=name,
            ChangeSetName=CHANGE_SET,
            ChangeSetType="CREATE" if new else "UPDATE",
            Parameters=[dict(one) for one in parameters],  # type: ignore[misc]
            Capabilities=["CAPABILITY_AUTO_EXPAND", "CAPABILITY_NAMED_IAM"],
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            **source,  # type: ignore[arg-type]
        )
        while True:
            made = self._client.describe_change_set(StackName=name, ChangeSetName=CHANGE_SET)
            if made["Status"] not in {"CREATE_PENDING", "CREATE_IN_PROGRESS"}:
                break
            self._pause(self._every)
        if made["Status"] == "FAILED":
            why = made.get("StatusReason", "")
            self.discard(name)
            if any(nothing in why for nothing in _NOTHING):
                return None
            raise Failed(f"no change set could be made for {name}: {why}")
        changes = self._changes(name)
        return ChangeSet(name, new, tuple(changes))

    def discard(self, name: str) -> None:
        """Take the change set away, if there is one."""
        try:
            self._client.delete_change_set(StackName=name, ChangeSetName=CHANGE_SET)
        except ClientError as error:
            if not is_code(error, "ChangeSetNotFound", "ChangeSetNotFoundException", "ValidationError"):
                raise

    def execute(self, changes: ChangeSet, watch: Callable[[], Iterable[str]] = tuple) -> None:
        """Carry it out, and tell every event as it comes, and what ``watch`` has to tell. Raises :class:`Failed` if it
        failed: AWS has then put the stack back.
        """
        before = self._latest_event(changes.stack)
        self._client.execute_change_set(StackName=changes.stack, ChangeSetName=CHANGE_SET)
        failures = self._follow(changes.stack, before, watch)
        found = self.find(changes.stack) or {"StackStatus": "gone"}
        if found["StackStatus"] not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
            reasons = "\n".join(f"  {one}" for one in failures) or "  its events name no reason"
            raise Failed(
                f"stack {changes.stack} is {found['StackStatus']}: AWS has put back what it had done.\n{reasons}"
            )

    def drift(self, name: str) -> list[Drifted]:
        """What of an existing stack is not as its template says."""
        detection = self._client.detect_stack_drift(StackName=name)["StackDriftDetectionId"]
        while True:
            found = self._client.describe_stack_drift_detection_status(StackDriftDetectionId=detection)
            if found["DetectionStatus"] != "DETECTION_IN_PROGRESS":
                break
            self._pause(self._every)
        if found["DetectionStatus"] == "DETECTION_FAILED":
            self._say(f"{name}: not all of it could be compared: {found.get('DetectionStatusReason', '')}")
        if found.get("StackDriftStatus") != "DRIFTED":
            return []
        drifted: list[Drifted] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._client.describe_stack_resource_drifts(
                StackName=name, StackResourceDriftStatusFilters=["MODIFIED", "DELETED"], **more
            )
            drifted += [_drifted(dict(one)) for one in answer["StackResourceDrifts"]]
            if "NextToken" not in answer:
                return drifted
            more = {"NextToken": answer["NextToken"]}

    def _changes(self, name: str) -> list[Change]:
        changes: list[Change] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._client.describe_change_set(StackName=name, ChangeSetName=CHANGE_SET, **more)
            for one in answer.get("Changes", []):
                change = one["ResourceChange"]
                replacement = change.get("Replacement", "False")
                changes.append(
                    Change(
                        change["Action"],
                        change["LogicalResourceId"],
                        change["ResourceType"],
                        "" if replacement == "False" else replacement,
                    )
                )
            if "NextToken" not in answer:
                return changes
            more = {"NextToken": answer["NextToken"]}

    def _latest_event(self, name: str) -> str:
        try:
            events = self._client.describe_stack_events(StackName=name)["StackEvents"]
        except ClientError:
            return ""
        return events[0]["EventId"] if events else ""

    def _follow(self, name: str, seen: str, watch: Callable[[], Iterable[str]]) -> list[str]:
        """Tell the stack's events after ``seen`` until it rests; returns the reasons of those that failed."""
        failures: list[str] = []
        while True:
            # Before the events, so that none is missed that came before the stack's last status.
            found = self.find(name)
            fresh = self._events_after(name, seen)
            for event in fresh:
                seen = event["EventId"]
                reason = event.get("ResourceStatusReason", "")
                status = event["ResourceStatus"]
                self._say(f"  {status:28} {event['LogicalResourceId']}" + (f": {reason}" if reason else ""))
                if status.endswith("_FAILED") and "cancelled" not in reason:
                    failures.append(f"{event['LogicalResourceId']}: {reason}")
            for line in watch():
                self._say(f"  {line}")
            if not found or not found["StackStatus"].endswith("_IN_PROGRESS"):
                return failures
            self._pause(self._every)

    def _events_after(self, name: str, seen: str) -> list[dict[str, Any]]:
        """Oldest first. AWS gives the newest first, and those of the stack's whole life."""
        fresh: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            answer = self._client.describe_stack_events(StackName=name, **more)
            for event in answer["StackEvents"]:
                if event["EventId"] == seen:
                    return fresh[::-1]
                fresh.append(dict(event))
            if "NextToken" not in answer:
                return fresh[::-1]
            more = {"NextToken": answer["NextToken"]}


def _drifted(found: Mapping[str, Any]) -> Drifted:
    kind = found["ResourceType"]
    paths = [one["PropertyPath"] for one in found.get("PropertyDifferences", [])]
    moves = MOVES_BY_ITSELF.get(kind, ())
    expected = bool(paths) and all(path.startswith(moves) for path in paths)
    deleted = found["StackResourceDriftStatus"] == "DELETED"
    return Drifted(
        found["LogicalResourceId"], kind, "deleted" if deleted else ", ".join(paths), expected and not deleted
    )


def rows(changes: Sequence[Change]) -> list[tuple[str, ...]]:
    """The changes as a table, with its head."""
    head = ("action", "resource", "type", "replacement")
    return [head, *((one.action, one.resource, one.kind, one.replacement or "-") for one in changes)]
