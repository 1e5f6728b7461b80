"""LiveInsight's own Kinesis event source mapping, for one machine.

It polls a stream and calls the unmodified Lambda handler as AWS Lambda's mapping does: batches of one shard, one in
flight for each shard, partial batch responses, bisection, retries, discards with an on-failure destination. The
rules are in :mod:`infra.local.shard_mapping`; the handler's process is in :mod:`infra.local.shard_worker`. This
module has what touches the world: polling, discovery of shards, checkpoints in a file, SQS, signals.

One thread for each shard runs its mapping; the thread of :meth:`EventSource.run` starts shards (children after
their parents) and ends the whole.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import logging
import math
import os
import queue
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from infra.local.shard_mapping import (
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
from infra.local.shard_worker import Function, FunctionSettings, WorkerProcess

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import GetShardIteratorInputTypeDef, ShardTypeDef
    from mypy_boto3_sqs import SQSClient

__all__ = ["Checkpoints", "EventSource", "FunctionSettings", "MappingSettings", "SettingsError", "StateError", "main"]

logger = logging.getLogger("infra.local.event_source")

#: Seconds between two tries to find the shards, after a failure or a hint that they changed.
_DISCOVERY_RETRY = 1.0


class StateError(Exception):
    """The state directory cannot be used. The text says why, and what to do."""


@dataclass(frozen=True)
class ShardState:
    """What is durable of a shard: the last record that is done, and whether nothing can come any more."""

    sequence_number: str | None = None
    drained: bool = False


class Checkpoints:
    """How far each shard of one stream is done, in a JSON file that survives a crash at any moment.

    A stream is known by its ARN and the time of its creation, so that one that was deleted and made again starts
    afresh, as the streams of an embedded AWS do that keeps them in memory. ``read_from`` is the time (seconds)
    before which the stream's records are passed over; it is set once, when a stream is first seen.
    Threads may save different shards at once. Raises :class:`StateError` for a file that it did not write.
    """

    def __init__(self, path: Path, stream_arn: str, created_ms: int, *, read_from: float | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._arn = stream_arn
        try:
            self._streams = self._read()
            known = self._streams.get(stream_arn)
            if known is None or known["created_ms"] != created_ms:
                known = {"created_ms": created_ms, "read_from": read_from, "shards": {}}
                self._write(known)
        except OSError as error:
            raise StateError(f"{path} cannot be used: {error}; name another directory") from error
        self.read_from: float | None = known["read_from"]

    def __getitem__(self, shard_id: str) -> ShardState:
        return ShardState(**self._streams[self._arn]["shards"].get(shard_id, {}))

    def save(self, shard_id: str, state: ShardState) -> None:
        """Make the shard's state durable. Raises ``OSError`` where the file cannot be written; nothing changes then."""
        with self._lock:
            known = self._streams[self._arn]
            self._write({**known, "shards": {**known["shards"], shard_id: asdict(state)}})

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
            if content["format"] == 1:
                streams: dict[str, Any] = content["streams"]
                return streams
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError):
            pass
        raise StateError(f"{self._path} holds no checkpoints of this version; delete it to start afresh")

    def _write(self, stream: dict[str, Any]) -> None:
        streams = {**self._streams, self._arn: stream}
        content = json.dumps({"format": 1, "streams": streams}, indent=1).encode()
        partial = self._path.with_name(self._path.name + ".partial")
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
        # The file's new name is durable only once its directory is.
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._streams = streams


@contextmanager
def _only_user(state: Path) -> Iterator[None]:
    """Hold the state directory: two event sources would have two batches of a shard in flight."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / "lock").open("wb")
    except OSError as error:
        raise StateError(f"{state} cannot be used for checkpoints: {error}; name another directory") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"another event source runs on {state}; stop it, or name another directory") from None
        yield


class _OnFailure:
    """The on-failure destination: an SQS queue, or none."""

    def __init__(self, sqs: SQSClient | None, destination: str | None) -> None:
        if destination is not None and sqs is None:
            raise SettingsError("an on-failure destination needs an SQS client")
        self._sqs = sqs
        self._destination = destination
        self._url: str | None = None

    def send(self, document: dict[str, object]) -> None:
        """Deliver the document. Raises botocore's errors."""
        if self._sqs is None or self._destination is None:
            return
        if self._url is None:
            self._url = self._destination
            if self._destination.startswith("arn:"):
                account, name = self._destination.split(":")[4:6]
                self._url = self._sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        self._sqs.send_message(QueueUrl=self._url, MessageBody=json.dumps(document))


