"""A stream's records for tests, their way into an archive in memory, and what the consumer makes of them live."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from infra.local.firehose import firehose_records, objects
from producer import erasure
from producer.erasure import Erasure
from producer.event import encode
from stream_consumer.consume import consume
from stream_consumer.kinesis_batch import read
from stream_consumer.merged import HOUR_MS
from tests.builders import NOON, an_aggregate, an_event
from tests.fake_dynamodb import FakeDynamo, MemoryTables
from tests.fake_s3 import FakeS3

START = NOON - NOON % HOUR_MS
PARENT, OTHER, CHILD, SECOND_CHILD = (f"shardId-{number:012d}" for number in range(4))


class StreamRecord(Struct, frozen=True):
    """A record of the stream; ``arrived`` in ms."""

    shard_id: str
    number: int
    data: bytes
    arrived: int


def lambda_event(records: Iterable[StreamRecord]) -> dict[str, Any]:
    """What an event source mapping hands over for records of one shard."""
    return {
        "Records": [
            {
                "kinesis": {
                    "partitionKey": "lane-0",
                    "sequenceNumber": str(one.number),
                    "data": base64.b64encode(one.data).decode(),
                    "approximateArrivalTimestamp": one.arrived / 1000,
                },
                "eventID": f"{one.shard_id}:{one.number}",
            }
            for one in records
        ]
    }


def a_stream(seed: int, hours: float = 3.5, count: int = 120) -> list[StreamRecord]:
    """Records of two shards, of which one is split after half the time; aggregates, plain ones, erasures, and poison.

    Sessions last for an hour and more, and go on in the child of their shard.
    """
    rng = random.Random(seed)
    made: list[StreamRecord] = []
    events = 0

    def page_view() -> Any:
        nonlocal events
        events += 1
        session = f"{lane}-{events // 30}-{rng.randrange(3)}"
        fields = {"source": session, "seq": events} if rng.random() < 0.5 else {}
        return an_event(1, event_id=f"e{events}", session_id=session, timestamp=at, received_at=at, **fields)

    for number in range(count):
        at = START + int(hours * HOUR_MS * number / count) + rng.randrange(1000)
        lane = rng.randrange(4)
        split = number >= count // 2
        shard = {0: CHILD if split else PARENT, 1: SECOND_CHILD if split else PARENT}.get(lane, OTHER)
        match rng.random():
            case x if x < 0.6:
                data = an_aggregate([page_view() for _ in range(rng.randrange(1, 6))])
            case x if x < 0.8:
                data = encode(page_view())
            case x if x < 0.86:
                data = encode(page_view()) + b"\n"
            case x if x < 0.89:
                data = erasure.encode(Erasure("blog", f"{lane}-{events // 30}-{rng.randrange(3)}", at))
            case x if x < 0.93:
                data = rng.choice([b"{}", b"", b"\xff\x00", b"not json"])
            case _:
                data = malformed([page_view(), page_view()])
        # A little out of order, as approximate arrivals are.
        made.append(StreamRecord(shard, 9_990 + 7 * number, data, at + rng.randrange(-3, 4)))
    return made


def malformed(events: Sequence[Any]) -> bytes:
    """A frame with a right checksum that no sound producer makes: an unknown field at its end."""
    from producer import kpl

    body = an_aggregate(events)[4:-16] + b"\x78\x01"
    return b"".join((kpl.MAGIC, body, kpl._digest(body)))


def archive(s3: FakeS3, records: Sequence[StreamRecord], rng: random.Random, *, repeat: float = 0.0) -> None:
    """Put records as a delivery stream may, in objects of up to a quarter of an hour of one shard, whose lines are in no
    order; and some of them twice.
    """
    by_object: dict[tuple[str, int], list[StreamRecord]] = {}
    for one in records:
        by_object.setdefault((one.shard_id, (one.arrived + 421_000) // 900_000), []).append(one)
    for some in by_object.values():
        rng.shuffle(some)
        times = 2 if rng.random() < repeat else 1
        for _ in range(times):
            put(s3, some)


def put(s3: FakeS3, records: Sequence[StreamRecord]) -> list[str]:
    """Put records of one shard as one object (and one of errors); the keys."""
    made = dict(objects(list(firehose_records(lambda_event(records))), 0))
    s3.objects |= made
    return list(made)


def live(records: Sequence[StreamRecord], size: int = 7, tables: MemoryTables | None = None) -> MemoryTables:
    """The tables when a mapping has handed over these records, shard by shard."""
    tables = tables or MemoryTables(FakeDynamo())
    for shard in sorted({one.shard_id for one in records}):
        mine = [one for one in records if one.shard_id == shard]
        for at in range(0, len(mine), size):
            assert consume(read(lambda_event(mine[at : at + size])), tables).failed_from is None
    return tables


def figures(tables: MemoryTables) -> dict[str, Any]:
    """All that must be the same to the byte, however the events came."""
    return {
        "sessions": tables.sessions,
        "rollups": tables.rollups,
        "quarantine": tables.quarantine,
        "sites": tables.sites,
        "marks": tables.marks("blog"),
    }
