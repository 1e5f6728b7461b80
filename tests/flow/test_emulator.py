"""The stacks on an emulator of AWS that is not ours, with a Lambda service that runs the packaged function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from infra.local.stacks import CONSUMER, DATA, TEMPLATES, create_stack
from tests.builders import a_lambda_event, an_aggregate, an_event
from tests.emulator import MISSING, PYTHON, ROOT, Emulator, function_zip, put_page_views, running, until
from tests.free_ports import free_ports

pytestmark = [
    pytest.mark.skipif(not os.environ.get("LIVEINSIGHT_LONG"), reason="takes half a minute: make test-emulator"),
    pytest.mark.skipif(not PYTHON.exists(), reason=MISSING),
]

FUNCTION = "liveinsight-emu-consumer"
CODE = "code"
RAISING = """\
def handler(event, context):
    raise RuntimeError("a version that must not serve")
"""


@dataclass
class Stack:
    """The stacks of stage emu, and what clients do with them."""

    emulator: Emulator
    outputs: dict[str, str]
    api: str = ""

    @property
    def environ(self) -> dict[str, str]:
        names = {
            "LIVEINSIGHT_STREAM": "StreamName",
            "LIVEINSIGHT_SESSIONS_TABLE": "SessionsTableName",
            "LIVEINSIGHT_SESSION_EVENTS_TABLE": "SessionEventsTableName",
            "LIVEINSIGHT_ROLLUPS_TABLE": "RollUpsTableName",
            "LIVEINSIGHT_QUARANTINE_TABLE": "QuarantineTableName",
        }
        return self.emulator.environ | {name: self.outputs[output] for name, output in names.items()}

    def put(self, session_id: str, *pages: str) -> None:
        put_page_views(self.emulator, self.outputs["StreamName"], session_id, *pages)

    def get(self, path: str) -> tuple[Any, Message]:
        with urllib.request.urlopen(self.api + path, timeout=30) as answer:
            return json.load(answer), answer.headers

    def page_views(self, session_id: str) -> int:
        """As the API tells them; 0 for a session that it does not know."""
        try:
            return int(self.get(f"/api/sessions/{session_id}/?site=shop")[0]["page_views"])
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return 0

    def generation(self) -> str:
        """Which one the API answers from."""
        return self.get("/api/statistics/summary/?site=shop")[1]["LiveInsight-Generation"]

    def aliases(self) -> set[str]:
        found = self.emulator.client("lambda").list_aliases(FunctionName=FUNCTION)["Aliases"]
        return {alias["Name"] for alias in found}

    def serve(self, key: str) -> None:
        """Let the first generation's mapping run this code, by the alias that it has, if it has one."""
        lambdas = self.emulator.client("lambda")
        lambdas.update_function_code(FunctionName=FUNCTION, S3Bucket=CODE, S3Key=key)
        for alias in self.aliases():
            version = lambdas.publish_version(FunctionName=FUNCTION)["Version"]
            lambdas.update_alias(FunctionName=FUNCTION, Name=alias, FunctionVersion=version)

    def replay(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stream_consumer", "replay", *arguments],
            cwd=ROOT,
            env=self.environ | {"LIVEINSIGHT_CONSUMER_FUNCTION": FUNCTION},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    directory: Path = tmp_path_factory.mktemp("emulator")
    with running(directory) as emulator:
        cloudformation, s3 = emulator.client("cloudformation"), emulator.client("s3")
        outputs = create_stack(cloudformation, DATA, {"Stage": "emu", "StreamMode": "provisioned", "ShardCount": "2"})
        s3.create_bucket(Bucket=CODE)
        s3.upload_file(str(function_zip(directory / "function.zip")), CODE, "1.zip")
        wanted = {"Stage": "emu", "CodeBucket": CODE, "CodeKey": "1.zip"}
        for template in (CONSUMER, TEMPLATES / "compaction.yaml", TEMPLATES / "archive.yaml"):
            create_stack(cloudformation, template, wanted)
        made = Stack(emulator, outputs)
        (port,) = free_ports(1)
        made.api = f"http://127.0.0.1:{port}"
        api = subprocess.Popen(
            [sys.executable, "-m", "query_api", "--port", str(port)],
            cwd=ROOT,
            env=made.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: _listens(made), bool, 30)
            yield made
        finally:
            api.terminate()
            api.wait(timeout=30)


def _listens(stack: Stack) -> bool:
    try:
        return stack.get("/health/")[0] is not None
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, ConnectionError):
        return False


def test_the_packaged_function_counts_an_event_and_the_api_reads_it(stack: Stack) -> None:
    stack.put("whole-path", "/a", "/b")
    assert until(lambda: stack.page_views("whole-path"), lambda views: views == 2, 30) == 2
    pages = [event["page_url"] for event in stack.get("/api/sessions/whole-path/events/?site=shop")[0]]
    assert pages == ["/a", "/b"]


