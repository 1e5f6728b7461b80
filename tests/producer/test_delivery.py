"""Delivery in virtual time: what is put again, when, in which order, and what is given up."""

import random
from itertools import pairwise

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.batching import MAX_CALL_BYTES, MAX_CALL_RECORDS, Batcher
from producer.delivery import Backoff, Delivery, Failure, put_records
from producer.kpl import decode_record

ENDPOINT = "https://kinesis.example"


class Instantly(random.Random):
    """Draws the least of each range: no backoff at all."""

    def uniform(self, a, b):
        return a


class AtMost(random.Random):
    """Draws the most of each range."""

    def uniform(self, a, b):
        return b


class FakeKinesis:
    """Answers call after call as the faults say, and then soundly. ``log`` is what the stream holds.

    A fault is an exception to raise, or a function of the records that returns an error code (or None) for each.
    Records of one call are stored last first, as Kinesis promises no order among those.
    """

    def __init__(self, *faults):
        self.faults = list(faults)
        self.calls = []
        self.log = []
        self.throttles = {}  # partition key -> how many more of its records are refused

    def throttled(self, key):
        self.throttles[key] = self.throttles.get(key, 0) - 1
        return "ProvisionedThroughputExceededException" if self.throttles[key] >= 0 else None

    def put_records(self, *, StreamName, Records):
        assert StreamName == "events"
        assert 1 <= len(Records) <= MAX_CALL_RECORDS
        assert sum(len(record["Data"]) + len(record["PartitionKey"]) for record in Records) <= MAX_CALL_BYTES
        assert len({record["ExplicitHashKey"] for record in Records}) == len(Records)
        self.calls.append([record["PartitionKey"] for record in Records])
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        codes = fault(Records) if fault else [self.throttled(record["PartitionKey"]) for record in Records]
        for record, code in reversed(list(zip(Records, codes, strict=True))):
            if code is None:
                self.log += [(record["PartitionKey"], sub.data) for sub in decode_record(record["Data"]).records]
        return {
            "Records": [
                {"ErrorCode": code, "ErrorMessage": "as planned"} if code else {"SequenceNumber": "1", "ShardId": "0"}
                for code in codes
            ]
        }


def lost_answer(kinesis):
    """Store all records of a call, and then lose the connection."""

    def fault(records):
        for record in records:
            kinesis.log += [(record["PartitionKey"], sub.data) for sub in decode_record(record["Data"]).records]
        raise ReadTimeoutError(endpoint_url=ENDPOINT)

    return fault


def refuse(*lanes, code="ProvisionedThroughputExceededException"):
    return lambda records: [
        code if record["PartitionKey"] in {f"lane-{lane}" for lane in lanes} else None for record in records
    ]


