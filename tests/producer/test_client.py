"""The producer: what a receipt promises, whatever Kinesis and the threads do."""

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from moto.server import ThreadedMotoServer
from msgspec import Raw

from producer.batching import ENTRY_OVERHEAD, lane_of
from producer.client import (
    BufferFull,
    DeliveryFailed,
    EventProducer,
    ProducerClosed,
    ProducerSettings,
    Receipt,
    local_or_environ_kinesis,
)
from producer.event import Event, decode, encode
from producer.kpl import Aggregate, decode_record

NOW = 1_795_000_000_000
ROOT = Path(__file__).parents[2]


def an_event(session="s1", number=1, **fields):
    values = {"site_id": "shop", "event_type": "page_view", "timestamp": NOW, "received_at": NOW}
    return Event(event_id=f"{session}-{number}", session_id=session, source="tab", seq=number, **values | fields)


class Instantly(random.Random):
    """Draws the least of each range: no backoff at all."""

    def uniform(self, a, b):
        return a


class FakeKinesis:
    """A stream in memory. ``faults``, one for each call, are functions of that call's records.

    One returns an error code (or None) for each record, and what it refuses is not stored, or raises, before or
    after it has stored all. Records of one call are stored last first, as Kinesis promises no order among those.
    While ``gate`` is closed no call returns. Only one call at a time, unless ``overlapping``.
    """

    def __init__(self, *faults, overlapping=False):
        self.faults = list(faults)
        self.calls = []
        self.log = []
        self.gate = threading.Event()
        self.gate.set()
        self.called = threading.Event()
        self.overlapping = overlapping
        self.inside = threading.Lock()
        self.lanes_inside = set()

    def put_records(self, *, StreamName, Records):
        lanes = {record["PartitionKey"] for record in Records}
        with self.inside:
            assert self.overlapping or not self.lanes_inside
            assert not lanes & self.lanes_inside, "a lane has one record under way at most"
            assert len(lanes) == len(Records)
            self.lanes_inside |= lanes
            self.calls.append((StreamName, len(Records)))
            fault = self.faults.pop(0) if self.faults else None
        self.called.set()
        assert self.gate.wait(30)
        try:
            codes = fault(self, Records) if fault else [None] * len(Records)
            self.store(record for record, code in zip(Records, codes, strict=True) if code is None)
        finally:
            with self.inside:
                self.lanes_inside -= lanes
        return {"Records": [{"ErrorCode": code, "ErrorMessage": "as planned"} if code else {} for code in codes]}

    def store(self, records):
        for record in reversed(list(records)):
            found = decode_record(record["Data"])
            assert isinstance(found, Aggregate)
            self.log += [decode(sub_record.data) for sub_record in found.records]

    def sessions(self):
        """Each session's event ids as the stream has them, repeats left out."""
        ids = {}
        for event in self.log:
            ids.setdefault(event.session_id, {})[event.event_id] = None
        return {session: list(found) for session, found in ids.items()}


def lost_answer(kinesis, records):
    kinesis.store(records)
    raise ReadTimeoutError(endpoint_url="https://kinesis.example")


def lost_call(kinesis, records):
    raise ReadTimeoutError(endpoint_url="https://kinesis.example")


def not_found(kinesis, records):
    error = {"Code": "ResourceNotFoundException", "Message": "Stream events not found"}
    raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 400}}, "PutRecords")


def refuse_all(kinesis, records):
    return ["ProvisionedThroughputExceededException"] * len(records)


def refuse(mask):
    """Refuse those records of the call whose bit is set."""
    return lambda kinesis, records: ["InternalFailure" if mask >> at & 1 else None for at in range(len(records))]


def a_producer(kinesis, **settings):
    values = {"stream": "events", "linger": 0.005}
    return EventProducer(ProducerSettings(**values | settings), kinesis, rng=Instantly(), wall_clock=lambda: NOW)


# -- the promise: order, and no loss ------------------------------------------------------------------

EIGHT = []  # sessions of eight lanes
for name in map("s{}".format, itertools.count()):
    if lane_of(name, 64) not in {lane_of(other, 64) for other in EIGHT}:
        EIGHT.append(name)
    if len(EIGHT) == 8:
        break


