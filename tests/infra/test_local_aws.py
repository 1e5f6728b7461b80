"""The embedded AWS, over HTTP as everything uses it: nothing acknowledged is lost, also not over a restart."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from infra.local import aws_state
from infra.local.aws import Server
from tests.embedded_aws import STREAM, Embedded, start
from tests.flow.old_stream import keep_old_stream

SESSIONS = "liveinsight-local-sessions"
CHUNKS = "liveinsight-local-session-events"
ARCHIVE = "liveinsight-local-archive-123456789012"


@pytest.fixture(scope="module")
def embedded() -> Iterator[Embedded]:
    """One server for the tests that do not stop it; each uses resources of its own."""
    server = start()
    yield server
    server.process.kill()
    server.process.wait()


def read_all(kinesis: Any, stream: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for shard in kinesis.list_shards(StreamName=stream)["Shards"]:
        iterator = kinesis.get_shard_iterator(
            StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while True:
            answer = kinesis.get_records(ShardIterator=iterator, Limit=100)
            found[shard["ShardId"]] += answer["Records"]
            if not answer["Records"]:
                break
            iterator = answer["NextShardIterator"]
    return found


def test_concurrent_writers_lose_no_acknowledged_record_and_share_no_sequence_number(embedded: Embedded) -> None:
    kinesis = embedded.client("kinesis")
    kinesis.create_stream(StreamName="contended", ShardCount=2)

    def put(writer: int) -> list[tuple[str, str, bytes]]:
        acknowledged = []
        for batch in range(15):
            data = [f"{writer}-{batch}-{n}".encode() for n in range(4)]
            answer = kinesis.put_records(
                StreamName="contended", Records=[{"Data": one, "PartitionKey": one.decode()} for one in data]
            )
            assert answer["FailedRecordCount"] == 0
            placed = [(one["ShardId"], one["SequenceNumber"]) for one in answer["Records"]]
            acknowledged += [(*place, one) for place, one in zip(placed, data, strict=True)]
        return acknowledged

    with ThreadPoolExecutor(12) as pool:
        acknowledged = [one for some in pool.map(put, range(12)) for one in some]
    found = read_all(kinesis, "contended")
    held = {(shard, one["SequenceNumber"], one["Data"]) for shard, records in found.items() for one in records}
    assert held == set(acknowledged)
    assert len(held) == 12 * 15 * 4
    for records in found.values():
        numbers = [int(one["SequenceNumber"]) for one in records]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize(("target", "most"), [("DynamoDB_20120810.PutItem", 1), ("AmazonSQS.ReceiveMessage", 6)])
def test_requests_are_handled_one_at_a_time_but_for_queues(target: str, most: int) -> None:
    """moto reads an item, checks the condition and writes: between two of these no other request may come."""
    inside: list[int] = []
    seen: list[int] = []
    everyone = threading.Barrier(6)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        inside.append(1)
        if most > 1:
            everyone.wait(5)
        time.sleep(0.02)
        seen.append(len(inside))
        inside.pop()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read()]

    server = Server(("127.0.0.1", 0), app)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(body: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("POST", "/", body, {"X-Amz-Target": target})
        return connection.getresponse().read()

    bodies = [b"%d" % n for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, bodies)) == bodies
    server.shutdown()
    assert max(seen) == most


def test_a_client_that_is_slow_to_send_holds_up_nobody_else(embedded: Embedded) -> None:
    port = int(embedded.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        embedded.client("kinesis").list_streams()


def create_table(dynamodb: Any, name: str, *, sort_key: bool = False) -> None:
    keys = [("pk", "S", "HASH"), ("sk", "S", "RANGE")][: 2 if sort_key else 1]
    index = [("bucket", "S", "HASH"), ("minute", "N", "RANGE")]
    dynamodb.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": kind} for key, kind, _ in keys + index],
        KeySchema=[{"AttributeName": key, "KeyType": part} for key, _, part in keys],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "recent",
                "KeySchema": [{"AttributeName": key, "KeyType": part} for key, _, part in index],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    )


EVERY_KIND = {
    "pk": {"S": "é"},
    "n": {"N": "-1.5"},
    "b": {"B": bytes(range(256))},
    "bs": {"BS": [b"\x00", b"\xff"]},
    "ss": {"SS": ["a", "b"]},
    "ns": {"NS": ["1", "2"]},
    "null": {"NULL": True},
    "no": {"BOOL": False},
    "m": {"M": {"l": {"L": [{"B": b"\x01"}, {"M": {}}, {"S": ""}]}}},
}


def test_an_item_of_every_type_comes_back_as_it_went_in(embedded: Embedded) -> None:
    dynamodb = embedded.client("dynamodb")
    create_table(dynamodb, "types")
    dynamodb.put_item(TableName="types", Item=EVERY_KIND)
    key = {"pk": {"S": "é"}}
    assert dynamodb.get_item(TableName="types", Key=key)["Item"] == EVERY_KIND
    assert dynamodb.batch_get_item(RequestItems={"types": {"Keys": [key]}})["Responses"]["types"] == [EVERY_KIND]
    assert dynamodb.scan(TableName="types")["Items"] == [EVERY_KIND]


def test_an_item_has_the_size_limit_of_dynamodb(embedded: Embedded) -> None:
    dynamodb = embedded.client("dynamodb")
    create_table(dynamodb, "sizes")

    def put(size: int) -> None:
        dynamodb.put_item(
            TableName="sizes", Item={"pk": {"S": "a"}, "b": {"B": bytes(size // 2)}, "c": {"S": "x" * (size // 2)}}
        )

    put(400_000)
    with pytest.raises(ClientError, match="Item size has exceeded the maximum allowed size"):
        put(410_000)


def test_a_query_gives_the_partition_in_order_and_page_by_page(embedded: Embedded) -> None:
    dynamodb = embedded.client("dynamodb")
    create_table(dynamodb, "pages", sort_key=True)
    for pk in ("a", "b"):
        for sk in ("3", "1", "2", "5", "4"):
            dynamodb.put_item(TableName="pages", Item={"pk": {"S": pk}, "sk": {"S": sk}})
    asked = {
        "TableName": "pages",
        "KeyConditionExpression": "pk = :pk AND sk > :sk",
        "ExpressionAttributeValues": {":pk": {"S": "b"}, ":sk": {"S": "1"}},
        "Limit": 2,
    }
    first = dynamodb.query(**asked)
    assert [one["sk"]["S"] for one in first["Items"]] == ["2", "3"]
    second = dynamodb.query(**asked, ExclusiveStartKey=first["LastEvaluatedKey"])
    assert [(one["pk"]["S"], one["sk"]["S"]) for one in second["Items"]] == [("b", "4"), ("b", "5")]
    latest = dynamodb.query(**(asked | {"Limit": 1, "ScanIndexForward": False}))
    assert [one["sk"]["S"] for one in latest["Items"]] == ["5"]
    nothing = asked | {"ExpressionAttributeValues": {":pk": {"S": "c"}, ":sk": {"S": "1"}}}
    assert dynamodb.query(**nothing)["Items"] == []


@pytest.mark.parametrize("sort_key", [False, True])
def test_an_index_is_sparse_and_follows_what_is_written(embedded: Embedded, sort_key: bool) -> None:
    dynamodb = embedded.client("dynamodb")
    table = f"index-{sort_key}"
    create_table(dynamodb, table, sort_key=sort_key)
    sk = {"sk": {"S": "x"}} if sort_key else {}

    def put(pk: str, bucket: str | None, minute: int) -> None:
        index = {"bucket": {"S": bucket}, "minute": {"N": str(minute)}} if bucket else {}
        dynamodb.put_item(TableName=table, Item={"pk": {"S": pk}, **sk, **index, "body": {"B": b"x"}})

    def since(minute: int) -> list[Any]:
        return dynamodb.query(
            TableName=table,
            IndexName="recent",
            KeyConditionExpression="#b = :bucket AND #m >= :minute",
            ExpressionAttributeNames={"#b": "bucket", "#m": "minute"},
            ExpressionAttributeValues={":bucket": {"S": "s#1"}, ":minute": {"N": str(minute)}},
            ScanIndexForward=False,
        )["Items"]

    put("old", "s#1", 9)
    put("new", "s#1", 11)
    put("newest", "s#1", 100)
    put("elsewhere", "s#2", 50)
    put("hidden", None, 0)
    assert [one["pk"]["S"] for one in since(10)] == ["newest", "new"]
    assert since(100) == [{"pk": {"S": "newest"}, **sk, "bucket": {"S": "s#1"}, "minute": {"N": "100"}}]
    put("newest", None, 0)
    put("old", "s#1", 200)
    assert [one["pk"]["S"] for one in since(10)] == ["old", "new"]
    dynamodb.update_item(
        TableName=table,
        Key={"pk": {"S": "elsewhere"}, **sk},
        UpdateExpression="SET #b = :bucket",
        ExpressionAttributeNames={"#b": "bucket"},
        ExpressionAttributeValues={":bucket": {"S": "s#1"}},
    )
    dynamodb.delete_item(TableName=table, Key={"pk": {"S": "new"}, **sk})
    assert [one["pk"]["S"] for one in since(10)] == ["old", "elsewhere"]


def test_a_reader_of_the_stream_goes_on_where_it_says(embedded: Embedded) -> None:
    kinesis = embedded.client("kinesis")
    kinesis.create_stream(StreamName="read", ShardCount=1)
    (shard,) = kinesis.list_shards(StreamName="read")["Shards"]
    where = {"StreamName": "read", "ShardId": shard["ShardId"]}

    def read(kind: str, limit: int = 100, **more: Any) -> list[bytes]:
        iterator = kinesis.get_shard_iterator(**where, ShardIteratorType=kind, **more)["ShardIterator"]
        return [one["Data"] for one in kinesis.get_records(ShardIterator=iterator, Limit=limit)["Records"]]

    assert read("TRIM_HORIZON") == []
    latest = kinesis.get_shard_iterator(**where, ShardIteratorType="LATEST")["ShardIterator"]
    put = [kinesis.put_record(StreamName="read", Data=b"%d" % n, PartitionKey="k") for n in range(5)]
    third = put[2]["SequenceNumber"]
    assert read("TRIM_HORIZON") == [b"0", b"1", b"2", b"3", b"4"]
    assert read("TRIM_HORIZON", limit=2) == [b"0", b"1"]
    assert read("AT_SEQUENCE_NUMBER", StartingSequenceNumber=third) == [b"2", b"3", b"4"]
    assert read("AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=third) == [b"3", b"4"]
    assert read("LATEST") == []
    assert len(kinesis.get_records(ShardIterator=latest)["Records"]) == 5
    arrived = kinesis.get_records(ShardIterator=latest)["Records"][3]["ApproximateArrivalTimestamp"]
    assert read("AT_TIMESTAMP", Timestamp=arrived)[:1] == [b"3"]


def test_every_hash_key_belongs_to_a_shard(embedded: Embedded) -> None:
    kinesis = embedded.client("kinesis")
    kinesis.create_stream(StreamName="hashes", ShardCount=2)
    shards = kinesis.list_shards(StreamName="hashes")["Shards"]
    for shard in shards:
        for end in ("StartingHashKey", "EndingHashKey"):
            answer = kinesis.put_record(
                StreamName="hashes", Data=b"x", PartitionKey="k", ExplicitHashKey=shard["HashKeyRange"][end]
            )
            assert answer["ShardId"] == shard["ShardId"]


def test_a_long_poll_of_a_queue_holds_up_nobody_else(embedded: Embedded) -> None:
    queue = embedded.client("sqs").create_queue(QueueName="slow")["QueueUrl"]
    kinesis = embedded.client("kinesis")
    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(embedded.client("sqs").receive_message, QueueUrl=queue, WaitTimeSeconds=2)
        time.sleep(0.3)
        began = time.monotonic()
        kinesis.list_streams()
        assert time.monotonic() - began < 1
        assert not polling.done()
        assert "Messages" not in polling.result()


def test_an_unknown_call_is_an_error_and_the_server_lives(embedded: Embedded) -> None:
    with pytest.raises(ClientError):
        embedded.client("kinesis").describe_stream(StreamName="no-such-stream")
    assert embedded.client("kinesis").list_streams()["HasMoreStreams"] in (True, False)


# In a process of its own, for it patches moto.
TRIMMING = """
from infra.local.aws import create_server, kinesis_backends, trim_streams
server = create_server(0)
backend = kinesis_backends["123456789012"]["us-east-1"]
backend.create_stream("s", 1)
for n in range(5):
    backend.put_record("", "s", "k", "0", f"AAA{n}")
