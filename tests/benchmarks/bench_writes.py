"""What the consumer's writes cost, beside the ordinary design's: a whole batch, and conditional writes of sessions alone.

DynamoDB is a stub in another process, on another processor where there is one, so what is measured is this process's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import boto3
import botocore.session
import msgspec
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType
from aws_lambda_powertools.utilities.data_classes.kinesis_stream_event import KinesisStreamRecord
from botocore.config import Config

from producer.event import Event, encode
from stream_consumer import kinesis_batch
from stream_consumer.consume import consume
from stream_consumer.items import session_item
from stream_consumer.lambda_handler import ConsumerSettings, without_collection
from stream_consumer.session import Session
from stream_consumer.signed_writes import signed_writes
from stream_consumer.table import Tables
from tests.benchmarks.api_data import Plan, events_of
from tests.benchmarks.measuring import Ratio, Row, Spread, in_turns, ratios
from tests.benchmarks.stub_aws import Stub, stub
from tests.builders import an_aggregate
from tests.fake_dynamodb import NAMES

_NOW = 1_772_323_200_000
_SHARD = "shardId-000000000000"
_POSITIONS = {_SHARD: "0011.000000"}
_EVENTS_OF_A_SESSION = 10
#: Writes a second of a shard at its full 1 MB/s, with one event of each session.
_FULL_SHARD = 2_500.0
_ID, _SECRET, _REGION = "an-id", "a-secret", "us-east-1"
_ACCOUNT: dict[str, Any] = {"region_name": _REGION, "aws_access_key_id": _ID, "aws_secret_access_key": _SECRET}


def rows(quick: bool) -> list[Row]:
    """Of the table of figures: the consumer with writes, and the writes alone."""
    return [whole_batches(quick), session_writes(quick), one_event_each(quick)]


def whole_batches(quick: bool) -> Row:
    """Events/s of CPU time, 10 events a session and batch, against a stub that answers at once."""
    sessions, rounds = (10, 1) if quick else (1_000, 7)
    events = _events(sessions)
    ours = _records([an_aggregate(events[at : at + 10]) for at in range(0, len(events), 10)])
    # The ordinary design writes at the same pace however many there are: a part of them is enough.
    theirs = _records([encode(event) for event in events[: max(100, len(events) // 10)]])
    wall: dict[str, list[float]] = {"ours": [], "peer": []}
    with stub(core=_other_core()) as aws, on_one_core():
        tables = Tables(_ours(aws), NAMES, writers=ConsumerSettings.writers)
        peer = boto3.client("dynamodb", endpoint_url=aws.url, **_ACCOUNT)

        def our_batch() -> float:
            aws.forget()
            with without_collection(), _timed(len(events)) as rates:
                outcome = consume(kinesis_batch.read({"Records": ours}), tables)
            assert outcome.applied == len(events), outcome.failure
            wall["ours"].append(rates["wall"])
            return rates["cpu"]

        def their_batch() -> float:
            aws.forget()
            with _timed(len(theirs)) as rates:
                _update_for_each(theirs, peer)
            assert aws.calls() == {"UpdateItem": len(theirs)}
            wall["peer"].append(rates["wall"])
            return rates["cpu"]

        found = in_turns({"ours": our_batch, "peer": their_batch}, rounds, "consumer with writes")
    by_wall = ratios(wall["ours"][1:], wall["peer"][1:])
    return Row(
        name="consumer with writes, 10 events a session and batch",
        unit="events/s of CPU",
        ours="ours",
        figures={name: Spread.of(some) for name, some in found.items()},
        ratios=[Ratio("peer", ratios(found["ours"], found["peer"]), bound=10.0)],
        note=(
            f"CPU time of the client's process, batch of {len(events):,} events, empty tables, a stub that answers at"
            " once; ours writes sessions, events, roll-ups and marks, the peer (powertools BatchProcessor, boto3"
            f" update_item for each record) sessions alone. By wall time the ratio is {by_wall.median:.1f}"
            f" ({by_wall.low:.1f} - {by_wall.high:.1f})."
        ),
    )


def session_writes(quick: bool) -> Row:
    """Writes/s of sessions, each with its condition, on one processor, against a stub that takes 4 ms."""
    count, rounds = (64, 1) if quick else (2_000, 7)
    default = ConsumerSettings.writers
    sessions = _sessions(_events(count // _EVENTS_OF_A_SESSION + 1, one_each=True))[:count]
    with stub(delay=0.004, core=_other_core()) as aws, on_one_core():
        boto = boto3.client("dynamodb", endpoint_url=aws.url, config=Config(max_pool_connections=16), **_ACCOUNT)
        ways = {"ours": _by_tables(aws, default), "peer": _by_boto3(boto, 16), "floor": _by_hand(aws, default)}
        if not quick:
            others = (writers for writers in (8, 16, 32, 64) if writers != default)
            ways |= {f"ours, {writers} writers": _by_tables(aws, writers) for writers in others}
        of_cpu: dict[str, list[float]] = {name: [] for name in ways}

        def measured(name: str) -> float:
            some = sessions[: count // 2] if name == "peer" else sessions
            with _timed(len(some)) as rates:
                ways[name](some)
            of_cpu[name].append(rates["cpu"])
            return rates["wall"]

        found = in_turns({name: partial(measured, name) for name in ways}, rounds, "session writes")
    of_cpu = {name: some[1:] for name, some in of_cpu.items()}  # the first turn warms caches
    each = ", ".join(f"{name} {1e6 / Spread.of(some).median:.0f}" for name, some in of_cpu.items())
    return Row(
        name="conditional session writes, one vCPU, 4 ms",
        unit="writes/s",
        ours="ours",
        figures={name: Spread.of(some) for name, some in found.items()},
        ratios=[
            Ratio("2,500/s, a full shard", Spread.of([rate / _FULL_SHARD for rate in found["ours"]]), bound=1.0),
            Ratio("2,500/s, by CPU time alone", Spread.of([rate / _FULL_SHARD for rate in of_cpu["ours"]])),
            Ratio("peer", ratios(found["ours"], found["peer"])),
            Ratio("peer, by CPU time", ratios(of_cpu["ours"], of_cpu["peer"])),
            Ratio("floor", ratios(found["ours"], found["floor"])),
            Ratio("floor, by CPU time", ratios(of_cpu["ours"], of_cpu["floor"])),
        ],
        note=(
            f"Wall time, on one processor, {default} writers; peer: boto3 put_item in 16 threads; floor: http.client"
            f" signed by hand, a connection for each of {default} threads, no retries. Microseconds of CPU a write:"
            f" {each}."
        ),
    )


def one_event_each(quick: bool) -> Row:
    """Events/s of whole batches in which each session has one event, on one processor, against a stub that takes 4 ms."""
    count, rounds = (100, 1) if quick else (2_500, 7)
    events = _events(count // _EVENTS_OF_A_SESSION, one_each=True)
    records = _records([an_aggregate(events[at : at + 10]) for at in range(0, len(events), 10)])
    of_cpu: list[float] = []
    with stub(delay=0.004, core=_other_core()) as aws, on_one_core():
        tables = Tables(_ours(aws), NAMES, writers=ConsumerSettings.writers)

        def batch() -> float:
            aws.forget()
            with without_collection(), _timed(len(events)) as rates:
                outcome = consume(kinesis_batch.read({"Records": records}), tables)
            assert outcome.sessions == len(events), outcome.failure
            of_cpu.append(rates["cpu"])
            return rates["wall"]

        found = in_turns({"ours": batch}, rounds, "one event each")
    return Row(
        name="consumer with writes, one event a session, one vCPU, 4 ms",
        unit="events/s",
        ours="ours",
        figures={"ours": Spread.of(found["ours"])},
        ratios=[
            Ratio("2,500/s, a full shard", Spread.of([rate / _FULL_SHARD for rate in found["ours"]]), bound=1.0),
            Ratio("2,500/s, by CPU time alone", Spread.of([rate / _FULL_SHARD for rate in of_cpu[1:]])),
        ],
        note=(
            "Wall time of all that a batch of so many events takes: loads, folding, roll-ups, events, marks and sessions."
        ),
    )


def _other_core() -> int | None:
    return 1 if (os.cpu_count() or 1) > 1 else None


@contextmanager
def on_one_core() -> Iterator[None]:
    """This thread, and those that it starts, on the first processor alone, where the system lets one choose."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _timed(count: int) -> Iterator[dict[str, float]]:
    """``count`` things a second of this process's CPU time ("cpu") and of the clock ("wall"), known at the end."""
    rates: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield rates
    rates |= {"cpu": count / (time.process_time() - cpu), "wall": count / (time.perf_counter() - wall)}