@pytest.mark.parametrize("then", [None, lost_answer, lost_call], ids=["sound", "lost answer", "lost call"])
def test_whichever_records_fail_each_session_keeps_its_order_and_loses_nothing(then):
    """All 256 subsets of the eight records of a call fail; then the answer to the next call is lost, or it fails."""
    for mask in range(256):
        kinesis = FakeKinesis(refuse(mask), *([then] if then else []))
        events = [an_event(session, number) for number in range(1, 4) for session in EIGHT]
        with a_producer(kinesis, linger=0, max_aggregate_events=1) as producer:
            receipt = producer.send_many(events)
            receipt.wait(20)
        assert kinesis.calls[0] == ("events", 8)
        assert kinesis.sessions() == {session: [f"{session}-{number}" for number in (1, 2, 3)] for session in EIGHT}
        stats = producer.stats()
        assert stats["events_acknowledged"] == stats["events_sent"] == 24
        assert stats["records_retried"] >= mask.bit_count()
        if then is None:
            assert len(kinesis.log) == 24, "without a lost answer nothing is put twice"


def test_under_many_threads_and_random_faults_each_session_keeps_its_order():
    rng = random.Random(7)
    faults = [
        rng.choice([None, lost_answer, lost_call, refuse_all, refuse(rng.getrandbits(64)), refuse(rng.getrandbits(64))])
        for _ in range(100)
    ]
    kinesis = FakeKinesis(*faults)
    producer = a_producer(kinesis, linger=0.001, max_aggregate_events=7)
    receipts = []

    def client(name):
        for number in range(1, 201):
            receipts.extend(producer.send(an_event(session, number)) for session in (f"{name}-a", f"{name}-b"))
            if number % 50 == 0:
                time.sleep(0.002)

    threads = [threading.Thread(target=client, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.flush(20)
    assert len(receipts) == 3200
    assert all(receipt.acknowledged for receipt in receipts)
    expected = {f"t{n}-{s}": [f"t{n}-{s}-{number}" for number in range(1, 201)] for n in range(8) for s in "ab"}
    assert kinesis.sessions() == expected
    producer.close()
    assert producer.stats()["bytes_buffered"] == 0


def test_calls_may_overlap_but_not_those_of_one_lane():
    kinesis = FakeKinesis(*[None, refuse_all] * 20, overlapping=True)
    with a_producer(kinesis, calls_in_flight=4, linger=0, max_aggregate_events=2) as producer:
        kinesis.gate.clear()
        for number in range(1, 21):
            for session in EIGHT:
                producer.send(an_event(session, number))
            if number == 10:
                kinesis.gate.set()
        producer.flush(20)
    assert kinesis.sessions() == {s: [f"{s}-{number}" for number in range(1, 21)] for s in EIGHT}


def test_calls_do_overlap_when_they_may():
    kinesis = FakeKinesis(overlapping=True)
    kinesis.gate.clear()
    with a_producer(kinesis, calls_in_flight=2, linger=0) as producer:
        producer.send(an_event(EIGHT[0]))
        assert kinesis.called.wait(10)
        kinesis.called.clear()
        producer.send(an_event(EIGHT[1]))
        assert kinesis.called.wait(10)
        assert len(kinesis.lanes_inside) == 2
        kinesis.gate.set()


# -- receipts -----------------------------------------------------------------------------------------


def test_a_receipt_is_acknowledged_when_kinesis_has_every_event_of_it():
    kinesis = FakeKinesis(refuse(0b10), refuse_all)
    kinesis.gate.clear()
    with a_producer(kinesis) as producer:
        receipt = producer.send_many([an_event(EIGHT[0]), an_event(EIGHT[1])])
        with pytest.raises(TimeoutError, match=r"not acknowledged after 0\.01 s: 2"):
            receipt.wait(0.01)
        assert not receipt.acknowledged
        kinesis.gate.set()
        receipt.wait(10)
        assert receipt.acknowledged
        receipt.wait(0)
    assert len(kinesis.calls) == 3
    assert len(kinesis.log) == 2


def test_a_receipt_of_nothing_is_acknowledged_at_once():
    with a_producer(FakeKinesis()) as producer:
        producer.send_many([]).wait(0)


def test_the_bytes_on_the_stream_are_the_events():
    kinesis = FakeKinesis()
    event = an_event(title='"é"', properties=Raw(b'{"a":[1]}'))
    with a_producer(kinesis) as producer:
        producer.send(event).wait(10)
    assert kinesis.log == [event]


def test_what_cannot_be_delivered_fails_with_its_cause_and_the_next_is_tried_again():
    kinesis = FakeKinesis(not_found)
    with a_producer(kinesis) as producer:
        receipt = producer.send(an_event())
        for _ in range(2):
            with pytest.raises(DeliveryFailed, match=r"ResourceNotFoundException.*Stream events not found"):
                receipt.wait(10)
        producer.send(an_event(number=2)).wait(10)
        assert producer.stats()["events_failed"] == 1
    assert [event.event_id for event in kinesis.log] == ["s1-2"]


def test_the_deadline_gives_up_what_kinesis_keeps_refusing():
    kinesis = FakeKinesis(*[refuse_all] * 1_000_000)
    settings = ProducerSettings(stream="events", linger=0, deadline=0.3)
    with EventProducer(settings, kinesis) as producer:
        receipt = producer.send(an_event())
        started = time.monotonic()
        with pytest.raises(DeliveryFailed, match=r"not acknowledged within 0.3 s.*ProvisionedThroughput"):
            receipt.wait(10)
        assert 0.25 < time.monotonic() - started < 5
        kinesis.faults.clear()
        producer.send(an_event(number=2)).wait(10)
    assert [event.event_id for event in kinesis.log] == ["s1-2"]


def test_every_waiter_wakes_up():
    with a_producer(FakeKinesis(), linger=0) as producer, ThreadPoolExecutor(4) as threads:

        def client(name):
            for number in range(1, 401):
                producer.send(an_event(name, number)).wait(10)

        list(threads.map(client, ["a", "b", "c", "d"]))


def test_a_waiter_that_comes_just_as_its_event_is_settled_wakes_up():
    with a_producer(FakeKinesis()) as producer, ThreadPoolExecutor(1) as threads:
        receipt = Receipt(producer, 1)
        with producer._lock:  # the waiter has seen that the event is not settled, and waits for the lock
            waiting = threads.submit(receipt.wait, 10)
            time.sleep(0.05)
            receipt._settle(None)
        waiting.result(5)


def test_a_waiter_is_told_as_soon_as_one_event_is_given_up():
    def deny_first(kinesis, records):
        return ["KMSDisabledException", *["InternalFailure"] * (len(records) - 1)]

    kinesis = FakeKinesis(deny_first, *[refuse_all] * 1_000_000)
    producer = EventProducer(ProducerSettings(stream="events", linger=0), kinesis)
    receipt = producer.send_many([an_event(EIGHT[0]), an_event(EIGHT[1])])
    with pytest.raises(DeliveryFailed, match="KMSDisabledException"):
        receipt.wait(10)
    kinesis.faults.clear()
    producer.close()


# -- group commit -------------------------------------------------------------------------------------


def test_who_does_not_want_to_wait_is_called_once_however_it_ends():
    kinesis = FakeKinesis()
    kinesis.gate.clear()
    called = []
    with a_producer(kinesis, linger=0) as producer:
        receipt = producer.send_many([an_event(f"s{number}") for number in range(100)])
        receipt.when_settled(lambda: called.append("first"))
        receipt.when_settled(lambda: called.append("second"))
        assert kinesis.called.wait(5)
        assert called == []
        kinesis.gate.set()
        receipt.wait(10)
    assert called == ["first", "second"]
    receipt.when_settled(lambda: called.append("afterwards"))
    assert called[2:] == ["afterwards"]


def test_who_does_not_want_to_wait_is_called_when_the_first_event_is_given_up():
    kinesis = FakeKinesis(not_found)
    called = threading.Event()
    with a_producer(kinesis, linger=0) as producer:
        receipt = producer.send(an_event())
        receipt.when_settled(called.set)
        assert called.wait(10)
        with pytest.raises(DeliveryFailed):
            receipt.wait(0)


def test_events_that_come_while_a_call_is_under_way_share_the_next_one():
    kinesis = FakeKinesis()
    kinesis.gate.clear()
    with a_producer(kinesis, linger=0) as producer:
        producer.send(an_event("first"))
        assert kinesis.called.wait(10)
        threads = [
            threading.Thread(target=lambda name=f"t{number}": producer.send(an_event(name)).wait(10))
            for number in range(30)
        ]
        for thread in threads:
            thread.start()
        while producer.stats()["events_sent"] < 31:
            time.sleep(0.001)
        kinesis.gate.set()
        for thread in threads:
            thread.join()
        assert len(kinesis.calls) == 2
        assert len(kinesis.log) == 31


def test_an_event_waits_for_company_as_long_as_it_may_linger():
    kinesis = FakeKinesis()
    with a_producer(kinesis, linger=0.2) as producer:
        started = time.monotonic()
        receipts = [producer.send(an_event(number=number)) for number in range(1, 11)]
        receipts[-1].wait(10)
        assert time.monotonic() - started >= 0.19
        assert all(receipt.acknowledged for receipt in receipts)
    assert kinesis.calls == [("events", 1)]


def test_a_full_aggregate_does_not_wait_for_company():
    kinesis = FakeKinesis()
    with a_producer(kinesis, linger=60, max_aggregate_events=3) as producer:
        producer.send_many([an_event(number=number) for number in (1, 2, 3)]).wait(10)


def test_an_event_is_not_held_up_by_another_lane_that_backs_off():
    kinesis = FakeKinesis(refuse_all)

    class Slowly(random.Random):
        def uniform(self, a, b):
            return 30.0

    with EventProducer(ProducerSettings(linger=0.005), kinesis, rng=Slowly()) as producer:
        held = producer.send(an_event(EIGHT[0]))
        assert kinesis.called.wait(10)
        while producer.stats()["put_calls"] == 0:
            time.sleep(0.001)
        producer.send(an_event(EIGHT[1])).wait(10)
        assert not held.acknowledged
        with pytest.raises(DeliveryFailed):
            producer.close(0.01)


# -- the buffer ---------------------------------------------------------------------------------------


def test_a_full_buffer_raises_at_once_and_takes_all_or_nothing():
    kinesis = FakeKinesis()
    kinesis.gate.clear()
    size = len(encode(an_event(number=1))) + ENTRY_OVERHEAD
    with a_producer(kinesis, max_buffer_bytes=3 * size) as producer:
        first = producer.send_many([an_event(number=1), an_event(number=2)])
        with pytest.raises(BufferFull, match="try again when a receipt is settled"):
            producer.send_many([an_event(number=3), an_event(number=4)])
        with pytest.raises(BufferFull, match="send fewer at a time"):
            producer.send_many([an_event(number=number) for number in range(1, 5)])
        last = producer.send(an_event(number=5))
        with pytest.raises(BufferFull):
            producer.send(an_event(number=6))
        assert producer.stats()["bytes_buffered"] == 3 * size
        kinesis.gate.set()
        first.wait(10)
        last.wait(10)
        producer.send(an_event(number=7)).wait(10)
    assert [event.seq for event in kinesis.log] == [1, 2, 5, 7]


def test_the_buffer_bounds_memory():
    kinesis = FakeKinesis()
    kinesis.gate.clear()
    producer = a_producer(kinesis, max_buffer_bytes=4 * 1024 * 1024)
    tracemalloc.start()
    try:
        for number in range(1, 1_000_000):
            try:
                producer.send(an_event("s", 1, page_url=f"https://example.com/{number}"))
            except BufferFull:
                break
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert producer.stats()["events_sent"] > 5000
    assert most < 5 * 1024 * 1024
    kinesis.gate.set()
    producer.close()


def test_an_event_that_no_record_can_hold_is_refused():
    with a_producer(FakeKinesis()) as producer:
        with pytest.raises(ValueError, match="a Kinesis record holds"):
            producer.send_many([an_event(), an_event(number=2, title="x" * 1_100_000)])
        with pytest.raises(ValueError, match="surrogates"):
            producer.send(an_event(title="\ud800"))
        assert producer.stats()["events_sent"] == 0


# -- flush, close, exit -------------------------------------------------------------------------------


def test_flush_waits_for_all_that_was_sent_before_and_no_linger():
    kinesis = FakeKinesis(refuse_all, lost_answer)
    with a_producer(kinesis, linger=60) as producer:
        receipts = [producer.send(an_event(session)) for session in EIGHT]
        producer.flush(10)
        assert all(receipt.acknowledged for receipt in receipts)
        kinesis.gate.clear()
        late = producer.send(an_event(number=2))
        with pytest.raises(TimeoutError, match="not all events"):
            producer.flush(0.01)
        kinesis.gate.set()
    assert late.acknowledged


def test_close_delivers_what_is_buffered_and_takes_no_more():
    kinesis = FakeKinesis(refuse_all)
    producer = a_producer(kinesis, linger=60)
    receipts = [producer.send(an_event(session)) for session in EIGHT]
    assert not producer.closing
    producer.close()
    assert producer.closing
    assert all(receipt.acknowledged for receipt in receipts)
    with pytest.raises(ProducerClosed, match="takes no more events"):
        producer.send(an_event())
    producer.close()
    producer.flush()
    assert not any(thread.name.startswith("liveinsight-producer") and thread.is_alive() for thread in producer._threads)


def test_close_raises_for_what_it_could_not_deliver():
    producer = a_producer(FakeKinesis(not_found), linger=60)
    producer.send_many([an_event(EIGHT[0]), an_event(EIGHT[1])])
    with pytest.raises(DeliveryFailed, match=r"events not delivered: 2; the first: .*ResourceNotFound"):
        producer.close()
    producer.close()


def test_close_gives_up_what_its_time_does_not_suffice_for():
    kinesis = FakeKinesis()
    kinesis.gate.clear()
    producer = a_producer(kinesis, linger=0)
    under_way = producer.send(an_event(EIGHT[0]))
    assert kinesis.called.wait(10)
    waiting = producer.send(an_event(EIGHT[1]))
    with pytest.raises(DeliveryFailed, match=r"not delivered: 2; .*within the 0\.05 s"):
        producer.close(0.05)
    for receipt in (under_way, waiting):
        with pytest.raises(DeliveryFailed):
            receipt.wait(0)
    kinesis.gate.set()
    for thread in producer._threads:
        thread.join(10)
        assert not thread.is_alive()
    assert producer.stats()["events_failed"] == 2
    assert producer.stats()["bytes_buffered"] == 0


def test_flush_and_close_tell_once_and_only_of_what_no_receipt_told():
    producer = a_producer(FakeKinesis(*[not_found] * 3), linger=0)

    def fail(number):
        receipt = producer.send(an_event(number=number))
        while producer.stats()["events_failed"] < number:
            time.sleep(0.001)
        return receipt

    told = fail(1)
    with pytest.raises(DeliveryFailed):
        told.wait(0)
    producer.flush()
    old = fail(2)
    with pytest.raises(DeliveryFailed, match="not delivered: 1;"):
        producer.flush()
    fail(3)
    for receipt in (told, old):  # that both were told of takes nothing from the third one
        with pytest.raises(DeliveryFailed):
            receipt.wait(0)
    with pytest.raises(DeliveryFailed, match="not delivered: 1;"):
        producer.close()
    producer.close()


def test_an_error_in_the_with_block_is_not_hidden_by_an_undelivered_event():
    def use():
        with a_producer(FakeKinesis(not_found), linger=60) as producer:
            producer.send(an_event())
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        use()
    assert "ResourceNotFoundException" in caught.value.__notes__[0]


class Script:
    """Runs Python with a producer that logs to stdout what the stream got."""

    HEAD = """
import os, sys
from producer.client import EventProducer, ProducerClosed, ProducerSettings
from producer.event import Event

class Kinesis:
    def put_records(self, *, StreamName, Records):
        print("put", len(Records), flush=True)
        return {"Records": [{}] * len(Records)}

producer = EventProducer(ProducerSettings(linger=30), Kinesis())
event = Event(event_id="e", site_id="s", session_id="s", event_type="t", timestamp=1, received_at=1)
"""

    @classmethod
    def run(cls, body):
        done = subprocess.run(
            [sys.executable, "-c", cls.HEAD + body], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]


def test_a_process_that_ends_delivers_what_is_buffered():
    assert Script.run("producer.send(event)") == ["put 1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_is_told_to_make_its_own_producer():
    body = """
producer.send(event)
child = os.fork()
if not child:
    for use in (lambda: producer.send(event), producer.flush):
        try:
            use()
        except ProducerClosed as error:
            print(error, flush=True)
    producer.close()
    sys.exit(0)  # runs the atexit functions, which must not wait for the parent's events
print("exit", os.waitpid(child, 0)[1], flush=True)
"""
    message = "this producer belongs to the parent process; make another one after the fork"
    assert Script.run(body) == [message, message, "exit 0", "put 1"]


# -- track --------------------------------------------------------------------------------------------


def test_track_makes_an_event():
    kinesis = FakeKinesis()
    with a_producer(kinesis) as producer:
        producer.track("page_view", site_id="shop", session_id="s1", page_url="/").wait(10)
        producer.track(
            "conversion",
            site_id="shop",
            session_id="s1",
            user_id="u",
            properties={"plan": "gold", "tags": ["a", "é"]},
            timestamp=5,
            event_id="order-7",
            conversion_type="purchase",
            conversion_value=9.5,
            conversion_currency="EUR",
        ).wait(10)
    plain, full = kinesis.log
    assert (plain.site_id, plain.session_id, plain.event_type, plain.page_url) == ("shop", "s1", "page_view", "/")
    assert plain.timestamp == plain.received_at == NOW
    assert len(plain.event_id) == 32
    assert (full.event_id, full.timestamp, full.received_at, full.user_id) == ("order-7", 5, NOW, "u")
    assert json.loads(bytes(full.properties)) == {"plan": "gold", "tags": ["a", "é"]}
    assert (full.conversion_type, full.conversion_value, full.conversion_currency) == ("purchase", 9.5, "EUR")


def circular():
    properties = {}
    properties["self"] = properties
    return properties


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"site_id": "no site"}, "bad_identifier"),
        ({"session_id": ""}, "bad_identifier"),
        ({"session_id": 5}, "wrong_type"),
        ({"event_type": "x" * 65}, "bad_identifier"),
        ({"event_id": "a b"}, "bad_identifier"),
        ({"timestamp": -1}, "out_of_range"),
        ({"timestamp": 1.5}, "wrong_type"),
        ({"timestamp": 2**70}, "out_of_range"),
        ({"page_url": "x" * 2049}, "too_long"),
        ({"title": "\ud800"}, "lone_surrogate"),
        ({"title": "\x00"}, "nul_character"),
        ({"title": object()}, "wrong_type"),
        ({"conversion_value": float("nan")}, "wrong_type"),
        ({"conversion_value": 1e10}, "out_of_range"),
        ({"properties": {"a": float("inf")}}, "not_finite"),
        ({"properties": {"a": object()}}, "wrong_type"),
        ({"properties": {"a": "x" * 9000}}, "too_large"),
        ({"properties": {"a": "\ud800"}}, "lone_surrogate"),
        ({"properties": circular()}, "too_deep"),
        ({"properties": {"a": json.loads("[" * 9 + "]" * 9)}}, "too_deep"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_track_names_the_reason_for_which_an_event_is_not_valid(fields, reason):
    values = {"event_type": "page_view", "site_id": "shop", "session_id": "s1"}
    with a_producer(FakeKinesis()) as producer, pytest.raises(ValueError, match=f"^{reason}"):
        producer.track(**values | fields)
    assert producer.stats()["events_sent"] == 0


def test_track_knows_the_fields_of_an_event():
    with a_producer(FakeKinesis()) as producer, pytest.raises(TypeError, match="colour"):
        producer.track("page_view", site_id="shop", session_id="s1", colour="red")


# -- settings and connection --------------------------------------------------------------------------


def test_settings_come_from_the_environment():
    assert ProducerSettings.from_environ({"LIVEINSIGHT_LANES": " "}) == ProducerSettings()
    assert ProducerSettings().stream == "liveinsight-local-events"
    environ = {
        "LIVEINSIGHT_STREAM": "s",
        "LIVEINSIGHT_LANES": "8",
        "LIVEINSIGHT_LINGER_SECONDS": "0.5",
        "LIVEINSIGHT_DEADLINE_SECONDS": "5",
        "LIVEINSIGHT_MAX_BUFFER_BYTES": "1000",
    }
    assert ProducerSettings.from_environ(environ) == ProducerSettings(
        stream="s", lanes=8, linger=0.5, deadline=5.0, max_buffer_bytes=1000
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LIVEINSIGHT_STREAM", "a b"),
        ("LIVEINSIGHT_LANES", "0"),
        ("LIVEINSIGHT_LANES", "1.5"),
        ("LIVEINSIGHT_LANES", "many"),
        ("LIVEINSIGHT_LINGER_SECONDS", "-1"),
        ("LIVEINSIGHT_LINGER_SECONDS", "nan"),
        ("LIVEINSIGHT_DEADLINE_SECONDS", "0"),
        ("LIVEINSIGHT_MAX_BUFFER_BYTES", "1e9"),
    ],
)
def test_a_wrong_variable_is_named(name, text):
    with pytest.raises(ValueError, match=name):
        ProducerSettings.from_environ({name: text})


@pytest.fixture
def no_aws_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("no_aws_environment")
@pytest.mark.parametrize(
    ("environ", "endpoint", "region"),
    [
        ({}, "http://127.0.0.1:5555", "us-east-1"),
        ({"AWS_PORT": "6001", "AWS_REGION": "eu-west-1"}, "http://127.0.0.1:6001", "us-east-1"),
        (
            {"LIVEINSIGHT_STREAM": "s", "AWS_REGION": "eu-west-1"},
            "https://kinesis.eu-west-1.amazonaws.com",
            "eu-west-1",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:7", "AWS_DEFAULT_REGION": "eu-west-1"},
            "http://127.0.0.1:7",
            "eu-west-1",
        ),
        (
            {
                "AWS_ENDPOINT_URL": "http://127.0.0.1:7",
                "AWS_ENDPOINT_URL_KINESIS": "http://127.0.0.1:8",
                "AWS_REGION": "eu-west-1",
            },
            "http://127.0.0.1:8",
            "eu-west-1",
        ),
    ],
)
def test_the_environment_names_the_stream(environ, endpoint, region):
    kinesis, settings = local_or_environ_kinesis(environ)
    assert kinesis.meta.endpoint_url == endpoint
    assert kinesis.meta.region_name == region
    assert kinesis.meta.config.retries["total_max_attempts"] == 1
    assert settings == ProducerSettings.from_environ(environ)


@pytest.mark.usefixtures("no_aws_environment")
@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"LIVEINSIGHT_STREAM": "s"}, "AWS_REGION"),
        ({"AWS_PORT": "no"}, "AWS_PORT"),
        ({"AWS_PORT": "70000"}, "AWS_PORT"),
    ],
)
def test_an_environment_that_names_no_stream_is_told_what_lacks(environ, named):
    with pytest.raises(ValueError, match=named):
        local_or_environ_kinesis(environ)


