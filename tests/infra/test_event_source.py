"""The event source around the rules: shards and their children, faults of the stream, checkpoints, ending.

The stream is a fake that can be split, be made anew and fail; the function runs in the shard's thread.
"""

import base64
import json
import logging
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from infra.local import event_source as subject
from infra.local.event_source import Checkpoints, EventSource, FunctionSettings, MappingSettings, ShardState, StateError
from infra.local.shard_mapping import Answered, FunctionError, StartingPosition

ARN = "arn:aws:kinesis:us-east-1:123456789012:stream/s"
FAST = MappingSettings(poll_interval=0.01, first_backoff=0.01, longest_backoff=0.02, report_batch_item_failures=True)
FUNCTION = FunctionSettings("some.handler")


def shard_name(number):
    return f"shardId-{number:012d}"


def refusal(code, operation="GetRecords"):
    return ClientError({"Error": {"Code": code, "Message": "no"}}, operation)


@dataclass
class FakeShard:
    parents: tuple = ()
    records: list = field(default_factory=list)
    closed: bool = False


class FakeKinesis:
    """A stream with sequence numbers as long as the real ones, and faults to order."""

    def __init__(self):
        self.created = datetime(2026, 1, 1, tzinfo=UTC)
        self.shards = {shard_name(0): FakeShard()}
        self.faults = []
        self.calls = []
        self.number = 10**55
        self.expired = []
        self.lock = threading.Lock()

    def put(self, shard, *texts):
        with self.lock:
            for text in texts:
                self.number += 1000
                self.shards[shard_name(shard)].records.append((self.number, text, datetime.now(UTC)))

    def split(self, shard, *children):
        with self.lock:
            self.shards[shard_name(shard)].closed = True
            for child in children:
                self.shards[shard_name(child)] = FakeShard((shard_name(shard),))

    def merge(self, one, other, child):
        with self.lock:
            self.shards[shard_name(one)].closed = self.shards[shard_name(other)].closed = True
            self.shards[shard_name(child)] = FakeShard((shard_name(one), shard_name(other)))

    def _called(self, *call):
        with self.lock:
            self.calls.append(call)
            if self.faults and self.faults[0][0] == call[0]:
                raise self.faults.pop(0)[1]

    def describe_stream_summary(self, StreamName):
        self._called("describe")
        return {"StreamDescriptionSummary": {"StreamARN": ARN, "StreamCreationTimestamp": self.created}}

    def get_paginator(self, name):
        assert name == "list_shards"
        return self

    def paginate(self, StreamName):
        self._called("list")
        with self.lock:
            for name, shard in self.shards.items():
                keys = dict(zip(("ParentShardId", "AdjacentParentShardId"), shard.parents, strict=False))
                yield {"Shards": [{"ShardId": name, **keys}]}

    def get_shard_iterator(self, StreamName, ShardId, ShardIteratorType, StartingSequenceNumber=None, Timestamp=None):
        self._called("iterator", ShardId, ShardIteratorType)
        after, since = int(StartingSequenceNumber or 0), datetime.min.replace(tzinfo=UTC)
        if Timestamp:
            since = Timestamp.replace(microsecond=0)
        return {"ShardIterator": [ShardId, after, since]}

    def get_records(self, ShardIterator, Limit):
        name, after, since = ShardIterator
        try:
            self._called("records", name)
        except ClientError:
            self.expired.append(ShardIterator)
            raise
        if any(ShardIterator is expired for expired in self.expired):
            raise refusal("ExpiredIteratorException")
        with self.lock:
            shard = self.shards[name]
            found = [record for record in shard.records if record[0] > after and record[2] >= since]
            answer = {
                "Records": [
                    {
                        "SequenceNumber": str(number),
                        "PartitionKey": "k",
                        "Data": text.encode(),
                        "ApproximateArrivalTimestamp": arrived,
                    }
                    for number, text, arrived in found[:Limit]
                ],
                "MillisBehindLatest": 1000 * (len(found) > Limit),
            }
            if not (shard.closed and len(found) <= Limit):
                answer["NextShardIterator"] = [name, found[:Limit][-1][0] if found else after, since]
        return answer