def client_error(code, status=400):
    answer = {"Error": {"Code": code, "Message": "as planned"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutRecords")


class World:
    """A batcher, a delivery and a clock that moves by itself to whatever is due next."""

    def __init__(self, *faults, rng=None, latency=0.01, **limits):
        self.kinesis = FakeKinesis(*faults)
        values = {"lanes": 8, "linger": 0.05, "deadline": 30.0, "max_aggregate_bytes": 300, "max_aggregate_events": 4}
        self.batcher = Batcher(**values | limits)
        self.delivery = Delivery(
            self.kinesis, "events", self.batcher, deadline=30.0, backoff=Backoff(0.1, 5.0), rng=rng or Instantly()
        )
        self.now = 0.0
        self.latency = latency
        self.put_at = []
        self.outcomes = {}  # ticket -> (when, None or the failure)

    def add(self, lane, ticket):
        self.batcher.add(str(ticket).encode(), lane, ticket, self.now)

    def run(self, until=float("inf")):
        for _ in range(10_000):
            due = self.delivery.due()
            if due > until or due == float("inf"):
                self.now = max(self.now, until) if until < float("inf") else self.now
                return
            self.now = max(self.now, due)
            batches, given_up = self.delivery.begin(self.now)
            self.note(given_up)
            if batches:
                self.put_at.append(self.now)
                outcome = self.delivery.put(batches)
                self.now += self.latency
                self.note(self.delivery.end(batches, outcome, self.now))
            else:
                assert given_up, "awake for nothing"
        raise AssertionError("delivery does not come to an end")

    def note(self, settled):
        for end in settled:
            for ticket in end.batch.tickets:
                assert ticket not in self.outcomes
                self.outcomes[ticket] = (self.now, end.failure)

    def stored(self, lane):
        """The lane's events in the stream, repeats left out."""
        return list(dict.fromkeys(int(data) for key, data in self.kinesis.log if key == f"lane-{lane}"))

    def acknowledged(self):
        return sorted(ticket for ticket, (_, failure) in self.outcomes.items() if failure is None)


# -- one call -----------------------------------------------------------------------------------------


def one_call(fault):
    batcher = Batcher(lanes=8, linger=0, deadline=30, max_aggregate_bytes=300, max_aggregate_events=4)
    batcher.add(b"1", 0, 1, 0.0)
    batcher.add(b"2", 1, 2, 0.0)
    return put_records(FakeKinesis(fault), "events", batcher.take(0.0))


@pytest.mark.parametrize(
    "error",
    [
        *map(client_error, ["ProvisionedThroughputExceededException", "ThrottlingException", "LimitExceededException"]),
        client_error("KMSThrottlingException"),
        client_error("InternalFailure", 500),
        client_error("", 503),
        client_error("Whatever", 429),
        EndpointConnectionError(endpoint_url=ENDPOINT),
        ConnectTimeoutError(endpoint_url=ENDPOINT),
        ReadTimeoutError(endpoint_url=ENDPOINT),
        ConnectionClosedError(endpoint_url=ENDPOINT),
        ResponseParserError("not JSON"),
        CredentialRetrievalError(provider="role", error_msg="timed out"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}"[:60],
)
def test_a_call_that_failed_by_what_passes_is_worth_another_try(error):
    failure = one_call(error)
    assert isinstance(failure, Failure)
    assert failure.passing


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (client_error("ResourceNotFoundException"), "ResourceNotFoundException"),
        (client_error("AccessDeniedException"), "AccessDeniedException"),
        (client_error("ValidationException"), "ValidationException"),
        (client_error("UnrecognizedClientException"), "UnrecognizedClientException"),
        (client_error("KMSDisabledException"), "KMSDisabledException"),
        (NoCredentialsError(), "NoCredentialsError: Unable to locate credentials"),
        (TypeError("a bug"), "TypeError: a bug"),
    ],
)
def test_a_call_that_failed_by_what_lasts_is_not(error, cause):
    failure = one_call(error)
    assert isinstance(failure, Failure)
    assert not failure.passing
    assert cause in failure.cause


@pytest.mark.parametrize(
    ("code", "passing"),
    [
        ("ProvisionedThroughputExceededException", True),
        ("InternalFailure", True),
        ("KMSThrottlingException", True),
        ("SomethingNew", True),
        ("KMSAccessDeniedException", False),
        ("KMSDisabledException", False),
        ("KMSInvalidStateException", False),
        ("KMSNotFoundException", False),
        ("KMSOptInRequired", False),
    ],
)
def test_each_record_has_its_own_outcome(code, passing):
    assert one_call(refuse(1, code=code)) == [None, Failure(f"{code}: as planned", passing)]


@pytest.mark.parametrize("answer", [{}, {"Records": []}, {"Records": [{"SequenceNumber": "1"}] * 3}])
def test_an_answer_for_other_records_is_a_lost_answer(answer):
    batcher = Batcher(lanes=8, linger=0, deadline=30, max_aggregate_bytes=300, max_aggregate_events=4)
    batcher.add(b"1", 0, 1, 0.0)

    class Kinesis:
        def put_records(self, **_):
            return answer

    failure = put_records(Kinesis(), "events", batcher.take(0.0))
    assert isinstance(failure, Failure)
    assert failure.passing


# -- backoff ------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.randoms(use_true_random=False))
def test_backoff_has_full_jitter_up_to_its_cap(failures, rng):
    backoff = Backoff(base=0.1, cap=5.0)
    most = backoff.delay(failures, AtMost())
    assert most == (0.1 * 2 ** (failures - 1) if failures <= 6 else 5.0)
    assert backoff.delay(failures, Instantly()) == 0
    assert 0 <= backoff.delay(failures, rng) <= most


def test_a_throttled_lane_backs_off_while_the_others_go_on():
    world = World(rng=AtMost(), latency=0.0)
    world.kinesis.throttles["lane-1"] = 5
    world.add(1, 1)
    for number in range(2, 12):
        world.add(0, number)
        world.run(until=world.now + 0.2)
    assert {ticket for ticket, (when, _) in world.outcomes.items() if when < 2.0} == set(range(2, 12))
    world.run()
    throttled = [at for at, call in zip(world.put_at, world.kinesis.calls, strict=True) if "lane-1" in call]
    pauses = [round(later - sooner, 3) for sooner, later in pairwise(throttled)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert world.acknowledged() == list(range(1, 12))


def test_a_lane_that_recovered_starts_its_backoff_anew():
    world = World(refuse(1), refuse(1), None, refuse(1), rng=AtMost(), latency=0.0)
    world.add(1, 1)
    world.run()
    first = world.put_at.copy()
    world.add(1, 2)
    world.run()
    again = world.put_at[len(first) :]
    assert [round(later - sooner, 3) for sooner, later in pairwise(first)] == [0.1, 0.2]
    assert [round(later - sooner, 3) for sooner, later in pairwise(again)] == [0.1]


def test_calls_that_succeed_again_start_their_backoff_anew():
    down = EndpointConnectionError(endpoint_url=ENDPOINT)
    world = World(down, down, None, down, down, rng=AtMost(), latency=0.0)
    for number in range(2):
        world.add(1, number)
        world.run()
    pauses = [round(later - sooner, 3) for sooner, later in pairwise(world.put_at)]
    assert pauses == [0.1, 0.2, 0.05, 0.1, 0.2]


def test_when_calls_fail_all_lanes_wait_together():
    down = EndpointConnectionError(endpoint_url=ENDPOINT)
    world = World(down, down, down, rng=AtMost(), latency=0.0)
    for number in range(8):
        world.add(number, number)
        world.run(until=world.now + 0.02)
    world.run()
    assert len(world.kinesis.calls) == 4
    assert len(world.kinesis.calls[-1]) == 8
    assert world.acknowledged() == list(range(8))
    counters = world.delivery.counters
    assert (counters.put_calls, counters.records_put) == (4, sum(map(len, world.kinesis.calls)))
    assert counters.records_retried > 0


# -- order and loss -----------------------------------------------------------------------------------


def test_only_what_failed_is_put_again():
    world = World(refuse(1, 4))
    for lane in range(8):
        world.add(lane, lane)
    world.run()
    assert world.kinesis.calls[1:] == [["lane-1", "lane-4"]]
    assert len(world.kinesis.log) == 8
    assert world.acknowledged() == list(range(8))


def test_no_later_event_of_a_lane_overtakes_one_that_failed():
    world = World(refuse(1), refuse(1), refuse(1), max_aggregate_events=1)
    for number in range(5):
        world.add(1, number)
    world.run()
    assert world.kinesis.calls == [["lane-1"]] * 8
    assert [data for _, data in world.kinesis.log] == [b"0", b"1", b"2", b"3", b"4"]


def test_after_a_lost_answer_everything_is_put_again():
    world = World()
    world.kinesis.faults = [lost_answer(world.kinesis)]
    for lane in range(3):
        world.add(lane, lane)
    world.run()
    assert [sorted(call) for call in world.kinesis.calls] == [["lane-0", "lane-1", "lane-2"]] * 2
    assert len(world.kinesis.log) == 6
    assert world.acknowledged() == [0, 1, 2]


def test_what_lasts_fails_its_own_events_at_once_and_no_others():
    world = World(refuse(1, code="KMSDisabledException"))
    world.add(1, 1)
    world.add(2, 2)
    world.run()
    world.add(1, 3)
    world.run()
    assert world.acknowledged() == [2, 3]
    assert world.outcomes[1] == (pytest.approx(0.06), Failure("KMSDisabledException: as planned", False))


def test_a_call_that_cannot_succeed_fails_its_events_at_once():
    world = World(client_error("ResourceNotFoundException"))
    world.add(1, 1)
    world.add(2, 2)
    world.run()
    assert len(world.kinesis.calls) == 1
    assert [when for when, _ in world.outcomes.values()] == pytest.approx([0.06, 0.06])
    assert all("ResourceNotFoundException" in failure.cause for _, failure in world.outcomes.values())


def test_each_event_is_given_up_at_its_own_deadline_with_the_last_cause():
    world = World(rng=random.Random(1))
    world.kinesis.throttles["lane-1"] = 1_000_000
    world.add(1, 1)
    world.run(until=20.0)
    world.add(1, 2)
    world.add(2, 3)
    world.run(until=44.0)
    assert sorted(world.outcomes) == [1, 3]
    when, failure = world.outcomes[1]
    assert 30.0 <= when < 30.1
    assert failure.cause == (
        "not acknowledged within 30 s; the last answer was ProvisionedThroughputExceededException: as planned"
    )
    world.kinesis.throttles.clear()
    world.run()
    assert world.acknowledged() == [2, 3]


def test_what_no_call_was_free_for_says_so():
    world = World(latency=40.0)
    world.add(1, 1)
    batches, _ = world.delivery.begin(0.1)
    world.add(1, 2)
    world.add(2, 3)
    assert batches
    _, given_up = world.delivery.begin(40.0)
    assert [end.batch.tickets for end in given_up] == [(3,)]
    assert "no call was free" in given_up[0].failure.cause


def test_the_cause_of_an_old_failure_is_not_that_of_a_later_event():
    world = World(*[refuse(1)] * 1000, rng=random.Random(1))
    world.add(1, 1)
    world.run()
    world.add(1, 2)
    world.now += 40.0
    _, given_up = world.delivery.begin(world.now)
    assert "no call was free" in given_up[0].failure.cause


faults = st.lists(
    st.one_of(
        st.just(("sound",)),
        st.tuples(st.just("refuse"), st.sets(st.integers(0, 3))),
        st.tuples(st.just("refuse for good"), st.sets(st.integers(0, 3))),
        st.just(("lost",)),
        st.just(("refused connection",)),
        st.just(("throttled",)),
        st.just(("denied",)),
    ),
    max_size=12,
)
sends = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.0, 0.01, 0.06, 0.5, 20.0])), max_size=25)


