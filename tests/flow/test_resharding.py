"""Resharding for real: shards split and merge under the load, and each acknowledged event counts once.

The producer, the event source and the consumer are the real ones; Kinesis is ``kinesis-local``, whose sequence
numbers, closed shards and parents are as AWS's; the tables are in memory.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.local.event_source import EventSource, FunctionSettings, MappingSettings
from infra.local.shard_mapping import Answered
from producer.client import BufferFull, DeliveryFailed, EventProducer, ProducerSettings
from producer.event import Event, decode
from producer.kpl import Aggregate, decode_record
from stream_consumer.consume import Outcome, consume
from stream_consumer.items import read_rollup, read_session
from stream_consumer.kinesis_batch import position, read
from stream_consumer.rollup import EVENT_MEASURES, SESSION_MEASURES
from tests.builders import a_lambda_event, an_event
from tests.fake_dynamodb import MemoryTables
from tests.flow.kinesis_local import kinesis_local, missing

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

STREAM = "events"
#: Acknowledged events before, between and after the two reshardings.
LOAD = 1000

#: Shard id -> its records in order, as (sequence number, data); parents come before their children.
Log = dict[str, list[tuple[str, bytes]]]


class Traffic:
    """Visitors who send events until the block ends. What Kinesis acknowledged is in ``acknowledged``, by event id.

    Every other session's events are numbered. Some events are sent again, as by a browser that got no answer.
    """

    THREADS = 4
    SESSIONS = 30  # of each thread
    LOT = 25

    def __init__(self, producer: EventProducer) -> None:
        self.acknowledged: dict[str, Event] = {}
        self.repeats = 0
        self.failures: list[Exception] = []
        self._producer = producer
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.THREADS)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Return when ``count`` further events are acknowledged."""
        wanted, deadline = len(self.acknowledged) + count, time.monotonic() + 60
        while len(self.acknowledged) < wanted and not self.failures:
            assert time.monotonic() < deadline, f"{len(self.acknowledged)} of {wanted} events acknowledged"
            time.sleep(0.01)

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        past: list[Event] = []
        numbers: Counter[str] = Counter()
        try:
            while not self._ended.is_set():
                fresh = [self._event(number, len(past) + at, numbers, rng) for at in range(self.LOT)]
                again = rng.choices(past, k=2) if past else []
                self._producer.send_many([*fresh, *again]).wait(60)
                past += fresh
                with self._lock:
                    self.acknowledged.update((event.event_id, event) for event in fresh)
                    self.repeats += len(again)
        except (BufferFull, DeliveryFailed, TimeoutError) as failure:
            self.failures.append(failure)

    def _event(self, thread: int, number: int, numbers: Counter[str], rng: random.Random) -> Event:
        at = rng.randrange(self.SESSIONS)
        session_id = f"s{thread}-{at}"
        fields = {"event_type": rng.choice(["page_view", "page_view", "click"]), "session_id": session_id}
        if at % 2:
            numbers[session_id] += 1
            fields |= {"source": f"tab{thread}", "seq": numbers[session_id]}
        # Five seconds apart, so that sessions last for several quarters of an hour.
        return an_event(number * 5, **fields, event_id=f"e{thread}-{number}")


class Consumer:
    """The consumer's function, in this process, for every shard; it adds up what its batches' outcomes say."""

    def __init__(self, store: MemoryTables) -> None:
        self.store = store
        self.totals: Counter[str] = Counter()
        self._lock = threading.Lock()

    def invoke(self, event: bytes, request_id: str, arn: str) -> Answered:
        outcome = consume(read(json.loads(event)), self.store)
        self._note(outcome)
        failures = [] if outcome.failed_from is None else [{"itemIdentifier": outcome.failed_from}]
        return Answered(request_id, {"batchItemFailures": failures})

    def start(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _note(self, outcome: Outcome) -> None:
        with self._lock:
            self.totals.update(
                batches=1,
                received=outcome.received,
                applied=outcome.applied,
                duplicate=outcome.duplicate,
                late=outcome.late,
                erased=outcome.erased,
                quarantined=outcome.quarantined.total(),
                conflicts=outcome.conflicts,
                failed=outcome.failed_from is not None,
            )


@contextmanager
def consuming(kinesis: KinesisClient, store: MemoryTables, state: Path) -> Iterator[Consumer]:
    """A running event source, which is drained when the block ends."""
    consumer = Consumer(store)
    source = EventSource(
        STREAM,
        FunctionSettings("stream_consumer.lambda_handler.handler"),
        MappingSettings(batch_size=25, report_batch_item_failures=True, bisect_batch_on_function_error=True),
        state,
        kinesis=kinesis,
        discovery_interval=0.5,
        rng=random.Random(3),
        start_function=lambda: consumer,
    )
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(source.run()))
    thread.start()
    try:
        yield consumer
    finally:
        source.drain()
        thread.join()
    assert results == [0], "the event source drained the stream"


