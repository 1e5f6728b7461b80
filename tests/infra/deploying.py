"""An AWS account to deploy to, as far as a deploy calls it: stacks that change by change sets, a function's alias, alarms,
services and their deployments. Moto has neither drift nor change sets that change nothing, nor ECS's deployments.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters

from infra.deploy import package
from infra.deploy.deployment import Session
from infra.local.stacks import load_template

ACCOUNT = "123456789012"
REGION = "us-east-1"
DATA = """\
Parameters:
  Stage: { Type: String }
  Days: { Type: Number, Default: 1 }
Resources:
  Queue:
    Type: AWS::SQS::Queue
    Properties: { QueueName: !Sub "liveinsight-${Stage}-failures", DelaySeconds: !Ref Days }
Outputs:
  FailureQueueName: { Value: !Sub "liveinsight-${Stage}-failures" }
"""
CONSUMER = """\
Parameters:
  Stage: { Type: String }
  CodeBucket: { Type: String }
  CodeKey: { Type: String }
  FailureQueueName: { Type: String }
Resources:
  Code:
    Type: AWS::SSM::Parameter
    Properties: { Name: !Sub "/${Stage}/code", Type: String, Value: !Sub "${CodeBucket}/${CodeKey}/${FailureQueueName}" }
Outputs:
  FunctionName: { Value: !Sub "liveinsight-${Stage}-consumer" }
  AliasName: { Value: live }
"""
WEB = """\
Parameters:
  Stage: { Type: String }
  Image: { Type: String }
Resources:
  Told:
    Type: AWS::SSM::Parameter
    Properties: { Name: !Sub "/${Stage}/image", Type: String, Value: !Ref Image }
Outputs:
  ClusterName: { Value: !Sub "liveinsight-${Stage}" }
  CollectorServiceName: { Value: collector }
  ApiServiceName: { Value: api }
