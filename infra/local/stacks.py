"""The CloudFormation templates on one machine: stacks made from them, and values read out of them.

There is one definition of every resource, the template that production uses. Only its parameters differ here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient

TEMPLATES = Path(__file__).parent.parent / "cloudformation"
DATA = TEMPLATES / "data.yaml"
CONSUMER = TEMPLATES / "consumer.yaml"
FUNCTION = "AWS::Lambda::Function"
MAPPING = "AWS::Lambda::EventSourceMapping"

#: What differs on one machine: two shards, for there are two to be had from one core of moto, and no waiting for a
#: batch to fill, for a visitor wants to see the click at once.
LOCAL_DATA = {"Stage": "local", "StreamMode": "provisioned", "ShardCount": "2"}
LOCAL_CONSUMER = {"Stage": "local", "MaximumBatchingWindowInSeconds": "0"}

_PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::AccountId": "123456789012",
}


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: ``!Ref x`` is ``{"Ref": "x"}``, ``!Sub x`` is ``{"Fn::Sub": "x"}``."""


def _function(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    value: Any = None
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    elif isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name in {"Ref", "Condition"} else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _function)


def load_template(path: Path) -> dict[str, Any]:
    """The template as plain values, its functions in the long form."""
    template: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    return template


def create_stack(
    cloudformation: CloudFormationClient, template_path: Path, parameters: Mapping[str, str]
) -> dict[str, str]:
    """Create the template's stack unless it exists, wait until it stands, and return its outputs.

    The stack is named ``liveinsight-<Stage>-<template>``. An existing stack is left as it is. Raises botocore's
    errors, also if the creation fails.
    """
    name = f"liveinsight-{parameters['Stage']}-{template_path.stem}"
    try:
        cloudformation.describe_stacks(StackName=name)
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        cloudformation.create_stack(
            StackName=name,
            TemplateBody=template_path.read_text(encoding="utf-8"),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_AUTO_EXPAND", "CAPABILITY_NAMED_IAM"],
        )
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 300}
    )
    (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def properties_of(
    kind: str, template_path: Path, parameters: Mapping[str, str], only: Collection[str] = ()
) -> dict[str, Any]:
    """The properties (``only`` these, or all) of the template's one resource of a ``kind``, as plain values.

    Parameters have the values given, or their defaults; another resource is named by its logical id. Raises
    ``ValueError`` for what cannot be known without AWS.
    """
    template = load_template(template_path)
    values: dict[str, Any] = {**_PSEUDO, **{name: name for name in template["Resources"]}}
    for name, declared in template.get("Parameters", {}).items():
        if name in parameters or "Default" in declared:
            given = parameters.get(name, declared.get("Default"))
            values[name] = int(given) if declared["Type"] == "Number" else given
    (resource,) = (one for one in template["Resources"].values() if one["Type"] == kind)
    return {name: _resolve(value, values) for name, value in resource["Properties"].items() if not only or name in only}


def _resolve(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_resolve(one, values) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, argument),) = value.items()
        if name == "Ref":
            return _known(argument, values)
        if name == "Fn::Sub" and isinstance(argument, str):
            return re.sub(r"\$\{([^}]+)\}", lambda match: str(_known(match[1], values)), argument)
        if name.startswith("Fn::"):
            raise ValueError(f"{name} cannot be resolved without AWS")
    return {name: _resolve(inner, values) for name, inner in value.items()}


def _known(name: str, values: Mapping[str, Any]) -> Any:
    if name not in values:
        raise ValueError(f"no value is known for {name}")
    return values[name]


def main() -> int:
    """Create the data stack of a local run at the endpoint that the environment names; print its outputs as JSON."""
    import boto3

    try:
        outputs = create_stack(boto3.client("cloudformation"), DATA, LOCAL_DATA)
        # A template can only know the queue's address at AWS.
        queue = boto3.client("sqs").get_queue_url(QueueName=outputs["FailureQueueName"])
    except (BotoCoreError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(outputs | {"FailureQueueUrl": queue["QueueUrl"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