def test_a_missing_profile_is_named(no_aws_environment, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ValueError, match="nobody"):
        local_or_environ_kinesis({"LIVEINSIGHT_STREAM": "s", "AWS_REGION": "eu-west-1"})


# -- a whole engine -----------------------------------------------------------------------------------


def test_events_arrive_in_an_engine_with_several_shards(no_aws_environment, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # not for what runs on this machine
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        environ = {"AWS_PORT": str(port)}
        kinesis, settings = local_or_environ_kinesis(environ)
        with EventProducer(settings, kinesis) as producer, pytest.raises(DeliveryFailed, match="ResourceNotFound"):
            producer.send(an_event()).wait(20)
        kinesis.create_stream(StreamName=settings.stream, ShardCount=4)
        kinesis.get_waiter("stream_exists").wait(StreamName=settings.stream, WaiterConfig={"Delay": 1})
        sessions = [f"session-{number}" for number in range(40)]
        with EventProducer(settings, kinesis) as producer:

            def client(mine):
                for number in range(1, 11):
                    producer.send_many([an_event(session, number) for session in mine]).wait(20)

            threads = [threading.Thread(target=client, args=(sessions[at::4],)) for at in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            stats = producer.stats()
        assert stats["events_acknowledged"] == 400
        assert stats["put_calls"] < 40, "the threads' events share calls"
        shards = {}
        for shard in kinesis.list_shards(StreamName=settings.stream)["Shards"]:
            iterator = kinesis.get_shard_iterator(
                StreamName=settings.stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            for record in kinesis.get_records(ShardIterator=iterator)["Records"]:
                for sub_record in decode_record(record["Data"]).records:
                    assert sub_record.partition_key == record["PartitionKey"]
                    event = decode(sub_record.data)
                    shards.setdefault(event.session_id, []).append((shard["ShardId"], event.seq))
        assert sorted(shards) == sorted(sessions)
        for found in shards.values():
            assert len({shard_id for shard_id, _ in found}) == 1
            assert [seq for _, seq in found] == list(range(1, 11))
        assert len({found[0][0] for found in shards.values()}) == 4
    finally:
        server.stop()
