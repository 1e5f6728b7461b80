"""Events wait here, in order for each lane, until they go to the stream in an aggregate of their lane.

A lane is a fixed slice of the stream's hash key space that all events of a session share, so a session lives
in one shard at any time. A :class:`Batcher` packs what waits in a lane into a :class:`Batch`; the lane gives
no other one until that one is settled or handed back, which is what keeps its order through failures.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Generic, TypeVar

from producer.kpl import encode_aggregate, entry_size, frame_size

# What Kinesis takes: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
MAX_RECORD_BYTES = 1024 * 1024
MAX_CALL_RECORDS = 500
MAX_CALL_BYTES = 5 * 1024 * 1024
#: The largest payload that a record takes, with room for its frame.
MAX_PAYLOAD_BYTES = MAX_RECORD_BYTES - 1024
#: What a waiting event takes in memory besides its bytes, in bytes; about.
ENTRY_OVERHEAD = 256
#: How many hash keys a stream has.
HASH_KEYS = 2**128

T = TypeVar("T")


def lane_of(session_id: str, lanes: int) -> int:
    """The lane, 0 to ``lanes - 1``, of a session's events."""
    return zlib.crc32(session_id.encode()) % lanes


@lru_cache(4096)
def hash_key_of(lane: int, lanes: int) -> str:
    """The ExplicitHashKey of a lane's records: the middle of its slice of the key space, in decimal."""
    return str((2 * lane + 1) * HASH_KEYS // (2 * lanes))


def partition_key_of(lane: int) -> str:
    """The PartitionKey of a lane's records."""
    return f"lane-{lane}"


@dataclass(frozen=True, slots=True, eq=False)
class Batch(Generic[T]):
    """Events of one lane, in order: what becomes one record. ``size`` is that record's, with its key, in bytes."""

    lane: int
    lanes: int
    payloads: tuple[bytes, ...]
    tickets: tuple[T, ...]
    size: int

    @property
    def partition_key(self) -> str:
        return partition_key_of(self.lane)

    @property
    def explicit_hash_key(self) -> str:
        return hash_key_of(self.lane, self.lanes)

    def encode(self) -> bytes:
        """The record's data."""
        return encode_aggregate(self.payloads, self.partition_key, self.explicit_hash_key)


@dataclass(slots=True)
class _Lane(Generic[T]):
    """Of each event that waits: its bytes, its ticket, and when it came. ``size``: what they add to a frame."""

    # Not one tuple for each event: those would be a tenth of the producer's time, for the garbage collector.
    payloads: deque[bytes] = field(default_factory=deque)
    tickets: deque[T] = field(default_factory=deque)
    added: deque[float] = field(default_factory=deque)
    size: int = 0
    held_until: float = -math.inf
    taken: Batch[T] | None = None


class Batcher(Generic[T]):
    """The events that are not yet settled. Not thread-safe; times are of any one clock, in s.

    Each event comes with a ticket, which tells its sender what became of it. ``linger`` is how long an
    event waits for company, unless its lane has ``max_aggregate_bytes`` or ``max_aggregate_events`` waiting;
    an event larger than the former goes alone. ``deadline`` is how long after :meth:`add` it is given up.
    """

    def __init__(
        self, *, lanes: int, linger: float, deadline: float, max_aggregate_bytes: int, max_aggregate_events: int
    ) -> None:
        self._lanes_in_all = lanes
        self._linger = linger
        self._deadline = deadline
        self._max_bytes = max_aggregate_bytes
        self._max_events = max_aggregate_events
        self._lanes: dict[int, _Lane[T]] = {}  # those with entries; the one that was served last is at the end
        self.buffered = 0  # bytes of memory, about

    def __bool__(self) -> bool:
        """Whether any event is not settled."""
        return bool(self._lanes)

    def __contains__(self, lane: int) -> bool:
        """Whether any event of the lane is not settled."""
        return lane in self._lanes

    def add(self, data: bytes, lane: int, ticket: T, now: float) -> float:
        """Let one event, of at most ``MAX_PAYLOAD_BYTES``, wait; returns when its lane is due."""
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = _Lane()
        waiting.payloads.append(data)
        waiting.tickets.append(ticket)
        waiting.added.append(now)
        waiting.size += entry_size(len(data))
        self.buffered += len(data) + ENTRY_OVERHEAD
        return self._lane_due(waiting)

    def due(self, hurry: bool = False) -> float:
        """When something is to be done: :meth:`expire`, then :meth:`take`. Infinite when nothing is.

        With ``hurry`` no event waits for company.
        """
        return min(
            (
                min(lane.held_until if hurry else self._lane_due(lane), lane.added[0] + self._deadline)
                for lane in self._lanes.values()
                if lane.taken is None
            ),
            default=math.inf,
        )

    def take(self, now: float) -> list[Batch[T]]:
        """What goes into one PutRecords call now: the first events of each lane that can give any.

        All lanes share a call when one of them is due. Each batch is to be handed to :meth:`settle` or
        :meth:`put_back`.
        """
        batches: list[Batch[T]] = []
        room = MAX_CALL_BYTES
        for number, lane in self._lanes.items():
            if lane.taken is None and lane.held_until <= now:
                batch = self._pack(number, lane)
                room -= batch.size
                if room < 0 or len(batches) == MAX_CALL_RECORDS:
                    break
                lane.taken = batch
                batches.append(batch)
        return batches

    def settle(self, batch: Batch[T]) -> bool:
        """Forget a batch's events: they are on the stream, or given up. False if they were already forgotten."""
        lane = self._lanes.get(batch.lane)
        if lane is None or lane.taken is not batch:
            return False
        lane.taken = None
        lane.held_until = -math.inf
        self._remove(lane, batch)
        return True

    def put_back(self, batch: Batch[T], until: float) -> None:
        """Let a batch's events wait again, before all others of their lane, and not be taken before ``until``."""
        lane = self._lanes.get(batch.lane)
        if lane is not None and lane.taken is batch:
            lane.taken = None
            lane.held_until = until

    def expire(self, now: float) -> list[Batch[T]]:
        """Forget the events whose deadline is over, but for those that are taken; returns them."""
        expired = []
        for number, lane in list(self._lanes.items()):
            if lane.taken is None:
                count = 0
                for added in lane.added:
                    if added + self._deadline > now:
                        break
                    count += 1
                if count:
                    batch = self._first(number, lane, count)
                    self._remove(lane, batch)
                    expired.append(batch)
        return expired

    def abandon(self) -> list[Batch[T]]:
        """Forget all events, those that are taken too; returns them."""
        all_lanes = [self._first(number, lane, len(lane.payloads)) for number, lane in self._lanes.items()]
        self._lanes.clear()
        self.buffered = 0
        return all_lanes

    def tickets(self) -> Iterator[T]:
        """The ticket of each event that is not settled."""
        return (ticket for lane in self._lanes.values() for ticket in lane.tickets)

    def _lane_due(self, lane: _Lane[T]) -> float:
        if lane.taken is not None:
            return math.inf
        if lane.size >= self._max_bytes or len(lane.payloads) >= self._max_events:
            return lane.held_until
        lingered = lane.added[0] + self._linger
        return lingered if lingered > lane.held_until else lane.held_until

    def _pack(self, number: int, lane: _Lane[T]) -> Batch[T]:
        size = self._frame_size(number)
        if size + lane.size <= self._max_bytes and len(lane.payloads) <= self._max_events:
            return self._first(number, lane, len(lane.payloads))
        count = 0
        for payload in lane.payloads:
            size += entry_size(len(payload))
            if count and (size > self._max_bytes or count == self._max_events):
                break
            count += 1
        return self._first(number, lane, count)

    def _first(self, number: int, lane: _Lane[T], count: int) -> Batch[T]:
        """The first ``count`` events of a lane, which stay where they are."""
        payloads, tickets = tuple(islice(lane.payloads, count)), tuple(islice(lane.tickets, count))
        size = lane.size if count == len(lane.payloads) else sum(entry_size(len(payload)) for payload in payloads)
        return Batch(number, self._lanes_in_all, payloads, tickets, self._frame_size(number) + size)

    def _frame_size(self, number: int) -> int:
        key = partition_key_of(number)
        return frame_size(key, hash_key_of(number, self._lanes_in_all)) + len(key)

    def _remove(self, lane: _Lane[T], batch: Batch[T]) -> None:
        """Take a lane's first events, which are those of ``batch``, out."""
        for _ in batch.payloads:
            lane.payloads.popleft()
            lane.tickets.popleft()
            lane.added.popleft()
        lane.size -= batch.size - self._frame_size(batch.lane)
        self.buffered -= sum(map(len, batch.payloads)) + ENTRY_OVERHEAD * len(batch.payloads)
        del self._lanes[batch.lane]
        if lane.payloads:
            self._lanes[batch.lane] = lane