class _ShardThread(threading.Thread):
    """Runs the mapping of one shard: does what it says, saves its checkpoint, until it is done or told to stop."""

    def __init__(self, stream: _Stream, shard_id: str, source: EventSource) -> None:
        super().__init__(name=shard_id, daemon=True)
        self.shard_id = shard_id
        self._stream = stream
        self._source = source
        self._saved = stream.checkpoints[shard_id]
        self.mapping = ShardMapping(
            stream.identity,
            shard_id,
            source.mapping,
            checkpoint=self._saved.sequence_number,
            read_from=stream.checkpoints.read_from,
            rng=source.rng,
        )
        self._function = source.start_function()
        self._iterator: str | None = None
        self._draining = self._stopping = False
        #: Nothing more comes of this thread. (It is alive a little longer, until this was told.)
        self.ended = False
        self._wake = threading.Event()

    def drain(self) -> None:
        self._draining = True
        self._wake.set()

    def halt(self) -> None:
        """Stop after the batch in flight."""
        self._stopping = True
        self._wake.set()

    def abort(self) -> None:
        """Stop at once. The batch in flight is not done, and will come again."""
        self.halt()
        self._function.kill()

    def run(self) -> None:
        message = "shard in trouble"
        try:
            self._run()
            message = "shard drained" if self.mapping.drained else "shard stopped"
        except Exception:
            # Its place in the shard is safe, so it can be started again from there.
            logger.exception("%s: stopped by an error", self.shard_id)
        finally:
            self._function.close()
            self.ended = True
            self._source.tell(message)

    def _run(self) -> None:
        clock, mapping = self._source.clock, self.mapping
        self._function.start()
        logger.info("%s: the function is up", self.shard_id)
        while not self._stopping:
            if self._draining:
                mapping.drain()
            match mapping.next(clock()):
                case Poll(limit):
                    self._poll(limit)
                case Invoke() as invoke:
                    self._invoke(invoke)
                case Discard() as discard:
                    self._discard(discard)
                case Wait(until):
                    self._wake.wait(max(0.0, until - clock()))
                    self._wake.clear()
                case Done():
                    return

    def _poll(self, limit: int) -> None:
        kinesis, mapping, clock = self._source.kinesis, self.mapping, self._source.clock
        try:
            if self._iterator is None:
                self._iterator = kinesis.get_shard_iterator(**self._start())["ShardIterator"]
            answer = kinesis.get_records(ShardIterator=self._iterator, Limit=limit)
        except (BotoCoreError, ClientError) as error:
            # A new iterator from the mapping's position serves, whatever was wrong with this one.
            self._iterator = None
            mapping.poll_failed(clock())
            logger.warning("%s: cannot read, trying again: %s", self.shard_id, error)
            self._source.tell("shard in trouble")
            return
        # Absent from the answer when the shard is closed and read to its end, whatever the type stubs say.
        self._iterator = answer.get("NextShardIterator") or None
        mapping.polled(
            [
                Record(
                    self.shard_id,
                    record["SequenceNumber"],
                    record["PartitionKey"],
                    record["Data"],
                    record["ApproximateArrivalTimestamp"].timestamp(),
                )
                for record in answer["Records"]
            ],
            millis_behind=answer.get("MillisBehindLatest") or 0,
            closed=self._iterator is None,
            now=clock(),
        )
        self._save()

    def _start(self) -> GetShardIteratorInputTypeDef:
        where: GetShardIteratorInputTypeDef = {
            "StreamName": self._source.stream,
            "ShardId": self.shard_id,
            "ShardIteratorType": "TRIM_HORIZON",
        }
        if self.mapping.position is not None:
            where["ShardIteratorType"] = "AFTER_SEQUENCE_NUMBER"
            where["StartingSequenceNumber"] = self.mapping.position
        elif self._stream.checkpoints.read_from is not None:
            where["ShardIteratorType"] = "AT_TIMESTAMP"
            # Whole seconds on the wire; the mapping passes over what came before the exact time.
            where["Timestamp"] = datetime.fromtimestamp(self._stream.checkpoints.read_from, UTC)
        return where

    def _invoke(self, invoke: Invoke) -> None:
        batch, began = invoke.batch, time.monotonic()
        outcome = self._function.invoke(batch.event, str(uuid.uuid4()), self._stream.function_arn)
        if isinstance(outcome, FunctionError):
            logger.warning("%s failed (invocation %d): %s: %s", batch, batch.invocation, outcome.kind, outcome.detail)
        elif isinstance(outcome, NotInvoked):
            logger.warning("%s was not invoked, trying again: %s", batch, outcome.detail)
        self.mapping.invoked(outcome, self._source.clock())
        logger.debug(
            "%s: invocation %d took %.3f s, checkpoint %s",
            batch,
            batch.invocation,
            time.monotonic() - began,
            self.mapping.checkpoint,
        )
        self._save()

    def _discard(self, discard: Discard) -> None:
        clock = self._source.clock
        document = failure_document(
            discard,
            self._stream.identity,
            self._stream.function_arn,
            now=clock(),
            request_id=str(uuid.uuid4()),
        )
        logger.error("%s: gave up records: %s", self.shard_id, json.dumps(document))
        try:
            self._source.on_failure.send(document)
        except (BotoCoreError, ClientError) as error:
            self.mapping.discard_failed(clock())
            logger.warning("%s: the on-failure destination failed, trying again: %s", self.shard_id, error)
            return
        self.mapping.discarded(clock())
        self._save()

    def _save(self) -> None:
        state = ShardState(self.mapping.checkpoint, self.mapping.drained)
        if state != self._saved:
            self._stream.checkpoints.save(self.shard_id, state)
            self._saved = state


