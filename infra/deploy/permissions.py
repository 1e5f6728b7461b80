"""Whether whoever deploys may do what a deploy does, asked of IAM before anything is touched."""

from __future__ import annotations

import re
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

#: What a deploy calls. What the stacks' resources need comes on top: CloudFormation calls in the deployer's name.
ACTIONS = (
    "cloudformation:CreateChangeSet",
    "cloudformation:DeleteChangeSet",
    "cloudformation:DescribeChangeSet",
    "cloudformation:DescribeStackEvents",
    "cloudformation:DescribeStackResourceDrifts",
    "cloudformation:DescribeStacks",
    "cloudformation:DetectStackDrift",
    "cloudformation:ExecuteChangeSet",
    "cloudformation:ValidateTemplate",
    "cloudwatch:DescribeAlarms",
    "dynamodb:CreateTable",
    "dynamodb:UpdateTable",
    "ecr:DescribeImages",
    "ecs:DescribeServiceDeployments",
    "ecs:ListServiceDeployments",
    "iam:CreateRole",
    "iam:PassRole",
    "iam:PutRolePolicy",
    "kinesis:CreateStream",
    "lambda:CreateFunction",
    "lambda:GetAlias",
    "lambda:PublishVersion",
    "lambda:UpdateAlias",
    "lambda:UpdateFunctionCode",
    "lambda:UpdateFunctionConfiguration",
    "logs:CreateLogGroup",
    "s3:GetObject",
    "s3:PutObject",
)
_ASSUMED = re.compile(r"arn:[^:]+:sts::\d+:assumed-role/([^/]+)/.+")


def denied(iam: Any, caller: str) -> tuple[list[str], str]:
    """The actions that IAM denies to ``caller`` (an ARN of GetCallerIdentity), and if it could not be asked: why.

    A policy of a resource or of an organisation may decide otherwise in the end; AWS says so then.
    """
    if caller.endswith(":root"):
        return [], ""
    try:
        principal = caller
        if role := _ASSUMED.fullmatch(caller):
            # The session's ARN lacks the role's path, and only the role can be simulated.
            principal = iam.get_role(RoleName=role[1])["Role"]["Arn"]
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            answer = iam.simulate_principal_policy(PolicySourceArn=principal, ActionNames=list(ACTIONS), **more)
            found += [one["EvalActionName"] for one in answer["EvaluationResults"] if one["EvalDecision"] != "allowed"]
            if not answer.get("IsTruncated"):
                return sorted(found), ""
            more = {"Marker": answer["Marker"]}
    except ClientError as error:
        return [], f"{error.operation_name}: {error.response['Error'].get('Code')}"
    except BotoCoreError as error:
        return [], str(error)
