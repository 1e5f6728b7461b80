"""What a producer's events cost on their way into PutRecords: CPU time of the process that sends them.

The same events go each way to a Kinesis that answers at once, in a process of its own (which does not count). Both
peers get their events as dicts, as programs have them that know no Event. The second keeps no order between two calls,
retries nothing by itself and tells nobody what became of an event; ours does all three.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import boto3
from msgspec import structs

from producer.batching import HASH_KEYS
from producer.client import DEFAULT_STREAM, EventProducer, ProducerSettings, Receipt, local_or_environ_kinesis
from producer.event import Event, encode
from tests.benchmarks.api_data import Plan, events_of
from tests.benchmarks.measuring import Ratio, Row, Spread, in_turns, ratios
from tests.benchmarks.stub_aws import Stub, stub

_path = list(sys.path)
from aws_kinesis_agg.aggregator import RecordAggregator  # noqa: E402 - it changes sys.path

sys.path[:] = _path

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

NOW = 1_772_323_200_000
#: Events of one send_many: what a page's tracker, or a log's import, hands over at a time.
LOT = 50
#: Lots that are not yet acknowledged, at most: a program holds what it may have to send again.
_UNDER_WAY = 200
#: Records of one PutRecords call, as many as it takes.
_RECORDS = 500

_OURS = f"send_many of {LOT}"
_SINGLE = "send of each"
_PLAIN = "put_records(500)"
_AGGREGATED = "aws_kinesis_agg + boto3"
_FLOOR = "hand encoder + raw socket"


def rows(quick: bool) -> list[Row]:
    """The row of the table: events/s of CPU time."""
    events = events_of(Plan(1_000 if quick else 20_000, NOW, shards=1), 0)
    with stub() as aws:
        found = in_turns(_ways(events, aws), 1 if quick else 9, "producer")
    ours = found[_OURS]
    return [
        Row(
            name="producer, events to PutRecords",
            unit="events/s of CPU time",
            ours=_OURS,
            figures={way: Spread.of(figures) for way, figures in found.items()},
            ratios=[
                Ratio(_PLAIN, ratios(ours, found[_PLAIN])),
                Ratio(_AGGREGATED, ratios(ours, found[_AGGREGATED]), bound=1.5),
                Ratio(_FLOOR, ratios(ours, found[_FLOOR])),
                Ratio(_SINGLE, ratios(ours, found[_SINGLE])),
            ],
            note=f"{len(events):,} events of {_mean(events):.0f} bytes until the last is acknowledged, CPU time of all"
            f" threads of the sending process. {_SINGLE} makes a receipt for every event, and"
            f" reaches {ratios(found[_SINGLE], found[_AGGREGATED]).median:.1f}x {_AGGREGATED}, which makes none.",
        )
    ]


def _mean(events: Sequence[Event]) -> float:
    return sum(len(encode(event)) for event in events) / len(events)


def _ways(events: Sequence[Event], aws: Stub) -> dict[str, Callable[[], float]]:
    plain = [structs.asdict(event) for event in events]
    defaults = dict(
        zip(Event.__struct_fields__[-len(Event.__struct_defaults__) :], Event.__struct_defaults__, strict=True)
    )
    dicts = [{name: value for name, value in one.items() if value != defaults.get(name)} for one in plain]
    host, _, port = aws.url.removeprefix("http://").partition(":")
    ours = local_or_environ_kinesis({"AWS_PORT": port})
    kinesis: KinesisClient = boto3.client(
        "kinesis",
        endpoint_url=aws.url,
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )

    def timed(way: Callable[[], None]) -> Callable[[], float]:
        def measure() -> float:
            began = time.process_time()
            way()
            return len(events) / (time.process_time() - began)

        return measure

    return {
        _OURS: timed(lambda: in_lots(events, *ours)),
        _SINGLE: timed(lambda: one_by_one(events, *ours)),
        _PLAIN: timed(lambda: unaggregated(dicts, kinesis)),
        _AGGREGATED: timed(lambda: aggregated(dicts, kinesis)),
        _FLOOR: timed(lambda: by_hand(events, (host, int(port)))),
    }


def in_lots(events: Sequence[Event], kinesis: KinesisClient, settings: ProducerSettings) -> None:
    """As the import of a log sends: a lot at a time, and no more lots under way than it could send again."""
    with EventProducer(settings, kinesis) as producer:
        under_way: deque[Receipt] = deque()
        for first in range(0, len(events), LOT):
            if len(under_way) == _UNDER_WAY:
                under_way.popleft().wait(30)
            under_way.append(producer.send_many(events[first : first + LOT]))
        for receipt in under_way:
            receipt.wait(30)


def one_by_one(events: Sequence[Event], kinesis: KinesisClient, settings: ProducerSettings) -> None:
    """As a program sends that makes one event at a time, and looks at the receipts later."""
    with EventProducer(settings, kinesis) as producer:
        under_way: deque[Receipt] = deque()
        for event in events:
            if len(under_way) == _UNDER_WAY * LOT:
                under_way.popleft().wait(30)
            under_way.append(producer.send(event))
        for receipt in under_way:
            receipt.wait(30)


def unaggregated(dicts: Sequence[dict[str, Any]], kinesis: KinesisClient) -> None:
    """A record for each event."""
    for first in range(0, len(dicts), _RECORDS):
        answer = kinesis.put_records(
            StreamName=DEFAULT_STREAM,
            Records=[
                {"Data": json.dumps(one).encode(), "PartitionKey": one["session_id"]}
                for one in dicts[first : first + _RECORDS]
            ],
        )
        assert not answer["FailedRecordCount"]


def aggregated(dicts: Sequence[dict[str, Any]], kinesis: KinesisClient) -> None:
    """As the library's README says: each full aggregate is one put_record."""

    def put(aggregate: Any) -> None:
        key, _, data = aggregate.get_contents()
        kinesis.put_record(StreamName=DEFAULT_STREAM, Data=data, PartitionKey=key)

    aggregator = RecordAggregator()
    for one in dicts:
        if full := aggregator.add_user_record(one["session_id"], json.dumps(one)):
            put(full)
    if last := aggregator.clear_and_get():
        put(last)


