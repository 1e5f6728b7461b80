"""The base of a replay that does not begin with the first event: what had arrived before, copied from a generation.

The cut is an hour, ``start``, and what decides is when the collector **received** an event. An event's time is never
after that. So everything that counts from ``start`` on, and every session that began then, was received since and comes
from the stream. Of what is older,

- a session to which nothing was received since is copied as it stands. Another one is folded anew, from its stored
  events: in each shard, up to the first event received since. From there on the replay folds it.
- a roll-up of a quarter before ``start`` is copied as it stands, with its position. It may hold what is received since,
  and then the replay finds it there, as a retry does.

All sessions are copied before the first roll-up. The consumer writes them the other way round, so each copied roll-up
holds all that the copied sessions stand for, at least. It makes no difference that the source goes on meanwhile.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import msgspec

from producer.event import Event, decode
from stream_consumer.compaction import start_of
from stream_consumer.generations import scoped
from stream_consumer.items import (
    SHARDS,
    SITES,
    Item,
    Positions,
    day_mark,
    footprint_key,
    marks_key,
    read_session,
    session_items,
)
from stream_consumer.merged import DAY_MS, HOUR_MS
from stream_consumer.replay.scanning import Places, scan, size
from stream_consumer.rollup import QUARTER_MS
from stream_consumer.session import Session
from stream_consumer.stored_events import PlacedEvent, read_chunk
from stream_consumer.table import TableNames, put_items, query_items

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: In this order: sessions before roll-ups, marks (which are with the roll-ups) before what is merged.
PHASES = ("sessions", "events", "rollups", "merged")
#: The end of the phases.
DONE = "done"
#: Sessions that cannot be told exactly of which so many are named.
MAX_NAMED = 20


class _Received(msgspec.Struct):
    """Of an event, when it was received."""

    received_at: int


_received = msgspec.json.Decoder(_Received)
_ROLLUP = re.compile(r"[^#]+#([0-9]{6})")
_MERGED = re.compile(r"[^#]+#(day|hour)#\w+")


class Copied(msgspec.Struct):
    """How far a copy has come: its phase, where in it, what was copied; plain JSON.

    ``inexact`` names sessions that cannot be told from their stored events, as more were counted than are stored, or
    are dated after they were received; their figures in the new generation may differ.
    """

    phase: str = PHASES[0]
    places: dict[str, Any] = {}
    counts: dict[str, int] = {}
    inexact: list[str] = []


class Base:
    """Copies what generation ``source`` holds of before ``start`` (ms, a whole hour) into generation ``target``."""

    def __init__(self, client: DynamoDBClient, names: TableNames, source: str, target: str, start: int) -> None:
        if start % HOUR_MS:
            raise ValueError(f"{start} is no whole hour")
        self._client = client
        self._names = names
        self._source = source
        self._from = scoped(client, names, source)
        self._to = scoped(client, names, target)
        self._start = start
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._inexact: list[str] = []

    def copy(
        self,
        copied: Copied,
        save: Callable[[Copied], None],
        seen: Callable[[str, int, int], None] = lambda phase, count, of: None,
    ) -> Copied:
        """Copy what is left of ``copied``, and ``save`` after each page how far it has come.

        ``seen`` is told of the items read: (phase, how many more, of about how many). Repeated from any place that was
        saved, it gives the same items in the end. Raises :class:`Unavailable`.
        """
        self._counts, self._inexact = Counter(copied.counts), list(copied.inexact)
        handle = {
            "sessions": (self._names.sessions, self._copy_sessions),
            "events": (self._names.session_events, self._copy_events),
            "rollups": (self._names.rollups, self._copy_rollups),
            "merged": (self._names.rollups, self._copy_merged),
        }
        phase, places = copied.phase, copied.places
        while phase != DONE:
            table, copy_page = handle[phase]
            of = size(self._client, table)

            def at(there: Places, phase: str = phase) -> None:
                save(Copied(phase, dict(there), dict(self._counts), self._inexact))

            def more(count: int, phase: str = phase, of: int = of) -> None:
                seen(phase, count, of)

            scan(self._client, table, self._source, copy_page, places=places, saved=at, seen=more)
            if phase == "rollups":
                self._mark_the_cut_day()
            phase, places = (*PHASES, DONE)[PHASES.index(phase) + 1], {}
            save(Copied(phase, {}, dict(self._counts), self._inexact))
        return Copied(DONE, {}, dict(self._counts), self._inexact)

    def _copy_sessions(self, items: list[Item]) -> None:
        self._put("sessions", self._names.sessions, filter(None, map(self._session_before, items)))

    def _session_before(self, item: Item) -> Item | None:
        """The session as it was at the cut; None if it was not there yet. Puts the events that its item cannot hold."""
        held = read_session(item)
        session = held.session
        if session.erased:
            return item  # also one that was erased since: it shall not be there again for a moment
        if session.received < self._start:
            if session.end >= self._start:
                self._note_inexact(item)
            return item
        if session.start >= self._start:
            return None
        chunks = query_items(self._from, self._names.session_events, item["pk"]["S"])
        stored = _by_shard([*held.events, *(event for chunk in chunks for event in read_chunk(chunk))])
        before = {shard: _received_before(events, self._start) for shard, events in stored.items()}
        complete = sum(map(len, stored.values())) >= session.events
        if not complete and (not stored or before[max(stored)] == stored[max(stored)]):
            # The events that are not stored came behind those that are, and it cannot be told when.
            self._note_inexact(item)
            return item
        rebuilt, positions = Session(session.site_id, session.session_id), Positions()
        # A child shard's id is greater than its parent's: this is the order in which they were folded.
        for shard, events in sorted(before.items()):
            for position, event in events:
                rebuilt.apply(event)
                positions[shard] = position
        if not rebuilt.events:
            return None
        folded = {f"{shard}={position}" for shard, events in before.items() for position, _ in events}
        recent = [event for event in held.events if event[0] in folded]
        then, chunks = session_items(rebuilt, positions, None, recent)
        self._put("events", self._names.session_events, chunks)
        return then

    def _note_inexact(self, item: Item) -> None:
        with self._lock:
            self._counts["inexact"] += 1
            if len(self._inexact) < MAX_NAMED:
                self._inexact.append(item["pk"]["S"])

    def _copy_events(self, items: list[Item]) -> None:
        """Chunks with an event of before the cut, whole: what else they hold comes again, and readers drop repeats."""
        self._put("events", self._names.session_events, filter(self._has_event_before, items))

    def _has_event_before(self, chunk: Item) -> bool:
        return any(_received.decode(data).received_at < self._start for _, data in read_chunk(chunk))

    def _copy_rollups(self, items: list[Item]) -> None:
        wanted = [item for item in items if self._belongs_to_rollups(item)]
        self._put("rollups", self._names.rollups, wanted)

    def _belongs_to_rollups(self, item: Item) -> bool:
        pk, sk = item["pk"]["S"], item["sk"]["S"]
        if pk == SITES:
            return True
        if pk == SHARDS:
            return False
        if day := _ROLLUP.fullmatch(pk):
            hours, minutes = sk.partition("#")[0].split(":")
            return int(day[1]) * DAY_MS + int(hours) * HOUR_MS + int(minutes) * 60_000 <= self._start - QUARTER_MS
        site_id = pk.partition("#")[0]
        if pk == marks_key(site_id):
            return start_of(sk.partition("#")[0]) < self._start
        # What an erased visitor's sweep is to know of the copied roll-ups.
        return bool(pk == footprint_key(site_id, "")[0])

    def _mark_the_cut_day(self) -> None:
        """Of the day in which the cut is, hours are copied and the day is not: it is to be merged from hours."""
        day = self._start - self._start % DAY_MS
        if day < self._start:
            sites = [item["sk"]["S"] for item in query_items(self._to, self._names.rollups, SITES)]
            put_items(self._to, [(self._names.rollups, day_mark(site_id, day, "base")) for site_id in sites])

    def _copy_merged(self, items: list[Item]) -> None:
        self._put("merged", self._names.rollups, [item for item in items if self._is_merged_before(item)])

    def _is_merged_before(self, item: Item) -> bool:
        merged = _MERGED.fullmatch(item["pk"]["S"])
        length = DAY_MS if merged and merged[1] == "day" else HOUR_MS
        return merged is not None and start_of(item["sk"]["S"]) + length <= self._start

    def _put(self, what: str, table: str, items: Iterable[Item]) -> None:
        some = list(items)
        put_items(self._to, [(table, item) for item in some])
        with self._lock:
            self._counts[what] += len(some)


def _by_shard(events: Iterable[PlacedEvent]) -> dict[str, list[tuple[str, Event]]]:
    """The stored events of a session by shard, in the shard's order, each once."""
    found: dict[str, list[tuple[str, Event]]] = {}
    for at, data in sorted(dict(events).items()):
        shard, _, position = at.partition("=")
        event = decode(data)
        assert isinstance(event, Event), f"what is stored at {at} is no event"
        found.setdefault(shard, []).append((position, event))
    return found


def _received_before(events: Sequence[tuple[str, Event]], start: int) -> list[tuple[str, Event]]:
    """The first events, up to one that was received at ``start`` (ms) or later."""
    return list(takewhile(lambda one: one[1].received_at < start, events))
