"""The SDK of producers: events in, a receipt for them at once, and Kinesis's acknowledgement a little later.

    kinesis, settings = local_or_environ_kinesis(os.environ)
    with EventProducer(settings, kinesis) as producer:
        producer.track("page_view", site_id="shop", session_id="s1", page_url="/").wait(10)

Events of all threads that come within ``linger`` share one PutRecords call. A session's events reach the stream
in the order in which they were sent, each at least once; repeats carry the same ``event_id``, and count once.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import random
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoRegionError
from msgspec import Raw

from producer.batching import (
    ENTRY_OVERHEAD,
    MAX_PAYLOAD_BYTES,
    MAX_RECORD_BYTES,
    Batch,
    Batcher,
    lane_of,
)
from producer.delivery import Backoff, Delivery, Failure, Settled
from producer.event import MAX_PROPERTIES_BYTES, Event, Reason, Rejected, decode, encode
from producer.request_body import encode_at_once

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

DEFAULT_STREAM = "liveinsight-local-events"
DEFAULT_LOCAL_PORT = "5555"
#: Below the deadline, so that one hanging connection leaves time for another try; in s.
CONNECT_TIMEOUT = 3.0
READ_TIMEOUT = 10.0


class BufferFull(Exception):  # noqa: N818 - named for what is the case, as queue.Full is
    """The buffer has no room for the events. None of them was taken; try again when a receipt is settled."""


class DeliveryFailed(Exception):  # noqa: N818
    """Kinesis did not acknowledge an event, and it is given up. The message has the cause.

    It may be on the stream all the same, if only the answer was lost; sent again as it is, it counts once.
    """


class ProducerClosed(Exception):  # noqa: N818
    """The producer takes no more events. None of them was taken."""


@dataclass(frozen=True, kw_only=True)
class ProducerSettings:
    """Times are in s, sizes in bytes. Raises ValueError for what cannot work.

    ``lanes`` must never change while a stream holds events: it decides in which shard a session lives.
    ``linger``: how long an event waits for others to share its call. ``max_buffer_bytes``: what waits or is
    under way at most; a call takes up to 15 MiB besides. ``deadline``: how long after it was sent an event
    is given up (a call that has begun is waited for). ``calls_in_flight``: how many calls at a time.
    """

    stream: str = DEFAULT_STREAM
    lanes: int = 64
    linger: float = 0.05
    deadline: float = 30.0
    max_buffer_bytes: int = 16 * 1024 * 1024
    max_aggregate_bytes: int = 100 * 1024
    max_aggregate_events: int = 1000
    calls_in_flight: int = 1
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("lanes", 1, 4096),
            ("linger", 0, 60),
            ("deadline", 0.001, 3600),
            ("max_buffer_bytes", 1, 2**40),
            ("max_aggregate_bytes", 1, MAX_RECORD_BYTES),
            ("max_aggregate_events", 1, 100_000),
            ("calls_in_flight", 1, 64),
        ):
            if not low <= getattr(self, name) <= high:
                variable = f" ({_VARIABLES[name]})" if name in _VARIABLES else ""
                raise ValueError(f"{name}{variable} is {getattr(self, name)}; it must be {low} to {high}")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", self.stream):
            raise ValueError(
                f"stream ({_VARIABLES['stream']}) is {self.stream!r}; a stream's name is 1 to 128 of A-Z a-z 0-9 _ . -"
            )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ProducerSettings:
        """What the ``LIVEINSIGHT_`` variables say; the default where one is not set, or empty. Raises ValueError."""
        given: dict[str, Any] = {}
        for name, variable in _VARIABLES.items():
            if text := environ.get(variable, "").strip():
                given[name] = (
                    text if name == "stream" else _number(variable, text, whole=isinstance(getattr(cls, name), int))
                )
        return cls(**given)


_VARIABLES = {
    "stream": "LIVEINSIGHT_STREAM",
    "lanes": "LIVEINSIGHT_LANES",
    "linger": "LIVEINSIGHT_LINGER_SECONDS",
    "deadline": "LIVEINSIGHT_DEADLINE_SECONDS",
    "max_buffer_bytes": "LIVEINSIGHT_MAX_BUFFER_BYTES",
}


def _number(variable: str, text: str, *, whole: bool) -> float:
    if not re.fullmatch(r"[0-9]{1,15}" if whole else r"[0-9]{1,15}(\.[0-9]+)?", text):
        raise ValueError(f"{variable} is {text!r}; it must be a {'whole ' if whole else ''}number")
    return int(text) if whole else float(text)


def local_or_environ_kinesis(environ: Mapping[str, str]) -> tuple[KinesisClient, ProducerSettings]:
    """A client and settings for the stream that the environment names.

    Where it names neither a stream (LIVEINSIGHT_STREAM) nor an endpoint (AWS_ENDPOINT_URL...), that is the
    one of a `make run` on this machine, at port AWS_PORT. Credentials are found as boto3 finds them. The client does
    not retry by itself, as the producer does. Raises ValueError that names the variable.
    """
    settings = ProducerSettings.from_environ(environ)
    given = {name: text.strip() for name, text in environ.items() if text.strip()}
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        tcp_keepalive=True,
        # What is sent is built in delivery.py alone, of checked settings; checking it again is a tenth of a small call.
        parameter_validation=False,
    )
    local = local_engine(given, "LIVEINSIGHT_STREAM")
    try:
        session = boto3.session.Session()
        if local:
            kinesis = session.client("kinesis", config=config.merge(Config(proxies={})), **local)
        else:
            kinesis = session.client(
                "kinesis",
                endpoint_url=given.get("AWS_ENDPOINT_URL_KINESIS") or given.get("AWS_ENDPOINT_URL"),
                region_name=given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION"),
                config=config,
            )
    except NoRegionError:
        raise ValueError(f"no region for stream {settings.stream}; set AWS_REGION, such as eu-central-1") from None
    except BotoCoreError as error:
        raise ValueError(f"the AWS_... variables or the AWS configuration files: {error}") from None
    except ValueError as error:
        raise ValueError(str(error) if local else f"AWS_ENDPOINT_URL: {error}") from None
    encode_at_once(kinesis)
    return kinesis, settings


def local_engine(environ: Mapping[str, str], *names: str) -> dict[str, Any]:
    """What a boto3 client needs to reach the AWS of a `make run` on this machine, at port AWS_PORT.

    Nothing where the environment means another one: it sets one of ``names``, or an endpoint. Raises
    ValueError for an AWS_PORT that is none.
    """
    if any(name in environ for name in names) or any(name.startswith("AWS_ENDPOINT_URL") for name in environ):
        return {}
    port = environ.get("AWS_PORT") or DEFAULT_LOCAL_PORT
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"AWS_PORT is {port!r}; it must be a port, 1 to 65535")
    return {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "region_name": "us-east-1",
        "aws_access_key_id": "local",
        "aws_secret_access_key": "local",  # the local engine takes any
    }


class Receipt:
    """What became of the events of one send. Made by an :class:`EventProducer`; thread-safe."""

    __slots__ = ("_calls", "_failure", "_open", "_producer", "_signal", "_told", "_untold")

    def __init__(self, producer: EventProducer, events: int) -> None:
        self._producer = producer
        self._open = events
        self._failure: Failure | None = None
        self._signal: threading.Event | None = None
        self._calls: tuple[Callable[[], None], ...] = ()
        self._told = False  # wait has raised
        self._untold = (0, 0)  # the producer's round, and how many of that round's untold failures are its events

    @property
    def acknowledged(self) -> bool:
        """Whether Kinesis has acknowledged every event of it."""
        return not self._open and self._failure is None

    def wait(self, timeout: float | None = None) -> None:
        """Return when Kinesis has acknowledged every event of it; at once if it has.

        Raises DeliveryFailed as soon as one of them is given up, and TimeoutError after ``timeout`` s: the
        events are then still under way.
        """
        if self._open and self._failure is None:
            with self._producer._lock:
                self._signal = self._signal or threading.Event()
                if not self._open or self._failure is not None:
                    self._signal.set()
            if not self._signal.wait(timeout):
                raise TimeoutError(f"events not acknowledged after {timeout} s: {self._open}; they are under way")
        if self._failure is not None:
            self._producer._forgive(self)
            raise DeliveryFailed(self._failure.cause)

    def when_settled(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once, as soon as :meth:`wait` need not wait; now if it need not.

        It is called in any thread, which others wait for: it must not block, raise, or use the producer.
        """
        with self._producer._lock:
            if self._open and self._failure is None:
                self._calls += (call,)
                return
        call()

    def _settle(self, failure: Failure | None) -> None:
        """One event of it is acknowledged, or given up. The producer's lock is held."""
        self._open -= 1
        if failure is not None:
            self._failure = self._failure or failure
        if not self._open or failure is not None:
            if self._signal is not None:
                self._signal.set()
            calls, self._calls = self._calls, ()
            for call in calls:
                call()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class EventProducer:
    """Sends events to the stream from any number of threads; see the module's text.

    ``kinesis`` should not retry by itself. ``clock`` gives s, for all that lasts; ``wall_clock`` gives ms since
    1970 UTC, for :meth:`track`. It belongs to the process that made it: after a fork, make another one.
    When the interpreter exits it is closed.
    """

    def __init__(
        self,
        settings: ProducerSettings,
        kinesis: KinesisClient,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], int] = _now_ms,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()  # guards all that follows, and the receipts
        self._work = threading.Condition(self._lock)  # there may be something to deliver
        self._settlement = threading.Condition(self._lock)  # events were acknowledged or given up
        self._batcher: Batcher[Receipt] = Batcher(
            lanes=settings.lanes,
            linger=settings.linger,
            deadline=settings.deadline,
            max_aggregate_bytes=settings.max_aggregate_bytes,
            max_aggregate_events=settings.max_aggregate_events,
        )
        self._delivery = Delivery(
            kinesis,
            settings.stream,
            self._batcher,
            deadline=settings.deadline,
            backoff=settings.backoff,
            rng=rng or random.Random(),  # noqa: S311 - jitter
        )
        self._sent = self._acknowledged = self._failed = 0
        self._untold = 0  # how many events were given up without anyone being told, in this round
        self._first_untold: Failure | None = None
        self._round = 0  # flush and close tell of all, and begin the next one
        self._closing = False
        self._hurrying = 0  # how many wait in flush or close
        self._sleeping_until = math.inf
        self._process = os.getpid()
        self._threads = [
            threading.Thread(target=self._deliver, name=f"liveinsight-producer-{number}", daemon=True)
            for number in range(settings.calls_in_flight)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    @property
    def closing(self) -> bool:
        """Whether :meth:`close` was called: it takes no more events."""
        return self._closing

    def send(self, event: Event) -> Receipt:
        """Take one event, as it is. Never blocks. Raises as :meth:`send_many` does."""
        # Not send_many of one: its lists would be a fifth of what an event costs.
        data, lane, receipt = _payload(event), lane_of(event.session_id, self._settings.lanes), Receipt(self, 1)
        self._check_process()
        with self._lock:
            self._admit(ENTRY_OVERHEAD + len(data))
            due = self._batcher.add(data, lane, receipt, self._clock())
            self._sent += 1
            if due < self._sleeping_until:
                self._work.notify()
        return receipt

    def send_many(self, events: Sequence[Event]) -> Receipt:
        """Take all of the events, or raise and take none. Those of one session keep their order. Never blocks.

        Events are not validated, as ``event.parse`` has done that: one that ``event.decode`` refuses ends in the
        consumer's quarantine. Raises BufferFull, ProducerClosed, and ValueError for an event that has no bytes
        (half a surrogate pair) or more than a record can hold.
        """
        payloads = [_payload(event) for event in events]
        lanes = [lane_of(event.session_id, self._settings.lanes) for event in events]
        receipt = Receipt(self, len(payloads))
        self._check_process()
        with self._lock:
            self._admit(ENTRY_OVERHEAD * len(payloads) + sum(map(len, payloads)))
            now = self._clock()
            dues = [self._batcher.add(data, lane, receipt, now) for data, lane in zip(payloads, lanes, strict=True)]
            self._sent += len(payloads)
            if min(dues, default=math.inf) < self._sleeping_until:
                self._work.notify()
        return receipt

    def track(
        self,
        event_type: str,
        *,
        site_id: str,
        session_id: str,
        user_id: str = "",
        page_url: str = "",
        properties: Mapping[str, object] | None = None,
        timestamp: int | None = None,
        event_id: str | None = None,
        **fields: Any,
    ) -> Receipt:
        """Make an event and send it. ``timestamp`` is in ms since 1970 UTC; without one it is now.

        An event that may be sent again after a failure needs an ``event_id`` of its own, or the repeat
        counts. ``fields`` are any others of :class:`producer.event.Event`. Raises as :meth:`send` does, and
        ValueError that names the reason for an event that is not valid.
        """
        now = self._wall_clock()
        event = Event(
            event_id=uuid.uuid4().hex if event_id is None else event_id,
            site_id=site_id,
            session_id=session_id,
            event_type=event_type,
            timestamp=now if timestamp is None else timestamp,
            received_at=fields.pop("received_at", now),
            user_id=user_id,
            page_url=page_url,
            properties=_properties(properties),
            **fields,
        )
        return self.send(_validate(event))

    def flush(self, timeout: float | None = None) -> None:
        """Send what is buffered without further waiting, and return when it is settled.

        Raises DeliveryFailed when any event was given up, now or earlier, that no :meth:`Receipt.wait` has
        raised for, and TimeoutError after ``timeout`` s.
        """
        self._check_process()
        with self._lock:
            receipts = deque(dict.fromkeys(self._batcher.tickets()))

            def settled() -> bool:
                while receipts and not receipts[0]._open:
                    receipts.popleft()
                return not receipts

            self._hurrying += 1
            self._work.notify_all()
            try:
                if not self._settlement.wait_for(settled, timeout):
                    raise TimeoutError(f"not all events are acknowledged after {timeout} s; they are under way")
            finally:
                self._hurrying -= 1
            self._tell()

    def close(self, timeout: float | None = None) -> None:
        """Take no more events, send what is buffered, and return when it is settled. Again does nothing.

        What is not settled after ``timeout`` s is given up. Raises DeliveryFailed as :meth:`flush` does.
        """
        if self._process != os.getpid():
            return
        atexit.unregister(self.close)
        with self._lock:
            if not self._closing:
                self._closing = True
                self._hurrying += 1
                self._work.notify_all()
        until = math.inf if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if timeout is None else max(0.0, until - time.monotonic()))
        with self._lock:
            if self._batcher:
                failure = Failure(f"not acknowledged within the {timeout} s that closing the producer was given", False)
                self._note(Settled(batch, failure) for batch in self._batcher.abandon())
                self._work.notify_all()
            self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DeliveryFailed as failure:
            if error is None:
                raise
            error.add_note(f"when the producer was closed: {failure}")

    def stats(self) -> dict[str, int]:
        """Counts since the start, and what the buffer holds now."""
        with self._lock:
            counters = self._delivery.counters
            return {
                "events_sent": self._sent,
                "events_acknowledged": self._acknowledged,
                "events_failed": self._failed,
                "put_calls": counters.put_calls,
                "records_put": counters.records_put,
                "records_retried": counters.records_retried,
                "bytes_buffered": self._batcher.buffered,
            }

    def _deliver(self) -> None:
        """A background thread: one round of delivery after the other."""
        while batches := self._next():
            outcome = self._delivery.put(batches)
            with self._lock:
                self._note(self._delivery.end(batches, outcome, self._clock()))

    def _next(self) -> Sequence[Batch[Receipt]]:
        """What to put, when it is due; nothing when the producer is closed and all is settled."""
        with self._lock:
            while True:
                now = self._clock()
                due = self._delivery.due(self._hurrying > 0)
                if due <= now:
                    batches, given_up = self._delivery.begin(now)
                    self._note(given_up)
                    if batches:
                        return batches
                elif self._closing and not self._batcher:
                    self._work.notify_all()
                    return ()
                else:
                    self._sleeping_until = due
                    self._work.wait(None if due == math.inf else due - now)
                    self._sleeping_until = math.inf

    def _note(self, settled: Iterable[Settled[Receipt]]) -> None:
        """Tell the receipts what became of their events."""
        for batch, failure in ((end.batch, end.failure) for end in settled):
            for receipt in batch.tickets:
                receipt._settle(failure)
            if failure is None:
                self._acknowledged += len(batch.tickets)
            else:
                self._failed += len(batch.tickets)
                for receipt in batch.tickets:
                    self._remember(receipt, failure)
        self._settlement.notify_all()

    def _remember(self, receipt: Receipt, failure: Failure) -> None:
        """An event was given up: :meth:`_tell` tells of it, unless its receipt does first."""
        if not receipt._told:
            number, count = receipt._untold
            receipt._untold = (self._round, count + 1 if number == self._round else 1)
            self._untold += 1
            self._first_untold = self._first_untold or failure

    def _forgive(self, receipt: Receipt) -> None:
        """The receipt tells of its failure: :meth:`_tell` need not."""
        with self._lock:
            number, count = receipt._untold
            if number == self._round and not receipt._told:
                self._untold -= count
            receipt._told = True

    def _tell(self) -> None:
        """Raise for the events that were given up without anyone being told."""
        untold, first = self._untold, self._first_untold
        self._untold, self._first_untold = 0, None
        self._round += 1
        if untold and first:
            raise DeliveryFailed(f"events not delivered: {untold}; the first: {first.cause}")

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise ProducerClosed("this producer belongs to the parent process; make another one after the fork")

    def _admit(self, cost: int) -> None:
        """Raise unless it takes events, and has room for so many bytes. The lock is held."""
        if self._closing:
            raise ProducerClosed("the producer is closed and takes no more events")
        limit, holds = self._settings.max_buffer_bytes, self._batcher.buffered
        if holds + cost > limit:
            remedy = "send fewer at a time" if cost > limit else "try again when a receipt is settled"
            raise BufferFull(f"{cost:,} bytes of events for a buffer of {limit:,} that holds {holds:,}; {remedy}")


