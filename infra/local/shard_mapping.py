"""The event source mapping of one shard: Lambda's batching and retry rules as a state machine.

Nothing here does I/O, reads a clock or starts anything: :class:`ShardMapping` says what to do next
(:data:`Action`) and is told how it went. Time is an argument, in seconds since 1970; randomness is an
argument too. So a test or a simulation can drive the very rules that
:mod:`infra.local.event_source` runs on.

The rules are those of the AWS Lambda developer guide ("Using Lambda with Kinesis", "Configuring partial
batch response", "Retain discarded batch records"), and, where the guide is silent, what recorded runs on AWS
show:

- A batch is cut when it has ``BatchSize`` records, when one more record would take the event's JSON over
  6 MB, or when the batching window is over. The window starts when the previous invocation completed, or
  with the first record that came after that.
- A function error fails the whole batch. With ``BisectBatchOnFunctionError`` a batch of two or more is then
  halved, which costs no retry; halves are tried one after the other.
- A response that names failed records checkpoints what is before the lowest sequence number and goes on
  from there. What remains is a new batch, with all its retries. Where it names the batch's first record,
  nothing was done: that costs a retry, and there is nothing to split off.
- After ``MaximumRetryAttempts`` retries the batch is discarded. Records older than
  ``MaximumRecordAgeInSeconds`` are discarded before each invocation, the younger rest of the batch is not.
"""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import takewhile

#: Lambda's limit for the payload of a synchronous invocation, in bytes.
MAX_PAYLOAD_BYTES = 6 * 1024 * 1024
_EVENT_HEAD = b'{"Records":['
_EVENT_TAIL = b"]}"


class SettingsError(ValueError):
    """A setting that the local event source cannot honour. The text names it and the remedy."""


class StartingPosition(StrEnum):
    """Where to begin in a stream that has no checkpoints yet."""

    TRIM_HORIZON = "TRIM_HORIZON"
    LATEST = "LATEST"
    AT_TIMESTAMP = "AT_TIMESTAMP"


class Condition(StrEnum):
    """Why records were discarded, as the on-failure destination is told."""

    RETRY_ATTEMPTS_EXHAUSTED = "RetryAttemptsExhausted"
    RECORD_AGE_EXCEEDED = "RecordAgeExceeded"
    #: Not a name of AWS's: one record alone is over the invocation payload limit.
    PAYLOAD_TOO_LARGE = "PayloadTooLarge"


@dataclass(frozen=True)
class MappingSettings:
    """An event source mapping's settings, by their AWS meaning. Times are seconds; -1 means without end.

    ``on_failure`` is an SQS queue's ARN or URL. The last three are this machine's pace, which AWS does not
    let one set: how often an idle shard is polled, and between which bounds a failure delays what is next.
    """

    batch_size: int = 100
    batching_window: float = 0
    report_batch_item_failures: bool = False
    bisect_batch_on_function_error: bool = False
    maximum_retry_attempts: int = -1
    maximum_record_age: float = -1
    starting_position: StartingPosition = StartingPosition.TRIM_HORIZON
    starting_timestamp: float | None = None
    on_failure: str | None = None
    poll_interval: float = 0.2
    first_backoff: float = 0.2
    longest_backoff: float = 10.0

    def __post_init__(self) -> None:
        _check_range("BatchSize", self.batch_size, 1, 10_000)
        _check_range("MaximumBatchingWindowInSeconds", self.batching_window, 0, 300)
        _check_range("MaximumRetryAttempts", self.maximum_retry_attempts, -1, 10_000)
        _check_range("MaximumRecordAgeInSeconds", self.maximum_record_age, -1, 604_800)
        if (self.starting_position is StartingPosition.AT_TIMESTAMP) != (self.starting_timestamp is not None):
            raise SettingsError(
                "StartingPositionTimestamp belongs to StartingPosition AT_TIMESTAMP: give both, or neither"
            )
        if self.on_failure is not None and not re.match(r"arn:aws[a-z-]*:sqs:|https?://", self.on_failure):
            raise SettingsError(
                f"on-failure destination {self.on_failure!r}: only an SQS queue's ARN or URL works here"
            )

    @classmethod
    def from_cloudformation(cls, properties: Mapping[str, object]) -> MappingSettings:
        """The settings that the ``Properties`` of an ``AWS::Lambda::EventSourceMapping`` ask for.

        ``properties`` hold plain values (no ``Ref``, no ``Fn::Sub``). Raises :class:`SettingsError` for one
        that would change what the function sees and is not done here, rather than to ignore it.
        """
        unknown = sorted(properties.keys() - _DONE_HERE - _WITHOUT_EFFECT_HERE)
        if unknown:
            raise SettingsError(f"{', '.join(unknown)}: not done by the local event source; remove it from the mapping")
        if _integer(properties, "ParallelizationFactor", 1) != 1:
            raise SettingsError("ParallelizationFactor must be 1: positions rely on one batch of a shard at a time")
        response_types = properties.get("FunctionResponseTypes") or []
        if not isinstance(response_types, Sequence) or set(response_types) - {"ReportBatchItemFailures"}:
            raise SettingsError(f"FunctionResponseTypes {response_types!r}: must be [ReportBatchItemFailures] or empty")
        if not _boolean(properties, "Enabled", default=True):
            raise SettingsError("Enabled is false: there is nothing to run")
        position = str(properties.get("StartingPosition"))
        if position not in tuple(StartingPosition):
            raise SettingsError(f"StartingPosition {position!r}: must be one of {', '.join(StartingPosition)}")
        timestamp = properties.get("StartingPositionTimestamp")
        return cls(
            batch_size=_integer(properties, "BatchSize", cls.batch_size),
            batching_window=_integer(properties, "MaximumBatchingWindowInSeconds", 0),
            report_batch_item_failures=bool(response_types),
            bisect_batch_on_function_error=_boolean(properties, "BisectBatchOnFunctionError"),
            maximum_retry_attempts=_integer(properties, "MaximumRetryAttempts", -1),
            maximum_record_age=_integer(properties, "MaximumRecordAgeInSeconds", -1),
            starting_position=StartingPosition(position),
            starting_timestamp=None if timestamp is None else _number("StartingPositionTimestamp", timestamp),
            on_failure=_queue_of(properties.get("DestinationConfig")),
        )