@dataclass
class _Stream:
    """The stream as it was found, and the threads of its shards that were started."""

    identity: EventSourceIdentity
    created_ms: int
    checkpoints: Checkpoints
    function_arn: str
    threads: dict[str, _ShardThread] = field(default_factory=dict)
    #: Shard id -> ids of its parents, for every shard that the stream lists.
    parents: dict[str, set[str]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.identity.stream_arn, self.created_ms

    def finished(self, shard_id: str) -> bool:
        """The shard is drained, or a drain has reached its tip, so that its children hold later records only."""
        if self.checkpoints[shard_id].drained:
            return True
        thread = self.threads.get(shard_id)
        if thread is not None:
            return thread.mapping.at_tip and thread.ended
        parents = self.parents[shard_id] & self.parents.keys()
        return any(self.finished(parent) and not self.checkpoints[parent].drained for parent in parents)


class EventSource:
    """An event source mapping that runs here, from ``stream`` to ``function``.

    ``state`` is a directory of its own for the checkpoints. ``sqs`` is needed if the mapping has an on-failure
    destination. ``clock`` is in seconds since 1970, and must agree with the stream's. ``start_function`` makes
    what a shard's batches are sent to; by default a :class:`WorkerProcess`.
    """

    def __init__(
        self,
        stream: str,
        function: FunctionSettings,
        mapping: MappingSettings,
        state: Path,
        *,
        kinesis: KinesisClient,
        sqs: SQSClient | None = None,
        drain_timeout: float = 60.0,
        discovery_interval: float = 10.0,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        start_function: Callable[[], Function] | None = None,
    ) -> None:
        self.stream = stream
        self.mapping = mapping
        self.kinesis = kinesis
        self.on_failure = _OnFailure(sqs, mapping.on_failure)
        self.clock = clock
        self.rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.start_function = start_function or (lambda: WorkerProcess(function))
        self._function = function
        self._state = state
        self._drain_timeout = drain_timeout
        self._discovery_interval = discovery_interval
        # Its put() may interrupt its get() (a signal handler's does), which no lock of threading's allows.
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._current: _Stream | None = None
        self._started_at = 0.0
        self._discover_at = 0.0
        self._list_is_current = False
        self._trouble = ""
        self._deadline = math.inf
        self._draining = self._stopping = False

    def drain(self) -> None:
        """Process everything that is in the stream now, then let :meth:`run` end. From any thread or signal handler."""
        self._messages.put("drain")

    def stop(self) -> None:
        """Let :meth:`run` end when the batches in flight have. From any thread or signal handler."""
        self._messages.put("stop")

    def tell(self, message: str) -> None:
        """For the shards' threads: one of the words that :meth:`_step` knows."""
        self._messages.put(message)

    def run(self) -> int:
        """Run until :meth:`drain` or :meth:`stop` is called.

        Returns 0 if everything was processed that was in the stream at the first of these calls, 1 if not, which
        a log line then quantifies. Raises :class:`StateError`, and nothing for what stream or handler do.
        """
        with _only_user(self._state):
            self._started_at = self.clock()
            try:
                while not self._ended():
                    self._step()
                return self._result()
            finally:
                self._abort_threads()

    def _step(self) -> None:
        """Find shards if it is time to, then wait for a message or for the next thing that is due."""
        now = time.monotonic()
        if now >= self._discover_at and not self._stopping:
            self._discover_at = now + self._discovery_interval
            self._discover()
        due = self._deadline if self._stopping else min(self._discover_at, self._deadline)
        try:
            message = self._messages.get(timeout=max(0.0, due - time.monotonic()))
        except queue.Empty:
            return
        now = time.monotonic()
        match message:
            case "drain" if not self._draining:
                logger.info("draining, for at most %g s", self._drain_timeout)
                self._draining = True
                self._deadline = min(self._deadline, now + self._drain_timeout)
                for thread in self._threads():
                    thread.drain()
            case "stop":
                logger.info("stopping after the batches in flight")
                self._stopping = True
                self._deadline = min(self._deadline, now + self._drain_timeout)
                for thread in self._threads():
                    thread.halt()
            case "shard drained":
                # It may have children, which can start now.
                self._list_is_current = False
                self._discover_at = min(self._discover_at, now)
            case "shard in trouble":
                self._discover_at = min(self._discover_at, now + _DISCOVERY_RETRY)

    def _ended(self) -> bool:
        if time.monotonic() >= self._deadline:
            return True
        if self._stopping:
            return not self._threads()
        return self._draining and self._list_is_current and not self._left()

    def _discover(self) -> None:
        """Start the shards that can start: not drained, and no parent has anything left."""
        try:
            summary = self.kinesis.describe_stream_summary(StreamName=self.stream)["StreamDescriptionSummary"]
            shards = self._list_shards()
        except (BotoCoreError, ClientError) as error:
            if str(error) != self._trouble:
                logger.warning("cannot find the shards of %s, trying again: %s", self.stream, error)
            self._trouble = str(error)
            self._discover_at = time.monotonic() + _DISCOVERY_RETRY
            return
        self._trouble = ""
        arn, created_ms = summary["StreamARN"], round(summary["StreamCreationTimestamp"].timestamp() * 1000)
        if self._current is None or self._current.key != (arn, created_ms):
            if alive := self._threads():
                logger.warning("%s was made anew: starting afresh when the batches in flight are done", self.stream)
                for thread in alive:
                    thread.halt()
                self._discover_at = time.monotonic() + _DISCOVERY_RETRY
                return
            self._current = self._open(arn, created_ms)
        stream = self._current
        stream.parents = {
            shard["ShardId"]: {shard.get("ParentShardId", ""), shard.get("AdjacentParentShardId", "")}
            for shard in shards
        }
        self._list_is_current = True
        for shard_id, parents in sorted(stream.parents.items()):
            known = stream.threads.get(shard_id)
            waits = any(not stream.checkpoints[parent].drained for parent in parents & stream.parents.keys())
            if waits or stream.finished(shard_id) or (known is not None and not known.ended):
                continue
            started = stream.threads[shard_id] = _ShardThread(stream, shard_id, self)
            logger.info("%s: starting behind %s", shard_id, started.mapping.checkpoint or "nothing")
            if self._draining:
                started.drain()
            started.start()

    def _list_shards(self) -> list[ShardTypeDef]:
        pages = self.kinesis.get_paginator("list_shards").paginate(StreamName=self.stream)
        return [shard for page in pages for shard in page["Shards"]]

    def _open(self, arn: str, created_ms: int) -> _Stream:
        read_from = self.mapping.starting_timestamp
        if self.mapping.starting_position is StartingPosition.LATEST:
            # A time rather than an iterator: the same place after a restart, and for the children of a split.
            read_from = math.floor(self._started_at * 1000) / 1000
        _, partition, _, region, account, _ = arn.split(":", 5)
        return _Stream(
            EventSourceIdentity(arn, f"arn:{partition}:iam::{account}:role/{self._function.name}"),
            created_ms,
            Checkpoints(self._state / "checkpoints.json", arn, created_ms, read_from=read_from),
            f"arn:{partition}:lambda:{region}:{account}:function:{self._function.name}"
            + (f":{self._function.qualifier}" if self._function.qualifier else ""),
        )

    def _threads(self) -> list[_ShardThread]:
        return [thread for thread in self._current.threads.values() if not thread.ended] if self._current else []

    def _left(self) -> list[str]:
        """The shards that are not processed to their tip."""
        if self._current is None:
            return ["the stream was not reached"]
        return [shard_id for shard_id in self._current.parents if not self._current.finished(shard_id)]

    def _result(self) -> int:
        left = self._left()
        if not left and self._draining:
            logger.info("drained: everything in %s is processed", self.stream)
            return 0
        mappings = [thread.mapping for thread in self._current.threads.values()] if self._current else []
        logger.error(
            "not drained: %d of %d shards are not processed to their tip (%s); records read and not done: %d",
            len(left),
            len(self._current.parents) if self._current else 0,
            ", ".join(left),
            sum(mapping.pending for mapping in mappings),
        )
        return 1

    def _abort_threads(self) -> None:
        # Again and again, as a worker process may just be starting; not for ever, as a call to AWS may hang.
        for _ in range(50):
            if not (alive := self._threads()):
                return
            for thread in alive:
                thread.abort()
            alive[0].join(0.1)


DESCRIPTION = """Polls a Kinesis stream and calls a Lambda handler with its records, as AWS Lambda's event source
mapping does: batches of one shard, in order, one at a time for each shard; retries, bisection, partial batch
responses, an on-failure destination.
The handler runs unmodified, in a process for each shard that is kept warm, and killed at --timeout.

How far each shard is done is kept in --state, so a restart goes on where the last run ended; what was in flight
is handed to the handler again. A stream that was deleted and made again starts afresh.

AWS is found as boto3 finds it: AWS_ENDPOINT_URL, AWS_REGION, credentials and so on. The environment is the
handler's, too.

SIGTERM or SIGINT: process what is in the stream, at most for --drain-timeout seconds, then end with exit code 0;
1 if something was left (it is not lost: it is processed at the next start). A second signal: end after the batches
in flight. Exit code 2: the settings cannot be used.
"""

EPILOG = """example, on the embedded AWS of a `make run`:
  AWS_ENDPOINT_URL=http://127.0.0.1:5555 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x \\
  python -m infra.local.event_source --stream liveinsight-local-events --state .liveinsight/event-source \\
    --handler stream_consumer.lambda_handler.handler --batch-size 500 --batching-window 1
"""


def options(prog: str, description: str) -> argparse.ArgumentParser:
    """The command line's options; those of which :func:`source_of` makes an event source."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--stream", metavar="NAME", required=True, help="the Kinesis stream to poll")
    add("--handler", metavar="NAME", required=True, help="the Lambda handler, package.module.function")
    add("--state", metavar="DIR", type=Path, required=True, help="directory for the checkpoints, of this mapping alone")
    mapping = parser.add_argument_group(
        "the event source mapping",
        "The names and meanings are AWS's; -1 means without end. Each option wins over --mapping.",
    )
    add = mapping.add_argument
    add(
        "--mapping",
        metavar="FILE",
        type=Path,
        help="JSON: the Properties of an AWS::Lambda::EventSourceMapping, with plain values",
    )
    add("--batch-size", metavar="N", type=int, help="BatchSize: most records of a batch, 1 to 10000 (100)")
    add(
        "--batching-window",
        metavar="S",
        type=float,
        help="MaximumBatchingWindowInSeconds: how long a batch may fill (0)",
    )
    add(
        "--report-batch-item-failures",
        action=argparse.BooleanOptionalAction,
        help="FunctionResponseTypes has ReportBatchItemFailures: a response may name failed records "
        "(yes; AWS's own default is no, and then what a handler returns counts for nothing)",
    )
    add("--bisect", action=argparse.BooleanOptionalAction, help="BisectBatchOnFunctionError: halve a failed batch (no)")
    add("--retries", metavar="N", type=int, help="MaximumRetryAttempts, -1 to 10000 (-1)")
    add("--record-age", metavar="S", type=float, help="MaximumRecordAgeInSeconds: older records are discarded (-1)")
    add("--on-failure", metavar="QUEUE", help="SQS queue (ARN or URL) that is told of discarded batches (none)")
    add(
        "--starting-position",
        metavar="WHERE",
        type=StartingPosition,
        choices=list(StartingPosition),
        help=f"where to begin in a stream without checkpoints: {', '.join(StartingPosition)} (TRIM_HORIZON)",
    )
    add("--starting-timestamp", metavar="S", type=float, help="for AT_TIMESTAMP: seconds since 1970")
    function = parser.add_argument_group("the function")
    add = function.add_argument
    add("--timeout", metavar="S", type=float, default=120.0, help="seconds for one invocation, then it is killed (120)")
    add("--memory", metavar="MB", type=int, default=1024, help="what the context says; not enforced (1024)")
    add("--function-name", metavar="NAME", default="local-function", help="what the context says (local-function)")
    add("--qualifier", metavar="ALIAS", default="", help="the function's alias, which its ARN in the context ends with")
    here = parser.add_argument_group("this machine")
    add = here.add_argument
    add("--poll-interval", metavar="S", type=float, help="seconds between polls of an idle shard (0.2)")
    add("--discovery-interval", metavar="S", type=float, default=10.0, help="seconds between looks for new shards (10)")
    add("--drain-timeout", metavar="S", type=float, default=60.0, help="seconds that SIGTERM leaves for draining (60)")
    add(
        "--log-level",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        default="INFO",
        help="DEBUG has a line for each invocation (INFO)",
    )
    return parser


def _mapping_of(given: argparse.Namespace) -> MappingSettings:
    if given.mapping is None:
        settings = MappingSettings(report_batch_item_failures=True)
    else:
        try:
            properties = json.loads(given.mapping.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"--mapping {given.mapping} cannot be read as JSON: {error}") from error
        if not isinstance(properties, dict):
            raise SettingsError(f"--mapping {given.mapping} must hold a JSON object of Properties")
        settings = MappingSettings.from_cloudformation(properties)
    options = {
        "batch_size": given.batch_size,
        "batching_window": given.batching_window,
        "report_batch_item_failures": given.report_batch_item_failures,
        "bisect_batch_on_function_error": given.bisect,
        "maximum_retry_attempts": given.retries,
        "maximum_record_age": given.record_age,
        "starting_position": given.starting_position,
        "starting_timestamp": given.starting_timestamp,
        "on_failure": given.on_failure,
        "poll_interval": given.poll_interval,
    }
    return replace(settings, **{name: value for name, value in options.items() if value is not None})


def source_of(given: argparse.Namespace) -> EventSource:
    """The event source that the options ask for. Raises :class:`SettingsError`, and botocore's errors."""
    import boto3
    from botocore.config import Config

    mapping = _mapping_of(given)
    function = FunctionSettings(given.handler, given.function_name, given.timeout, given.memory, given.qualifier)
    # A call that hangs holds up its shard, and every shard makes calls at once.
    config = Config(
        connect_timeout=3,
        read_timeout=15,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=100,
    )
    return EventSource(
        given.stream,
        function,
        mapping,
        given.state,
        kinesis=boto3.client("kinesis", config=config),
        sqs=boto3.client("sqs", config=config) if mapping.on_failure else None,
        drain_timeout=given.drain_timeout,
        discovery_interval=given.discovery_interval,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0 drained, 1 something is left, 2 the settings cannot be used."""
    given = options("python -m infra.local.event_source", DESCRIPTION).parse_args(arguments)
    return run_until_signalled(lambda: source_of(given), given.log_level)


class Runs(Protocol):
    """What :func:`run_until_signalled` runs: an :class:`EventSource`, or what has such methods."""

    def run(self) -> int: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...


def run_until_signalled(make: Callable[[], Runs], log_level: str = "INFO") -> int:
    """Make an event source and run it, in the main thread, until it has drained after SIGTERM or SIGINT, or stopped
    after the second. The exit code is that of :func:`main`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(log_level)
    source: Runs | None = None
    signals = itertools.count()
    early: list[Callable[[Runs], None]] = []

    def on_signal(*_: object) -> None:
        def ask(whom: Runs, again: int = next(signals)) -> None:
            whom.stop() if again else whom.drain()

        if source is None:
            early.append(ask)
        else:
            ask(source)

    # Before anything that takes time: a supervisor may change its mind at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        source = make()
        for ask in early:
            ask(source)
        return source.run()
    except (SettingsError, StateError, BotoCoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
