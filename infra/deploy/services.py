"""The ECS services: how a deployment of theirs goes, and the way back to the task definition before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from infra.deploy.problems import Failed

#: A deployment in one of these goes on.
ONGOING = frozenset({"PENDING", "IN_PROGRESS", "STOP_REQUESTED", "ROLLBACK_REQUESTED", "ROLLBACK_IN_PROGRESS"})
#: The tag of a task definition that a rollback has made: the one in whose place it runs.
_UNDOES = "liveinsight:rolled-back-from"
#: What ECS adds to a task definition, and does not take.
_ECS_OWN = frozenset(
    {
        "taskDefinitionArn",
        "revision",
        "status",
        "requiresAttributes",
        "compatibilities",
        "registeredAt",
        "registeredBy",
        "deregisteredAt",
        "deleteRequestedAt",
    }
)
#: How many deployments back are looked through for another task definition.
_LOOK_BACK = 50


class Services:
    """The services of one ``cluster``. ``say`` gets a line for each step; ``pause`` waits so many seconds."""

    def __init__(
        self,
        ecs: Any,
        cluster: str,
        say: Callable[[str], None],
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        every: float = 5.0,
    ) -> None:
        self._ecs = ecs
        self._cluster = cluster
        self._say = say
        self._pause = pause
        self._clock = clock
        self._every = every
        self._told: dict[str, str] = {}

    def progress(self, service: str) -> Iterator[str]:
        """One line on the service's latest deployment, if it is another one than last time."""
        if latest := self._latest(service):
            line = _line(service, latest)
            if self._told.get(service) != line:
                self._told[service] = line
                yield line

    def wait(self, service: str, within: float = 1800.0) -> None:
        """Wait until the service's latest deployment is done, telling how it goes. Raises :class:`Failed` if it was
        rolled back or stopped, or takes longer than ``within`` seconds.
        """
        deadline = self._clock() + within
        while True:
            for line in self.progress(service):
                self._say(f"  {line}")
            latest = self._latest(service)
            status = latest.get("status", "SUCCESSFUL")
            if status == "SUCCESSFUL":
                return
            if status not in ONGOING:
                why = latest.get("rollback", {}).get("reason") or latest.get("statusReason") or "ECS names no reason"
                breaker = latest.get("deploymentCircuitBreaker", {})
                if breaker.get("status") == "TRIGGERED":
                    why = f"the circuit breaker saw {breaker.get('failureCount')} tasks fail; {why}"
                raise Failed(
                    f"service {service}: {status}: {why}. The tasks that were serving before serve on; look at the "
                    f"stopped tasks of cluster {self._cluster} and their logs."
                )
            if self._clock() > deadline:
                raise Failed(
                    f"service {service} is still {status} after {within:.0f} s; given again, the command waits on, "
                    "and `python -m infra rollback` goes back"
                )
            self._pause(self._every)

    def put_back(self, service: str) -> bool:
        """Have the service run its task definition before the current one: a deployment that goes on is rolled back by
        ECS, else one is begun. Whether anything was put back: a second call changes nothing.
        """
        latest = self._latest(service)
        if latest.get("status") in ONGOING:
            if latest["status"] in {"PENDING", "IN_PROGRESS"}:
                self._ecs.stop_service_deployment(
                    serviceDeploymentArn=latest["serviceDeploymentArn"], stopType="ROLLBACK"
                )
            self._say(f"{service}: the deployment that was going on is rolled back")
            return True
        (found,) = self._ecs.describe_services(cluster=self._cluster, services=[service])["services"]
        current = found["taskDefinition"]
        if undone := self._undone(current):
            self._say(f"{service} runs {_short(current)} already, rolled back from {_short(undone)}")
            return False
        before = self._before(service, current)
        if before is None:
            raise Failed(f"service {service} has had no other task definition than {_short(current)}")
        if _revision(before) > _revision(current):
            self._say(f"{service} runs {_short(current)} already, rolled back from {_short(before)}")
            return False
        again = self._runnable(before, current)
        self._ecs.update_service(cluster=self._cluster, service=service, taskDefinition=again)
        self._say(f"{service}: {_short(again)} instead of {_short(current)}")
        return True

    def _undone(self, current: str) -> str | None:
        """Which task definition ``current`` was made in place of, if a rollback has made it."""
        tags = self._ecs.describe_task_definition(taskDefinition=current, include=["TAGS"]).get("tags", [])
        return next((tag["value"] for tag in tags if tag["key"] == _UNDOES), None)

    def _runnable(self, before: str, current: str) -> str:
        """The task definition ``before``, or a copy: CloudFormation makes one that it has replaced inactive, and ECS
        starts no task from such a one.
        """
        described = self._ecs.describe_task_definition(taskDefinition=before)["taskDefinition"]
        if described["status"] == "ACTIVE":
            return before
        definition = {name: value for name, value in described.items() if name not in _ECS_OWN}
        made = self._ecs.register_task_definition(**definition, tags=[{"key": _UNDOES, "value": current}])
        return str(made["taskDefinition"]["taskDefinitionArn"])

    def _latest(self, service: str) -> dict[str, Any]:
        """The service's latest deployment; nothing if it never had one."""
        arns = [one["serviceDeploymentArn"] for one in self._deployments(service, 1)]
        if not arns:
            return {}
        found = self._ecs.describe_service_deployments(serviceDeploymentArns=arns)["serviceDeployments"]
        return dict(found[0]) if found else {}

    def _before(self, service: str, current: str) -> str | None:
        """The task definition of the latest successful deployment that had another one than ``current``."""
        revisions = [
            one["targetServiceRevisionArn"]
            for one in self._deployments(service, _LOOK_BACK)
            if one["status"] == "SUCCESSFUL"
        ]
        for revision in revisions:
            answer = self._ecs.describe_service_revisions(serviceRevisionArns=[revision])
            for one in answer["serviceRevisions"]:
                if one["taskDefinition"] != current:
                    return str(one["taskDefinition"])
        return None

    def _deployments(self, service: str, most: int) -> list[dict[str, Any]]:
        """Newest first."""
        found = self._ecs.list_service_deployments(cluster=self._cluster, service=service, maxResults=_LOOK_BACK)
        by_age = sorted(found["serviceDeployments"], key=lambda one: one["createdAt"], reverse=True)
        return by_age[:most]


def _line(service: str, deployment: Mapping[str, Any]) -> str:
    target = deployment.get("targetServiceRevision", {})
    tasks = f"{target.get('runningTaskCount', 0)} of {target.get('requestedTaskCount', 0)} tasks run"
    stage = deployment.get("lifecycleStage", "").replace("_", " ").lower()
    traffic = target.get("requestedProductionTrafficWeight")
    parts = [stage, tasks, f"{traffic:.0f} % of the traffic" if traffic is not None else ""]
    return f"{service}: {deployment['status']}, " + ", ".join(part for part in parts if part)


def _revision(task_definition: str) -> int:
    return int(task_definition.rpartition(":")[2])


def _short(task_definition: str) -> str:
    return task_definition.rpartition("/")[2]
