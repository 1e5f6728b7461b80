"""The embedded AWS's content in a file, so that a `make run` goes on where the last one stopped.

Only content is kept: the stream's records, the tables' items, the queues' messages, the buckets' objects. The
resources themselves are created from the template at each start, as ever, and get their content back at that moment
if it still fits (the same shards, the same keys). So an edited template or another version of moto needs no migration.

The stream also keeps its creation time. Together with its ARN it tells a reader (the event source and its
checkpoints) that this is the stream it knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from moto.dynamodb.models import DynamoDBBackend, dynamodb_backends
from moto.dynamodb.models.dynamo_type import DynamoType
from moto.kinesis.models import KinesisBackend, Record, kinesis_backends
from moto.s3.models import S3Backend, s3_backends
from moto.sqs.models import SQSBackend, sqs_backends
from msgspec import Struct

from infra.local.moto_patches import attribute_value, make_item, trim

#: Goes up when a file of an earlier form can no longer be read.
FORMAT = 2


class ShardContent(Struct, array_like=True):
    """A shard's records, in order: (sequence number, partition key, explicit hash key, data, arrival in s)."""

    starting_hash: str
    ending_hash: str
    records: list[tuple[int, str, str | None, str, float]]


class StreamContent(Struct, array_like=True):
    created: datetime
    shards: dict[str, ShardContent]


class TableContent(Struct, array_like=True):
    """A table's items, each as its attributes in the wire's form with raw bytes: ``{"pk": {"S": "text"}}``."""

    keys: list[str | None]
    items: list[dict[str, dict[str, Any]]]


class Content(Struct):
    saved_at: float
    streams: dict[str, StreamContent]
    tables: dict[str, TableContent]
    queues: dict[str, list[str]]
    format: int = FORMAT
    buckets: dict[str, dict[str, bytes]] = {}


class _Format(Struct):
    format: int = 0


