"""On AWS, a generation is fed by a mapping of its own, of the same function under an alias with its name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from stream_consumer.generations import Generation, Refused, State, generation_of
from stream_consumer.replay.mapping import BATCH_SIZE, Mappings

FUNCTION = "liveinsight-prod-consumer"
GENERATION = Generation("g2", State.PREPARING, base="g1", start=1_772_323_200_000, read_from=1_772_322_900_000)
SETTINGS: dict[str, Any] = {
    "MaximumBatchingWindowInSeconds": 1,
    "BisectBatchOnFunctionError": True,
    "FunctionResponseTypes": ["ReportBatchItemFailures"],
    "MaximumRetryAttempts": -1,
    "MaximumRecordAgeInSeconds": -1,
    "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:sqs:us-east-1:123456789012:failures"}},
}


class Lambdas:
    """Lambda, as far as mappings go. A mapping's function has the alias in its ARN, which moto's has not."""

    def __init__(self) -> None:
        self.versions = ["1"]
        self.aliases: dict[str, str] = {}
        self.mappings: dict[str, dict[str, Any]] = {}

    def publish_version(self, FunctionName: str) -> dict[str, Any]:
        self.versions.append(str(len(self.versions) + 1))
        return {"Version": self.versions[-1]}

    def get_alias(self, FunctionName: str, Name: str) -> dict[str, Any]:
        if Name not in self.aliases:
            raise ClientError({"Error": {"Code": "ResourceNotFoundException"}}, "GetAlias")
        return {"FunctionVersion": self.aliases[Name]}

    def create_alias(self, FunctionName: str, Name: str, FunctionVersion: str) -> None:
        assert FunctionVersion in self.versions
        self.aliases[Name] = FunctionVersion

    def delete_alias(self, FunctionName: str, Name: str) -> None:
        self.get_alias(FunctionName, Name)
        del self.aliases[Name]

    def create_event_source_mapping(self, FunctionName: str, **settings: Any) -> dict[str, Any]:
        uuid = f"mapping-{len(self.mappings)}"
        arn = f"arn:aws:lambda:us-east-1:123456789012:function:{FunctionName}"
        assert FunctionName.partition(":")[2] in ("", *self.aliases)
        self.mappings[uuid] = {"UUID": uuid, "FunctionArn": arn, "State": "Enabled", **settings}
        return self.mappings[uuid]

    def get_event_source_mapping(self, UUID: str) -> dict[str, Any]:
        return self.mappings[UUID]

    def update_event_source_mapping(self, UUID: str, Enabled: bool) -> None:
        self.mappings[UUID]["State"] = "Enabled" if Enabled else "Disabled"

    def delete_event_source_mapping(self, UUID: str) -> None:
        del self.mappings[UUID]

    def list_event_source_mappings(self, Marker: str = "") -> dict[str, Any]:
        """One to a page."""
        left = sorted(uuid for uuid in self.mappings if uuid > Marker)
        more = {"NextMarker": left[0]} if left[1:] else {}
        return {"EventSourceMappings": [self.mappings[uuid] for uuid in left[:1]], **more}


class Account:
    """An account with the stream, and the function without its mapping."""

    def __init__(self) -> None:
        self.kinesis = boto3.client(
            "kinesis", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
        )
        self.kinesis.create_stream(StreamName="events", ShardCount=1)
        self.stream = self.kinesis.describe_stream_summary(StreamName="events")["StreamDescriptionSummary"]["StreamARN"]
        self.lambdas = Lambdas()
        self.mappings = Mappings(self.lambdas, self.kinesis, FUNCTION)  # type: ignore[arg-type]

    def map_first(self) -> str:
        self.lambdas.aliases["live"] = "1"
        self.lambdas.create_event_source_mapping("another-function")
        made = self.lambdas.create_event_source_mapping(
            f"{FUNCTION}:live",
            EventSourceArn=self.stream,
            StartingPosition="TRIM_HORIZON",
            BatchSize=500,
            ParallelizationFactor=1,
            **SETTINGS,
        )
        return made["UUID"]


@pytest.fixture
def account() -> Iterator[Account]:
    with mock_aws():
        yield Account()


def test_a_replay_gets_an_alias_and_a_mapping_like_the_first_ones_and_asking_again_changes_nothing(
    account: Account,
) -> None:
    first = account.map_first()
    made = account.mappings.ensure(GENERATION, account.stream)
    assert made != first
    assert account.mappings.ensure(GENERATION, account.stream) == made
    found = account.lambdas.get_event_source_mapping(UUID=made)
    assert generation_of(found["FunctionArn"]) == "g2", "what the function is told that it writes"
    assert found["StartingPosition"] == "AT_TIMESTAMP"
    assert found["StartingPositionTimestamp"] == datetime.fromtimestamp(1_772_322_900, UTC)
    assert (found["BatchSize"], found["EventSourceArn"]) == (BATCH_SIZE, account.stream)
    assert found["FunctionResponseTypes"] == SETTINGS["FunctionResponseTypes"]
    version = account.lambdas.get_alias(FunctionName=FUNCTION, Name="g2")["FunctionVersion"]
    assert version == "2", "the function as it is, published"
    assert account.lambdas.get_event_source_mapping(UUID=first)["BatchSize"] == 500


def test_it_may_run_another_version_and_begin_with_all_that_the_stream_holds(account: Account) -> None:
    account.map_first()
    account.lambdas.publish_version(FunctionName=FUNCTION)
    made = account.mappings.ensure(Generation("g3", State.PREPARING), account.stream, version="1")
    assert account.lambdas.get_alias(FunctionName=FUNCTION, Name="g3")["FunctionVersion"] == "1"
    assert account.lambdas.get_event_source_mapping(UUID=made)["StartingPosition"] == "TRIM_HORIZON"


def test_with_fan_out_it_reads_through_a_consumer_of_its_own(account: Account) -> None:
    account.map_first()
    made = account.mappings.ensure(GENERATION, account.stream, fan_out=True)
    source = account.lambdas.get_event_source_mapping(UUID=made)["EventSourceArn"]
    assert f"/consumer/{FUNCTION}-g2" in source
    account.mappings.remove(GENERATION, account.stream)
    assert account.kinesis.list_stream_consumers(StreamARN=account.stream)["Consumers"] == []


def test_when_it_is_dropped_nothing_feeds_it_and_the_first_one_goes_on(account: Account) -> None:
    first = account.map_first()
    account.mappings.ensure(GENERATION, account.stream)
    account.mappings.remove(GENERATION, account.stream)
    assert list(account.lambdas.mappings) == ["mapping-0", first]
    assert account.lambdas.aliases == {"live": "1"}
    account.mappings.remove(GENERATION, account.stream)


def test_the_first_generations_mapping_is_its_stacks_so_it_is_disabled(account: Account) -> None:
    first = account.map_first()
    second = account.mappings.ensure(GENERATION, account.stream)
    account.mappings.remove(Generation("g1"), account.stream)
    assert account.lambdas.get_event_source_mapping(UUID=first)["State"] == "Disabled"
    assert account.lambdas.get_event_source_mapping(UUID=second)["State"] == "Enabled"


def test_a_function_without_a_mapping_is_refused(account: Account) -> None:
    with pytest.raises(Refused, match=f"function {FUNCTION} has no event source mapping"):
        account.mappings.ensure(GENERATION, account.stream)