(shard,) = backend.streams["s"].shards.values()
numbers = list(shard.records)
for n, number in enumerate(numbers):
    shard.records[number].created_at = 1000 + n
day = 24 * 3600
print(trim_streams(server, 1003 + day), [record.data for record in shard.get_records("0", 100)[0]])
print([record.data for record in shard.get_records(str(numbers[0]), 100)[0]])
print(trim_streams(server, 1003 + day), trim_streams(server, 9999 + day), shard.get_records("0", 100))
backend.put_record("", "s", "k", "0", "NEW=")
print([record.data for record in shard.get_records(str(numbers[4]), 100)[0]], list(shard.records) > numbers)
"""


def test_records_past_the_retention_are_dropped_and_readers_go_on() -> None:
    done = subprocess.run([sys.executable, "-c", TRIMMING], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["3 ['AAA3', 'AAA4']", "['AAA3', 'AAA4']", "0 2 ([], 0, 0)", "['NEW='] True"]


def contents(server: Embedded) -> dict[str, Any]:
    kinesis, dynamodb, s3 = server.client("kinesis"), server.client("dynamodb"), server.client("s3")
    description = kinesis.describe_stream_summary(StreamName=STREAM)["StreamDescriptionSummary"]
    return {
        "stream": (description["StreamARN"], description["StreamCreationTimestamp"]),
        "records": read_all(kinesis, STREAM),
        "sessions": sorted(dynamodb.scan(TableName=SESSIONS)["Items"], key=lambda item: item["pk"]["S"]),
        "chunks": dynamodb.query(
            TableName=CHUNKS,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": "p"}},
        )["Items"],
        "objects": {
            one["Key"]: s3.get_object(Bucket=ARCHIVE, Key=one["Key"])["Body"].read()
            for one in s3.list_objects_v2(Bucket=ARCHIVE).get("Contents", ())
        },
    }


def test_a_stop_and_a_start_keep_everything(tmp_path: Path) -> None:
    state = tmp_path / "kept" / "aws-state"
    first = start("--state", str(state))
    outputs = first.create_stack()
    kinesis, dynamodb, sqs = first.client("kinesis"), first.client("dynamodb"), first.client("sqs")
    for n in range(20):
        kinesis.put_record(StreamName=STREAM, Data=bytes([n]), PartitionKey=str(n), ExplicitHashKey=str(n * 2**123))
    dynamodb.put_item(TableName=SESSIONS, Item=EVERY_KIND)
    dynamodb.put_item(TableName=SESSIONS, Item={"pk": {"S": "gone"}, "expires": {"N": str(int(time.time()) - 10)}})
    dynamodb.put_item(TableName=SESSIONS, Item={"pk": {"S": "kept"}, "expires": {"N": str(int(time.time()) + 1000)}})
    for sk in ("2", "1"):
        dynamodb.put_item(TableName=CHUNKS, Item={"pk": {"S": "p"}, "sk": {"S": sk}, "body": {"B": b"\x00\xff"}})
    queue = sqs.get_queue_url(QueueName=outputs["FailureQueueName"])["QueueUrl"]
    sqs.send_message(QueueUrl=queue, MessageBody='{"é": 1}')
    s3 = first.client("s3")
    s3.put_object(Bucket=ARCHIVE, Key="events/2024/01/01/00/é.gz", Body=bytes(range(256)) * 4096)
    s3.put_object(Bucket=ARCHIVE, Key="gone", Body=b"")
    s3.delete_object(Bucket=ARCHIVE, Key="gone")
    before = contents(first)
    assert before["objects"] == {"events/2024/01/01/00/é.gz": bytes(range(256)) * 4096}
    head = s3.head_object(Bucket=ARCHIVE, Key="events/2024/01/01/00/é.gz")
    assert head["ContentLength"] == 256 * 4096
    before["sessions"] = [item for item in before["sessions"] if item["pk"]["S"] != "gone"]
    assert "saved 20 records and 4 items and 1 objects" in first.stop()
    assert first.process.returncode == 0

    assert [file.name for file in state.parent.iterdir()] == ["aws-state"]

    second = start("--state", str(state))
    assert state.with_name("aws-state.unsaved").exists()
    assert second.create_stack() == outputs
    assert contents(second) == before
    queue = second.client("sqs").get_queue_url(QueueName=outputs["FailureQueueName"])["QueueUrl"]
    (message,) = second.client("sqs").receive_message(QueueUrl=queue)["Messages"]
    assert message["Body"] == '{"é": 1}'
    # What comes now goes behind what was there.
    added = second.client("kinesis").put_record(StreamName=STREAM, Data=b"new", PartitionKey="k", ExplicitHashKey="0")
    held = read_all(second.client("kinesis"), STREAM)[added["ShardId"]]
    assert held[-1]["SequenceNumber"] == added["SequenceNumber"]
    assert int(held[-2]["SequenceNumber"]) < int(added["SequenceNumber"])
    second.stop()


def test_a_sequence_number_is_never_given_twice_even_if_the_process_was_killed(tmp_path: Path) -> None:
    """Else a reader's checkpoint of the lost records would have it pass over the new ones."""
    state = tmp_path / "aws-state"
    keep_old_stream(state, timedelta(hours=1))
    lost = start("--state", str(state))
    lost.create_stream()
    given = [put_one(lost) for _ in range(3)]
    lost.stop(signal.SIGKILL)
    third = start("--state", str(state))
    third.create_stream()
    assert put_one(third) > max(given)
    third.stop(signal.SIGKILL)


