"""The erasure of a user: what the user's sessions left is taken out of every generation.

1. The user's sessions are found, and noted, so that whoever is interrupted can go on.
2. An Erasure of each is put on the stream (:mod:`producer.erasure`). The consumers make tombstones, delete the events,
   take back what was counted, and leave a footprint of each session (:mod:`stream_consumer.consume`).
3. Once all generations have consumed them, the visitors are taken out of the roll-ups of the footprints' quarters.
   No consumer can do that: a set does not tell which of its session's shards brought a visitor, or which other
   session did. What is merged of those hours is marked, and merged anew.

Each step finds what is left of it to do, so all of it can be done again at any time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from producer.batching import hash_key_of, lane_of, partition_key_of
from producer.erasure import Erasure, encode
from producer.event import Event, decode, stable_id
from stream_consumer.footprint import ErasedUser, Footprint, footprint, hour_of
from stream_consumer.generations import Generations, State, scoped
from stream_consumer.items import StoredRollUp, erased_user_item, hour_mark, rollup_item
from stream_consumer.kinesis_batch import corrected
from stream_consumer.rollup import quarter_of, visitor_of
from stream_consumer.session import Session
from stream_consumer.table import Conflict, TableNames, Tables
from stream_consumer.visitors import Visitors

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kinesis import KinesisClient

#: Erasures that are on their way at once: a batch of the consumer loads the events of all that it has.
AT_ONCE = 100
#: Between two looks at what the consumers have done, and at an index that may lag behind its table; in s.
PAUSE = 1.0


class NotConsumed(Exception):  # noqa: N818 - says what is the case
    """The time is over, and not all Erasures are consumed; the text says by whom. It can be gone on with."""


@dataclass(frozen=True)
class Found:
    """What there is of a user: session ids, how many stored events they have in one generation at most, and the hours
    (ms) in which these came into the stream.
    """

    sessions: list[str]
    events: int
    arrivals: list[int]


@dataclass(frozen=True)
class Erased:
    """What was done: the sessions erased now, in which generations, and how many roll-ups lost a visitor.

    ``arrivals`` are the hours (ms) in which events of the user came into the stream, those erased earlier too;
    ``erased_at`` is when that was last asked for (ms), 0 for never.
    """

    sessions: list[str]
    generations: list[str]
    rollups: int
    arrivals: list[int]
    erased_at: int


class Erasures:
    """Erases users. ``writers`` requests of the tables are under way at once; ``now`` gives ms since 1970 UTC.

    All methods raise :class:`stream_consumer.table.Unavailable` where a table cannot be read or written.
    """

    def __init__(
        self,
        dynamodb: DynamoDBClient,
        names: TableNames,
        kinesis: KinesisClient,
        stream: str,
        lanes: int,
        *,
        writers: int = 8,
        now: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._dynamodb = dynamodb
        self._names = names
        self._kinesis = kinesis
        self._stream = stream
        self._lanes = lanes
        self._writers = writers
        self._now = now
        self._sleep = sleep

    def find(self, site_id: str, user_id: str) -> Found:
        """What an erasure would erase now."""
        sessions: set[str] = set()
        arrivals: set[int] = set()
        most = 0
        for tables in self._generations().values():
            events = 0
            for session, stored in _with_events(tables, site_id, user_id):
                sessions.add(session.session_id)
                arrivals.update(footprint(session, stored).arrivals)
                events += len(stored)
            most = max(most, events)
        return Found(sorted(sessions), most, sorted(arrivals))

    def erase(
        self,
        site_id: str,
        user_id: str,
        timeout: float,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Erased:
        """Erase the sessions that the user has now, and finish what was begun earlier.

        ``progress`` is told how many sessions of how many the consumers have erased. Raises :class:`NotConsumed`
        if they have not erased all within ``timeout`` s, and ``Conflict`` if another command erases the same user.
        """
        listed = Tables(self._dynamodb, self._names, writers=1)
        key = stable_id(site_id, user_id)
        held = listed.load_erased_user(key)
        known, version = (held.erased, held.version) if held else (ErasedUser(0), None)

        def note(erased: ErasedUser) -> None:
            nonlocal known, version
            if erased != known:
                token = uuid.uuid4().hex
                listed.save_erased_user(erased_user_item(key, token, erased), version)
                known, version = erased, token

        if found := self._alive_anywhere(site_id, user_id):
            note(
                ErasedUser(
                    self._now(),
                    sorted(found.union(known.sessions)),
                    sorted(found.union(known.pending)),
                    known.arrivals,
                )
            )
        self._have_consumed(site_id, known, timeout, progress)
        generations = self._generations()
        names = [(site_id, session_id) for session_id in known.sessions]
        footprints = {name: tables.load_footprints(names) for name, tables in generations.items()}
        arrivals = {hour for left in footprints.values() for one in left.values() for hour in one.arrivals}
        note(msgspec.structs.replace(known, arrivals=sorted(arrivals.union(known.arrivals))))
        rollups = sum(self._sweep(generations[name], site_id, user_id, left) for name, left in footprints.items())
        done = known.pending
        note(msgspec.structs.replace(known, pending=[]))
        return Erased(done, list(generations), rollups, known.arrivals, known.erased_at)

    def _generations(self) -> dict[str, Tables]:
        """The tables of each generation that has, or will have, a consumer."""
        return {
            one.name: Tables(scoped(self._dynamodb, self._names, one.name), self._names, writers=self._writers)
            for one in Generations(self._dynamodb, self._names).all()
            if one.state in (State.PREPARING, State.CONSUMING)
        }

    def _alive_anywhere(self, site_id: str, user_id: str) -> set[str]:
        """The ids of the user's sessions in any generation, looked for until nothing new is found."""
        generations = self._generations().values()

        def look() -> set[str]:
            return {session_id for tables in generations for session_id in _alive(tables, site_id, user_id)}

        found = look()
        while True:
            self._sleep(PAUSE)
            more = look()
            if more <= found:
                return found
            found |= more

    def _have_consumed(
        self, site_id: str, known: ErasedUser, timeout: float, progress: Callable[[int, int], None]
    ) -> None:
        """Put the Erasures of what is pending, some at a time, and wait until all generations have consumed them."""
        until = self._now() + timeout * 1000
        of = len(known.pending)
        for first in range(0, of, AT_ONCE):
            some = known.pending[first : first + AT_ONCE]
            left = self._left(site_id, some)
            for session_id in sorted({session_id for ids in left.values() for session_id in ids}):
                self._put(Erasure(site_id, session_id, known.erased_at))
            while left := self._left(site_id, some):
                progress(first + len(some) - max(map(len, left.values())), of)
                if self._now() >= until:
                    by = ", ".join(f"{len(ids) + of - first - len(some)} by {name}" for name, ids in left.items())
                    raise NotConsumed(f"of {of} sessions to erase, the consumers have not come to all: {by} are left")
                self._sleep(PAUSE)
            progress(first + len(some), of)

    def _left(self, site_id: str, session_ids: Sequence[str]) -> dict[str, list[str]]:
        """Those of the sessions that have no tombstone, by generation; only generations with any."""
        names = [(site_id, session_id) for session_id in session_ids]
        left: dict[str, list[str]] = {}
        for generation, tables in self._generations().items():
            erased = {name for name, stored in tables.load_sessions(names).items() if stored.session.erased}
            if ids := [name[1] for name in names if name not in erased]:
                left[generation] = ids
        return left

    def _put(self, erasure: Erasure) -> None:
        lane = lane_of(erasure.session_id, self._lanes)
        self._kinesis.put_record(
            StreamName=self._stream,
            Data=encode(erasure),
            PartitionKey=partition_key_of(lane),
            ExplicitHashKey=hash_key_of(lane, self._lanes),
        )

    def _sweep(self, tables: Tables, site_id: str, user_id: str, footprints: dict[tuple[str, str], Footprint]) -> int:
        """Take the visitors of erased sessions out of one generation's roll-ups; of how many."""
        for name in footprints:
            tables.delete_events(name)  # a write of a function that had ended may have landed after the tombstone
        visitors = {f"u{user_id}", *(f"s{session_id}" for _, session_id in footprints)}
        quarters = sorted({quarter for left in footprints.values() for quarter in left.quarters})
        swept = sum(_forget(tables, site_id, user_id, quarter, visitors) for quarter in quarters)
        tables.delete_footprints(footprints)
        return swept