def split(kinesis: KinesisClient, shard_id: str) -> None:
    """Split a shard in the middle."""
    (hashes,) = (shard["HashKeyRange"] for shard in shards(kinesis) if shard["ShardId"] == shard_id)
    middle = (int(hashes["StartingHashKey"]) + int(hashes["EndingHashKey"]) + 1) // 2
    kinesis.split_shard(StreamName=STREAM, ShardToSplit=shard_id, NewStartingHashKey=str(middle))


def status(kinesis: KinesisClient) -> str:
    return kinesis.describe_stream_summary(StreamName=STREAM)["StreamDescriptionSummary"]["StreamStatus"]


def until_active(kinesis: KinesisClient) -> None:
    deadline = time.monotonic() + 30
    while status(kinesis) != "ACTIVE":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def shards(kinesis: KinesisClient) -> list[dict]:
    """In the order in which they were made."""
    return sorted(kinesis.list_shards(StreamName=STREAM)["Shards"], key=lambda shard: shard["ShardId"])


def read_log(kinesis: KinesisClient) -> Log:
    """Everything that is on the stream, read without any code under test."""
    log: Log = {}
    for shard_id in (shard["ShardId"] for shard in shards(kinesis)):
        records = log[shard_id] = []
        iterator = kinesis.get_shard_iterator(StreamName=STREAM, ShardId=shard_id, ShardIteratorType="TRIM_HORIZON")[
            "ShardIterator"
        ]
        while iterator:
            answer = kinesis.get_records(ShardIterator=iterator, Limit=1000)
            records += [(record["SequenceNumber"], record["Data"]) for record in answer["Records"]]
            if not answer["Records"] and not answer["MillisBehindLatest"]:
                break
            iterator = answer.get("NextShardIterator")
    return log


def events_of(log: Log) -> Iterator[tuple[str, str, Event]]:
    """(shard id, position, event) of all that is in the log."""
    for shard_id, records in log.items():
        for sequence_number, data in records:
            aggregate = decode_record(data)
            assert isinstance(aggregate, Aggregate)
            for index, record in enumerate(aggregate.records):
                event = decode(record.data)
                assert isinstance(event, Event)
                yield shard_id, position(sequence_number, index), event


def record_by_record(log: Log) -> MemoryTables:
    """The tables after the log was consumed one record at a time, one shard after the other."""
    store = MemoryTables()
    for shard_id, records in log.items():
        for sequence_number, data in records:
            consume(read(a_lambda_event([data], int(sequence_number), shard_id)), store)
    return store


def stored_events(store: MemoryTables) -> dict[str, Event]:
    """By position."""
    return {at: decode(data) for at, data in store.stored_events().items()}


def tables(store: MemoryTables) -> tuple[dict, ...]:
    return dict(store.sessions), dict(store.rollups), dict(store.events), dict(store.quarantine)


def rolled_up(store: MemoryTables) -> dict[str, int]:
    """The totals of all roll-ups."""
    totals: Counter[str] = Counter()
    for rollup in (read_rollup(item).rollup for item in store.rollups.values()):
        for minute in rollup.minutes:
            totals.update({f"event {name}": count for name, count in zip(EVENT_MEASURES, minute, strict=True)})
        for began in rollup.began:
            totals.update(dict(zip(SESSION_MEASURES, began, strict=True)))
    return totals


@pytest.fixture(scope="module")
def kinesis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KinesisClient]:
    if why := missing():
        pytest.skip(why)
    with kinesis_local(tmp_path_factory.mktemp("kinesis") / "log", resharding_ms=300) as client:
        yield client


