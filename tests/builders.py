"""Small valid values for tests; each test states what matters to it."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from typing import Any

from msgspec import Raw

from producer.erasure import Erasure
from producer.event import Event, encode
from producer.kpl import encode_aggregate
from stream_consumer.kinesis_batch import Arrived, Batch, ErasureArrived, Poison, of_record, position

NOON = 1_700_000_100_000 - 1_700_000_100_000 % 900_000  # the start of a quarter of an hour


def an_event(number: int = 1, **fields: Any) -> Event:
    """A page view, its id, time and number following ``number``."""
    properties = fields.pop("properties", None)
    if properties is not None:
        fields["properties"] = Raw(json.dumps(properties).encode())
    values: dict[str, Any] = {
        "event_id": f"e{number}",
        "site_id": "blog",
        "session_id": "s1",
        "event_type": "page_view",
        "timestamp": NOON + number * 1000,
        "received_at": NOON + number * 1000 + 500,
        "page_url": f"https://example.com/p{number}",
    }
    return Event(**values | fields)


def a_long_event(number: int = 1, **fields: Any) -> Event:
    """One that does not fit into its session's item."""
    return an_event(number, properties={"long": random.Random(number).randbytes(2000).hex()}, **fields)


def an_erasure(session_id: str = "s1", **fields: Any) -> Erasure:
    """The erasure of a session, an hour after NOON."""
    return Erasure(**{"site_id": "blog", "session_id": session_id, "erased_at": NOON + 3_600_000} | fields)


def an_entry(number: int, one: Event | Erasure | Poison) -> Arrived | ErasureArrived | Poison:
    """What a batch has of a record of its own with sequence number ``number``."""
    if isinstance(one, Poison):
        return one
    if isinstance(one, Event):
        return Arrived(of_record(str(number)), 0, one, encode(one))
    return ErasureArrived(position(str(number), 0), str(number), one)


def a_batch(
    events: Sequence[Event | Erasure | Poison], first: int = 1, shard_id: str = "shardId-000000000000"
) -> Batch:
    """Events and erasures as records of their own with sequence numbers ``first``, ``first + 1``, ..."""
    entries = [an_entry(at, event) for at, event in enumerate(events, first)]
    return Batch(shard_id, str(first), len(entries), entries)


def a_lambda_event(datas: Sequence[bytes], first: int = 1, shard_id: str = "shardId-000000000000") -> dict[str, Any]:
    """What an event source mapping hands over for records of these bytes."""
    return {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": "lane-0",
                    "sequenceNumber": str(at),
                    "data": base64.b64encode(data).decode(),
                    "approximateArrivalTimestamp": NOON / 1000,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"{shard_id}:{at}",
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": "arn:aws:iam::123456789012:role/consumer",
                "awsRegion": "us-east-1",
                "eventSourceARN": "arn:aws:kinesis:us-east-1:123456789012:stream/events",
            }
            for at, data in enumerate(datas, first)
        ]
    }


def an_aggregate(events: Sequence[Event]) -> bytes:
    """A KPL record of these events."""
    return encode_aggregate([encode(event) for event in events], "lane-0", "0")
