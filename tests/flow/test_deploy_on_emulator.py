"""`python -m infra deploy` and `rollback` on an emulator whose Lambda service runs what is deployed: a version that raises
leaves the old one serving.
"""

from __future__ import annotations

import io
import os
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from stream_consumer.items import read_session, session_key
from tests.emulator import MISSING, PYTHON, Emulator, put_page_views, running, until

package = pytest.importorskip("infra.deploy.package")
deployment = pytest.importorskip("infra.deploy.deployment")
problems = pytest.importorskip("infra.deploy.problems")

pytestmark = [
    pytest.mark.skipif(not os.environ.get("LIVEINSIGHT_LONG"), reason="takes half a minute: make test-emulator"),
    pytest.mark.skipif(not PYTHON.exists(), reason=MISSING),
]

ALARM = "liveinsight-dev-errors"
FUNCTION = "liveinsight-dev-consumer"
HANDLER = "stream_consumer/lambda_handler.py"
RAISING = "def handler(event, context):\n    raise RuntimeError('a version that must not serve')\n"


@dataclass
class Operator:
    """Deploys stage dev, as far as the emulator has it, and looks what came of it."""

    emulator: Emulator
    said: list[str] = field(default_factory=list)
    #: The alarm rings as soon as the canary is watched.
    alarmed: bool = False

    @property
    def session(self) -> Any:
        return deployment.Session(
            client=lambda service, _: self.emulator.client(service),
            region="us-east-1",
            say=self._say,
            agreed=lambda _: True,
            pause=lambda seconds: time.sleep(min(seconds, 0.2)),
        )

    def _say(self, text: str) -> None:
        self.said.append(text)
        if self.alarmed and "canary:" in text:
            self.ring("ALARM")

    def ring(self, state: str) -> None:
        self.emulator.client("cloudwatch").set_alarm_state(AlarmName=ALARM, StateValue=state, StateReason="the test")

    def deploy(self, made: Any, seconds: float = 0) -> str:
        """What it said."""
        self.said.clear()
        plan = deployment.Plan("dev", templates=("data", "consumer", "compaction"), share=0.1, seconds=seconds)
        deployment.deploy(self.session, plan, lambda: made)
        return "\n".join(self.said)

    def version(self) -> str:
        alias = self.emulator.client("lambda").get_alias(FunctionName=FUNCTION, Name="live")
        assert not alias.get("RoutingConfig", {}).get("AdditionalVersionWeights")
        return str(alias["FunctionVersion"])

    def put(self, session_id: str, *pages: str) -> None:
        put_page_views(self.emulator, "liveinsight-dev-events", session_id, *pages)

    def page_views(self, session_id: str) -> int:
        found = self.emulator.client("dynamodb").get_item(
            TableName="liveinsight-dev-sessions", Key={"pk": {"S": session_key("shop", session_id)}}
        )
        return read_session(found["Item"]).session.page_views if "Item" in found else 0


@pytest.fixture(scope="module")
def raising(local_package: Any) -> Any:
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(local_package.data)) as there, zipfile.ZipFile(data, "w") as other:
        for name in there.namelist():
            other.writestr(name, RAISING if name == HANDLER else there.read(name))
    return replace(local_package, data=data.getvalue(), digest="0" * len(local_package.digest))


@pytest.fixture(scope="module")
def operator(tmp_path_factory, local_package: Any) -> Iterator[Operator]:
    with running(tmp_path_factory.mktemp("deploy")) as emulator:
        emulator.client("cloudwatch").put_metric_alarm(
            AlarmName=ALARM,
            Namespace="LiveInsight",
            MetricName="BatchFailures",
            Statistic="Sum",
            Period=60,
            EvaluationPeriods=1,
            Threshold=0,
            ComparisonOperator="GreaterThanThreshold",
        )
        one = Operator(emulator)
        one.deploy(local_package)
        yield one


def test_what_is_deployed_counts_events_and_is_left_alone_the_next_time(operator: Operator, local_package: Any) -> None:
    operator.put("deployed", "/a", "/b")
    assert until(lambda: operator.page_views("deployed"), lambda views: views == 2, 30) == 2
    before = operator.version()
    said = operator.deploy(local_package)
    assert said.count("no changes") == 3
    assert operator.version() == before


def test_an_alarm_during_the_canary_leaves_the_old_version_serving(
    operator: Operator, local_package: Any, raising: Any
) -> None:
    before = operator.version()
    operator.alarmed = True
    try:
        with pytest.raises(problems.Failed, match=ALARM):
            operator.deploy(raising, seconds=60)
    finally:
        operator.alarmed = False
        operator.ring("OK")
    assert operator.version() == before
    operator.put("alarmed", "/a")
    assert until(lambda: operator.page_views("alarmed"), lambda views: views == 1, 30) == 1


def test_after_a_rollback_what_came_meanwhile_is_counted_once(operator: Operator, raising: Any) -> None:
    before = operator.version()
    operator.deploy(raising)
    assert operator.version() != before
    operator.put("rolled-back", "/a", "/b")
    until(operator.emulator.log.read_text, lambda said: "a version that must not serve" in said, 30)
    assert operator.page_views("rolled-back") == 0
    assert deployment.rollback(operator.session, "dev")
    assert operator.version() == before
    assert until(lambda: operator.page_views("rolled-back"), lambda views: views == 2, 30) == 2