@pytest.mark.long
def test_shards_split_and_merge_under_load_and_nothing_is_lost_or_doubled(
    kinesis: KinesisClient, tmp_path: Path
) -> None:
    began = time.monotonic()
    kinesis.create_stream(StreamName=STREAM, ShardCount=2)
    until_active(kinesis)
    zero, one, two, three, four = (f"shardId-{number:012d}" for number in range(5))
    store = MemoryTables()
    with consuming(kinesis, store, tmp_path / "first") as consumer:
        with (
            EventProducer(ProducerSettings(stream=STREAM, lanes=16), kinesis) as producer,
            Traffic(producer) as traffic,
        ):
            traffic.more(LOAD)
            split(kinesis, zero)  # into two and three
            assert status(kinesis) == "UPDATING"
            until_active(kinesis)
            traffic.more(LOAD)
            kinesis.merge_shards(StreamName=STREAM, ShardToMerge=three, AdjacentShardToMerge=one)  # into four
            assert status(kinesis) == "UPDATING"
            until_active(kinesis)
            traffic.more(LOAD)
        assert traffic.failures == []
    sent = traffic.acknowledged

    parents = {
        shard["ShardId"]: {shard.get("ParentShardId"), shard.get("AdjacentParentShardId")} - {None}
        for shard in shards(kinesis)
    }
    assert parents == {zero: set(), one: set(), two: {zero}, three: {zero}, four: {three, one}}

    log = read_log(kinesis)
    arrived = Counter(event.event_id for _, _, event in events_of(log))
    assert arrived.keys() == sent.keys()
    assert arrived.total() >= len(sent) + traffic.repeats > len(sent)

    # The ledger: each payload of the stream was received once, and counted or known.
    assert consumer.totals["received"] == arrived.total()
    assert consumer.totals["applied"] == len(sent)
    assert consumer.totals["duplicate"] == arrived.total() - len(sent)
    assert consumer.totals["late"] == consumer.totals["quarantined"] == consumer.totals["failed"] == 0

    # Sessions, roll-ups and stored events, each event once.
    sessions = {key: read_session(item) for key, item in store.sessions.items()}
    wanted = Counter(f"{event.site_id}#{event.session_id}" for event in sent.values())
    assert {key: stored.session.events for key, stored in sessions.items()} == wanted
    page_views = sum(event.event_type == "page_view" for event in sent.values())
    totals = rolled_up(store)
    assert totals["event events"] == totals["events"] == len(sent)
    assert totals["event page_views"] == totals["page_views"] == page_views
    assert totals["sessions"] == len(sessions) == Traffic.THREADS * Traffic.SESSIONS
    assert sorted(event.event_id for event in stored_events(store).values()) == sorted(sent)

    # A session stands at its last event in each shard that it was in, and it was in one after the other.
    positions: defaultdict[str, dict[str, str]] = defaultdict(dict)
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for shard_id, at, event in events_of(log):
        key = f"{event.site_id}#{event.session_id}"
        positions[key][shard_id] = at
        if event.seq and event.seq not in numbers[key]:
            numbers[key].append(event.seq)
    assert {key: stored.positions for key, stored in sessions.items()} == positions
    paths = Counter(tuple(sorted(at)) for at in positions.values())
    assert {(zero, two), (zero, three, four), (one, four)} <= paths.keys()
    assert all(sorted(found) == found for found in numbers.values())

    # As if it had come record by record, in order.
    quiet = record_by_record(log)
    assert (store.bare_sessions(), store.rollups) == (quiet.bare_sessions(), quiet.rollups)
    assert stored_events(store) == stored_events(quiet)

    # Everything once more, to an event source that knows nothing: nothing is written.
    before, writes = tables(store), store.writes
    with consuming(kinesis, store, tmp_path / "second") as again:
        pass
    assert again.totals["received"] == again.totals["duplicate"] == arrived.total()
    assert tables(store) == before
    assert store.writes == writes
    print(
        f"resharding: {len(sent):,} events and {arrived.total() - len(sent)} repeats of {len(sessions)} sessions in "
        f"{sum(map(len, log.values())):,} records of {len(log)} shards, {consumer.totals['batches']} batches, "
        f"{time.monotonic() - began:.1f} s: 0 lost, 0 doubled"
    )