def put_one(server: Embedded) -> int:
    answer = server.client("kinesis").put_record(StreamName=STREAM, Data=b"x", PartitionKey="k", ExplicitHashKey="0")
    return int(answer["SequenceNumber"])


def test_a_state_of_before_there_were_buckets_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "aws-state"
    earlier = {"saved_at": 1.0, "streams": {}, "tables": {}, "queues": {"q": ["m"]}, "format": aws_state.FORMAT}
    path.write_bytes(msgspec.msgpack.encode(earlier))
    found = aws_state.load(path)
    assert isinstance(found, aws_state.Content)
    assert (found.queues, found.buckets) == ({"q": ["m"]}, {})


def test_writers_are_cut_off_by_the_stop_and_all_they_were_told_is_kept(tmp_path: Path) -> None:
    state = tmp_path / "aws-state"
    first = start("--state", str(state))
    first.create_stream()
    kinesis = first.client("kinesis")

    def put(writer: int) -> set[bytes]:
        acknowledged: set[bytes] = set()
        for n in range(10_000):
            data = f"{writer}-{n}".encode()
            try:
                kinesis.put_record(StreamName=STREAM, Data=data, PartitionKey=data.decode())
            except (BotoCoreError, ClientError):
                return acknowledged
            acknowledged.add(data)
        return acknowledged

    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(put, writer) for writer in range(6)]
        time.sleep(1)
        first.stop()
        acknowledged = set().union(*(one.result() for one in writing))
    second = start("--state", str(state))
    second.create_stream()
    held = {one["Data"] for records in read_all(second.client("kinesis"), STREAM).values() for one in records}
    second.stop(signal.SIGKILL)
    assert len(acknowledged) > 20
    # One call of each writer may have been done and not answered.
    assert acknowledged <= held
    assert len(held - acknowledged) <= 6


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (None, "nothing was saved yet"),
        (b"", "damaged"),
        (b"\xff\x00 no msgpack", "damaged"),
        (msgspec.msgpack.encode({"format": aws_state.FORMAT}), "damaged"),
        (msgspec.msgpack.encode({"format": 99, "what": "ever"}), "format 99"),
        (msgspec.msgpack.encode([1, 2]), "damaged"),
    ],
)
def test_a_state_that_cannot_be_read_is_left_and_told(tmp_path: Path, data: bytes | None, cause: str) -> None:
    path = tmp_path / "aws-state"
    if data is not None:
        path.write_bytes(data)
    found = aws_state.load(path)
    assert isinstance(found, str)
    assert cause in found