"""


def denied(operation: str, code: str = "AccessDenied", message: str = "no") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


@dataclass
class Stack:
    """A stack as it stands: its template, the values of its parameters, its status, and its events, newest first."""

    template: str
    parameters: dict[str, str]
    status: str
    events: list[dict[str, str]] = field(default_factory=list)


class CloudFormation:
    """Stacks that are created and updated by change sets, at once; and drift, as it is set. It makes no resources.

    ``replaced`` are resources that a change set says will be made anew; ``ends`` are statuses that a stack's next
    execution ends in; ``on_execute`` is called before each.
    """

    def __init__(self) -> None:
        self.stacks: dict[str, Stack] = {}
        self.drifts: dict[str, list[dict[str, Any]]] = {}
        self.replaced: set[str] = set()
        self.executed: list[str] = []
        self.ends: dict[str, str] = {}
        self.on_execute: Callable[[], None] = lambda: None
        self._sets: dict[str, tuple[Stack, list[dict[str, Any]]]] = {}
        self._numbers = itertools.count()

    def validate_template(self, TemplateBody: str) -> None:
        assert "Resources" in TemplateBody

    def describe_stacks(self, StackName: str) -> dict[str, Any]:
        if StackName not in self.stacks:
            raise denied("DescribeStacks", "ValidationError", f"Stack with id {StackName} does not exist")
        stack = self.stacks[StackName]
        outputs = self._template(stack.template).get("Outputs", {}) if stack.status != "REVIEW_IN_PROGRESS" else {}
        return {
            "Stacks": [
                {
                    "StackStatus": stack.status,
                    "Parameters": [{"ParameterKey": key} for key in stack.parameters],
                    "Outputs": [
                        {"OutputKey": key, "OutputValue": self._value(one["Value"], stack.parameters)}
                        for key, one in outputs.items()
                    ],
                }
            ]
        }

    def create_change_set(
        self, StackName: str, ChangeSetType: str, TemplateBody: str, Parameters: list[dict[str, Any]], **_: Any
    ) -> None:
        assert (ChangeSetType == "CREATE") == (self._status(StackName) in (None, "REVIEW_IN_PROGRESS"))
        assert StackName not in self._sets
        before = self.stacks.get(StackName, Stack("Resources: {}", {}, "REVIEW_IN_PROGRESS"))
        self.stacks[StackName] = before
        values = {
            name: str(one["Default"])
            for name, one in self._template(TemplateBody)["Parameters"].items()
            if "Default" in one
        }
        for one in Parameters:
            key = one["ParameterKey"]
            values[key] = before.parameters[key] if one.get("UsePreviousValue") else one["ParameterValue"]
        changes = []
        if (TemplateBody, values) != (before.template, before.parameters):
            known = self._template(before.template)["Resources"]
            for name, one in self._template(TemplateBody)["Resources"].items():
                change = {
                    "Action": "Modify" if name in known else "Add",
                    "LogicalResourceId": name,
                    "ResourceType": one["Type"],
                    "Replacement": "True" if name in self.replaced else "False",
                }
                changes.append({"Type": "Resource", "ResourceChange": change})
        self._sets[StackName] = (Stack(TemplateBody, values, before.status, before.events), changes)

    def describe_change_set(self, StackName: str, ChangeSetName: str) -> dict[str, Any]:
        _, changes = self._sets[StackName]
        if not changes:
            return {"Status": "FAILED", "StatusReason": "The submitted information didn't contain changes."}
        return {"Status": "CREATE_COMPLETE", "Changes": changes}

    def delete_change_set(self, StackName: str, ChangeSetName: str) -> None:
        if self._sets.pop(StackName, None) is None:
            raise denied("DeleteChangeSet", "ChangeSetNotFound")

    def execute_change_set(self, StackName: str, ChangeSetName: str) -> None:
        self.executed.append(StackName)
        self.on_execute()
        made, changes = self._sets.pop(StackName)
        verb = "CREATE" if made.status == "REVIEW_IN_PROGRESS" else "UPDATE"
        end = self.ends.pop(StackName, f"{verb}_COMPLETE")
        failed = "ROLLBACK" in end
        for change in changes:
            name = change["ResourceChange"]["LogicalResourceId"]
            self.tell(made, name, f"{verb}_FAILED" if failed else f"{verb}_COMPLETE", "name is taken" if failed else "")
        made.status = end
        self.stacks[StackName] = replace(self.stacks[StackName], status=end, events=made.events) if failed else made

    def tell(self, stack: Stack, resource: str, status: str, reason: str = "") -> None:
        event = {"EventId": str(next(self._numbers)), "LogicalResourceId": resource, "ResourceStatus": status}
        stack.events.insert(0, event | ({"ResourceStatusReason": reason} if reason else {}))

    def describe_stack_events(self, StackName: str) -> dict[str, Any]:
        return {"StackEvents": list(self.stacks[StackName].events)}

    def detect_stack_drift(self, StackName: str) -> dict[str, str]:
        return {"StackDriftDetectionId": StackName}

    def describe_stack_drift_detection_status(self, StackDriftDetectionId: str) -> dict[str, Any]:
        drifted = "DRIFTED" if self.drifts.get(StackDriftDetectionId) else "IN_SYNC"
        return {"DetectionStatus": "DETECTION_COMPLETE", "StackDriftStatus": drifted}

    def describe_stack_resource_drifts(self, StackName: str, **_: Any) -> dict[str, Any]:
        return {"StackResourceDrifts": self.drifts[StackName]}

    def _status(self, name: str) -> str | None:
        return self.stacks[name].status if name in self.stacks else None

    @staticmethod
    @cache
    def _template(body: str) -> dict[str, Any]:
        with NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(body)
            file.flush()
            return load_template(Path(file.name))

    @staticmethod
    def _value(value: Any, parameters: dict[str, str]) -> str:
        if isinstance(value, dict) and "Fn::Sub" in value:
            return re.sub(r"\$\{(\w+)\}", lambda found: parameters[found[1]], value["Fn::Sub"])
        return str(value)


class S3:
    """Buckets of this account, and one of another."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, bytes]] = {}
        self.blocked: dict[str, dict[str, bool]] = {}
        self.others: set[str] = set()

    def head_bucket(self, Bucket: str, ExpectedBucketOwner: str) -> None:
        assert ExpectedBucketOwner == ACCOUNT
        if Bucket in self.others:
            raise denied("HeadBucket", "403")
        if Bucket not in self.objects:
            raise denied("HeadBucket", "404")

    def create_bucket(self, Bucket: str, **_: Any) -> None:
        self.objects[Bucket] = {}

    def put_public_access_block(self, Bucket: str, PublicAccessBlockConfiguration: dict[str, bool], **_: Any) -> None:
        self.blocked[Bucket] = PublicAccessBlockConfiguration

    def head_object(self, Bucket: str, Key: str, ExpectedBucketOwner: str) -> None:
        if Key not in self.objects[Bucket]:
            raise denied("HeadObject", "404")

    def put_object(self, Bucket: str, Key: str, Body: bytes, ExpectedBucketOwner: str, **_: Any) -> None:
        assert ExpectedBucketOwner == ACCOUNT
        self.objects[Bucket][Key] = Body


