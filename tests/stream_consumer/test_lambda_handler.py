import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import boto3
import pytest
from moto import mock_aws

from producer.event import encode
from stream_consumer import lambda_handler
from stream_consumer.items import SHARDS
from stream_consumer.lambda_handler import ConsumerSettings
from stream_consumer.metrics import NAMESPACE, QUARANTINED_BY_REASON, Metric
from tests.builders import NOON, a_lambda_event, a_long_event, an_aggregate, an_event

CONTEXT = SimpleNamespace(
    function_name="consumer", memory_limit_in_mb=256, invoked_function_arn="arn", aws_request_id="1"
)
TABLES = ("sessions", "session-events", "rollups", "quarantine")


@pytest.fixture
def tables(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    caches = (
        lambda_handler._settings,
        lambda_handler._client,
        lambda_handler._tables,
        lambda_handler._gauge,
        lambda_handler._pace,
        lambda_handler._tracer,
    )
    with mock_aws():
        client = boto3.client("dynamodb")
        for table in TABLES:
            keys = ["pk"] if table == "sessions" else ["pk", "sk"]
            client.create_table(
                TableName=f"liveinsight-local-{table}",
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
                KeySchema=[
                    {"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ["HASH", "RANGE"], strict=False)
                ],
            )
        for cached in caches:
            cached.cache_clear()
        yield client
    for cached in caches:
        cached.cache_clear()


def printed(capsys) -> tuple[dict, list[dict]]:
    """(metrics of the batch, quarantine metrics by reason) that were printed."""
    emf = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    batch = next(line for line in emf if Metric.BATCH_SIZE.label in line)
    return batch, [line for line in emf if QUARANTINED_BY_REASON in line]


def test_a_batch_is_applied_and_every_registered_metric_is_printed_with_its_unit(tables, capsys, caplog) -> None:
    payloads = [an_aggregate([an_event(1), an_event(2)]), b"{", encode(an_event(1)), b"[]"]
    assert lambda_handler.handler(a_lambda_event(payloads), CONTEXT) == {"batchItemFailures": []}
    assert tables.scan(TableName="liveinsight-local-sessions", Select="COUNT")["Count"] == 1
    batch, reasons = printed(capsys)
    (directive,) = batch["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == NAMESPACE
    assert {m["Name"]: m["Unit"] for m in directive["Metrics"]} == {m.label: m.unit.value for m in Metric}
    values = {m: batch[m.label][0] for m in Metric}
    assert values[Metric.BATCH_SIZE] == 4
    assert values[Metric.EVENTS_RECEIVED] == 5
    assert values[Metric.EVENTS_PROCESSED] == 2
    assert values[Metric.EVENTS_DUPLICATE] == 1
    assert values[Metric.EVENTS_QUARANTINED] == 2
    assert values[Metric.SESSIONS_UPSERTED] == values[Metric.ROLLUPS_UPSERTED] == 1
    assert values[Metric.PROCESSING_TIME] > 0
    assert values[Metric.LAG] > 0
    told = tables.get_item(
        TableName="liveinsight-local-rollups", Key={"pk": {"S": SHARDS}, "sk": {"S": "shardId-000000000000"}}
    )["Item"]
    assert int(told["at"]["N"]) - int(told["behind"]["N"]) == NOON + 1500, "when the oldest event arrived"
    assert (told["sequence_number"]["S"], int(told["arrived"]["N"])) == ("4", NOON), "of the batch's last record"
    assert float(told["rate"]["N"]) > 0
    assert {(line["reason"], line[QUARANTINED_BY_REASON][0]) for line in reasons} == {
        ("not_json", 1),
        ("not_an_object", 1),
    }
    log = caplog.records[-1]
    assert (log.message, log.applied, log.shard) == ("batch done", 2, "shardId-000000000000")


def test_an_unavailable_table_gives_the_batch_back_from_the_first_record(tables, capsys, caplog) -> None:
    tables.delete_table(TableName="liveinsight-local-rollups")
    answer = lambda_handler.handler(a_lambda_event([encode(an_event(1))], first=77), CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "77"}]}
    batch, _ = printed(capsys)
    assert batch[Metric.BATCH_FAILURES.label] == [1]
    log = caplog.records[-1]
    assert (log.levelname, log.failed_from) == ("ERROR", "77")
    assert "liveinsight-local-rollups" in log.why


def test_an_alias_that_names_a_generation_writes_that_one_and_measures_it_apart(tables, capsys) -> None:
    arn = "arn:aws:lambda:us-east-1:123456789012:function:consumer:g2"
    context = SimpleNamespace(**vars(CONTEXT) | {"invoked_function_arn": arn})
    assert lambda_handler.handler(a_lambda_event([encode(a_long_event(1)), b"{"]), context) == {"batchItemFailures": []}
    for table in ("sessions", "session-events", "rollups"):
        items = tables.scan(TableName=f"liveinsight-local-{table}")["Items"]
        assert items
        assert all(item["pk"]["S"].startswith("#g2#") for item in items)
    batch, reasons = printed(capsys)
    assert batch["generation"] == reasons[0]["generation"] == "g2"


def test_settings_come_from_the_environment_and_tracing_from_where_x_ray_listens() -> None:
    assert ConsumerSettings.from_environ({}).tables.rollups == "liveinsight-local-rollups"
    assert ConsumerSettings.from_environ({"LIVEINSIGHT_ROLLUPS_TABLE": "r"}).tables.rollups == "r"
    listening = {"AWS_XRAY_DAEMON_ADDRESS": "127.0.0.1:2000"}
    assert ConsumerSettings.from_environ(listening).tracing
    assert not ConsumerSettings.from_environ({**listening, "POWERTOOLS_TRACE_DISABLED": "true"}).tracing
    assert not ConsumerSettings.from_environ({}).tracing


def test_with_tracing_a_batch_is_a_subsegment() -> None:
    """In a process like Lambda's: X-Ray's daemon is a UDP socket, the trace id an environment variable."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        daemon.settimeout(10)
        environ = {
            "PATH": os.environ["PATH"],
            "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{daemon.getsockname()[1]}",
            "LAMBDA_TASK_ROOT": "/var/task",
            "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        event = json.dumps(a_lambda_event([encode(an_event(1))]))
        code = (
            "import json, sys; from stream_consumer.lambda_handler import handler; handler(json.load(sys.stdin), None)"
        )
        subprocess.run(
            [sys.executable, "-c", code], input=event, text=True, env=environ, check=True, stdout=subprocess.DEVNULL
        )
        segment: dict = {}
        while segment.get("name") != "## consume":  # the calls to DynamoDB are subsegments too
            segment = json.loads(daemon.recv(65_536).split(b"\n", 1)[1])
    assert segment["annotations"]["shard"] == "shardId-000000000000"


def test_the_function_imports_neither_the_web_nor_what_only_some_batches_need() -> None:
    heavy = "flask moto numpy _datasketches ua_parser aws_xray_sdk crawleruseragents granian"
    code = f"import sys, stream_consumer.lambda_handler; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