_DONE_HERE = {
    "BatchSize",
    "MaximumBatchingWindowInSeconds",
    "FunctionResponseTypes",
    "BisectBatchOnFunctionError",
    "MaximumRetryAttempts",
    "MaximumRecordAgeInSeconds",
    "ParallelizationFactor",
    "StartingPosition",
    "StartingPositionTimestamp",
    "DestinationConfig",
    "Enabled",
}
_WITHOUT_EFFECT_HERE = {"EventSourceArn", "FunctionName", "KmsKeyArn", "MetricsConfig", "Tags"}


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise SettingsError(f"{name} is {value}; must be from {least} to {most}")


def _number(name: str, value: object) -> float:
    # A template's parameters are strings, whatever their type.
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise SettingsError(f"{name} is {value!r}; must be a number (resolve references first)")


def _integer(properties: Mapping[str, object], name: str, default: int) -> int:
    number = _number(name, properties.get(name, default))
    if not number.is_integer():
        raise SettingsError(f"{name} is {number}; must be a whole number")
    return int(number)


def _boolean(properties: Mapping[str, object], name: str, *, default: bool = False) -> bool:
    value = properties.get(name, default)
    if str(value).lower() not in ("true", "false"):
        raise SettingsError(f"{name} is {value!r}; must be true or false")
    return str(value).lower() == "true"