class Ecr:
    """Images, by tag, of a repository ``liveinsight``."""

    def __init__(self) -> None:
        self.tags = {"v1", "v2"}

    def describe_images(self, registryId: str, repositoryName: str, imageIds: list[dict[str, str]]) -> None:
        if repositoryName != "liveinsight":
            raise denied("DescribeImages", "RepositoryNotFoundException")
        if imageIds[0]["imageTag"] not in self.tags:
            raise denied("DescribeImages", "ImageNotFoundException")


class Sts:
    def get_caller_identity(self) -> dict[str, str]:
        return {"Account": ACCOUNT, "Arn": f"arn:aws:iam::{ACCOUNT}:user/deployer"}


class Lambda:
    """A function's versions and its alias ``live``."""

    def __init__(self) -> None:
        self.code = "one"
        self.published = ["one"]
        self.alias: dict[str, Any] = {"FunctionVersion": "1", "RevisionId": "r0"}
        self.history: list[tuple[str, dict[str, float]]] = []

    def publish_version(self, FunctionName: str) -> dict[str, str]:
        if self.published[-1] != self.code:  # Lambda publishes nothing twice
            self.published.append(self.code)
        return {"Version": str(len(self.published))}

    def get_alias(self, FunctionName: str, Name: str) -> dict[str, Any]:
        return dict(self.alias)

    def update_alias(self, FunctionName: str, Name: str, RevisionId: str = "", **given: Any) -> dict[str, Any]:
        if RevisionId and RevisionId != self.alias["RevisionId"]:
            raise denied("UpdateAlias", "PreconditionFailedException", "The RevisionId provided does not match")
        self.alias = {**self.alias, **given, "RevisionId": f"r{len(self.history) + 1}"}
        self.history.append((given["FunctionVersion"], given["RoutingConfig"]["AdditionalVersionWeights"]))
        return dict(self.alias)


class Cloudwatch:
    """Alarms, by name; those that ring at each look from now on."""

    def __init__(self) -> None:
        self.looks: list[set[str]] = []
        self.ringing: set[str] = set()
        self.actions = True

    def describe_alarms(self, AlarmNamePrefix: str, StateValue: str, **_: Any) -> dict[str, Any]:
        if self.looks:
            self.ringing = self.looks.pop(0)
        found = sorted(name for name in self.ringing if name.startswith(AlarmNamePrefix))
        return {"MetricAlarms": [{"AlarmName": name, "ActionsEnabled": self.actions} for name in found]}


class Ecs:
    """Services whose deployments take some looks to end as ``ends`` says."""

    def __init__(self) -> None:
        self.deployments: dict[str, list[dict[str, Any]]] = {"collector": [], "api": []}
        self.inactive: set[str] = set()
        self.images: dict[str, str] = {}
        self.tags: dict[str, list[dict[str, str]]] = {}
        self.stopped: list[str] = []
        self._numbers = itertools.count()

    def deploy(self, service: str, revision: int, *ends: str, **more: Any) -> None:
        number = next(self._numbers)
        self.deployments[service].append(
            {
                "serviceDeploymentArn": f"{service}/{number}",
                "createdAt": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number),
                "targetServiceRevisionArn": f"arn:td/{service}:{revision}",
                "targetServiceRevision": {"requestedTaskCount": 2, "runningTaskCount": 2},
                "lifecycleStage": "PRODUCTION_TRAFFIC_SHIFT",
                "statuses": list(ends or ["SUCCESSFUL"]),
                **more,
            }
        )

    def list_service_deployments(self, cluster: str, service: str, maxResults: int) -> dict[str, Any]:
        return {"serviceDeployments": [{**one, "status": one["statuses"][0]} for one in self.deployments[service]]}

    def describe_service_deployments(self, serviceDeploymentArns: list[str]) -> dict[str, Any]:
        (arn,) = serviceDeploymentArns
        (found,) = (one for one in self.deployments[arn.partition("/")[0]] if one["serviceDeploymentArn"] == arn)
        status = found["statuses"].pop(0) if found["statuses"][1:] else found["statuses"][0]
        return {"serviceDeployments": [{**found, "status": status}]}

    def describe_service_revisions(self, serviceRevisionArns: list[str]) -> dict[str, Any]:
        return {"serviceRevisions": [{"taskDefinition": arn} for arn in serviceRevisionArns]}

    def describe_services(self, cluster: str, services: list[str]) -> dict[str, Any]:
        done = [one for one in self.deployments[services[0]] if one["statuses"][-1] == "SUCCESSFUL"]
        return {"services": [{"taskDefinition": done[-1]["targetServiceRevisionArn"]}]}

    def describe_task_definition(self, taskDefinition: str, include: tuple[str, ...] = ()) -> dict[str, Any]:
        family, _, revision = taskDefinition.rpartition("/")[2].partition(":")
        status = "INACTIVE" if taskDefinition in self.inactive else "ACTIVE"
        described = {
            "taskDefinitionArn": taskDefinition,
            "family": family,
            "revision": int(revision),
            "status": status,
            "registeredAt": datetime(2026, 1, 1, tzinfo=UTC),
            "containerDefinitions": [{"name": "web", "image": self.images.get(taskDefinition, f"repo:v{revision}")}],
        }
        return {"taskDefinition": described, "tags": self.tags.get(taskDefinition, [])}

    def register_task_definition(
        self, family: str, containerDefinitions: list[dict[str, Any]], tags: list[dict[str, str]]
    ) -> dict[str, Any]:
        arn = f"arn:td/{family}:{90 + len(self.images)}"
        self.images[arn], self.tags[arn] = containerDefinitions[0]["image"], tags
        return {"taskDefinition": {"taskDefinitionArn": arn}}

    def update_service(self, cluster: str, service: str, taskDefinition: str) -> None:
        self.deploy(service, int(taskDefinition.rpartition(":")[2]), "IN_PROGRESS", "SUCCESSFUL")

    def stop_service_deployment(self, serviceDeploymentArn: str, stopType: str) -> None:
        assert stopType == "ROLLBACK"
        self.stopped.append(serviceDeploymentArn)
        service = serviceDeploymentArn.partition("/")[0]
        self.deployments[service][-1]["statuses"] = ["ROLLBACK_IN_PROGRESS", "ROLLBACK_SUCCESSFUL"]


