"""The templates: what they promise, and that the embedded AWS makes of them what AWS would."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from infra.local import firehose, stacks
from infra.local.shard_mapping import MappingSettings
from stream_consumer import items
from stream_consumer.archive import reader, refold
from stream_consumer.lambda_handler import ConsumerSettings

ARCHIVE = stacks.TEMPLATES / "archive.yaml"
HASH, RANGE = "HASH", "RANGE"
#: (attribute, its type, its part) of each key; what the tables' readers and writers rely on.
PK, SK = ("pk", "S", HASH), ("sk", "S", RANGE)
TABLES = {
    "sessions": {
        "keys": [PK],
        "indexes": {
            "active": [("active_bucket", "S", HASH), ("active_minute", "N", RANGE)],
            "user": [("user_key", "S", HASH), ("started_at", "N", RANGE)],
        },
        "expires": True,
    },
    "session-events": {"keys": [PK, SK], "indexes": {}, "expires": True},
    "rollups": {"keys": [PK, SK], "indexes": {}, "expires": False},
    "quarantine": {"keys": [PK, SK], "indexes": {}, "expires": True},
}


def create(stage: str = "local", **parameters: str) -> dict[str, str]:
    return stacks.create_stack(boto3.client("cloudformation"), stacks.DATA, {"Stage": stage, **parameters})


def resources(template: Path, kind: str) -> dict[str, dict]:
    found = stacks.load_template(template)["Resources"]
    return {name: resource for name, resource in found.items() if resource["Type"] == kind}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_keys_and_indexes_that_its_users_rely_on(aws: None, table: str) -> None:
    create()
    found = boto3.client("dynamodb").describe_table(TableName=f"liveinsight-local-{table}")["Table"]
    types = {one["AttributeName"]: one["AttributeType"] for one in found["AttributeDefinitions"]}

    def keys(schema: list[dict[str, str]]) -> list[tuple[str, str, str]]:
        return [(key["AttributeName"], types[key["AttributeName"]], key["KeyType"]) for key in schema]

    assert keys(found["KeySchema"]) == TABLES[table]["keys"]
    assert {one["IndexName"]: keys(one["KeySchema"]) for one in found["GlobalSecondaryIndexes"]} == TABLES[table][
        "indexes"
    ]
    assert {one["Projection"]["ProjectionType"] for one in found["GlobalSecondaryIndexes"]} <= {"KEYS_ONLY"}
    assert found["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"


def test_the_stream_has_the_shards_and_the_mode_that_the_parameters_ask_for(aws: None) -> None:
    outputs = create(**{name: value for name, value in stacks.LOCAL_DATA.items() if name != "Stage"})
    summary = boto3.client("kinesis").describe_stream_summary(StreamName=outputs["StreamName"])
    assert summary["StreamDescriptionSummary"]["OpenShardCount"] == 2
    assert outputs["StreamArn"] == summary["StreamDescriptionSummary"]["StreamARN"]
    properties = resources(stacks.DATA, "AWS::Kinesis::Stream")["EventStream"]["Properties"]
    assert properties["StreamModeDetails"] == {"StreamMode": {"Fn::If": ["IsProvisioned", "PROVISIONED", "ON_DEMAND"]}}
    assert properties["StreamEncryption"] == {"EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"}


def test_the_failure_queue_keeps_what_it_is_told_for_as_long_as_there_is(aws: None) -> None:
    url = create()["FailureQueueUrl"]
    attributes = boto3.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["MessageRetentionPeriod"] == str(14 * 24 * 3600)
    assert attributes["SqsManagedSseEnabled"] == "true"


def test_names_follow_the_stage_and_are_all_given_out(aws: None) -> None:
    outputs = create("dev")
    assert {outputs[key] for key in outputs if key.endswith("Name")} == {
        *(f"liveinsight-dev-{table}" for table in TABLES),
        "liveinsight-dev-events",
        "liveinsight-dev-failures",
        "liveinsight-dev-archive-123456789012",
    }
    assert {key.removesuffix("Name") for key in outputs if key.endswith("Name")} == {
        key.removesuffix("Arn") for key in outputs if key.endswith("Arn")
    }


def test_a_stack_that_exists_is_left_as_it_is(aws: None) -> None:
    first = create()
    boto3.client("kinesis").put_record(StreamName=first["StreamName"], Data=b"x", PartitionKey="k")
    assert create() == first
    shards = boto3.client("kinesis").list_shards(StreamName=first["StreamName"])["Shards"]
    assert [one for one in shards if one["SequenceNumberRange"]["StartingSequenceNumber"] != "0"]


@pytest.mark.parametrize("table", TABLES)
def test_items_expire_where_they_should_and_can_be_recovered(table: str) -> None:
    (properties,) = (
        found["Properties"]
        for found in resources(stacks.DATA, "AWS::DynamoDB::Table").values()
        if found["Properties"]["TableName"] == {"Fn::Sub": f"liveinsight-${{Stage}}-{table}"}
    )
    expected = {"AttributeName": "expires", "Enabled": True} if TABLES[table]["expires"] else None
    assert properties.get("TimeToLiveSpecification") == expected
    assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}


def test_what_holds_data_outlives_the_stack_in_production() -> None:
    template = stacks.load_template(stacks.DATA)
    assert template["Conditions"]["IsProduction"] == {"Fn::Equals": [{"Ref": "Stage"}, "prod"]}
    for resource in template["Resources"].values():
        assert (
            resource["DeletionPolicy"]
            == resource["UpdateReplacePolicy"]
            == {"Fn::If": ["IsProduction", "Retain", "Delete"]}
        )
        if resource["Type"] == "AWS::DynamoDB::Table":
            assert resource["Properties"]["DeletionProtectionEnabled"] == {"Fn::If": ["IsProduction", True, False]}


def test_a_session_is_kept_longer_than_any_stream_can_be_replayed() -> None:
    retention = stacks.load_template(stacks.DATA)["Parameters"]["RetentionHours"]
    assert retention["MaxValue"] * 3600 < min(items.SESSION_LIFETIME_S, items.QUARANTINE_LIFETIME_S)


def test_the_mapping_keeps_the_promises_that_positions_rely_on() -> None:
    properties = stacks.properties_of(stacks.MAPPING, stacks.CONSUMER, {"Stage": "prod"})
    settings = MappingSettings.from_cloudformation(properties)
    assert properties["ParallelizationFactor"] == 1
    assert settings.report_batch_item_failures
    assert settings.bisect_batch_on_function_error
    assert settings.starting_position == "TRIM_HORIZON"
    assert settings.batching_window == 1
    assert (settings.maximum_retry_attempts, settings.maximum_record_age) == (-1, -1)
    assert settings.on_failure == "arn:aws:sqs:us-east-1:123456789012:liveinsight-prod-failures"
    assert properties["EventSourceArn"] == "arn:aws:kinesis:us-east-1:123456789012:stream/liveinsight-prod-events"


def test_on_one_machine_the_mapping_differs_in_its_window_alone() -> None:
    local = stacks.properties_of(stacks.MAPPING, stacks.CONSUMER, stacks.LOCAL_CONSUMER)
    other = stacks.properties_of(stacks.MAPPING, stacks.CONSUMER, {"Stage": "local"})
    assert {name for name in local if local[name] != other[name]} == {"MaximumBatchingWindowInSeconds"}
    assert local["MaximumBatchingWindowInSeconds"] == 0


def test_the_function_gets_the_names_that_the_consumer_reads() -> None:
    ((_, function),) = resources(stacks.CONSUMER, "AWS::Lambda::Function").items()
    stage = "local"
    variables = {
        name: str(value["Fn::Sub"]).replace("${Stage}", stage)
        for name, value in function["Properties"]["Environment"]["Variables"].items()
        if "Fn::Sub" in value
    }
    assert ConsumerSettings.from_environ(variables) == ConsumerSettings.from_environ({})
    assert ConsumerSettings.from_environ({name: value + "-x" for name, value in variables.items()}).tables.rollups == (
        "liveinsight-local-rollups-x"
    )
    module, name = function["Properties"]["Handler"].rsplit(".", 1)
    assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_the_role_may_do_only_what_the_consumer_does() -> None:
    ((_, role),) = resources(stacks.CONSUMER, "AWS::IAM::Role").items()
    statements = role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    allowed = {
        action
        for one in statements
        for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
    }
    assert {action for action in allowed if action.startswith("dynamodb:")} == {
        "dynamodb:BatchGetItem",
        "dynamodb:BatchWriteItem",
        "dynamodb:PutItem",
        "dynamodb:Query",
    }
    assert not [action for action in allowed if "*" in action]
    everywhere = [one["Sid"] for one in statements if one["Resource"] == "*"]
    assert everywhere == ["Trace"]


def test_the_compaction_has_its_handler_its_table_and_no_more() -> None:
    compaction = stacks.TEMPLATES / "compaction.yaml"
    function = stacks.properties_of(stacks.FUNCTION, compaction, {"Stage": "local"}, only=["Handler", "Timeout"])
    module, name = function["Handler"].rsplit(".", 1)
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    ((_, declared),) = resources(compaction, stacks.FUNCTION).items()
    variables = declared["Properties"]["Environment"]["Variables"]
    assert variables == {"LIVEINSIGHT_ROLLUPS_TABLE": {"Fn::Sub": "liveinsight-${Stage}-rollups"}}
    ((_, role),) = resources(compaction, "AWS::IAM::Role").items()
    statements = role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    assert statements[0]["Action"] == [
        f"dynamodb:{call}" for call in ("BatchGetItem", "DeleteItem", "PutItem", "Query")
    ]
    assert str(statements[0]["Resource"]).count("*") == 0
    assert [one["Sid"] for one in statements if one["Resource"] == "*"] == ["Trace"]


def test_the_archives_bucket_is_encrypted_and_private_and_keeps_everything_unless_it_is_told(aws: None) -> None:
    bucket = create()["ArchiveBucketName"]
    rules = boto3.client("s3").get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    ((_, declared),) = resources(stacks.DATA, "AWS::S3::Bucket").items()
    properties = declared["Properties"]
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert "VersioningConfiguration" not in properties
    _, expiry = properties["LifecycleConfiguration"]["Rules"]
    kept = {"Id": "expiry", "Status": "Enabled", "ExpirationInDays": {"Ref": "ArchiveDays"}}
    assert expiry == {"Fn::If": ["ArchiveExpires", kept, {"Ref": "AWS::NoValue"}]}
    template = stacks.load_template(stacks.DATA)
    assert template["Parameters"]["ArchiveDays"]["Default"] == 0
    assert template["Conditions"]["ArchiveExpires"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "ArchiveDays"}, 0]}]}


def test_the_delivery_stream_writes_what_the_archives_reader_reads() -> None:
    ((_, declared),) = resources(ARCHIVE, "AWS::KinesisFirehose::DeliveryStream").items()
    destination = declared["Properties"]["ExtendedS3DestinationConfiguration"]
    hour = "!{timestamp:yyyy/MM/dd/HH}/"
    assert destination["Prefix"] == reader.PREFIX + hour
    assert destination["ErrorOutputPrefix"] == reader.ERROR_PREFIX + hour + "!{firehose:error-output-type}/"
    assert reader.hour_prefix(1_700_000_000_000) == reader.PREFIX + "2023/11/14/22/"
    assert "CustomTimeZone" not in destination
    assert destination["CompressionFormat"] == "GZIP"
    # What one object spans must be far less than what is read before a time for the records after it.
    assert stacks.load_template(ARCHIVE)["Parameters"]["BufferSeconds"]["MaxValue"] * 1000 < refold.LOOKAHEAD_MS
    (processor,) = destination["ProcessingConfiguration"]["Processors"]
    parameters = {one["ParameterName"]: one["ParameterValue"] for one in processor["Parameters"]}
    assert parameters["LambdaArn"] == {"Fn::GetAtt": ["TransformFunction", "Arn"]}
    assert float(parameters["BufferSizeInMBs"]) * 1024 * 1024 == firehose.BUFFER_BYTES
    bucket = resources(stacks.DATA, "AWS::S3::Bucket")["ArchiveBucket"]["Properties"]["BucketName"]["Fn::Sub"]
    assert destination["BucketARN"] == {"Fn::Sub": "arn:${AWS::Partition}:s3:::" + bucket}
    source = declared["Properties"]["KinesisStreamSourceConfiguration"]["KinesisStreamARN"]
    assert source["Fn::Sub"].endswith(":stream/liveinsight-${Stage}-events")


def test_the_archives_function_has_its_handler_and_its_roles_may_do_no_more_than_they_must() -> None:
    function = stacks.properties_of(stacks.FUNCTION, ARCHIVE, {"Stage": "local"}, only=["Handler"])
    module, name = function["Handler"].rsplit(".", 1)
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    ((_, declared),) = resources(ARCHIVE, stacks.FUNCTION).items()
    assert "Environment" not in declared["Properties"]
    roles = resources(ARCHIVE, "AWS::IAM::Role")
    statements = {
        name: {one["Sid"]: one for one in role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]}
        for name, role in roles.items()
    }
    assert set(statements["TransformRole"]) == {"Log", "Trace"}
    delivery = statements["DeliveryRole"]
    assert set(delivery) == {"ReadTheStream", "Transform", "FindTheBucket", "WriteObjects", "Log"}
    assert not [one for one in delivery.values() if one["Resource"] == "*" or "*" in str(one["Action"])]
    assert "s3:DeleteObject" not in str(delivery)
    (function_arn, latest) = delivery["Transform"]["Resource"]
    assert (function_arn, latest) == (
        {"Fn::GetAtt": ["TransformFunction", "Arn"]},
        {"Fn::Sub": "${TransformFunction.Arn}:$LATEST"},
    )


def test_a_value_that_only_aws_knows_is_an_error_that_names_it(tmp_path: Path) -> None:
    template = tmp_path / "t.yaml"
    template.write_text(
        "Resources:\n  M:\n    Type: AWS::Lambda::EventSourceMapping\n    Properties:\n      BatchSize: !Ref Size\n"
    )
    with pytest.raises(ValueError, match="Size"):
        stacks.properties_of(stacks.MAPPING, template, {})
