"""Batches go to Kinesis by PutRecords, again and again until it acknowledges them or their deadline is over.

Kinesis may refuse some records of a call only, and keeps no order between a record that is put again and
those put before. So a call holds one record for each lane at most, and a lane whose record was refused waits.
When the answer to a call is lost, all of its records are put again: whoever reads the stream tells repeats.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from botocore.exceptions import ClientError, CredentialRetrievalError, HTTPClientError, MetadataRetrievalError
from botocore.exceptions import ConnectionError as UnconnectedError
from botocore.parsers import ResponseParserError

from producer.batching import Batch, Batcher

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

T = TypeVar("T")

#: What passes by itself. Any server error (status 500 and above) does, too.
_PASSING_CODES = frozenset(
    {
        "InternalFailure",
        "InternalServerError",
        "KMSThrottlingException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
#: What a single record is refused for that does not pass by itself. An unknown code might.
_LASTING_RECORD_CODES = frozenset(
    {
        "AccessDeniedException",
        "KMSAccessDeniedException",
        "KMSDisabledException",
        "KMSInvalidStateException",
        "KMSNotFoundException",
        "KMSOptInRequired",
        "ResourceNotFoundException",
        "ValidationException",
    }
)
#: The call may or may not have come through.
_PASSING_ERRORS = (
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
    ResponseParserError,
    UnconnectedError,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record was not acknowledged; ``passing``: whether it is worth another try."""

    cause: str
    passing: bool


@dataclass(frozen=True, slots=True)
class Settled(Generic[T]):
    """The end of a batch: acknowledged by Kinesis (``failure`` is None), or given up."""

    batch: Batch[T]
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter; ``base`` and ``cap`` in s."""

    base: float = 0.1
    cap: float = 5.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """How long (s) to wait after that many failures in a row, from 1."""
        return rng.uniform(0, min(self.cap, self.base * 2 ** min(failures - 1, 32)))


@dataclass(slots=True)
class Counters:
    """Since the start: PutRecords calls, the records in them, and how many of those were put before."""

    put_calls: int = 0
    records_put: int = 0
    records_retried: int = 0


def put_records(kinesis: KinesisClient, stream: str, batches: Sequence[Batch[T]]) -> Failure | Sequence[Failure | None]:
    """One PutRecords call: for each batch None or why Kinesis refused it; or why the call failed. Never raises."""
    try:
        answer = kinesis.put_records(
            StreamName=stream,
            Records=[
                {
                    "Data": batch.encode(),
                    "PartitionKey": batch.partition_key,
                    "ExplicitHashKey": batch.explicit_hash_key,
                }
                for batch in batches
            ],
        )
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return Failure(str(error), code in _PASSING_CODES or status == 429 or status >= 500)
    except _PASSING_ERRORS as error:
        return Failure(f"{type(error).__name__}: {error}", True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the senders must be told, and the thread must live
        return Failure(f"{type(error).__name__}: {error}", False)
    records = answer.get("Records", [])
    if len(records) != len(batches):
        return Failure(f"Kinesis answered for {len(records)} of {len(batches)} records", True)
    failures: list[Failure | None] = []
    for record in records:
        if refused_for := record.get("ErrorCode"):
            cause = f"{refused_for}: {record.get('ErrorMessage', 'no message')}"
            failures.append(Failure(cause, refused_for not in _LASTING_RECORD_CODES))
        else:
            failures.append(None)
    return failures


class Delivery(Generic[T]):
    """What is put when, and what becomes of it. Only :meth:`put` does I/O, and only it is thread-safe.

    One round: sleep until :meth:`due`, and only then :meth:`begin`, :meth:`put` and :meth:`end`. Several rounds
    may overlap; a lane is in one of them at most.
    """

    def __init__(
        self,
        kinesis: KinesisClient,
        stream: str,
        batcher: Batcher[T],
        *,
        deadline: float,
        backoff: Backoff,
        rng: random.Random,
    ) -> None:
        self.counters = Counters()
        self._kinesis = kinesis
        self._stream = stream
        self._batcher = batcher
        self._deadline = deadline
        self._backoff = backoff
        self._rng = rng
        self._lane_failures: dict[int, tuple[int, Failure]] = {}  # how many in a row, and the last one
        self._call_failures = 0
        self._paused_until = -math.inf

    def due(self, hurry: bool = False) -> float:
        """When the next round is to begin; with ``hurry`` no event waits for company, but failures still wait."""
        return max(self._batcher.due(hurry), self._paused_until)

    def begin(self, now: float) -> tuple[list[Batch[T]], list[Settled[T]]]:
        """What to :meth:`put` now, if anything, and what is given up as its deadline is over."""
        settled = [Settled(batch, self._expired(batch.lane)) for batch in self._batcher.expire(now)]
        for end in settled:
            if end.batch.lane not in self._batcher:
                self._lane_failures.pop(end.batch.lane, None)
        return self._batcher.take(now), settled

    def put(self, batches: Sequence[Batch[T]]) -> Failure | Sequence[Failure | None]:
        """The call itself. Its outcome is for :meth:`end`."""
        return put_records(self._kinesis, self._stream, batches)

    def end(
        self, batches: Sequence[Batch[T]], outcome: Failure | Sequence[Failure | None], now: float
    ) -> list[Settled[T]]:
        """Take note of a call's outcome; returns the batches that it settled."""
        self.counters.put_calls += 1
        self.counters.records_put += len(batches)
        self.counters.records_retried += sum(batch.lane in self._lane_failures for batch in batches)
        if isinstance(outcome, Failure):
            if outcome.passing:
                self._call_failures += 1
                self._paused_until = now + self._backoff.delay(self._call_failures, self._rng)
            return self._end_each(batches, [outcome] * len(batches), now, paused=outcome.passing)
        self._call_failures = 0
        return self._end_each(batches, outcome, now, paused=False)

    def _end_each(
        self, batches: Sequence[Batch[T]], outcomes: Sequence[Failure | None], now: float, paused: bool
    ) -> list[Settled[T]]:
        settled = []
        for batch, failure in zip(batches, outcomes, strict=True):
            if failure is not None and failure.passing:
                count, _ = self._lane_failures.get(batch.lane, (0, None))
                until = now
                if not paused:  # else all lanes wait together: the call's failure says nothing about this one
                    count += 1
                    until += self._backoff.delay(count, self._rng)
                self._lane_failures[batch.lane] = (count, failure)
                self._batcher.put_back(batch, until)
                continue
            self._lane_failures.pop(batch.lane, None)
            if self._batcher.settle(batch):
                settled.append(Settled(batch, failure))
        return settled

    def _expired(self, lane: int) -> Failure:
        _, last = self._lane_failures.get(lane, (0, None))
        answer = f"the last answer was {last.cause}" if last else "no call was free for it in time"
        return Failure(f"not acknowledged within {self._deadline:g} s; {answer}", False)
