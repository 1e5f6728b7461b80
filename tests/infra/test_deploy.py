"""Deploying: what is checked before, what is shown and asked, the canary and its brake, and the way back."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from moto import mock_aws

from infra.deploy import parameters
from infra.deploy.code_bucket import CodeBucket
from infra.deploy.deployment import Declined, Plan, deploy, rollback
from infra.deploy.problems import Failed, explained
from infra.deploy.services import Services
from tests.infra.deploying import ACCOUNT, CONSUMER, DATA, REGION, WEB, Account, a_package, denied

PLAN = Plan("dev", image_tag="v1", seconds=60)
BUCKET = f"liveinsight-dev-code-{ACCOUNT}"
RINGING = {"liveinsight-dev-handler-errors"}


@pytest.fixture
def account(tmp_path: Path) -> Account:
    account = Account(tmp_path)
    account.write(data=DATA, consumer=CONSUMER, web=WEB)
    for service in account.ecs.deployments:
        account.ecs.deploy(service, 1)
    return account


def ship(account: Account, plan: Plan = PLAN, content: bytes = b"one") -> dict[str, str]:
    account.lines.clear()
    account.cloudformation.executed.clear()
    return deploy(account.session, plan, lambda: a_package(content))


def shipped_new_code(account: Account, plan: Plan = PLAN) -> None:
    """A second deploy, with other code."""
    ship(account, plan)
    account.lambdas.code = "two"
    ship(account, plan, b"two")


def test_the_stacks_come_in_their_order_with_what_the_deploy_made(account: Account) -> None:
    outputs = ship(account)
    assert account.cloudformation.executed == [f"liveinsight-dev-{name}" for name in ("data", "consumer", "web")]
    assert outputs["ClusterName"] == "liveinsight-dev"
    key = a_package().key
    consumer = account.parameters("consumer")
    assert (consumer["CodeBucket"], consumer["CodeKey"]) == (BUCKET, key)
    assert consumer["FailureQueueName"] == "liveinsight-dev-failures", "the output of that name of a stack before"
    assert account.parameters("web")["Image"] == f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/liveinsight:v1"
    assert account.s3.objects == {BUCKET: {key: a_package().data}}
    assert set(account.s3.blocked[BUCKET].values()) == {True}


def test_a_change_set_is_shown_as_a_table_and_asked_for_before_anything_happens(account: Account) -> None:
    account.answer = False
    with pytest.raises(Declined, match="liveinsight-dev-data is left as it was"):
        ship(account)
    assert account.cloudformation.executed == []
    assert account.asked == ["Change liveinsight-dev-data like this?"]
    at = account.lines.index("liveinsight-dev-data: to be created")
    assert account.lines[at + 1].split() == ["action", "resource", "type", "replacement"]
    assert account.lines[at + 2].split() == ["Add", "Queue", "AWS::SQS::Queue", "-"]
    account.answer = True
    ship(account)
    assert len(account.cloudformation.executed) == 3
    assert "  CREATE_COMPLETE              Queue" in account.lines, "progress is told"


def test_what_is_up_to_date_is_neither_asked_for_nor_touched(account: Account) -> None:
    ship(account)
    account.asked.clear()
    ship(account)
    assert (account.asked, account.cloudformation.executed) == ([], [])
    assert "liveinsight-dev-data: no changes" in account.lines
    assert "there already" in account.said()
    assert account.lambdas.history == []


def test_without_a_tag_the_image_runs_on_and_other_parameters_follow_the_stages_file(account: Account) -> None:
    (account.directory / "stages").mkdir()
    file = account.directory / "stages" / "dev.json"
    file.write_text(json.dumps({"data": {"Days": 7}, "web": {"Image": "registry/analytics:v0"}}))
    ship(account)
    assert account.parameters("web")["Image"] == "registry/analytics:v1", "the file's repository, the command's tag"
    file.unlink()
    ship(account, replace(PLAN, image_tag=""))
    assert account.parameters("web")["Image"] == "registry/analytics:v1"
    assert account.cloudformation.executed == ["liveinsight-dev-data"], "without the file, the default again"


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ({"data": {"Dayz": 1}}, "sets Dayz, which the template does not know"),
        ({"date": {}}, "names date; templates are data"),
        ({"data": 5}, "parameters by template are wanted"),
    ],
)
def test_a_stages_file_that_says_what_nobody_knows_is_refused(account: Account, file: dict, complaint: str) -> None:
    (account.directory / "stages").mkdir()
    (account.directory / "stages" / "dev.json").write_text(json.dumps(file))
    with pytest.raises(Failed, match=complaint):
        ship(account)
    assert account.cloudformation.executed == []


def test_a_first_deploy_without_an_image_says_what_gives_it(account: Account) -> None:
    with pytest.raises(Failed, match=r"no value for Image: .* --image-tag gives Image"):
        ship(account, replace(PLAN, image_tag=""))


def test_an_image_that_is_not_there_is_missed_before_anything_is_touched(account: Account) -> None:
    with pytest.raises(Failed, match=r"there is no image .*/liveinsight:v9: build it for linux/arm64"):
        ship(account, replace(PLAN, image_tag="v9"))
    assert (account.cloudformation.executed, account.s3.objects) == ([], {})


def test_only_some_templates_and_none_that_is_not_there(account: Account) -> None:
    ship(account, replace(PLAN, templates=("data",)))
    assert account.cloudformation.executed == ["liveinsight-dev-data"]
    ship(account, replace(PLAN, templates=("consumer",)))
    assert account.parameters("consumer")["FailureQueueName"] == "liveinsight-dev-failures", (
        "outputs of what is there already"
    )
    with pytest.raises(Failed, match=r"there is no template .*edge\.yaml"):
        ship(account, replace(PLAN, templates=("edge",)))


def test_losing_a_store_must_be_accepted(account: Account) -> None:
    ship(account)
    account.write(data=DATA.replace('failures", Delay', 'failed", Delay'))
    account.cloudformation.replaced.add("Queue")
    with pytest.raises(Failed, match="Queue would be removed or made anew"):
        ship(account)
    assert account.cloudformation.executed == []
    ship(account, replace(PLAN, accept_replacement=True))
    assert "liveinsight-dev-data" in account.cloudformation.executed


def test_what_was_changed_by_hand_stops_a_deploy_and_what_moves_by_itself_does_not(account: Account) -> None:
    ship(account)

    def drifted(kind: str, *paths: str) -> dict:
        return {
            "LogicalResourceId": "Thing",
            "ResourceType": kind,
            "StackResourceDriftStatus": "MODIFIED",
            "PropertyDifferences": [{"PropertyPath": path} for path in paths],
        }

    account.cloudformation.drifts["liveinsight-dev-consumer"] = [drifted("AWS::Lambda::Alias", "/FunctionVersion")]
    ship(account)
    assert "as it may: liveinsight-dev-consumer: Thing" in account.said()
    account.cloudformation.drifts["liveinsight-dev-data"] = [drifted("AWS::SQS::Queue", "/DelaySeconds")]
    with pytest.raises(Failed, match=r"(?s)1 resources were changed by hand.*/DelaySeconds.*--accept-drift"):
        ship(account)
    ship(account, replace(PLAN, accept_drift=True))


def test_missing_permissions_are_named_before_anything_is_touched(account: Account) -> None:
    account.iam.denied = {"lambda:UpdateAlias"}
    with pytest.raises(Failed, match="may not lambda:UpdateAlias"):
        ship(account)
    assert account.cloudformation.executed == []
    account.iam.refuses = True
    ship(account)
    assert "permissions not asked for (SimulatePrincipalPolicy: AccessDenied)" in account.said()


@pytest.mark.parametrize("status", ["ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED"])
def test_a_stack_that_cannot_be_updated_is_named_with_the_remedy(account: Account, status: str) -> None:
    ship(account)
    account.cloudformation.stacks["liveinsight-dev-data"].status = status
    with pytest.raises(Failed, match=rf"liveinsight-dev-data is {status}: .*(deploy again|continue-update-rollback)"):
        ship(account)


def test_a_failed_change_names_what_failed_and_why_and_the_rest_waits(account: Account) -> None:
    account.cloudformation.ends["liveinsight-dev-data"] = "ROLLBACK_COMPLETE"
    with pytest.raises(Failed, match=r"(?s)ROLLBACK_COMPLETE: AWS has put back.*Queue: name is taken"):
        ship(account)
    assert account.cloudformation.executed == ["liveinsight-dev-data"]


def test_a_template_that_aws_refuses_fails_the_check(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: str) -> None:
        raise denied("ValidateTemplate", "ValidationError", "Unresolved resource dependencies [X]")

    monkeypatch.setattr(account.cloudformation, "validate_template", refuse)
    with pytest.raises(Failed, match=r"refuses the template: Unresolved resource dependencies \[X\]"):
        ship(account)
    assert account.cloudformation.executed == []


def test_an_interrupted_deploy_goes_on_when_given_again(account: Account) -> None:
    def interrupt() -> None:
        if account.cloudformation.executed == ["liveinsight-dev-data", "liveinsight-dev-consumer"]:
            raise KeyboardInterrupt

    account.cloudformation.on_execute = interrupt
    with pytest.raises(KeyboardInterrupt):
        ship(account)
    assert "liveinsight-dev-consumer: AWS goes on with the change set" in account.said()
    ship(account)
    assert account.cloudformation.executed == ["liveinsight-dev-consumer", "liveinsight-dev-web"]


def test_a_change_under_way_is_waited_for(account: Account) -> None:
    ship(account)
    stack = account.cloudformation.stacks["liveinsight-dev-data"]
    stack.status = "UPDATE_IN_PROGRESS"

    def finish() -> None:
        account.cloudformation.tell(stack, "Queue", "UPDATE_COMPLETE")
        stack.status = "UPDATE_COMPLETE"

    account.paused = finish
    ship(account)
    assert "liveinsight-dev-data is being changed (UPDATE_IN_PROGRESS): waiting for that" in account.lines
    assert "  UPDATE_COMPLETE              Queue" in account.lines


def test_a_new_version_gets_a_tenth_then_all(account: Account) -> None:
    shipped_new_code(account)
    assert account.lambdas.history == [("1", {"2": 0.1}), ("2", {})]
    assert account.lambdas.alias["Description"] == "before this one: version 1"
    assert account.now >= 60
    assert "  canary: 60 s to go, no alarm" in account.lines
    account.lambdas.code, account.lambdas.history = "three", []
    ship(account, replace(PLAN, share=0))
    assert account.lambdas.history == [("3", {})]


def test_an_alarm_during_the_canary_puts_the_routing_back_and_the_rest_is_not_deployed(account: Account) -> None:
    ship(account)
    account.lambdas.code = "two"
    account.write(web=WEB.replace("/image", "/other"))
    account.cloudwatch.looks = [set(), set(), set(), {"liveinsight-prod-x"}, RINGING]
    with pytest.raises(Failed, match=r"version 2 of liveinsight-dev-consumer was taken back: .*handler-errors"):
        ship(account, content=b"two")
    assert account.lambdas.history == [("1", {"2": 0.1}), ("1", {})]
    assert account.cloudformation.executed == ["liveinsight-dev-consumer"]


def test_an_alarm_that_rings_already_stops_a_deploy_unless_it_is_known(account: Account) -> None:
    ship(account)
    account.lambdas.code, account.cloudwatch.ringing = "two", RINGING
    with pytest.raises(Failed, match=r"in ALARM already: liveinsight-dev-handler-errors.*--accept-alarms"):
        ship(account, content=b"two")
    ship(account, replace(PLAN, accept_alarms=True), b"two")
    assert account.lambdas.alias["FunctionVersion"] == "2"


def test_an_alarm_that_tells_nobody_stops_no_deploy(account: Account) -> None:
    account.cloudwatch.ringing, account.cloudwatch.actions = {"liveinsight-dev-silence"}, False
    shipped_new_code(account)
    assert account.lambdas.alias["FunctionVersion"] == "2"
    assert "check: alarms that ring and are known: liveinsight-dev-silence" in account.lines


@pytest.mark.parametrize("end", [KeyboardInterrupt(), denied("DescribeAlarms")])
def test_a_canary_that_nobody_watches_any_more_is_put_back_and_begins_anew(
    account: Account, end: BaseException
) -> None:
    ship(account)
    account.lambdas.code = "two"

    def stop() -> None:
        raise end

    account.paused = stop
    with pytest.raises(type(end)):
        ship(account, content=b"two")
    assert account.lambdas.history == [("1", {"2": 0.1}), ("1", {})]
    account.paused = lambda: None
    ship(account, content=b"two")
    assert account.lambdas.alias["FunctionVersion"] == "2"


def test_a_canary_whose_deploy_was_killed_begins_anew(account: Account) -> None:
    ship(account)
    account.lambdas.code = "two"
    account.lambdas.alias["RoutingConfig"] = {"AdditionalVersionWeights": {"2": 0.1}}
    ship(account, content=b"two")
    assert account.lambdas.history == [("1", {}), ("1", {"2": 0.1}), ("2", {})]


def test_a_rollback_goes_to_the_version_before_and_once_only(account: Account) -> None:
    shipped_new_code(account)
    for service in ("collector", "api"):
        account.ecs.deploy(service, 2)
    assert rollback(account.session, "dev")
    assert account.lambdas.alias["FunctionVersion"] == "1"
    assert account.ecs.describe_services("c", ["api"])["services"][0]["taskDefinition"] == "arn:td/api:1"
    assert "api: api:1 instead of api:2" in account.lines
    assert not rollback(account.session, "dev"), "given again, nothing is left to do"
    assert account.lambdas.alias["FunctionVersion"] == "1"
    ship(account, content=b"two")
    assert account.lambdas.alias["FunctionVersion"] == "2", "and the next deploy goes forward"


def test_a_rollback_ends_what_is_under_way(account: Account) -> None:
    shipped_new_code(account)
    account.lambdas.alias["RoutingConfig"] = {"AdditionalVersionWeights": {"3": 0.1}}
    account.ecs.deploy("collector", 2)
    account.ecs.deploy("api", 2, *["IN_PROGRESS"] * 9)
    assert rollback(account.session, "dev")
    assert account.lambdas.history[-1] == ("2", {})
    assert account.ecs.stopped == [account.ecs.deployments["api"][-1]["serviceDeploymentArn"]]


def test_a_task_definition_that_cloudformation_has_put_away_runs_again_as_a_copy(account: Account) -> None:
    shipped_new_code(account)
    for service in ("collector", "api"):
        account.ecs.deploy(service, 2)
        account.ecs.inactive.add(f"arn:td/{service}:1")
    assert rollback(account.session, "dev")
    running = account.ecs.describe_services("c", ["api"])["services"][0]["taskDefinition"]
    assert account.ecs.images[running] == "repo:v1"
    assert not rollback(account.session, "dev"), "it knows that this is a rollback already"
    assert account.ecs.describe_services("c", ["api"])["services"][0]["taskDefinition"] == running


def test_a_rollback_that_cannot_be_says_why_and_does_the_rest(account: Account) -> None:
    shipped_new_code(account)
    account.ecs.deploy("api", 2)
    with pytest.raises(Failed, match="service collector has had no other task definition than collector:1"):
        rollback(account.session, "dev")
    assert account.lambdas.alias["FunctionVersion"] == "1"
    assert account.ecs.describe_services("c", ["api"])["services"][0]["taskDefinition"] == "arn:td/api:1"


def test_a_rollback_before_any_deploy_and_in_the_wrong_region_says_so(account: Account) -> None:
    with pytest.raises(Failed, match="neither an alias nor services in us-east-1"):
        rollback(account.session, "dev")
    ship(account)
    with pytest.raises(Failed, match=r"(?s)does not say which version was before 1.*no other task definition"):
        rollback(account.session, "dev")


def test_a_deployment_that_ecs_rolls_back_fails_the_deploy_and_says_why(account: Account) -> None:
    ship(account)
    account.ecs.deploy(
        "api",
        2,
        "IN_PROGRESS",
        "IN_PROGRESS",
        "ROLLBACK_IN_PROGRESS",
        "ROLLBACK_SUCCESSFUL",
        rollback={"reason": "tasks failed health checks"},
        deploymentCircuitBreaker={"status": "TRIGGERED", "failureCount": 3},
    )
    complaint = "api: ROLLBACK_SUCCESSFUL: the circuit breaker saw 3 tasks fail; tasks failed health checks"
    with pytest.raises(Failed, match=complaint):
        ship(account)
    assert "  api: IN_PROGRESS, production traffic shift, 2 of 2 tasks run" in account.lines


def test_a_deployment_that_does_not_end_is_not_waited_for_for_ever(account: Account) -> None:
    account.ecs.deploy("api", 2, "IN_PROGRESS")
    services = Services(
        account.client("ecs", REGION), "c", account.lines.append, pause=account.session.pause, clock=lambda: account.now
    )
    with pytest.raises(Failed, match="still IN_PROGRESS after 60 s"):
        services.wait("api", within=60)
    assert len([line for line in account.lines if "IN_PROGRESS" in line]) == 1, "told once, not at each look"


def test_a_large_template_goes_through_the_code_bucket(account: Account) -> None:
    bucket = CodeBucket(account.client("s3", REGION), BUCKET, ACCOUNT, REGION, account.lines.append)
    bucket.ensure()
    url = bucket.put_template("monitoring", "x" * 60_000)
    assert url.startswith(f"https://{BUCKET}.s3.{REGION}.amazonaws.com/templates/monitoring-")
    assert bucket.put_template("monitoring", "x" * 60_000) == url
    bucket.ensure()
    assert account.lines == [f"made bucket {BUCKET}"]


def test_a_bucket_that_another_account_has_gets_nothing(account: Account) -> None:
    account.s3.others.add(BUCKET)
    with pytest.raises(Failed, match=rf"{BUCKET} is not yours to use: .*--code-bucket"):
        ship(account)
    assert account.cloudformation.executed == []


def test_it_deploys_to_an_independent_cloudformation(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        moto = boto3.client("cloudformation", region_name=REGION)
        moto.validate_template = lambda **_: None  # moto's loads cfn-lint, which takes seconds
        session = replace(
            account.session, client=lambda name, _: moto if name == "cloudformation" else account.client(name, _)
        )
        deploy(session, replace(PLAN, templates=("data",)), a_package)
        (url,) = boto3.client("sqs", region_name=REGION).list_queues()["QueueUrls"]
    assert url.endswith("/liveinsight-dev-failures")
    assert [line.split() for line in account.lines if " AWS::SQS::Queue " in line] == [
        ["Add", "Queue", "AWS::SQS::Queue", "-"]
    ]


def test_what_cloudfront_uses_goes_where_cloudfront_is() -> None:
    edge = {"Resources": {"Acl": {"Type": "AWS::WAFv2::WebACL", "Properties": {"Scope": "CLOUDFRONT"}}}}
    assert parameters.region_of(edge, "ap-northeast-2") == "us-east-1"
    assert parameters.region_of({"Resources": {"Q": {"Type": "AWS::SQS::Queue"}}}, "ap-northeast-2") == "ap-northeast-2"


@pytest.mark.parametrize(
    ("tag", "given", "image"),
    [
        ("v2", "", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/liveinsight:v2"),
        ("v2", "localhost:5000/a/b:v1", "localhost:5000/a/b:v2"),
        ("v2", "repo@sha256:00", "repo:v2"),
    ],
)
def test_a_tag_names_an_image_of_the_stages_repository(tag: str, given: str, image: str) -> None:
    assert parameters.image(tag, given, ACCOUNT, "eu-west-1").removeprefix("/") == image


def test_every_problem_names_its_remedy() -> None:
    expired = ClientError({"Error": {"Code": "ExpiredToken", "Message": "x"}}, "GetCallerIdentity")
    assert "sign in" in explained(expired)
    assert "sign in" in explained(NoCredentialsError())
    assert "PutObject is not allowed to you" in explained(denied("PutObject"))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "HOME": "/nowhere",
    }
    return subprocess.run(
        [sys.executable, "-m", "infra", *arguments], capture_output=True, text=True, check=False, env=environ
    )


def test_the_command_says_what_is_wrong_and_its_help_is_worth_reading() -> None:
    done = command("deploy", "--stage", "dev")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no usable AWS credentials" in done.stderr
    assert "Traceback" not in done.stderr
    assert command("deploy", "--stage", "No Stage").returncode == 2
    told = command("deploy", "--help").stdout
    for word in ("canary", "--accept-drift", "Exit status", "stages/STAGE.json"):
        assert word in told