class FakeSqs:
    def __init__(self):
        self.sent = []
        self.faults = []

    def get_queue_url(self, QueueName, QueueOwnerAWSAccountId):
        return {"QueueUrl": f"http://queue/{QueueOwnerAWSAccountId}/{QueueName}"}

    def send_message(self, QueueUrl, MessageBody):
        if self.faults:
            raise self.faults.pop()
        self.sent.append((QueueUrl, json.loads(MessageBody)))


class Consumer:
    """What the functions of all shards did, in order: (shard number, texts)."""

    def __init__(self):
        self.done = []
        self.answers = {}
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    @property
    def texts(self):
        return [text for _, texts in self.done for text in texts]

    def __call__(self):
        return ConsumerFunction(self)


class ConsumerFunction:
    def __init__(self, consumer):
        self.consumer = consumer
        self.killed = threading.Event()

    def invoke(self, event, request_id, arn):
        assert arn == "arn:aws:lambda:us-east-1:123456789012:function:local-function"
        records = json.loads(event)["Records"]
        texts = [base64.b64decode(record["kinesis"]["data"]).decode() for record in records]
        self.consumer.entered.set()
        while not self.consumer.gate.wait(0.01):
            if self.killed.is_set():
                return FunctionError(request_id, "Runtime.ExitError", "killed")
        if texts[0] in self.consumer.answers:
            return self.consumer.answers[texts[0]](request_id)
        self.consumer.done.append((int(records[0]["eventID"].partition(":")[0][-12:]), texts))
        return Answered(request_id, {"batchItemFailures": []})

    def start(self) -> None:
        pass

    def kill(self):
        self.killed.set()

    def close(self):
        pass


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.005)


def a_source(kinesis, consumer, state, mapping=FAST, **more):
    return EventSource(
        "s", FUNCTION, mapping, state, kinesis=kinesis, start_function=consumer, discovery_interval=1000, **more
    )


@contextmanager
def running(*arguments, **more):
    """A source that runs in a thread; at the end it is drained, and its exit code is in ``codes``."""
    source = a_source(*arguments, **more)
    source.codes = []
    thread = threading.Thread(target=lambda: source.codes.append(source.run()), daemon=True)
    thread.start()
    try:
        yield source
    finally:
        source.drain()
        thread.join(15)
        assert not thread.is_alive()


def run_to_the_tip(*arguments, **more):
    with running(*arguments, **more) as source:
        pass
    return source.codes[0]


@pytest.fixture
def kinesis():
    return FakeKinesis()


@pytest.fixture
def consumer():
    return Consumer()


# Shards.


def test_parents_are_drained_before_their_children_both_of_them_on_a_merge(kinesis, consumer, tmp_path):
    kinesis.put(0, "a", "b")
    kinesis.split(0, 1, 2)
    kinesis.put(1, "c")
    kinesis.put(2, "d", "e")
    kinesis.merge(1, 2, 3)
    kinesis.put(3, "f")
    assert run_to_the_tip(kinesis, consumer, tmp_path, replace(FAST, batch_size=1)) == 0
    shards = [shard for shard, _ in consumer.done]
    assert shards[:2] == [0, 0]
    assert sorted(shards[2:5]) == [1, 2, 2]
    assert shards[5:] == [3]
    assert sorted(consumer.texts) == ["a", "b", "c", "d", "e", "f"]


def test_children_start_when_their_parent_ends(kinesis, consumer, tmp_path):
    with running(kinesis, consumer, tmp_path) as source:
        kinesis.put(0, "a")
        until(lambda: consumer.texts == ["a"])
        kinesis.split(0, 1, 2)
        kinesis.put(2, "b")
        until(lambda: consumer.texts == ["a", "b"])
    assert source.codes == [0]


def test_a_drained_shard_is_not_read_again(kinesis, consumer, tmp_path):
    kinesis.put(0, "a")
    kinesis.split(0, 1)
    assert run_to_the_tip(kinesis, consumer, tmp_path) == 0
    kinesis.calls.clear()
    kinesis.put(1, "b")
    assert run_to_the_tip(kinesis, consumer, tmp_path) == 0
    assert consumer.texts == ["a", "b"]
    assert {call[1] for call in kinesis.calls if call[0] == "iterator"} == {shard_name(1)}