def test_each_function_is_held_to_its_roles_policy(stack: Stack) -> None:
    """So what it did above, it may; and what its role does not name is refused here as on AWS."""
    iam, lambdas = stack.emulator.client("iam"), stack.emulator.client("lambda")
    role = lambdas.get_function_configuration(FunctionName=FUNCTION)["Role"].rpartition("/")[2]
    policy = iam.get_role_policy(RoleName=role, PolicyName="consume")["PolicyDocument"]
    without = [one for one in policy["Statement"] if one["Sid"] != "LoadAndSave"]
    event = json.dumps(a_lambda_event([an_aggregate([an_event(session_id="held")])])).encode()

    def failures() -> list[Any]:
        answer = lambdas.invoke(FunctionName=FUNCTION, Payload=event)
        return json.load(answer["Payload"])["batchItemFailures"]

    iam.put_role_policy(
        RoleName=role, PolicyName="consume", PolicyDocument=json.dumps({**policy, "Statement": without})
    )
    try:
        assert failures() == [{"itemIdentifier": "1"}]
    finally:
        iam.put_role_policy(RoleName=role, PolicyName="consume", PolicyDocument=json.dumps(policy))
    assert failures() == []
    # That was an event of long ago, on a site of its own: the scheduled function merges its hour and day.
    answer = lambdas.invoke(FunctionName="liveinsight-emu-compaction", Payload=b"{}")
    assert "FunctionError" not in answer
    done = json.load(answer["Payload"])["g1"]
    assert (done["hours"], done["days"], done["left"]) == (1, 1, 0)


def test_a_replay_fills_a_generation_by_a_mapping_of_its_own_and_is_promoted(stack: Stack) -> None:
    stack.put("replayed", "/a")
    until(lambda: stack.page_views("replayed"), lambda views: views == 1, 30)
    started = stack.replay("start", "--from", "TRIM_HORIZON")
    assert started.stdout == "g2\n", started.stderr
    lambdas = stack.emulator.client("lambda")
    first, second = sorted(lambdas.list_event_source_mappings()["EventSourceMappings"], key=_is_of_g2)
    assert _is_of_g2(second)
    for setting in ("FunctionResponseTypes", "BisectBatchOnFunctionError", "MaximumRetryAttempts", "DestinationConfig"):
        assert second[setting] == first[setting]

    until(lambda: stack.replay("diff", "g2", "--site", "shop"), lambda said: said.returncode == 0, 60)
    promoted = stack.replay("promote", "g2", "--max-lag", "3600")
    assert promoted.returncode == 0, promoted.stderr
    until(stack.generation, lambda name: name == "g2", 10)
    # It goes on into live traffic, as the first one does.
    stack.put("after", "/c")
    assert until(lambda: stack.page_views("after"), lambda views: views == 1, 30) == 1
    assert stack.replay("rollback").returncode == 0
    until(stack.generation, lambda name: name == "g1", 10)
    assert until(lambda: stack.page_views("after"), lambda views: views == 1, 30) == 1
    dropped = stack.replay("drop", "g2")
    assert dropped.returncode == 0, dropped.stderr
    assert [one["UUID"] for one in lambdas.list_event_source_mappings()["EventSourceMappings"]] == [first["UUID"]]
    assert "g2" not in stack.aliases()


def _is_of_g2(mapping: dict[str, Any]) -> bool:
    return bool(mapping["FunctionArn"].endswith(f":{FUNCTION}:g2"))


def test_what_comes_while_a_version_raises_is_counted_once_by_the_version_that_takes_over(
    stack: Stack, tmp_path: Path
) -> None:
    stack.put("raised", "/before")
    until(lambda: stack.page_views("raised"), lambda views: views == 1, 30)
    bad = function_zip(tmp_path / "bad.zip", stream_consumer__lambda_handler=RAISING)
    stack.emulator.client("s3").upload_file(str(bad), CODE, "2.zip")
    stack.serve("2.zip")
    stack.put("raised", "/meanwhile", "/and-again")
    until(stack.emulator.log.read_text, lambda said: "a version that must not serve" in said, 30)
    assert stack.page_views("raised") == 1

    stack.serve("1.zip")
    assert until(lambda: stack.page_views("raised"), lambda views: views == 3, 30) == 3


def test_an_update_that_fails_is_rolled_back_and_the_old_function_serves_on(stack: Stack) -> None:
    cloudformation = stack.emulator.client("cloudformation")
    name = "liveinsight-emu-consumer"
    kept = [{"ParameterKey": key, "UsePreviousValue": True} for key in ("Stage", "CodeBucket")]
    cloudformation.update_stack(
        StackName=name,
        UsePreviousTemplate=True,
        Parameters=[*kept, {"ParameterKey": "CodeKey", "ParameterValue": "no-such.zip"}],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    status = until(
        lambda: cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"],
        lambda said: not said.endswith("_IN_PROGRESS"),
        30,
    )
    assert status == "UPDATE_ROLLBACK_COMPLETE"
    stack.put("rolled-back", "/a")
    assert until(lambda: stack.page_views("rolled-back"), lambda views: views == 1, 30) == 1
