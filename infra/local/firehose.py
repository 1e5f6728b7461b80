"""The archive's delivery stream on one machine, in place of Amazon Data Firehose.

It reads the Kinesis stream with the event source's own machinery and checkpoints, opens aggregates, calls the real
transformation function as Firehose calls it, and puts gzip objects where Firehose puts them. At least once: what was
put and not checkpointed before a crash is put again, as another object.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.local.event_source import EventSource, FunctionSettings, MappingSettings, run_until_signalled
from infra.local.shard_mapping import Answered, FunctionError, Outcome
from producer.kpl import Aggregate, decode_record
from stream_consumer.archive.reader import ERROR_PREFIX, PREFIX, hour_of, hour_prefix
from stream_consumer.archive.transform_handler import handler

NAME = "liveinsight-local-archive"
#: Seconds for which records of a shard are gathered into one object.
WINDOW = 10.0
#: Bytes of payloads that one call of the function gets, as the template says for Firehose.
BUFFER_BYTES = 512 * 1024
_FAILED = "processing-failed"

FirehoseRecord = dict[str, Any]


def firehose_records(lambda_event: Mapping[str, Any]) -> Iterator[FirehoseRecord]:
    """The records of a Kinesis event as Firehose gives them to a function: each payload of an aggregate is a record."""
    for record in lambda_event["Records"]:
        kinesis = record["kinesis"]
        data = base64.b64decode(kinesis["data"])
        opened = decode_record(data)
        payloads: list[tuple[str | int, bytes]] = [("", data)]
        if isinstance(opened, Aggregate):
            payloads = [(at, one.data) for at, one in enumerate(opened.records)]
        arrived = round(kinesis["approximateArrivalTimestamp"] * 1000)
        for index, payload in payloads:
            yield {
                "recordId": f"{kinesis['sequenceNumber']}{index or 0:06d}",
                "approximateArrivalTimestamp": arrived,
                "data": base64.b64encode(payload).decode(),
                "kinesisRecordMetadata": {
                    "shardId": record["eventID"].partition(":")[0],
                    "sequenceNumber": kinesis["sequenceNumber"],
                    "subsequenceNumber": index,
                    "partitionKey": kinesis["partitionKey"],
                    "approximateArrivalTimestamp": arrived,
                },
            }


def transform(records: Iterable[FirehoseRecord]) -> tuple[bytes, list[FirehoseRecord]]:
    """What the function makes of the records, in order, and the records that it says have failed."""
    made: list[bytes] = []
    failed: list[FirehoseRecord] = []
    for some in _buffers(records):
        for record, answer in zip(some, handler({"records": some}, None)["records"], strict=True):
            if answer["result"] == "Ok":
                made.append(base64.b64decode(answer["data"]))
            else:
                failed.append(record)
    return b"".join(made), failed


def objects(records: Sequence[FirehoseRecord], now: float) -> Iterator[tuple[str, bytes]]:
    """Keys and bodies of the objects that these records become. ``now``: s since 1970."""
    lines, failed = transform(records)
    suffix = f"{NAME}-1-{datetime.fromtimestamp(now, UTC):%Y-%m-%d-%H-%M-%S}-{uuid.uuid4()}"
    if lines:
        yield f"{hour_prefix(_oldest(records), PREFIX)}{suffix}.gz", gzip.compress(lines, 6)
    if failed:
        told = [{"errorCode": _FAILED, "rawData": record["data"]} for record in failed]
        body = "".join(json.dumps(one) + "\n" for one in told).encode()
        yield f"{hour_prefix(_oldest(failed), ERROR_PREFIX)}{_FAILED}/{suffix}.gz", gzip.compress(body)


def _oldest(records: Iterable[FirehoseRecord]) -> int:
    return hour_of(min(record["approximateArrivalTimestamp"] for record in records))


def _buffers(records: Iterable[FirehoseRecord]) -> Iterator[list[FirehoseRecord]]:
    some: list[FirehoseRecord] = []
    size = 0
    for record in records:
        some.append(record)
        size += len(record["data"]) * 3 // 4
        if size >= BUFFER_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


class Delivery:
    """What a shard's batches are sent to: puts each as an object, in this process."""

    def __init__(self, put: Callable[[str, bytes], object], clock: Callable[[], float] = time.time) -> None:
        self._put = put
        self._clock = clock

    def start(self) -> None:
        """Nothing is needed."""

    def invoke(self, event: bytes, request_id: str, arn: str) -> Outcome:
        try:
            for key, body in objects(list(firehose_records(json.loads(event))), self._clock()):
                self._put(key, body)
        except (BotoCoreError, ClientError) as error:
            return FunctionError(request_id, type(error).__name__, str(error))
        return Answered(request_id, None)

    def kill(self) -> None:
        """A put ends by its own timeouts."""

    def close(self) -> None:
        """Nothing is held."""


def delivery_stream(
    stream: str, kinesis: Any, put: Callable[[str, bytes], object], state: Path, *, window: float, drain_timeout: float
) -> EventSource:
    """The delivery stream, to be run. ``put`` takes key and body of an object and raises botocore's errors."""
    return EventSource(
        stream,
        FunctionSettings("stream_consumer.archive.transform_handler.handler", NAME),
        MappingSettings(batch_size=10_000, batching_window=window, poll_interval=min(1.0, window)),
        state,
        kinesis=kinesis,
        drain_timeout=drain_timeout,
        start_function=lambda: Delivery(put),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit codes as those of the event source."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.local.firehose",
        description="Archives a Kinesis stream's records in S3, as the archive's delivery stream does on AWS. SIGTERM "
        "or SIGINT: archive what is in the stream, then end.",
    )
    add = parser.add_argument
    add("--stream", metavar="NAME", required=True, help="the Kinesis stream to archive")
    add("--bucket", metavar="NAME", required=True, help="the S3 bucket of the archive")
    add("--state", metavar="DIR", type=Path, required=True, help="directory for the checkpoints")
    add("--window", metavar="S", type=float, default=WINDOW, help="seconds for which an object is filled (%(default)g)")
    add("--drain-timeout", metavar="S", type=float, default=60.0, help="seconds that SIGTERM leaves for draining (60)")
    given = parser.parse_args(arguments)

    def make() -> EventSource:
        import boto3
        from botocore.config import Config

        config = Config(connect_timeout=3, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 2})
        s3: Any = boto3.client("s3", config=config)
        return delivery_stream(
            given.stream,
            boto3.client("kinesis", config=config),
            lambda key, body: s3.put_object(Bucket=given.bucket, Key=key, Body=body),
            given.state,
            window=given.window,
            drain_timeout=given.drain_timeout,
        )

    return run_until_signalled(make)


if __name__ == "__main__":
    sys.exit(main())