def test_a_shard_whose_parents_are_past_retention_starts(kinesis, consumer, tmp_path):
    kinesis.shards = {shard_name(4): FakeShard((shard_name(1), shard_name(2)))}
    kinesis.put(4, "a")
    assert run_to_the_tip(kinesis, consumer, tmp_path) == 0
    assert consumer.texts == ["a"]


def test_one_batch_of_a_shard_is_in_flight_and_shards_do_not_wait_for_each_other(kinesis, consumer, tmp_path):
    kinesis.split(0, 1, 2)
    consumer.answers["stuck"] = lambda request_id: FunctionError(request_id, "E", "")
    kinesis.put(1, "stuck", "x")
    kinesis.put(2, "a")
    with running(kinesis, consumer, tmp_path, drain_timeout=0.3) as source:
        until(lambda: consumer.texts == ["a"])
        kinesis.put(2, "b")
        until(lambda: consumer.texts == ["a", "b"])
    assert source.codes == [1]


# Faults.

FAULTS = [
    ("records", refusal("ProvisionedThroughputExceededException")),
    ("records", refusal("ExpiredIteratorException")),
    ("records", refusal("InternalFailure")),
    ("records", EndpointConnectionError(endpoint_url="http://127.0.0.1:1")),
    ("iterator", refusal("LimitExceededException", "GetShardIterator")),
    ("iterator", EndpointConnectionError(endpoint_url="http://127.0.0.1:1")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_of_the_stream_loses_no_position(kinesis, consumer, tmp_path, fault):
    kinesis.put(0, "a", "b")
    if fault[0] == "iterator":
        kinesis.faults.append(("records", refusal("ExpiredIteratorException")))
    kinesis.faults += [fault, fault]
    with running(kinesis, consumer, tmp_path, replace(FAST, batch_size=1)):
        until(lambda: consumer.texts == ["a", "b"])
        kinesis.faults += [fault]
        kinesis.put(0, "c")
        until(lambda: len(consumer.texts) > 2)
    assert consumer.texts == ["a", "b", "c"]


@pytest.mark.parametrize("call", ["describe", "list"])
def test_a_stream_that_is_not_there_yet_is_waited_for(kinesis, consumer, tmp_path, call, monkeypatch):
    monkeypatch.setattr(subject, "_DISCOVERY_RETRY", 0.01)
    kinesis.faults += [(call, refusal("ResourceNotFoundException")), (call, refusal("ResourceInUseException"))]
    kinesis.put(0, "a")
    with running(kinesis, consumer, tmp_path):
        until(lambda: consumer.texts == ["a"])


def test_a_checkpoint_that_cannot_be_written_stops_the_shard_until_it_can(kinesis, consumer, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_DISCOVERY_RETRY", 0.01)
    fsync, full = os.fsync, threading.Event()

    def fsync_if_there_is_room(file):
        if full.is_set():
            raise OSError("No space left on device")
        fsync(file)

    monkeypatch.setattr(subject.os, "fsync", fsync_if_there_is_room)
    with running(kinesis, consumer, tmp_path):
        until((tmp_path / "checkpoints.json").exists)
        full.set()
        kinesis.put(0, "a")
        until(lambda: len(consumer.texts) == 2)
        full.clear()
        until(lambda: "1000" in (tmp_path / "checkpoints.json").read_text())
        kinesis.put(0, "b")
    # What was not checkpointed comes again; what was does not.
    assert set(consumer.texts[:-1]) == {"a"}
    assert consumer.texts[-1] == "b"


def test_discarded_records_are_reported_to_the_queue_and_the_shard_goes_on(kinesis, consumer, tmp_path, caplog):
    sqs = FakeSqs()
    sqs.faults.append(EndpointConnectionError(endpoint_url="http://127.0.0.1:1"))
    consumer.answers["bad"] = lambda request_id: FunctionError(request_id, "E", "")
    kinesis.put(0, "bad", "good")
    mapping = replace(
        FAST, batch_size=1, maximum_retry_attempts=1, on_failure="arn:aws:sqs:us-east-1:123456789012:failures"
    )
    assert run_to_the_tip(kinesis, consumer, tmp_path, mapping, sqs=sqs) == 0
    ((url, document),) = sqs.sent
    assert url == "http://queue/123456789012/failures"
    assert document["requestContext"]["approximateInvokeCount"] == 2
    assert document["KinesisBatchInfo"]["startSequenceNumber"] == str(10**55 + 1000)
    assert consumer.texts == ["good"]
    assert "gave up records" in caplog.text


# Checkpoints.


def test_a_restart_goes_on_behind_what_is_done(kinesis, consumer, tmp_path):
    for text in "abc":
        kinesis.put(0, text)
        assert run_to_the_tip(kinesis, consumer, tmp_path) == 0
    assert consumer.texts == ["a", "b", "c"]
    kinds = [call[2] for call in kinesis.calls if call[0] == "iterator"]
    assert kinds == ["TRIM_HORIZON", "AFTER_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"]


def test_a_stream_made_anew_starts_afresh(kinesis, consumer, tmp_path):
    kinesis.put(0, "a", "b")
    assert run_to_the_tip(kinesis, consumer, tmp_path) == 0
    anew = FakeKinesis()
    anew.created = datetime(2026, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)
    anew.put(0, "c")
    assert run_to_the_tip(anew, consumer, tmp_path) == 0
    assert consumer.texts == ["a", "b", "c"]


def test_a_stream_made_anew_while_it_is_read_starts_afresh(kinesis, consumer, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_DISCOVERY_RETRY", 0.01)
    kinesis.put(0, "a", "b")
    with running(kinesis, consumer, tmp_path):
        until(lambda: consumer.texts == ["a", "b"])
        with kinesis.lock:
            kinesis.created = datetime(2026, 1, 2, tzinfo=UTC)
            kinesis.shards = {shard_name(0): FakeShard()}
            kinesis.number = 5
            kinesis.faults.append(("records", EndpointConnectionError(endpoint_url="http://127.0.0.1:1")))
        kinesis.put(0, "c")
        until(lambda: consumer.texts == ["a", "b", "c"])


def test_latest_is_the_moment_of_the_first_start(kinesis, consumer, tmp_path):
    latest = replace(FAST, starting_position=StartingPosition.LATEST)
    kinesis.put(0, "before")
    time.sleep(0.005)
    assert run_to_the_tip(kinesis, consumer, tmp_path, latest) == 0
    # Nothing was done yet, so no sequence number says where to go on.
    kinesis.put(0, "while stopped")
    kinesis.split(0, 1)
    kinesis.put(1, "in the child")
    assert run_to_the_tip(kinesis, consumer, tmp_path, latest) == 0
    assert consumer.texts == ["while stopped", "in the child"]


def test_a_starting_time_is_exact_to_the_millisecond(kinesis, consumer, tmp_path):
    kinesis.put(0, "before", "after")
    (number, text, _), later = kinesis.shards[shard_name(0)].records
    start = datetime(2026, 11, 1, 12, 0, 0, 700_000, tzinfo=UTC)
    kinesis.shards[shard_name(0)].records = [(number, text, start.replace(microsecond=699_000)), (*later[:2], start)]
    mapping = replace(FAST, starting_position=StartingPosition.AT_TIMESTAMP, starting_timestamp=start.timestamp())
    assert run_to_the_tip(kinesis, consumer, tmp_path, mapping) == 0
    assert consumer.texts == ["after"]


def test_checkpoints_are_of_one_stream_and_its_creation(tmp_path):
    path = tmp_path / "checkpoints.json"
    big = ShardState(str(10**128), drained=True)
    Checkpoints(path, ARN, 1, read_from=2.5).save("shard", big)
    Checkpoints(path, ARN + "2", 1, read_from=None).save("shard", ShardState("7"))
    again = Checkpoints(path, ARN, 1, read_from=99.0)
    assert (again["shard"], again["other"], again.read_from) == (big, ShardState(), 2.5)
    assert Checkpoints(path, ARN, 2, read_from=None)["shard"] == ShardState()
    assert Checkpoints(path, ARN + "2", 1, read_from=None)["shard"] == ShardState("7")


def test_a_crash_while_checkpoints_are_written_leaves_the_last_ones(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints.json"
    checkpoints = Checkpoints(path, ARN, 1, read_from=None)
    checkpoints.save("shard", ShardState("1"))

    def crash(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(subject.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save("shard", ShardState("2"))
    monkeypatch.undo()
    assert Checkpoints(path, ARN, 1, read_from=None)["shard"] == ShardState("1")


def test_checkpoints_are_replaced_whole(tmp_path):
    path = tmp_path / "checkpoints.json"
    checkpoints = Checkpoints(path, ARN, 1, read_from=None)
    before = path.read_bytes()
    with path.open("rb") as old:
        checkpoints.save("shard", ShardState("1"))
        assert old.read() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 2, "streams": {}}'])
def test_a_file_that_holds_no_checkpoints_is_not_overwritten(kinesis, consumer, tmp_path, content):
    path = tmp_path / "checkpoints.json"
    path.write_text(content)
    with pytest.raises(StateError, match="delete it to start afresh"):
        a_source(kinesis, consumer, tmp_path).run()
    assert path.read_text() == content


def test_a_state_directory_has_one_user(kinesis, consumer, tmp_path):
    with running(kinesis, consumer, tmp_path):
        until((tmp_path / "checkpoints.json").exists)
        with pytest.raises(StateError, match="another event source"):
            a_source(kinesis, consumer, tmp_path).run()


def test_a_state_directory_that_cannot_be_one_is_named(kinesis, consumer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="name another directory"):
        a_source(kinesis, consumer, tmp_path / "file").run()


# Ending.


def test_a_drain_processes_what_is_there_without_waiting_for_the_window(kinesis, consumer, tmp_path):
    kinesis.split(0, 1, 2)
    kinesis.put(1, *"abcde")
    kinesis.put(2, *"fgh")
    began = time.monotonic()
    assert run_to_the_tip(kinesis, consumer, tmp_path, replace(FAST, batch_size=100, batching_window=300)) == 0
    assert time.monotonic() - began < 5
    assert sorted(consumer.texts) == list("abcdefgh")


def test_a_drain_ends_under_a_split_that_comes_meanwhile(kinesis, consumer, tmp_path):
    kinesis.split(0, 1, 2)
    kinesis.put(2, "held")
    consumer.gate.clear()
    with running(kinesis, consumer, tmp_path) as source:
        consumer.entered.wait(5)
        source.drain()
        until(lambda: shard_name(1) in {thread.shard_id for thread in ended(source)})
        kinesis.split(1, 3)
        kinesis.split(2, 4)
        kinesis.put(4, "child of a shard that is read to its end")
        consumer.gate.set()
    assert source.codes == [0]
    assert consumer.texts == ["held", "child of a shard that is read to its end"]


def ended(source):
    return [thread for thread in source._current.threads.values() if thread.ended]


def test_a_drain_that_takes_too_long_says_what_is_left_and_the_next_start_has_it(kinesis, consumer, tmp_path, caplog):
    kinesis.put(0, "a", "b", "c")
    consumer.gate.clear()
    began = time.monotonic()
    with running(kinesis, consumer, tmp_path, drain_timeout=0.2) as source:
        consumer.entered.wait(5)
    assert source.codes == [1]
    assert time.monotonic() - began < 5
    assert "1 of 1 shards" in caplog.text
    assert "not done: 3" in caplog.text
    consumer.gate.set()
    assert run_to_the_tip(kinesis, consumer, tmp_path) == 0
    assert consumer.texts == ["a", "b", "c"]


def test_a_stop_waits_for_the_batch_in_flight_alone(kinesis, consumer, tmp_path):
    kinesis.put(0, "a", "b")
    consumer.gate.clear()
    with running(kinesis, consumer, tmp_path, replace(FAST, batch_size=1)) as source:
        consumer.entered.wait(5)
        source.drain()
        source.stop()
        time.sleep(0.05)
        consumer.gate.set()
    assert source.codes == [1]
    assert consumer.texts == ["a"]
    assert run_to_the_tip(kinesis, consumer, tmp_path) == 0
    assert consumer.texts == ["a", "b"]


def test_a_drain_without_a_stream_ends_at_its_time(consumer, tmp_path, caplog):
    kinesis = FakeKinesis()
    kinesis.faults = [("describe", refusal("ResourceNotFoundException"))] * 1000
    with caplog.at_level(logging.ERROR):
        assert run_to_the_tip(kinesis, consumer, tmp_path, drain_timeout=0.1) == 1
    assert "the stream was not reached" in caplog.text