class Iam:
    """Allows everything but what is ``denied``; ``refuses`` to be asked."""

    def __init__(self) -> None:
        self.denied: set[str] = set()
        self.refuses = False

    def simulate_principal_policy(self, PolicySourceArn: str, ActionNames: list[str]) -> dict[str, Any]:
        if self.refuses:
            raise denied("SimulatePrincipalPolicy")
        return {
            "EvaluationResults": [
                {"EvalActionName": one, "EvalDecision": "implicitDeny" if one in self.denied else "allowed"}
                for one in ActionNames
            ]
        }


class Checked:
    """A fake whose calls must be ones that boto3 would send: operations and parameters as AWS declares them."""

    def __init__(self, service: str, fake: Any) -> None:
        self._operations = declared_operations(service)
        self._fake = fake

    def __getattr__(self, name: str) -> Any:
        operation = self._operations[name]

        def call(**given: Any) -> Any:
            validate_parameters(given, operation.input_shape)
            return getattr(self._fake, name)(**given)

        return call


@cache
def declared_operations(service: str) -> dict[str, Any]:
    model = botocore.session.get_session().get_service_model(service)
    return {xform_name(name): model.operation_model(name) for name in model.operation_names}


class Account:
    """All of it; templates are those of ``directory``. What was said is in ``lines``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cloudformation = CloudFormation()
        self.s3, self.ecr = S3(), Ecr()
        self.lambdas, self.cloudwatch, self.ecs, self.iam = Lambda(), Cloudwatch(), Ecs(), Iam()
        self.lines: list[str] = []
        self.asked: list[str] = []
        self.answer = True
        self.now = 0.0
        self.paused: Callable[[], None] = lambda: None
        self.session = Session(
            self.client,
            REGION,
            self.lines.append,
            self._agreed,
            pause=self._pause,
            clock=lambda: self.now,
            directory=directory,
        )

    def client(self, service: str, region: str) -> Any:
        fake = {
            "cloudformation": self.cloudformation,
            "lambda": self.lambdas,
            "cloudwatch": self.cloudwatch,
            "ecs": self.ecs,
            "iam": self.iam,
            "s3": self.s3,
            "ecr": self.ecr,
            "sts": Sts(),
        }[service]
        return Checked(service, fake)

    def write(self, **templates: str) -> None:
        for name, text in templates.items():
            (self.directory / f"{name}.yaml").write_text(text)

    def parameters(self, template: str) -> dict[str, str]:
        """Those that the stack of a template has got."""
        return self.cloudformation.stacks[f"liveinsight-dev-{template}"].parameters

    def said(self) -> str:
        return "\n".join(self.lines)

    def _agreed(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer

    def _pause(self, seconds: float) -> None:
        self.now += seconds
        self.paused()


def a_package(content: bytes = b"one") -> package.Package:
    return package.pack({"liveinsight": {"stream_consumer/x.py": content}})
