"""The rules of one shard's mapping, against the pure state machine."""

import base64
import json
import random
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local.shard_mapping import (
    MAX_PAYLOAD_BYTES,
    Answered,
    Condition,
    Discard,
    Done,
    EventSourceIdentity,
    FunctionError,
    Invoke,
    MappingSettings,
    NotInvoked,
    Poll,
    Record,
    SettingsError,
    ShardMapping,
    StartingPosition,
    Wait,
    failure_document,
)

STREAM = EventSourceIdentity("arn:aws:kinesis:eu-west-1:123456789012:stream/s", "arn:aws:iam::123456789012:role/r")
SHARD = "shardId-000000000007"
SETTINGS = MappingSettings()
START = 1_800_000_000.0


def a_record(number, arrived=START, data=b"x", partition_key="k"):
    return Record(SHARD, str(number), partition_key, data, arrived)


@dataclass
class Rig:
    """A mapping, the shard that it reads, and a clock that jumps to whatever the mapping waits for."""

    settings: MappingSettings
    now: float = START
    records: list = field(default_factory=list)
    closed: bool = False
    checkpoint: str | None = None
    read_from: float | None = None

    def __post_init__(self):
        self.restart()

    def restart(self):
        """As after a crash: only the checkpoint is left."""
        self.mapping = ShardMapping(
            STREAM,
            SHARD,
            self.settings,
            checkpoint=self.checkpoint,
            read_from=self.read_from,
            rng=random.Random(0),
        )

    def put(self, numbers, **more):
        self.records += [a_record(number, self.now, **more) for number in numbers]

    def poll(self, limit):
        position = int(self.mapping.position or -1)
        behind = [record for record in self.records if int(record.sequence_number) > position]
        self.mapping.polled(
            behind[:limit],
            millis_behind=1000 * (len(behind) > limit),
            closed=self.closed and len(behind) <= limit,
            now=self.now,
        )

    def next(self):
        """The next invocation or discard; None when there is nothing to wait for."""
        while True:
            match self.mapping.next(self.now):
                case Poll(limit):
                    self.poll(limit)
                    if not self.mapping.pending and not self.unread and not self.closed:
                        return None
                case Wait(until):
                    assert until > self.now
                    if not self.mapping.pending and not self.unread:
                        return None
                    self.now = until
                case Done():
                    return None
                case action:
                    return action

    @property
    def unread(self):
        last = int(self.records[-1].sequence_number) if self.records else -1
        return int(self.mapping.position or -1) < last

    def invoked(self, outcome):
        self.mapping.invoked(outcome, self.now)
        self.checkpoint = self.mapping.checkpoint

    def discarded(self):
        self.mapping.discarded(self.now)
        self.checkpoint = self.mapping.checkpoint


def numbers_of(records):
    return [int(record.sequence_number) for record in records]


# The golden traces.

TRACES = re.split(r"\n\n(?== )", (Path(__file__).parent / "event_source_traces.txt").read_text(encoding="utf-8"))[1:]


def settings_of(words):
    values = dict(word.partition("=")[::2] for word in words)
    return MappingSettings(
        batch_size=int(values.get("batch", 100)),
        report_batch_item_failures="report" in values,
        bisect_batch_on_function_error="bisect" in values,
        maximum_retry_attempts=int(values.get("retries", -1)),
        maximum_record_age=int(values.get("age", -1)),
    )


def outcome_of(answer):
    match answer.split():
        case ["raises"]:
            return FunctionError("r", "ValueError", "no")
        case ["times", "out"]:
            return FunctionError("r", "Sandbox.Timedout", "Task timed out after 3.00 seconds")
        case ["not", "invoked"]:
            return NotInvoked("no process")
        case ["failures", *identifiers]:
            failures = [{"itemIdentifier": identifier} for identifier in identifiers]
            return Answered("r", {"batchItemFailures": failures})
    return Answered("r", json.loads(answer))


def span(text):
    first, last = text.split("-")
    return range(int(first), int(last) + 1)


def what_is_said(discard):
    document = failure_document(discard, STREAM, "arn", now=START, request_id="r")
    context, batch = document["requestContext"], document["KinesisBatchInfo"]
    response = document.get("responseContext")
    error = f"functionError {json.dumps(response['functionError'])}" if response else "without a response"
    return (
        f"discard {batch['startSequenceNumber']}-{batch['endSequenceNumber']} {context['condition']} "
        f"invoked {context['approximateInvokeCount']} {error}"
    )