def save(path: Path, now: float) -> str:
    """Write everything to ``path``, wholly or not at all; returns a sentence on what it was.

    No request may be under way meanwhile. ``now`` is in seconds since 1970.
    """
    content = Content(
        saved_at=now,
        streams={stream.stream_name: _read_stream(stream, now) for stream in _each(kinesis_backends, "streams")},
        tables={table.name: _read_table(table, now) for table in _each(dynamodb_backends, "tables")},
        queues={queue.name: [message.body for message in queue._messages] for queue in _each(sqs_backends, "queues")},
        buckets={
            bucket.name: {key: found.value for key, found in bucket.keys.items()}
            for bucket in _each(s3_backends, "buckets")
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(msgspec.msgpack.encode(content))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _unsaved(path).unlink(missing_ok=True)
    return f"saved {_counts(content)}"


def load(path: Path) -> Content | str:
    """What :func:`save` wrote, or a sentence on why it cannot be had."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "starting empty: nothing was saved yet"
    except OSError as error:
        return f"starting empty: {path} cannot be read ({error})"
    try:
        found = msgspec.msgpack.decode(data, type=_Format).format
        if found != FORMAT:
            return f"starting empty: {path} has format {found}, this version reads format {FORMAT}"
        return msgspec.msgpack.decode(data, type=Content)
    except msgspec.DecodeError as error:
        return f"starting empty: {path} is damaged ({error})"


def restore_as_created(path: Path, say: Callable[[str], None]) -> None:
    """Have each resource of this process get its content of ``path`` back as it is created.

    What cannot be restored is ignored; ``say`` is told what. Until :func:`save`, a file ``<path>.unsaved`` tells that
    there may be more than ``path`` holds.
    """
    content = load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _unsaved(path).touch()
    if isinstance(content, str):
        say(content)
        return
    say(f"kept from the last run: {_counts(content)}")
    streams, tables = dict(content.streams), dict(content.tables)
    queues, buckets = dict(content.queues), dict(content.buckets)
    create_stream, create_table = KinesisBackend.create_stream, DynamoDBBackend.create_table
    create_queue, create_bucket = SQSBackend.create_queue, S3Backend.create_bucket

    def stream_with_content(backend: Any, stream_name: str, *args: Any, **kwargs: Any) -> Any:
        stream = create_stream(backend, stream_name, *args, **kwargs)
        if (saved := streams.pop(stream_name, None)) is not None and not _fill_stream(stream, saved):
            say(f"ignored: the kept records of stream {stream_name} are of other shards")
        return stream

    def table_with_content(backend: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        table = create_table(backend, name, *args, **kwargs)
        if (saved := tables.pop(name, None)) is not None and not _fill_table(table, saved):
            say(f"ignored: the kept items of table {name} have other keys")
        return table

    def queue_with_content(backend: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        queue = create_queue(backend, name, *args, **kwargs)
        for body in queues.pop(name, []):
            backend.send_message(name, body)
        return queue

    def bucket_with_content(backend: Any, bucket_name: str, *args: Any, **kwargs: Any) -> Any:
        bucket = create_bucket(backend, bucket_name, *args, **kwargs)
        for key, body in buckets.pop(bucket_name, {}).items():
            backend.put_object(bucket_name, key, body)
        return bucket

    KinesisBackend.create_stream = stream_with_content
    DynamoDBBackend.create_table = table_with_content
    SQSBackend.create_queue = queue_with_content
    S3Backend.create_bucket = bucket_with_content


def _unsaved(path: Path) -> Path:
    return path.with_name(path.name + ".unsaved")


def _counts(content: Content) -> str:
    records = sum(len(shard.records) for stream in content.streams.values() for shard in stream.shards.values())
    items = sum(len(table.items) for table in content.tables.values())
    objects = sum(len(bucket) for bucket in content.buckets.values())
    return f"{records:,} records and {items:,} items" + (f" and {objects:,} objects" if objects else "")


def _each(backends: Any, kind: str) -> list[Any]:
    return [
        one for regions in backends.values() for backend in regions.values() for one in getattr(backend, kind).values()
    ]


def _read_stream(stream: Any, now: float) -> StreamContent:
    trim(stream, now)
    return StreamContent(
        created=stream.creation_datetime,
        shards={
            name: ShardContent(
                str(shard.starting_hash),
                str(shard.ending_hash),
                [
                    (
                        record.sequence_number,
                        record.partition_key,
                        record.explicit_hash_key,
                        record.data,
                        record.created_at,
                    )
                    for record in shard.records.values()
                ],
            )
            for name, shard in stream.shards.items()
        },
    )


def _fill_stream(stream: Any, saved: StreamContent) -> bool:
    ranges = {name: (str(shard.starting_hash), str(shard.ending_hash)) for name, shard in stream.shards.items()}
    if ranges != {name: (shard.starting_hash, shard.ending_hash) for name, shard in saved.shards.items()}:
        return False
    stream.creation_datetime = saved.created
    for name, shard in stream.shards.items():
        for number, partition_key, explicit_hash_key, data, arrival in saved.shards[name].records:
            record = Record(partition_key, data, number, explicit_hash_key)
            record.created_at = arrival
            record.created_at_datetime = datetime.fromtimestamp(arrival, UTC).replace(tzinfo=None)
            shard.records[number] = record
            shard.sequence_numbers.append(number)
        shard.next_number = max(shard.next_number, shard.get_max_sequence_number() + 1)
    return True


def _read_table(table: Any, now: float) -> TableContent:
    held = table.items.values()
    items = [item for partition in held for item in partition.values()] if table.has_range_key else list(held)
    expires = table.ttl.get("AttributeName")
    return TableContent(
        [table.hash_key_attr, table.range_key_attr],
        [
            {name: attribute_value(value, bytes) for name, value in item.attrs.items()}
            for item in items
            if expires not in item.attrs or float(item.attrs[expires].value) > now
        ],
    )


def _fill_table(table: Any, saved: TableContent) -> bool:
    if [table.hash_key_attr, table.range_key_attr] != saved.keys:
        return False
    for attributes in saved.items:
        values = {name: DynamoType(value) for name, value in attributes.items()}
        hash_key = values[table.hash_key_attr]
        range_key = values[table.range_key_attr] if table.has_range_key else None
        item = make_item(hash_key, range_key, values)
        if range_key is None:
            table.items[hash_key] = item
        else:
            table.items[hash_key][range_key] = item
    return True