def _queue_of(destination_config: object) -> str | None:
    match destination_config or {"OnFailure": None}:
        case {"OnFailure": on_failure, **others} if not others:
            match on_failure or {"Destination": None}:
                case {"Destination": str() | None as destination, **others} if not others:
                    return destination
    raise SettingsError(
        f"DestinationConfig is {destination_config!r}; must be {{OnFailure: {{Destination: queue ARN}}}}"
    )


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the stream. ``sequence_number`` is decimal, up to 129 digits, and ordered as an integer."""

    shard_id: str
    sequence_number: str
    partition_key: str
    data: bytes
    arrived: float


@dataclass(frozen=True)
class EventSourceIdentity:
    """What every record of an event says about where it comes from."""

    stream_arn: str
    role_arn: str

    @property
    def region(self) -> str:
        return self.stream_arn.split(":")[3]


def encode_record(record: Record, identity: EventSourceIdentity) -> bytes:
    """The record's JSON within a Lambda event."""
    return json.dumps(
        {
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": record.partition_key,
                "sequenceNumber": record.sequence_number,
                "data": base64.b64encode(record.data).decode("ascii"),
                "approximateArrivalTimestamp": round(record.arrived, 3),
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": f"{record.shard_id}:{record.sequence_number}",
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": identity.role_arn,
            "awsRegion": identity.region,
            "eventSourceARN": identity.stream_arn,
        },
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Batch:
    """Records of one shard, in its order and without a gap, that go into one invocation.

    ``invocation`` is 1 when this very batch is invoked first, 2 at its first retry, and so on.
    """

    shard_id: str
    records: tuple[Record, ...]
    encoded: tuple[bytes, ...] = field(repr=False)
    invocation: int = 1

    @property
    def event(self) -> bytes:
        """The invocation's payload: UTF-8 JSON."""
        return _EVENT_HEAD + b",".join(self.encoded) + _EVENT_TAIL

    def __str__(self) -> str:
        first, last = self.records[0].sequence_number, self.records[-1].sequence_number
        return f"{self.shard_id}[{first}..{last}] of {len(self.records)}"


# What to do next.


@dataclass(frozen=True)
class Poll:
    """Read up to ``limit`` records behind :attr:`ShardMapping.position`; report ``polled`` or ``poll_failed``."""

    limit: int


@dataclass(frozen=True)
class Invoke:
    """Invoke the function with ``batch``; report ``invoked``."""

    batch: Batch


@dataclass(frozen=True)
class Discard:
    """Tell the on-failure destination that ``records`` are given up; report ``discarded`` or ``discard_failed``.

    ``request_id`` and ``function_error`` are of the last invocation; ``answered`` says that it decided.
    """

    shard_id: str
    records: tuple[Record, ...]
    condition: Condition
    invocations: int
    request_id: str | None = None
    answered: bool = False
    function_error: str | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do before ``until``, unless :meth:`ShardMapping.drain` is called."""

    until: float


@dataclass(frozen=True)
class Done:
    """Nothing is left to do: the shard is closed and drained, or a drain has reached its tip."""


Action = Poll | Invoke | Discard | Wait | Done


# How an invocation went.


@dataclass(frozen=True)
class Answered:
    """The function returned ``response`` (what its JSON reads as)."""

    request_id: str
    response: object


@dataclass(frozen=True)
class FunctionError:
    """The function raised, ran out of time, or took its process with it."""

    request_id: str
    kind: str
    detail: str


@dataclass(frozen=True)
class NotInvoked:
    """The batch did not reach the function (Lambda's throttles and service errors). Costs no retry."""

    detail: str


Outcome = Answered | FunctionError | NotInvoked


def records_done(response: object, batch: Batch) -> int | None:
    """How many of the batch's first records a ``ReportBatchItemFailures`` response declares done.

    None means that the response is malformed, which fails the whole batch: an identifier that is absent,
    empty, no string or not in the batch, or a type that no such response has.
    """
    if response is None or response in ("", [], {}):
        return len(batch.records)
    if not isinstance(response, dict):
        return None
    failures = response.get("batchItemFailures")
    if failures is None:
        return len(batch.records)
    if not isinstance(failures, list):
        return None
    places = {record.sequence_number: place for place, record in enumerate(batch.records)}
    done = len(batch.records)
    for failure in failures:
        identifier = failure.get("itemIdentifier") if isinstance(failure, dict) else None
        if not isinstance(identifier, str) or identifier not in places:
            return None
        # A batch is in sequence number order, so the lowest number is the first place.
        done = min(done, places[identifier])
    return done


def failure_document(
    discard: Discard, identity: EventSourceIdentity, function_arn: str, *, now: float, request_id: str
) -> dict[str, object]:
    """The JSON that Lambda sends to an on-failure destination: where the records are, not what is in them.

    ``request_id`` stands in where no invocation gave one. As on AWS, ``responseContext`` is there only if an
    answer of the function decided, and its ``functionError`` is null if the function did not raise.
    """
    first, last = discard.records[0], discard.records[-1]
    response = {"statusCode": 200, "executedVersion": "$LATEST", "functionError": discard.function_error}
    return {
        "requestContext": {
            "requestId": discard.request_id or request_id,
            "functionArn": function_arn,
            "condition": discard.condition.value,
            "approximateInvokeCount": discard.invocations,
        },
        **({"responseContext": response} if discard.answered else {}),
        "version": "1.0",
        "timestamp": _iso(now),
        "KinesisBatchInfo": {
            "shardId": discard.shard_id,
            "startSequenceNumber": first.sequence_number,
            "endSequenceNumber": last.sequence_number,
            "approximateArrivalOfFirstRecord": _iso(first.arrived),
            "approximateArrivalOfLastRecord": _iso(last.arrived),
            "batchSize": len(discard.records),
            "streamArn": identity.stream_arn,
        },
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _payload(encoded_bytes: int, records: int = 1) -> int:
    """The event's size, given its records' sizes together: there is a comma between any two."""
    return len(_EVENT_HEAD) + encoded_bytes + records - 1 + len(_EVENT_TAIL)


@dataclass
class _Attempt:
    """The batch that the buffer's first ``size`` records are, and what became of it so far."""

    size: int
    invocations: int = 0
    retries: int = 0
    exhausted: bool = False
    request_id: str | None = None
    function_error: str | None = None


class ShardMapping:
    """What the event source mapping of one shard does next, given what happened so far.

    Ask :meth:`next`, do what it says, report it, save :attr:`checkpoint` when it changed, ask again. Asking
    changes nothing that matters: until the report comes, the answer stays the same but for what time adds.
    Nothing is ever invoked or discarded but the records right behind the checkpoint, in order, so a crash
    between two steps repeats at most the batch in flight.

    ``checkpoint`` is the sequence number of the last record that is done, None at the start. Records that
    arrived before ``read_from`` (seconds) are passed over: it is how ``LATEST`` and ``AT_TIMESTAMP`` begin.
    """

    def __init__(
        self,
        identity: EventSourceIdentity,
        shard_id: str,
        settings: MappingSettings,
        *,
        checkpoint: str | None = None,
        read_from: float | None = None,
        rng: random.Random,
    ) -> None:
        self.shard_id = shard_id
        self.checkpoint = checkpoint
        #: Sequence number of the last record read: where the next poll goes on. None: at the start.
        self.position = checkpoint
        #: How far behind the stream's tip the last poll was, in ms.
        self.millis_behind = 0
        self._identity = identity
        self._settings = settings
        self._read_from = read_from
        self._rng = rng
        self._buffer: list[tuple[Record, bytes]] = []
        self._attempts: list[_Attempt] = []
        self._window_start = 0.0
        self._next_poll = 0.0
        self._poll_limit = 0
        self._poll_failures = 0
        self._discarding: Discard | None = None
        self._resume_at = 0.0
        self._failures = 0
        self._closed = False
        self._draining = False
        self._polling_for_tip = False
        self._at_tip = False

    @property
    def pending(self) -> int:
        """Records read and not done."""
        return len(self._buffer)

    @property
    def drained(self) -> bool:
        """The shard is closed, and everything in it is done."""
        return self._closed and not self._buffer

    @property
    def at_tip(self) -> bool:
        """Everything is done that was in the shard when :meth:`drain` was called (or the shard is drained)."""
        return self.drained or (self._at_tip and not self._buffer)

    def drain(self) -> None:
        """From now on wait for no batching window, and stop at the shard's tip."""
        self._draining = True

    def next(self, now: float) -> Action:
        """What to do at ``now``."""
        if not self._attempts and (size := self._cut(now)):
            self._attempts.append(_Attempt(size))
        if self._attempts:
            if now < self._resume_at:
                return Wait(self._resume_at)
            attempt = self._attempts[0]
            self._discarding = self._discard(attempt, now)
            return self._discarding or Invoke(self._batch(attempt))
        if self.at_tip:
            return Done()
        if now >= self._next_poll:
            self._poll_limit = self._settings.batch_size - len(self._buffer)
            self._polling_for_tip = self._draining
            return Poll(self._poll_limit)
        return Wait(min(self._next_poll, self._window_end) if self._buffer else self._next_poll)

    def polled(self, records: Sequence[Record], *, millis_behind: int, closed: bool, now: float) -> None:
        """A poll returned ``records``; ``closed`` says that the shard will never have more."""
        if not self._buffer:
            self._window_start = now
        for record in records:
            if self.position is not None and int(record.sequence_number) <= int(self.position):
                continue
            self.position = record.sequence_number
            if self._read_from is None or record.arrived >= self._read_from:
                self._buffer.append((record, encode_record(record, self._identity)))
        self.millis_behind = millis_behind
        # A full answer may have left records behind, whatever millis_behind says.
        behind = millis_behind > 0 or len(records) >= self._poll_limit
        self._at_tip = self._polling_for_tip and not behind
        self._closed = closed
        self._poll_failures = 0
        self._next_poll = now if behind else now + self._settings.poll_interval

    def poll_failed(self, now: float) -> None:
        """A poll failed. The next one goes on from the same :attr:`position`, later."""
        self._poll_failures += 1
        self._next_poll = now + self._backoff(self._poll_failures)

    def invoked(self, outcome: Outcome, now: float) -> None:
        """The invocation that :meth:`next` asked for ended with ``outcome``."""
        attempt = self._attempts[0]
        self._window_start = now
        if isinstance(outcome, NotInvoked):
            self._delay(now)
            return
        attempt.invocations += 1
        attempt.request_id = outcome.request_id
        attempt.function_error = "Unhandled" if isinstance(outcome, FunctionError) else None
        done = self._done_by(outcome, attempt)
        if done == attempt.size:
            self._finish(done)
            self._failures = 0
            return
        if done:
            self._finish(done)
            # What remains starts afresh: Lambda counts its retries from here.
            self._attempts[0] = _Attempt(attempt.size)
        elif done is None and self._settings.bisect_batch_on_function_error and attempt.size > 1:
            half = attempt.size // 2
            self._attempts[:1] = [_Attempt(half), _Attempt(attempt.size - half)]
        elif attempt.retries == self._settings.maximum_retry_attempts:
            attempt.exhausted = True
            return
        else:
            attempt.retries += 1
        self._delay(now)

    def discarded(self, now: float) -> None:
        """The destination has taken what :meth:`next` asked to discard, so the shard goes on behind it."""
        assert self._discarding is not None, "next() asked for no discard"
        self._finish(len(self._discarding.records))
        self._discarding = None
        self._failures = 0
        self._window_start = self._resume_at = now

    def discard_failed(self, now: float) -> None:
        """The destination did not take it. It is asked again later: a discard must not go unseen."""
        self._delay(now)

    def _cut(self, now: float) -> int:
        """How many records the next batch has; 0 while it may still grow."""
        count = encoded_bytes = 0
        for _, encoded in self._buffer[: self._settings.batch_size]:
            encoded_bytes += len(encoded)
            if count and _payload(encoded_bytes, count + 1) > MAX_PAYLOAD_BYTES:
                return count
            count += 1
        full = count == self._settings.batch_size
        return count if full or self._closed or self._draining or now >= self._window_end else 0

    @property
    def _window_end(self) -> float:
        return self._window_start + self._settings.batching_window

    def _batch(self, attempt: _Attempt) -> Batch:
        records, encoded = zip(*self._buffer[: attempt.size], strict=True)
        return Batch(self.shard_id, records, encoded, attempt.invocations + 1)

    def _discard(self, attempt: _Attempt, now: float) -> Discard | None:
        """What of the batch must be given up rather than be invoked (again)."""
        count, condition = attempt.size, Condition.RETRY_ATTEMPTS_EXHAUSTED
        if not attempt.exhausted:
            count, condition = self._expired(attempt, now), Condition.RECORD_AGE_EXCEEDED
            if not count and _payload(len(self._buffer[0][1])) > MAX_PAYLOAD_BYTES:
                count, condition = 1, Condition.PAYLOAD_TOO_LARGE
        if not count:
            return None
        return Discard(
            self.shard_id,
            tuple(record for record, _ in self._buffer[:count]),
            condition,
            attempt.invocations,
            attempt.request_id,
            answered=attempt.exhausted,
            function_error=attempt.function_error if attempt.exhausted else None,
        )

    def _expired(self, attempt: _Attempt, now: float) -> int:
        if self._settings.maximum_record_age < 0:
            return 0
        latest = now - self._settings.maximum_record_age
        expired = takewhile(lambda one: one[0].arrived <= latest, self._buffer[: attempt.size])
        return sum(1 for _ in expired)

    def _done_by(self, outcome: Answered | FunctionError, attempt: _Attempt) -> int | None:
        if isinstance(outcome, FunctionError):
            return None
        if not self._settings.report_batch_item_failures:
            return attempt.size
        return records_done(outcome.response, self._batch(attempt))

    def _finish(self, count: int) -> None:
        """The buffer's first ``count`` records are done: handled, or handed to the destination."""
        self.checkpoint = self._buffer[count - 1][0].sequence_number
        del self._buffer[:count]
        attempt = self._attempts[0]
        attempt.size -= count
        if not attempt.size:
            del self._attempts[0]

    def _delay(self, now: float) -> None:
        self._failures += 1
        self._resume_at = now + self._backoff(self._failures)

    def _backoff(self, failures: int) -> float:
        longest = min(self._settings.longest_backoff, self._settings.first_backoff * 2.0 ** min(failures - 1, 30))
        return longest * self._rng.uniform(0.5, 1)