def _ours(aws: Stub) -> Any:
    """The consumer's client, as the function makes it."""
    session = botocore.session.get_session()
    config = Config(
        connect_timeout=2,
        read_timeout=5,
        retries={"mode": "standard", "total_max_attempts": 4},
        parameter_validation=False,
    )
    session.set_credentials(_ID, _SECRET)
    client: Any = session.create_client("dynamodb", region_name=_REGION, endpoint_url=aws.url, config=config)
    return signed_writes(session, client)


def _events(sessions: int, *, one_each: bool = False) -> list[Event]:
    """About so many sessions' events in order of arrival, ten of each, or each the event of a session of its own."""
    plan = Plan(sessions * 50, _NOW, active=sessions * 50, shards=1)
    of: dict[str, list[Event]] = {}
    events = events_of(plan, 0)
    for event in events:
        of.setdefault(event.session_id, []).append(event)
    ten = [name for name, some in of.items() if len(some) == _EVENTS_OF_A_SESSION][:sessions]
    assert len(ten) == sessions
    chosen = set(ten)
    found = [event for event in events if event.session_id in chosen]
    if one_each:
        return [
            msgspec.structs.replace(event, session_id=f"{event.session_id}-{number}")
            for number, event in enumerate(found)
        ]
    return found


def _sessions(events: Sequence[Event]) -> list[Session]:
    found: dict[str, Session] = {}
    for event in events:
        found.setdefault(event.session_id, Session(event.site_id, event.session_id)).apply(event)
    return list(found.values())


