"""On AWS, what drives a replay: a second event source mapping of the consumer's function, with an alias of its own.

The alias has the generation's name, by which the function knows what it writes (see ``generation_of``), and may point
to another version than the one that serves. So both go on side by side, and scale with the shards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer.generations import FIRST, Generation, Refused, generation_of
from stream_consumer.table import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_lambda import LambdaClient

#: A replay has much to read: as many records for each invocation as Lambda hands over, or 6 MB.
BATCH_SIZE = 10_000
#: What is taken over from the mapping that there is, so that both follow the same rules.
_SHARED = (
    "MaximumBatchingWindowInSeconds",
    "BisectBatchOnFunctionError",
    "FunctionResponseTypes",
    "MaximumRetryAttempts",
    "MaximumRecordAgeInSeconds",
    "DestinationConfig",
)


class Mappings:
    """The event source mappings of ``function`` (its name) that feed generations from a stream.

    Every method may be called again. Raises :class:`Unavailable`, and :class:`Refused` for a function that cannot do.
    """

    def __init__(self, client: LambdaClient, kinesis: KinesisClient, function: str) -> None:
        self._lambda = client
        self._kinesis = kinesis
        self._function = function

    def ensure(self, generation: Generation, stream_arn: str, *, version: str = "", fan_out: bool = False) -> str:
        """The id of the generation's mapping, made if there is none. ``version`` of the function ('': as it is now,
        published) runs it; ``fan_out``: with throughput of its own (enhanced fan-out), not the serving consumer's.
        """
        name = generation.name
        existing = self._of(FIRST)
        if not existing:
            raise Refused(f"function {self._function} has no event source mapping to take the settings from")
        self._ensure_alias(name, version)
        if mine := self._of(name):
            return str(mine[0]["UUID"])
        settings = {key: existing[0][key] for key in _SHARED if existing[0].get(key) is not None}
        where: dict[str, Any] = {"StartingPosition": "TRIM_HORIZON"}
        if generation.read_from:
            moment = datetime.fromtimestamp(generation.read_from / 1000, UTC)
            where = {"StartingPosition": "AT_TIMESTAMP", "StartingPositionTimestamp": moment}
        source = self._ensure_consumer(name, stream_arn) if fan_out else stream_arn
        made = self._call(
            self._lambda.create_event_source_mapping,
            FunctionName=f"{self._function}:{name}",
            EventSourceArn=source,
            BatchSize=BATCH_SIZE,
            ParallelizationFactor=1,
            **settings,
            **where,
        )
        return str(made["UUID"])

    def remove(self, generation: Generation, stream_arn: str, *, wait: float = 120.0) -> None:
        """Let nothing consume into the generation any more: its mapping, alias and fan-out consumer go, if any.

        The first generation's mapping is its stack's: it is disabled, and is to stay so (parameter FirstGeneration).
        Waits up to ``wait`` seconds for batches in flight.
        """
        if generation.name == FIRST:
            self._disable(self._of(FIRST), wait)
            return
        for mapping in self._of(generation.name):
            self._call(self._lambda.delete_event_source_mapping, missing_ok=True, UUID=mapping["UUID"])
        deadline = time.monotonic() + wait
        while self._of(generation.name):
            if time.monotonic() > deadline:
                raise Unavailable(f"the event source mapping of {generation.name} is still being deleted; try again")
            time.sleep(1)
        self._call(self._lambda.delete_alias, missing_ok=True, FunctionName=self._function, Name=generation.name)
        found = self._described(generation.name, stream_arn)
        if found:
            self._call(self._kinesis.deregister_stream_consumer, missing_ok=True, ConsumerARN=found["ConsumerARN"])

    def _disable(self, mappings: Sequence[Mapping[str, Any]], wait: float) -> None:
        deadline = time.monotonic() + wait
        for mapping in mappings:
            uuid = mapping["UUID"]
            self._call(self._lambda.update_event_source_mapping, UUID=uuid, Enabled=False)
            while self._call(self._lambda.get_event_source_mapping, UUID=uuid)["State"] != "Disabled":
                if time.monotonic() > deadline:
                    raise Unavailable(f"event source mapping {uuid} is still being disabled; try again")
                time.sleep(1)

    def _ensure_alias(self, name: str, version: str) -> None:
        try:
            self._lambda.get_alias(FunctionName=self._function, Name=name)
            return
        except ClientError as error:
            if error.response["Error"].get("Code") != "ResourceNotFoundException":
                raise Unavailable(f"GetAlias of {self._function}: {error}") from error
        except BotoCoreError as error:
            raise Unavailable(f"GetAlias of {self._function}: {error}") from error
        version = version or self._call(self._lambda.publish_version, FunctionName=self._function)["Version"]
        self._call(self._lambda.create_alias, FunctionName=self._function, Name=name, FunctionVersion=version)

    def _ensure_consumer(self, name: str, stream_arn: str) -> str:
        consumer = self._consumer(name)
        deadline = time.monotonic() + 60
        while True:
            found = self._described(name, stream_arn)
            if not found:
                self._call(self._kinesis.register_stream_consumer, StreamARN=stream_arn, ConsumerName=consumer)
            elif found["ConsumerStatus"] == "ACTIVE":
                return str(found["ConsumerARN"])
            if time.monotonic() > deadline:
                raise Unavailable(f"stream consumer {consumer} does not get active; try again")
            time.sleep(0.5)

    def _described(self, name: str, stream_arn: str) -> dict[str, Any]:
        """The generation's fan-out consumer; nothing if there is none."""
        found: dict[str, Any] = self._call(
            self._kinesis.describe_stream_consumer,
            missing_ok=True,
            StreamARN=stream_arn,
            ConsumerName=self._consumer(name),
        ).get("ConsumerDescription", {})
        return found

    def _consumer(self, name: str) -> str:
        return f"{self._function}-{name}"

    def _of(self, generation: str) -> list[dict[str, Any]]:
        """The mappings that feed a generation. All of the account's are looked through: those of an alias are not
        listed under its function's name, nor those of a fan-out consumer under its stream's.
        """
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {}
        while True:
            answer = self._call(self._lambda.list_event_source_mappings, **query)
            found += answer["EventSourceMappings"]
            if not (after := answer.get("NextMarker")):
                break
            query = {"Marker": after}
        mine = [one for one in found if one["FunctionArn"].split(":")[6] == self._function]
        return [one for one in mine if generation_of(one["FunctionArn"]) == generation]

    def _call(self, call: Any, *, missing_ok: bool = False, **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except ClientError as error:
            if missing_ok and error.response["Error"].get("Code") == "ResourceNotFoundException":
                return {}
            raise Unavailable(f"{error.operation_name} of {self._function}: {error}") from error
        except BotoCoreError as error:
            raise Unavailable(f"{self._function}: {error}") from error