def play(trace):
    """The trace as it really goes: what the file says, with every expected part replaced by what happened."""
    rig, happened = Rig(SETTINGS), []
    for line in trace.splitlines():
        said = line
        match line.split():
            case ["with", *words]:
                rig.settings = settings_of(words)
                rig.restart()
            case ["stream", numbers]:
                rig.put(span(numbers))
            case ["later", seconds]:
                rig.now += float(seconds)
            case ["invoke" | "discard", *_]:
                said, before = "nothing more", rig.checkpoint
                action = rig.next()
                if isinstance(action, Invoke):
                    numbers = numbers_of(action.batch.records)
                    answer = re.sub(r" ; checkpoint .*", "", line.partition(" -> ")[2])
                    said = f"invoke {numbers[0]}-{numbers[-1]} -> {answer}"
                    rig.invoked(outcome_of(answer or "null"))
                elif isinstance(action, Discard):
                    said = what_is_said(action)
                    rig.discarded()
                if rig.checkpoint != before:
                    said += f" ; checkpoint {rig.checkpoint}"
        happened.append(said)
    rest = rig.next()
    return "\n".join(happened + ([f"then {rest}"] if rest else []))


@pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.splitlines()[0].strip("= "))
def test_trace(trace):
    assert play(trace) == trace.strip()


def test_every_trace_of_the_file_is_played():
    text = (Path(__file__).parent / "event_source_traces.txt").read_text(encoding="utf-8")
    assert len(TRACES) == text.count("\n= ") > 20


# Nothing is skipped, nothing comes out of order.

OUTCOMES = st.sampled_from(["ok", "raise", "partial", "malformed", "not invoked", "crash before", "crash after"])


@given(
    batch=st.integers(1, 7),
    retries=st.sampled_from([-1, 0, 1, 2]),
    age=st.sampled_from([-1, 5]),
    bisect=st.booleans(),
    report=st.booleans(),
    window=st.sampled_from([0, 2]),
    gaps=st.lists(st.integers(1, 10**30), min_size=1, max_size=20),
    story=st.lists(st.tuples(OUTCOMES, st.integers(0, 6), st.sampled_from([0.0, 1.0, 9.0])), max_size=40),
)
def test_whatever_fails_every_record_is_handled_or_handed_to_the_destination_in_order(
    batch, retries, age, bisect, report, window, gaps, story
):
    mapping_settings = MappingSettings(
        batch_size=batch,
        batching_window=window,
        maximum_retry_attempts=retries,
        maximum_record_age=age,
        bisect_batch_on_function_error=bisect,
        report_batch_item_failures=report,
    )
    rig = Rig(mapping_settings)
    number = 10**127
    for gap in gaps:
        rig.put([number := number + gap])
        rig.now += 0.5
    rig.closed = True
    shard = [record.sequence_number for record in rig.records]
    settled = {}
    steps = iter(story)
    while (action := rig.next()) is not None:
        done = shard.index(rig.checkpoint) + 1 if rig.checkpoint else 0
        records = action.batch.records if isinstance(action, Invoke) else action.records
        identifiers = [record.sequence_number for record in records]
        # The right ones: those behind the checkpoint, without a gap.
        assert identifiers == shard[done : done + len(identifiers)]
        assert len(identifiers) <= batch
        outcome, place, pause = next(steps, ("ok", 0, 0.0))
        rig.now += pause
        # A crash between an effect and its checkpoint: the effect has happened, and nobody knows.
        if isinstance(action, Discard):
            if outcome == "crash before":
                rig.restart()
            elif outcome == "raise":
                rig.mapping.discard_failed(rig.now)
            else:
                settled.update(dict.fromkeys(identifiers, action.condition))
                if outcome == "crash after":
                    rig.restart()
                else:
                    rig.discarded()
            continue
        handled, answer = len(identifiers), Answered("r", None)
        if outcome == "partial" and report:
            handled = place % len(identifiers)
            answer = Answered("r", {"batchItemFailures": [{"itemIdentifier": identifiers[handled]}]})
        elif outcome == "malformed" and report:
            handled, answer = 0, Answered("r", {"batchItemFailures": [{"id": 1}]})
        elif outcome == "raise":
            handled, answer = 0, FunctionError("r", "E", "")
        elif outcome == "not invoked":
            handled, answer = 0, NotInvoked("")
        if outcome == "crash before":
            rig.restart()
            continue
        settled.update(dict.fromkeys(identifiers[:handled], "handled"))
        if outcome == "crash after":
            rig.restart()
        else:
            rig.invoked(answer)
    assert rig.mapping.drained
    assert rig.checkpoint == shard[-1]
    assert list(settled) == shard


