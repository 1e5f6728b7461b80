"""The function's alias: shifted to a new version by a canary with alarms as the brake, and put back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from infra.deploy.problems import Failed

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

#: Seconds between two looks at the alarms.
LOOK_EVERY = 15.0
#: What an alias says of itself, so that a rollback knows where to, and that it is one.
_BEFORE = "before this one: version {}"
_UNDONE = "rolled back from version {}"


class Alarms:
    """The alarms of a stage: those whose names begin with ``prefix``."""

    def __init__(self, cloudwatch: Any, prefix: str) -> None:
        self._cloudwatch = cloudwatch
        self._prefix = prefix

    def ringing(self) -> dict[str, bool]:
        """The names of those in ALARM, and whether their actions are on: whether anybody is told."""
        found: dict[str, bool] = {}
        more: dict[str, Any] = {}
        while True:
            answer = self._cloudwatch.describe_alarms(
                AlarmNamePrefix=self._prefix,
                StateValue="ALARM",
                AlarmTypes=["MetricAlarm", "CompositeAlarm"],
                **more,
            )
            for kind in ("MetricAlarms", "CompositeAlarms"):
                found.update({one["AlarmName"]: one.get("ActionsEnabled", True) for one in answer.get(kind, [])})
            if not (after := answer.get("NextToken")):
                return found
            more = {"NextToken": after}


class Canary:
    """An ``alias`` of a ``function`` (their names). Every method may be called again.

    ``pause`` waits so many seconds, ``clock`` gives seconds.
    """

    def __init__(
        self,
        client: LambdaClient,
        function: str,
        alias: str,
        say: Callable[[str], None],
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._function = function
        self._alias = alias
        self._say = say
        self._pause = pause
        self._clock = clock

    def shift(self, alarms: Alarms, *, share: float, seconds: float, known: Collection[str] = ()) -> bool:
        """Publish the function as it is, and lead the alias to that version: a ``share`` (0 to 1) of the invocations
        for so many ``seconds``, then all. Whether there was anything to shift.

        An alarm that rings meanwhile and is not ``known`` puts the routing back, as does any end before its time; it
        raises :class:`Failed`, or what ended it.
        """
        version = self._client.publish_version(FunctionName=self._function)["Version"]
        found = self._get()
        old = found["FunctionVersion"]
        if _weights(found):
            self._say(f"alias {self._alias} is in the middle of a canary that was interrupted: beginning anew")
            found = self._point(old, {}, found)
        if version == old:
            self._say(f"alias {self._alias} of {self._function} has version {old} already")
            return False
        if share > 0 and seconds > 0:
            self._say(f"alias {self._alias}: {share:.0%} of the invocations to version {version}, the rest to {old}")
            try:
                found = self._point(old, {version: share}, found)
                self._watch(alarms, version, seconds, frozenset(known))
            except BaseException:
                # Whatever ended it (an alarm, Ctrl-C, AWS not answering): nobody watches the new version any more.
                self._point(old, {}, None)
                self._say(f"alias {self._alias}: all invocations to version {old} again")
                raise
        self._point(version, {}, found, _BEFORE.format(old))
        self._say(f"alias {self._alias}: all invocations to version {version}")
        return True

    def put_back(self) -> bool:
        """Lead the alias to the version before the last shift, at once. Whether anything was put back: a second call
        changes nothing. Raises :class:`Failed` if no version before is known.
        """
        found = self._get()
        current = found["FunctionVersion"]
        if _weights(found):
            self._point(current, {}, found)
            self._say(f"alias {self._alias}: canary ended, all invocations to version {current}")
            return True
        said = found.get("Description", "")
        if re.fullmatch(_UNDONE.format(r"(\d+)"), said):
            self._say(f"alias {self._alias} is at version {current} already, {said}")
            return False
        if not (before := re.fullmatch(_BEFORE.format(r"(\d+)"), said)):
            raise Failed(
                f"alias {self._alias} of {self._function} does not say which version was before {current}: no deploy "
                f"has shifted it yet. `aws lambda update-alias` leads it anywhere."
            )
        self._point(before[1], {}, found, _UNDONE.format(current))
        self._say(f"alias {self._alias}: all invocations to version {before[1]} instead of {current}")
        return True

    def _watch(self, alarms: Alarms, version: str, seconds: float, known: frozenset[str]) -> None:
        until = self._clock() + seconds
        while True:
            if ringing := alarms.ringing().keys() - known:
                raise Failed(
                    f"version {version} of {self._function} was taken back: in ALARM are {', '.join(sorted(ringing))}. "
                    "Their descriptions say what to look at; deploy again when it is mended."
                )
            left = until - self._clock()
            if left <= 0:
                return
            self._say(f"  canary: {left:.0f} s to go, no alarm")
            self._pause(min(LOOK_EVERY, left))

    def _get(self) -> dict[str, Any]:
        return dict(self._client.get_alias(FunctionName=self._function, Name=self._alias))

    def _point(
        self, version: str, weights: dict[str, float], found: dict[str, Any] | None, description: str | None = None
    ) -> dict[str, Any]:
        """``found`` is the alias as it was read: if another has changed it since, Lambda refuses. None: in any case."""
        more: dict[str, Any] = {}
        if found and found.get("RevisionId"):
            more["RevisionId"] = found["RevisionId"]
        if description is not None:
            more["Description"] = description
        return dict(
            self._client.update_alias(
                FunctionName=self._function,
                Name=self._alias,
                FunctionVersion=version,
                RoutingConfig={"AdditionalVersionWeights": weights},
                **more,
            )
        )


def _weights(alias: dict[str, Any]) -> dict[str, float]:
    return dict((alias.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {})
