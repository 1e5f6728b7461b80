"""The stand-in for Firehose: what is in the stream is in the archive, over stops and kills; and from there in the tables."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from infra.local.firehose import Delivery, firehose_records, objects
from infra.local.shard_mapping import Answered, FunctionError
from producer.event import encode
from stream_consumer.archive.lines import ArchivedRecord, read_line
from stream_consumer.archive.reader import Archive, hour_prefix, local_or_environ_archive
from stream_consumer.archive.refold import ShardEnd, refold
from stream_consumer.merged import HOUR_MS
from stream_consumer.replay.handover import Gap, handover
from stream_consumer.replay.lag import Stream
from tests.archiving import OTHER, START, StreamRecord, figures, lambda_event, live, malformed
from tests.builders import an_aggregate, an_event
from tests.embedded_aws import STREAM, Embedded, start
from tests.fake_dynamodb import MemoryTables

RECORDS = [
    StreamRecord(OTHER, 1, encode(an_event(1)), START + 2 * HOUR_MS),
    StreamRecord(OTHER, 2, an_aggregate([an_event(2), an_event(3)]), START + HOUR_MS - 1),
    StreamRecord(OTHER, 3, b"no event", START + HOUR_MS),
]


def test_an_object_is_in_the_folder_of_its_oldest_record_and_has_all_its_lines() -> None:
    ((key, body),) = objects(list(firehose_records(lambda_event(RECORDS))), 1_700_000_000)
    assert key.startswith(f"{hour_prefix(START)}liveinsight-local-archive-1-2023-11-14-22-13-20-")
    assert key.endswith(".gz")
    found = [read_line(line) for line in gzip.decompress(body).splitlines()]
    assert [(one.sequence_number, one.index, one.payload) for one in found] == [
        ("1", None, encode(an_event(1))),
        ("2", 0, encode(an_event(2))),
        ("2", 1, encode(an_event(3))),
        ("3", None, b"no event"),
    ]
    assert [one.arrived for one in found] == [
        START + 2 * HOUR_MS,
        START + HOUR_MS - 1,
        START + HOUR_MS - 1,
        START + HOUR_MS,
    ]


def test_what_the_function_fails_is_kept_apart() -> None:
    records = list(firehose_records(lambda_event(RECORDS)))
    del records[3]["kinesisRecordMetadata"]
    made = dict(objects(records, 1_700_000_000))
    (error,) = (key for key in made if not key.startswith("events/"))
    assert error.startswith("errors/2023/11/14/23/processing-failed/")
    (failed,) = map(json.loads, gzip.decompress(made[error]).splitlines())
    assert failed["rawData"] == records[3]["data"]
    assert len(made) == 2


def test_a_batch_whose_object_cannot_be_put_comes_again() -> None:
    def refuse(key: str, body: bytes) -> None:
        raise ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")

    event = json.dumps(lambda_event(RECORDS)).encode()
    outcome = Delivery(refuse).invoke(event, "1", "arn")
    assert isinstance(outcome, FunctionError)
    assert "SlowDown" in outcome.detail
    put: dict[str, bytes] = {}
    assert isinstance(Delivery(put.__setitem__).invoke(event, "1", "arn"), Answered)
    assert len(put) == 1


@contextmanager
def delivering(server: Embedded, bucket: str, state: Path, window: float) -> Iterator[subprocess.Popen[bytes]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environ |= {"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    command = ["--stream", STREAM, "--bucket", bucket, "--state", str(state), "--window", str(window)]
    process = subprocess.Popen([sys.executable, "-m", "infra.local.firehose", *command], env=environ)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def put_records(server: Embedded, first: int, count: int) -> None:
    """Aggregates, plain records, poison and malformed frames, of some sessions, on both shards."""
    records = []
    for number in range(first, first + count):
        made = [an_event(number, event_id=f"{number}-{n}", session_id=f"s{number % 7}") for n in range(3)]
        data = (an_aggregate(made), encode(made[0]), malformed(made), b"no event")[min(number % 6, 3)]
        records.append({"Data": data, "PartitionKey": "k", "ExplicitHashKey": str((number % 7 % 2) * 2**127)})
    assert server.client("kinesis").put_records(StreamName=STREAM, Records=records)["FailedRecordCount"] == 0


def in_the_stream(server: Embedded) -> list[StreamRecord]:
    kinesis = server.client("kinesis")
    found = []
    for shard in kinesis.list_shards(StreamName=STREAM)["Shards"]:
        where = {"StreamName": STREAM, "ShardId": shard["ShardId"]}
        iterator = kinesis.get_shard_iterator(**where, ShardIteratorType="TRIM_HORIZON")["ShardIterator"]
        for one in kinesis.get_records(ShardIterator=iterator)["Records"]:
            arrived = round(one["ApproximateArrivalTimestamp"].timestamp() * 1000)
            found.append(StreamRecord(shard["ShardId"], int(one["SequenceNumber"]), one["Data"], arrived))
    return found


def archived(server: Embedded, bucket: str) -> list[ArchivedRecord]:
    archive = Archive(server.client("s3"), bucket)
    keys = [key for hour in archive.hours() for key in archive.objects(hour)]
    return [record for key in keys for record in archive.records(key)]


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.1)


@pytest.mark.long
def test_the_archive_has_the_stream_over_kills_and_stops_and_gives_the_same_tables(tmp_path: Path) -> None:
    state, aws_state = tmp_path / "firehose", tmp_path / "aws-state"
    server = start("--state", str(aws_state))
    try:
        bucket = server.create_stack()["ArchiveBucketName"]
        put_records(server, 0, 60)
        with delivering(server, bucket, state, window=0.2) as process:
            until(lambda: {one.sequence_number for one in archived(server, bucket)} == numbers(server))
            put_records(server, 60, 40)
            process.send_signal(signal.SIGKILL)
        # As if it had been killed between an object and its checkpoint: everything comes again.
        (state / "checkpoints.json").unlink()
        with delivering(server, bucket, state, window=300) as process:
            until((state / "checkpoints.json").exists)
            put_records(server, 100, 30)
            process.terminate()  # long before the window is over: it writes what it has
            assert process.wait(30) == 0
        assert {one.sequence_number for one in archived(server, bucket)} == numbers(server)
        server.stop()
        server = start("--state", str(aws_state))
        assert server.create_stack()["ArchiveBucketName"] == bucket
        tables = MemoryTables()
        done = refold(Archive(server.client("s3"), bucket), tables, since=0, until=None)
        records = in_the_stream(server)
        assert figures(tables) == figures(live(records))
        assert done.counts["received"] == done.counts["applied"] + done.counts["quarantined"]
        assert len(done.ends) == 2
        stream = Stream(server.client("kinesis"), STREAM)
        taken_over = handover(done.ends, stream, now=time.time_ns() // 1_000_000)
        assert 0 < taken_over <= min(end.arrived for end in done.ends.values())
        # Nor has it a gap when the stream is older than what it keeps, as long as it still has the last of the archive.
        in_two_days = time.time_ns() // 1_000_000 + 48 * HOUR_MS
        assert handover(done.ends, stream, now=in_two_days) == taken_over
        last = {shard: ShardEnd("1", 0, end.arrived) for shard, end in done.ends.items()}
        with pytest.raises(Gap, match=r"shardId-000000000000: .*; shardId-000000000001: "):
            handover(last, stream, now=in_two_days)
        # An operator's command finds it as it finds the tables.
        assert local_or_environ_archive({"AWS_PORT": server.url.rsplit(":", 1)[1]}).bucket == bucket
        server.stop()
    finally:
        server.process.kill()
        server.process.wait()


def numbers(server: Embedded) -> set[str]:
    return {str(one.number) for one in in_the_stream(server)}