# Batches.


def batches_of(rig):
    found = []
    while (action := rig.next()) is not None:
        found.append((rig.now - START, numbers_of(action.batch.records)))
        rig.invoked(Answered("r", None))
    return found


def test_a_window_of_zero_takes_what_there_is():
    rig = Rig(replace(SETTINGS, batch_size=3))
    rig.put(range(1, 6))
    assert batches_of(rig) == [(0.0, [1, 2, 3]), (0.0, [4, 5])]


def test_a_window_waits_for_the_batch_to_fill():
    rig = Rig(replace(SETTINGS, batch_size=3, batching_window=10))
    rig.put([1, 2])
    for _ in range(2):
        action = rig.mapping.next(rig.now)
        rig.poll(action.limit)
        assert rig.mapping.next(rig.now) == Wait(rig.now + SETTINGS.poll_interval)
        rig.now += SETTINGS.poll_interval
    rig.put([3])
    assert batches_of(rig) == [(pytest.approx(2 * SETTINGS.poll_interval), [1, 2, 3])]


def test_an_expired_window_is_enough_for_a_batch_that_is_not_full():
    rig = Rig(replace(SETTINGS, batch_size=3, batching_window=10))
    rig.put([1, 2])
    assert batches_of(rig) == [(pytest.approx(10.0), [1, 2])]