def _records(datas: Sequence[bytes]) -> list[dict[str, Any]]:
    """As Lambda hands them over."""
    return [
        {
            "kinesis": {
                "sequenceNumber": str(number),
                "partitionKey": "1",
                "kinesisSchemaVersion": "1.0",
                "data": base64.b64encode(data).decode(),
                "approximateArrivalTimestamp": _NOW / 1000,
            },
            "eventID": f"{_SHARD}:{number}",
            "eventSource": "aws:kinesis",
        }
        for number, data in enumerate(datas, 1)
    ]


def _update_for_each(records: Sequence[dict[str, Any]], client: Any) -> None:
    """The ordinary design: each record is an event, and updates its session's item."""

    def update(record: KinesisStreamRecord) -> None:
        event = record.kinesis.data_as_json()
        views = event["event_type"] == "page_view"
        client.update_item(
            TableName=NAMES.sessions,
            Key={"pk": {"S": f"{event['site_id']}#{event['session_id']}"}},
            UpdateExpression=(
                "ADD events :one, page_views :views SET started_at = if_not_exists(started_at, :at), ended_at = :at,"
                " last_page = :page"
            ),
            ExpressionAttributeValues={
                ":one": {"N": "1"},
                ":views": {"N": "1" if views else "0"},
                ":at": {"N": str(event["timestamp"])},
                ":page": {"S": event.get("page_url", "")},
            },
        )

    processor = BatchProcessor(event_type=EventType.KinesisDataStreams)
    with processor(records=list(records), handler=update):
        processor.process()
    assert processor.response() == {"batchItemFailures": []}


def _by_tables(aws: Stub, writers: int) -> Callable[[Sequence[Session]], None]:
    tables = Tables(_ours(aws), NAMES, writers=writers)

    def write_all(sessions: Sequence[Session]) -> None:
        became = tables.each(lambda one: tables.save_session(session_item(one, _POSITIONS), None), sessions)
        assert not any(became)

    return write_all


def _by_boto3(client: Any, threads: int) -> Callable[[Sequence[Session]], None]:
    pool = ThreadPoolExecutor(threads)

    def write(session: Session) -> None:
        client.put_item(
            TableName=NAMES.sessions,
            Item=session_item(session, _POSITIONS),
            ConditionExpression="attribute_not_exists(pk)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )

    def write_all(sessions: Sequence[Session]) -> None:
        for _ in pool.map(write, sessions):
            pass

    return write_all


def _by_hand(aws: Stub, threads: int) -> Callable[[Sequence[Session]], None]:
    """The least: encoded, signed, sent over the thread's connection, and the status looked at."""
    host = aws.url.removeprefix("http://")
    names = "content-type;host;x-amz-date;x-amz-target"
    kind, target = "application/x-amz-json-1.0", "DynamoDB_20120810.PutItem"
    day = time.strftime("%Y%m%d", time.gmtime())
    scope = f"{day}/{_REGION}/dynamodb/aws4_request"
    key = f"AWS4{_SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    own = threading.local()
    pool = ThreadPoolExecutor(threads)

    def write(session: Session) -> None:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(host)
        body = msgspec.json.encode(
            {
                "TableName": NAMES.sessions,
                "Item": session_item(session, _POSITIONS),
                "ConditionExpression": "attribute_not_exists(pk)",
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        )
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        canonical = (
            f"POST\n/\n\ncontent-type:{kind}\nhost:{host}\nx-amz-date:{now}\nx-amz-target:{target}\n\n{names}\n"
            f"{hashlib.sha256(body).hexdigest()}"
        )
        wanted = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(key, wanted.encode(), "sha256").hex()
        own.connection.request(
            "POST",
            "/",
            body,
            {
                "Host": host,
                "X-Amz-Target": target,
                "Content-Type": kind,
                "X-Amz-Date": now,
                "Authorization": (
                    f"AWS4-HMAC-SHA256 Credential={_ID}/{scope}, SignedHeaders={names}, Signature={signature}"
                ),
            },
        )
        answer = own.connection.getresponse()
        answer.read()
        assert answer.status == 200

    def write_all(sessions: Sequence[Session]) -> None:
        for _ in pool.map(write, sessions):
            pass

    return write_all