def _payload(event: Event) -> bytes:
    """The event's bytes. Raises ValueError for one that has none, or more than a record can hold."""
    data = encode(event)
    if len(data) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"an event of {len(data)} bytes; a Kinesis record holds {MAX_PAYLOAD_BYTES}")
    return data


def _properties(properties: Mapping[str, object] | None) -> Raw:
    """The JSON of an event's properties. Raises ValueError that names the reason."""
    try:
        text = json.dumps(dict(properties or {}), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{Reason.LONE_SURROGATE}: properties have half a surrogate pair") from None
    except TypeError as error:
        raise ValueError(f"{Reason.WRONG_TYPE}: properties: {error}") from None
    except RecursionError:
        raise ValueError(f"{Reason.TOO_DEEP}: properties nest too deep") from None
    except ValueError as error:
        reason = Reason.TOO_DEEP if "Circular" in str(error) else Reason.NOT_FINITE
        raise ValueError(f"{reason}: properties: {error}") from None
    if len(text) > MAX_PROPERTIES_BYTES:
        raise ValueError(f"{Reason.TOO_LARGE}: properties of {len(text)} bytes; at most {MAX_PROPERTIES_BYTES}")
    return Raw(text)


def _validate(event: Event) -> Event:
    """The event, as its reader will see it. Raises ValueError that names the reason."""
    try:
        checked = decode(encode(event))
    except UnicodeEncodeError:
        raise ValueError(f"{Reason.LONE_SURROGATE}: a field has half a surrogate pair") from None
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{Reason.WRONG_TYPE}: {error}") from None
    if isinstance(checked, Rejected):
        raise ValueError(f"{checked.reason}: {checked.detail}")
    return checked