def test_the_next_window_starts_when_the_invocation_completes():
    rig = Rig(replace(SETTINGS, batching_window=10))
    # The second has no room beside the first, so it has been read when that one's invocation begins.
    rig.put([1, 2], data=bytes(MAX_PAYLOAD_BYTES // 2))
    assert numbers_of(rig.next().batch.records) == [1]
    rig.now += 30
    rig.invoked(Answered("r", None))
    assert batches_of(rig) == [(pytest.approx(40.0), [2])]


@pytest.mark.parametrize("ending", ["drain", "close"])
def test_an_end_does_not_wait_for_the_window(ending):
    rig = Rig(replace(SETTINGS, batching_window=300))
    rig.put([1])
    if ending == "drain":
        rig.mapping.drain()
    else:
        rig.closed = True
    assert batches_of(rig) == [(0.0, [1])]
    assert rig.mapping.at_tip
    assert rig.mapping.drained == (ending == "close")


def test_a_batch_is_cut_where_its_json_would_pass_6_mb():
    rig = Rig(SETTINGS)
    # Four records and their base64 pass the limit by what the envelopes take; three do not.
    rig.put(range(1, 10), data=bytes(MAX_PAYLOAD_BYTES * 3 // 16))
    sizes = []
    while (action := rig.next()) is not None:
        sizes.append(len(action.batch.records))
        assert len(action.batch.event) <= MAX_PAYLOAD_BYTES
        assert len(json.loads(action.batch.event)["Records"]) == sizes[-1]
        rig.invoked(Answered("r", None))
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize(("over", "expected"), [(0, [[1, 2]]), (1, [[1], [2]])])
def test_the_limit_is_exact_to_the_byte(over, expected):
    rig = Rig(SETTINGS)
    rig.put([1, 2])
    probe = Rig(SETTINGS)
    probe.put([1, 2])
    room = MAX_PAYLOAD_BYTES - len(probe.next().batch.event)
    # A key of more ASCII characters is a payload of as many more bytes.
    rig.records[1] = replace(rig.records[1], partition_key="k" * (1 + room + over))
    assert [numbers for _, numbers in batches_of(rig)] == expected


def test_a_record_that_no_invocation_can_hold_is_discarded_by_itself():
    rig = Rig(SETTINGS)
    rig.put([1])
    rig.put([2], data=bytes(MAX_PAYLOAD_BYTES))
    rig.put([3])
    assert numbers_of(rig.next().batch.records) == [1]
    rig.invoked(Answered("r", None))
    discard = rig.next()
    assert (numbers_of(discard.records), discard.condition) == ([2], Condition.PAYLOAD_TOO_LARGE)
    rig.discarded()
    assert numbers_of(rig.next().batch.records) == [3]


# Polling.


def test_an_idle_shard_is_polled_at_the_interval_and_one_that_is_behind_at_once():
    rig = Rig(replace(SETTINGS, batch_size=5, batching_window=1))
    assert rig.mapping.next(START) == Poll(5)
    rig.mapping.polled([], millis_behind=0, closed=False, now=START)
    assert rig.mapping.next(START) == Wait(START + 0.2)
    rig.mapping.polled([a_record(1)], millis_behind=700, closed=False, now=START)
    assert rig.mapping.next(START) == Poll(4)


def test_a_failed_poll_keeps_the_place_and_waits_longer_each_time_within_bounds():
    rig = Rig(replace(SETTINGS, batching_window=100))
    rig.put([1, 2])
    rig.poll(10)
    waits = []
    for _ in range(12):
        rig.mapping.poll_failed(rig.now)
        action = rig.mapping.next(rig.now)
        assert rig.mapping.position == "2"
        waits.append(action.until - rig.now)
        rig.now = action.until
    assert waits[0] <= SETTINGS.first_backoff
    assert all(later > earlier for earlier, later in zip(waits[:4:2], waits[2:6:2], strict=True))
    assert all(0 < wait <= SETTINGS.longest_backoff for wait in waits)


def test_records_that_were_read_before_are_not_taken_twice():
    rig = Rig(SETTINGS, checkpoint="2")
    rig.mapping.next(START)
    rig.mapping.polled([a_record(n) for n in (1, 2, 3)], millis_behind=0, closed=False, now=START)
    assert numbers_of(rig.mapping.next(START).batch.records) == [3]


def test_records_before_the_starting_time_are_passed_over():
    rig = Rig(SETTINGS, read_from=START + 5)
    rig.put([1, 2])
    rig.now = START + 5
    rig.put([3])
    assert batches_of(rig) == [(5.0, [3])]


def test_retries_wait_longer_each_time_within_bounds():
    rig = Rig(SETTINGS)
    rig.put([1])
    waits = []
    for _ in range(12):
        assert isinstance(rig.next(), Invoke)
        began = rig.now
        rig.invoked(FunctionError("r", "E", ""))
        waits.append(rig.mapping.next(rig.now).until - began)
    assert 0 < waits[0] <= SETTINGS.first_backoff
    assert waits[-1] > SETTINGS.longest_backoff / 2
    assert max(waits) <= SETTINGS.longest_backoff


def test_a_destination_that_fails_is_asked_again_with_the_same():
    rig = Rig(replace(SETTINGS, maximum_retry_attempts=0))
    rig.put([1])
    rig.next()
    rig.invoked(FunctionError("r", "E", ""))
    first = rig.next()
    rig.mapping.discard_failed(rig.now)
    assert isinstance(rig.mapping.next(rig.now), Wait)
    assert rig.next() == first
    assert rig.checkpoint is None


def test_a_drain_ends_at_the_tip_that_a_later_poll_has_seen():
    rig = Rig(SETTINGS)
    assert rig.mapping.next(START) == Poll(100)
    rig.mapping.drain()
    # This answer may be older than the drain.
    rig.mapping.polled([], millis_behind=0, closed=False, now=START)
    assert not rig.mapping.at_tip
    rig.put([1])
    assert [numbers for _, numbers in batches_of(rig)] == [[1]]
    assert rig.mapping.next(rig.now) == Done()
    assert rig.mapping.at_tip
    assert not rig.mapping.drained


def test_a_full_answer_is_not_the_tip_whatever_it_says():
    rig = Rig(replace(SETTINGS, batch_size=2))
    rig.mapping.drain()
    rig.put([1, 2])
    rig.mapping.next(START)
    rig.mapping.polled(rig.records, millis_behind=0, closed=False, now=START)
    rig.mapping.next(START)
    rig.invoked(Answered("r", None))
    assert isinstance(rig.mapping.next(START), Poll)


# The event, and what the destination is told.


def test_the_event_is_the_one_that_lambda_makes():
    rig = Rig(SETTINGS)
    rig.records = [a_record(10**128, 1545084650.987, b"Hello, this is a test.", "ключ")]
    event = json.loads(rig.next().batch.event)
    assert event == {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": "ключ",
                    "sequenceNumber": str(10**128),
                    "data": base64.b64encode(b"Hello, this is a test.").decode(),
                    "approximateArrivalTimestamp": 1545084650.987,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"{SHARD}:{10**128}",
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": "arn:aws:iam::123456789012:role/r",
                "awsRegion": "eu-west-1",
                "eventSourceARN": "arn:aws:kinesis:eu-west-1:123456789012:stream/s",
            }
        ]
    }


def test_the_destination_is_told_what_lambda_tells_it():
    records = (a_record(3, 1573691884.835), a_record(7, 1573691885.58))
    discard = Discard(SHARD, records, Condition.RETRY_ATTEMPTS_EXHAUSTED, 4, "its-id", True, "Unhandled")
    assert failure_document(discard, STREAM, "arn:f", now=1573691886.021, request_id="spare") == {
        "requestContext": {
            "requestId": "its-id",
            "functionArn": "arn:f",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 4,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2019-11-14T00:38:06.021Z",
        "KinesisBatchInfo": {
            "shardId": SHARD,
            "startSequenceNumber": "3",
            "endSequenceNumber": "7",
            "approximateArrivalOfFirstRecord": "2019-11-14T00:38:04.835Z",
            "approximateArrivalOfLastRecord": "2019-11-14T00:38:05.580Z",
            "batchSize": 2,
            "streamArn": STREAM.stream_arn,
        },
    }


# Settings.

QUEUE = "arn:aws:sqs:us-east-1:123456789012:liveinsight-local-failures"


def test_settings_from_cloudformation():
    assert MappingSettings.from_cloudformation({"StartingPosition": "TRIM_HORIZON"}) == MappingSettings()
    properties = {
        "FunctionName": "f",
        "EventSourceArn": STREAM.stream_arn,
        "StartingPosition": "AT_TIMESTAMP",
        "StartingPositionTimestamp": 1541139109,
        "BatchSize": "500",
        "MaximumBatchingWindowInSeconds": 1,
        "ParallelizationFactor": 1,
        "BisectBatchOnFunctionError": "true",
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "MaximumRetryAttempts": 7,
        "MaximumRecordAgeInSeconds": 3600,
        "DestinationConfig": {"OnFailure": {"Destination": QUEUE}},
    }
    assert MappingSettings.from_cloudformation(properties) == MappingSettings(
        batch_size=500,
        batching_window=1,
        report_batch_item_failures=True,
        bisect_batch_on_function_error=True,
        maximum_retry_attempts=7,
        maximum_record_age=3600,
        starting_position=StartingPosition.AT_TIMESTAMP,
        starting_timestamp=1541139109,
        on_failure=QUEUE,
    )


@pytest.mark.parametrize("nothing", [None, {}, {"OnFailure": {}}, {"OnFailure": None}])
def test_an_empty_destination_is_none(nothing):
    properties = {"StartingPosition": "LATEST", "DestinationConfig": nothing}
    assert MappingSettings.from_cloudformation(properties).on_failure is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ParallelizationFactor": 2}, "ParallelizationFactor must be 1"),
        ({"BatchSize": 0}, "BatchSize"),
        ({"BatchSize": 10_001}, "BatchSize"),
        ({"BatchSize": {"Ref": "BatchSize"}}, "BatchSize"),
        ({"BatchSize": "many"}, "BatchSize"),
        ({"BatchSize": 1.5}, "BatchSize"),
        ({"MaximumBatchingWindowInSeconds": 301}, "MaximumBatchingWindowInSeconds"),
        ({"MaximumRetryAttempts": -2}, "MaximumRetryAttempts"),
        ({"MaximumRecordAgeInSeconds": 604_801}, "MaximumRecordAgeInSeconds"),
        ({"BisectBatchOnFunctionError": "maybe"}, "BisectBatchOnFunctionError"),
        ({"FunctionResponseTypes": ["Something"]}, "FunctionResponseTypes"),
        ({"FunctionResponseTypes": "ReportBatchItemFailures"}, "FunctionResponseTypes"),
        ({"StartingPosition": None}, "StartingPosition"),
        ({"StartingPosition": "HERE"}, "StartingPosition"),
        ({"StartingPosition": "AT_TIMESTAMP"}, "StartingPositionTimestamp"),
        ({"StartingPositionTimestamp": 5}, "StartingPositionTimestamp"),
        ({"TumblingWindowInSeconds": 30}, "TumblingWindowInSeconds"),
        ({"FilterCriteria": {}}, "FilterCriteria"),
        ({"Enabled": False}, "Enabled"),
        ({"DestinationConfig": {"OnSuccess": {"Destination": QUEUE}}}, "DestinationConfig"),
        ({"DestinationConfig": {"OnFailure": {"Destination": {"Ref": "Queue"}}}}, "DestinationConfig"),
        ({"DestinationConfig": {"OnFailure": {"Destination": "arn:aws:sns:us-east-1:1:t"}}}, "SQS"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused_by_name(change, named):
    with pytest.raises(SettingsError, match=named):
        MappingSettings.from_cloudformation({"StartingPosition": "TRIM_HORIZON"} | change)
