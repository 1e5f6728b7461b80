"""The protocol that makes at-least-once delivery look like once.

A batch is folded onto the sessions as the table holds them, event by event. Then roll-ups are
written, each only with the changes beyond its own position; then sessions, last. A retry reads the
same old sessions, computes the same changes, and finds them already in the roll-ups. Every write is
a compare-and-set on the position it was computed from; a lost one computes the whole batch again.
Poison is no reason to stop; an infrastructure error is, at the first record that is not done.

An erasure is a change like any other: its session becomes a tombstone, and what was counted of it is taken back from
this shard's roll-ups. Which events that were is read from the stored ones, so those are deleted last of all, once the
tombstone is there. (Of a session with more than MAX_STORED_EVENTS, the others are not known, and stay in the sums of
events and of their labels; the session itself is taken back whole.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from producer.event import Event, decode, encode
from stream_consumer.footprint import footprint
from stream_consumer.items import (
    MAX_STORED_EVENTS,
    Item,
    Positions,
    StoredRollUp,
    StoredSession,
    chunk_items,
    footprint_item,
    hour_mark,
    quarantine_item,
    rollup_item,
    session_item,
    site_item,
)
from stream_consumer.kinesis_batch import Arrived, Batch, ErasureArrived, Poison
from stream_consumer.merged import HOUR_MS
from stream_consumer.quarantine import PoisonGauge
from stream_consumer.rollup import Folding, RollUp, Standing, quarter_of, standing, visitor_of
from stream_consumer.seen import Verdict
from stream_consumer.session import Session
from stream_consumer.table import Conflict, RollUpName, SessionName, Unavailable

#: Lost compare-and-sets in a row before the batch is given back: each means that somebody else wrote.
MAX_ATTEMPTS = 5

_T = TypeVar("_T")


class Store(Protocol):
    """What the protocol needs of :class:`stream_consumer.table.Tables`."""

    def load_sessions(self, names: Sequence[SessionName]) -> dict[SessionName, StoredSession]: ...
    def load_rollups(self, names: Sequence[RollUpName]) -> dict[RollUpName, StoredRollUp]: ...
    def load_events(self, names: Sequence[SessionName]) -> dict[SessionName, dict[str, bytes]]: ...
    def save_rollup(self, item: Item, base: str | None) -> None: ...
    def save_session(self, item: Item, base: Positions | None) -> None: ...
    def put_events(self, items: Sequence[Item], marks: Sequence[Item]) -> None: ...
    def put_footprints(self, items: Sequence[Item]) -> None: ...
    def delete_events(self, name: SessionName) -> None: ...
    def put_quarantine(self, items: Sequence[Item]) -> None: ...
    def put_sites(self, items: Sequence[Item]) -> None: ...
    def each(self, work: Callable[[_T], None], values: Iterable[_T]) -> list[Exception | None]: ...


@dataclass(frozen=True)
class Outcome:
    """What one invocation did. ``received == applied + duplicate + late + erased + quarantined``, over what is done;
    ``failed_from`` is the sequence number of the first record that is not, with its ``failure``.
    ``erased``: erasures, and events that came to a session after its erasure. ``oldest_received`` is the earliest
    arrival (ms) among the applied events.
    """

    applied: int = 0
    duplicate: int = 0
    late: int = 0
    erased: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    sessions: int = 0
    rollups: int = 0
    conflicts: int = 0
    oldest_received: int | None = None
    failed_from: str | None = None
    failure: str = ""

    @property
    def received(self) -> int:
        return self.applied + self.duplicate + self.late + self.erased + self.quarantined.total()


@dataclass
class _Folded:
    """One session while a batch is folded onto it. ``erasing``: its erasure is in the batch, also if it comes again;
    ``footprint`` is the item that this makes, where there is anything to erase.
    """

    session: Session
    base: Positions | None
    positions: Positions
    first_sequence_number: str
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    events: list[tuple[str, bytes]] = field(default_factory=list)
    oldest_received: int | None = None
    erasing: bool = False
    footprint: Item | None = None

    @property
    def name(self) -> SessionName:
        return self.session.site_id, self.session.session_id


@dataclass(frozen=True)
class _Change:
    """One applied event, or an erasure that takes events back, and the session's share of the roll-ups before and
    after it.
    """

    position: str
    session: SessionName
    before: Standing | None
    after: Standing | None
    event: Event | None = None
    taken_back: Sequence[Event] = ()


def consume(batch: Batch, store: Store, gauge: PoisonGauge | None = None) -> Outcome:
    """Apply a batch. Raises nothing for poison or for an unavailable table: the outcome says so.

    With a ``gauge``, a batch of a shard that is mostly poison is given back whole.
    """
    if gauge and (why := gauge.too_much(batch)):
        return Outcome(failed_from=batch.first_sequence_number, failure=why)
    poison = [entry for entry in batch.entries if isinstance(entry, Poison)]
    arrived = [entry for entry in batch.entries if not isinstance(entry, Poison)]
    failure = ""
    for conflicts in range(MAX_ATTEMPTS):
        try:
            store.put_quarantine([quarantine_item(entry, batch.shard_id) for entry in poison])
            folded, changes = _fold(arrived, batch.shard_id, store)
            rollups, marks = _write_rollups(changes, batch.shard_id, store)
            failures = _write_sessions(list(folded.values()), batch.shard_id, marks, store)
        except Conflict as conflict:
            failure = f"lost {conflicts + 1} compare-and-sets in a row: {conflict}"
            continue
        except Unavailable as unavailable:
            return Outcome(conflicts=conflicts, failed_from=batch.first_sequence_number, failure=str(unavailable))
        if any(isinstance(error, Conflict) for error in failures):
            failure = f"lost {conflicts + 1} compare-and-sets in a row: {failures}"
            continue
        return _outcome(poison, list(folded.values()), failures, rollups, conflicts)
    return Outcome(conflicts=MAX_ATTEMPTS, failed_from=batch.first_sequence_number, failure=failure)


def _fold(
    arrived: Sequence[Arrived | ErasureArrived], shard_id: str, store: Store
) -> tuple[dict[SessionName, _Folded], list[_Change]]:
    """Fold events and erasures onto the stored sessions, in order; every change carries the position that made it."""
    stored = store.load_sessions(list(dict.fromkeys(map(_name_of, arrived))))
    erasing = dict.fromkeys(_name_of(entry) for entry in arrived if isinstance(entry, ErasureArrived))
    # After the sessions: a tombstone that was not there yet is what lets their events be deleted.
    events = store.load_events([name for name in erasing if name in stored and not stored[name].session.erased])
    folded: dict[SessionName, _Folded] = {}
    standings: dict[SessionName, Standing | None] = {}
    changes: list[_Change] = []
    for entry in arrived:
        name = _name_of(entry)
        into = folded.get(name)
        if into is None:
            held = stored.get(name)
            into = folded[name] = _start(name, held, entry)
            standings[name] = held.standing(into.session) if held else None
            into.erasing = name in erasing
        if entry.position <= into.positions.get(shard_id, ""):
            into.verdicts[Verdict.DUPLICATE] += 1  # a redelivery: this very record is in the session already
            continue
        into.positions[shard_id] = entry.position
        if isinstance(entry, ErasureArrived):
            into.verdicts[Verdict.ERASED] += 1
            if not into.session.erased:
                taken_back = _erase(into, entry, shard_id, events.get(name, {}))
                changes.append(_Change(entry.position, name, standings[name], None, taken_back=taken_back))
                standings[name] = None
            continue
        event = entry.event
        verdict = into.session.apply(event)
        into.verdicts[verdict] += 1
        if verdict is not Verdict.APPLIED:
            continue
        before, after = standings[name], standing(into.session)
        standings[name] = after
        changes.append(_Change(entry.position, name, before, after, event))
        if into.session.events <= MAX_STORED_EVENTS:
            into.events.append((entry.position, encode(event)))
        into.oldest_received = min(into.oldest_received or event.received_at, event.received_at)
    return folded, changes


def _name_of(entry: Arrived | ErasureArrived) -> SessionName:
    of = entry.event if isinstance(entry, Arrived) else entry.erasure
    return of.site_id, of.session_id


def _erase(into: _Folded, entry: ErasureArrived, shard_id: str, stored: Mapping[str, bytes]) -> list[Event]:
    """Make a tombstone of a session; the events that were counted of it, by their places in the stream: those stored
    as far as the table's session goes (others are of attempts at this batch), and those of the batch.
    """
    base = into.base or {}
    known = {where: data for where, data in stored.items() if _is_in(where, base)}
    known.update((f"{shard_id}={position}", data) for position, data in into.events)
    events = [event for _, data in sorted(known.items()) if isinstance(event := decode(data), Event)]
    if into.session.events:
        into.footprint = footprint_item(*into.name, footprint(into.session, events))
    into.session = into.session.tombstone(entry.erasure.erased_at)
    into.events.clear()
    return events


def _is_in(where: str, positions: Positions) -> bool:
    """Whether what is folded up to ``positions`` has the event at ``shard=position``."""
    shard_id, _, position = where.partition("=")
    return position <= positions.get(shard_id, "")


def _start(name: SessionName, stored: StoredSession | None, entry: Arrived | ErasureArrived) -> _Folded:
    if stored is None:
        return _Folded(Session(*name), None, {}, entry.sequence_number)
    return _Folded(stored.session, stored.positions, dict(stored.positions), entry.sequence_number)


def _write_rollups(changes: Sequence[_Change], shard_id: str, store: Store) -> tuple[int, list[Item]]:
    """Write every roll-up that the changes touch and do not find in it already. How many that were, and the marks
    of all hours that the changes touch, also where an earlier attempt has written the roll-ups.
    """
    touched: defaultdict[RollUpName, list[_Change]] = defaultdict(list)
    for change in changes:
        quarters = {quarter_of(event.timestamp) for event in change.taken_back}
        if change.event:
            quarters.add(quarter_of(change.event.timestamp))
        quarters.update(stand.quarter for stand in (change.before, change.after) if stand)
        for quarter in quarters:
            touched[change.session[0], quarter, shard_id].append(change)
    stored = store.load_rollups(list(touched))
    writes: list[tuple[Item, str | None]] = []
    new_sites: set[str] = set()
    marks: dict[tuple[str, int], str] = {}
    for name, its_changes in touched.items():
        hour = name[0], name[1] - name[1] % HOUR_MS
        marks[hour] = max(marks.get(hour, ""), its_changes[-1].position)
        base = stored.get(name)
        pending = [change for change in its_changes if base is None or change.position > base.position]
        if not pending:
            continue
        if base is None:
            new_sites.add(name[0])
        folding = Folding(base.rollup if base else RollUp(*name))
        for change in pending:
            if change.event and quarter_of(change.event.timestamp) == name[1]:
                folding.count_event(change.event, visitor_of(change.event))
            for event in change.taken_back:
                if quarter_of(event.timestamp) == name[1]:
                    folding.take_back_event(event)
        folding.move_sessions([(change.session[1], change.before, change.after) for change in pending])
        writes.append((rollup_item(folding.rollup(), pending[-1].position), base.position if base else None))
    store.put_sites([site_item(site_id) for site_id in sorted(new_sites)])
    _raise_first(store.each(lambda write: store.save_rollup(*write), writes))
    return len(writes), [hour_mark(*hour, shard_id, at) for hour, at in marks.items()]


def _write_sessions(
    folded: Sequence[_Folded], shard_id: str, marks: Sequence[Item], store: Store
) -> list[Exception | None]:
    """Write the events and marks, then the sessions that moved; what became of each session. A session that was erased
    has no events any more: also if its erasure comes again, as what did it may have ended before they were gone.
    """
    chunks = [item for one in folded for item in chunk_items(one.session, shard_id, one.events) if one.events]
    store.put_events(chunks, marks)
    store.put_footprints([one.footprint for one in folded if one.footprint])

    def save(one: _Folded) -> None:
        if one.positions != one.base:
            store.save_session(session_item(one.session, one.positions), one.base)
        if one.erasing:
            store.delete_events(one.name)

    return store.each(save, folded)


def _raise_first(failures: Iterable[Exception | None]) -> None:
    """Raise a conflict if there is one, else any failure: a conflict means that it is worth computing again."""
    found = [failure for failure in failures if failure]
    for failure in sorted(found, key=lambda failure: not isinstance(failure, Conflict)):
        raise failure


def _outcome(
    poison: Sequence[Poison],
    folded: Sequence[_Folded],
    failures: Sequence[Exception | None],
    rollups: int,
    conflicts: int,
) -> Outcome:
    failed = [(one, failure) for one, failure in zip(folded, failures, strict=True) if failure]
    done = [one for one, failure in zip(folded, failures, strict=True) if not failure]
    first = min((one for one, _ in failed), key=lambda one: int(one.first_sequence_number), default=None)
    failed_from = first.first_sequence_number if first else None
    verdicts = sum((one.verdicts for one in done), Counter[Verdict]())
    # Poison at or after the first record not done comes again with it, and is counted then.
    diverted = Counter(
        entry.reason for entry in poison if failed_from is None or int(entry.sequence_number) < int(failed_from)
    )
    arrivals = [one.oldest_received for one in done if one.oldest_received is not None]
    return Outcome(
        applied=verdicts[Verdict.APPLIED],
        duplicate=verdicts[Verdict.DUPLICATE],
        late=verdicts[Verdict.LATE],
        erased=verdicts[Verdict.ERASED],
        quarantined=diverted,
        sessions=sum(one.positions != one.base for one in done),
        rollups=rollups,
        conflicts=conflicts,
        oldest_received=min(arrivals, default=None),
        failed_from=failed_from,
        failure=str(failed[0][1]) if failed else "",
    )