def _alive(tables: Tables, site_id: str, user_id: str) -> dict[str, Session]:
    """The sessions of a user in one generation that are not erased, by id."""
    names = [(site_id, session_id) for session_id in tables.user_sessions(site_id, user_id)]
    sessions = (stored.session for stored in tables.load_sessions(names).values())
    return {one.session_id: one for one in sessions if one.user_id == user_id}


def _with_events(tables: Tables, site_id: str, user_id: str) -> Iterator[tuple[Session, list[Event]]]:
    """The sessions of a user in one generation that are not erased, with their stored events."""
    for session_id, session in _alive(tables, site_id, user_id).items():
        ((_, stored),) = tables.load_events([(site_id, session_id)]).items()
        yield session, [event for data in stored.values() if isinstance(event := decode(data), Event)]


def _forget(tables: Tables, site_id: str, user_id: str, quarter: int, visitors: set[str]) -> int:
    """Take visitors out of all roll-ups of a quarter that count exactly, and mark its hour; out of how many.

    The user stays where a session that is not erased has an event in this quarter. A consumer that writes a roll-up
    meanwhile is met by reading it again; and what was written is read again, as others may erase at the same time.
    """
    swept = 0
    while True:
        rollups = tables.rollups_of(site_id, quarter)
        # After the roll-ups: what comes now moves them on, and they are read again.
        gone = visitors - _present(tables, site_id, user_id, quarter)
        try:
            saved = [_forget_in(tables, stored, gone) for stored in rollups]
        except Conflict:
            continue
        swept += sum(saved)
        if not any(saved):
            # Also where nothing was held: an earlier attempt may have ended before its marks.
            marks = [
                hour_mark(site_id, hour_of(quarter), stored.rollup.shard_id, stored.position) for stored in rollups
            ]
            tables.put_events([], marks)
            return swept


def _present(tables: Tables, site_id: str, user_id: str, quarter: int) -> set[str]:
    """The visitors that sessions of the user brought to a quarter, and that are not erased."""
    return {
        visitor_of(event.user_id, event.session_id)
        for _, events in _with_events(tables, site_id, user_id)
        for event in events
        if quarter_of(event.timestamp) == quarter
    }


def _forget_in(tables: Tables, stored: StoredRollUp, visitors: set[str]) -> bool:
    """Take visitors out of one roll-up; whether it held any. Raises Conflict if it has changed."""
    rollup = stored.rollup
    counted = Visitors.from_bytes(rollup.visitors)
    if not counted.forget(visitors):
        return False
    rollup.visitors = counted.to_bytes()
    tables.save_rollup(rollup_item(rollup, corrected(stored.position)), stored.position)
    return True