@settings(max_examples=300)
@given(faults, sends, st.integers(0, 3), st.randoms(use_true_random=False))
def test_under_any_faults_each_lane_keeps_its_order_and_nothing_acknowledged_is_lost(plan, sent, slow, rng):
    world = World(rng=rng, latency=[0.0, 0.01, 1.0, 11.0][slow], lanes=4)
    kinds = {
        "sound": lambda: None,
        "lost": lambda: lost_answer(world.kinesis),
        "refused connection": lambda: EndpointConnectionError(endpoint_url=ENDPOINT),
        "throttled": lambda: client_error("ThrottlingException"),
        "denied": lambda: client_error("AccessDeniedException"),
    }
    for name, *lanes in plan:
        code = "KMSDisabledException" if name == "refuse for good" else "InternalFailure"
        world.kinesis.faults.append(refuse(*lanes[0], code=code) if lanes else kinds[name]())
    added = {}
    for ticket, (lane, pause) in enumerate(sent):
        world.add(lane, ticket)
        added[ticket] = (lane, world.now)
        world.run(until=world.now + pause)
    world.run()
    assert sorted(world.outcomes) == sorted(added), "each event is settled"
    for ticket in world.acknowledged():
        assert ticket in world.stored(added[ticket][0]), "what is acknowledged is stored"
    for lane in range(4):
        assert world.stored(lane) == sorted(world.stored(lane)), "in the order of its sending"
    for ticket, (when, failure) in world.outcomes.items():
        if failure is not None and "not acknowledged within" in failure.cause:
            assert when >= added[ticket][1] + 30.0, "no event is given up before its deadline"
    if not any(name in {"denied", "refuse for good"} for name, *_ in plan) and world.now < 30.0:
        assert world.acknowledged() == sorted(added)
    assert not world.batcher