def by_hand(events: Sequence[Event], address: tuple[str, int]) -> None:
    """The least: event bytes, frames of the KPL of 100 KiB, their digests, base64, and the system's socket."""
    key, hash_key = b"lane-0", str(HASH_KEYS // 2).encode()
    tables = b"\x0a%c%b\x12%c%b" % (len(key), key, len(hash_key), hash_key)
    entry = b'{"Data":"%b","PartitionKey":"' + key + b'","ExplicitHashKey":"' + hash_key + b'"}'
    head = (
        b"POST / HTTP/1.1\r\nHost: kinesis\r\nX-Amz-Target: Kinesis_20131202.PutRecords\r\n"
        b"Content-Type: application/x-amz-json-1.1\r\nContent-Length: %d\r\n\r\n"
    )
    records: list[bytes] = []
    parts, size = [tables], 0

    with socket.create_connection(address) as connection:

        def cut() -> None:
            nonlocal parts, size
            body = b"".join(parts)
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            records.append(entry % base64.b64encode(b"\xf3\x89\x9a\xc2" + body + digest))
            parts, size = [tables], 0

        def put() -> None:
            body = b'{"StreamName":"%b","Records":[%b]}' % (DEFAULT_STREAM.encode(), b",".join(records))
            connection.sendall(head % len(body))
            connection.sendall(body)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            records.clear()

        for event in events:
            data = encode(event)
            inner = 5 + _varint_size(len(data)) + len(data)
            parts.append(b"\x1a%b\x08\x00\x10\x00\x1a%b%b" % (_varint(inner), _varint(len(data)), data))
            size += inner + 3
            if size > 100_000:
                cut()
                if len(records) == 48:
                    put()
        cut()
        put()


def _varint_size(number: int) -> int:
    return 1 if number < 128 else 2 if number < 16384 else 3


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    if number < 16384:
        return bytes((number & 127 | 128, number >> 7))
    return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))