def test_a_state_that_does_not_fit_the_template_is_ignored_and_told(tmp_path: Path) -> None:
    state = tmp_path / "aws-state"
    first = start("--state", str(state))
    first.client("kinesis").create_stream(StreamName=STREAM, ShardCount=3)
    create_table(first.client("dynamodb"), SESSIONS, sort_key=True)
    put_one(first)
    first.client("dynamodb").put_item(TableName=SESSIONS, Item={"pk": {"S": "a"}, "sk": {"S": "b"}})
    first.stop()
    second = start("--state", str(state))
    second.create_stream()
    create_table(second.client("dynamodb"), SESSIONS)
    assert read_all(second.client("kinesis"), STREAM) == {"shardId-000000000000": [], "shardId-000000000001": []}
    assert second.client("dynamodb").scan(TableName=SESSIONS)["Items"] == []
    said = second.stop()
    assert f"ignored: the kept records of stream {STREAM} are of other shards" in said
    assert f"ignored: the kept items of table {SESSIONS} have other keys" in said


def test_a_failed_save_leaves_the_last_one(tmp_path: Path) -> None:
    state = tmp_path / "aws-state"
    keep_old_stream(state, timedelta(hours=1))
    before = state.read_bytes()
    # A directory where the partial file is to go.
    state.with_name("aws-state.partial").mkdir()
    server = start("--state", str(state))
    server.create_stream()
    put_one(server)
    server.stop()
    assert server.process.returncode != 0
    assert state.read_bytes() == before


def test_connections_are_kept(embedded: Embedded) -> None:
    port = int(embedded.url.rsplit(":", 1)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"X-Amz-Target": "Kinesis_20131202.ListStreams", "Content-Type": "application/x-amz-json-1.1"}
    headers["Authorization"] = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/kinesis/aws4_request, x"
    sockets = set()
    for _ in range(3):
        connection.request("POST", "/", json.dumps({}), headers)
        response = connection.getresponse()
        assert "StreamNames" in json.loads(response.read())
        sockets.add(connection.sock.getsockname() if connection.sock else os.urandom(4))
    assert len(sockets) == 1
