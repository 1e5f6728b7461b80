"""The protocol that makes at-least-once delivery look like once.

A batch is folded onto the sessions as the table holds them, event by event. Then roll-ups are written, each only with
the changes beyond its own position; then sessions, last, each after the chunks of the events that it has no room for. A
retry reads the same old sessions, computes the same changes, and finds them already in the roll-ups. Every write is a
compare-and-set on the position it was computed from; a lost one computes the whole batch again. Poison is no reason to
stop; an infrastructure error is, at the first record that is not done.

An erasure is a change like any other: its session becomes a tombstone, and what was counted of it is taken back from
this shard's roll-ups. Which events that were is read from the stored ones, so those are deleted last of all, once the
tombstone is there. (Of a session with more than MAX_STORED_EVENTS, the others are not known, and stay in the sums of
events and of their labels; the session itself is taken back whole.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from stream_consumer.folding import Entry, Fold, FoldedSession, by_session
from stream_consumer.items import (
    Item,
    Positions,
    StoredRollUp,
    StoredSession,
    hour_mark,
    quarantine_item,
    rollup_item,
    session_items,
    site_item,
)
from stream_consumer.kinesis_batch import Batch, ErasureArrived, Poison
from stream_consumer.merged import HOUR_MS
from stream_consumer.quarantine import PoisonGauge
from stream_consumer.seen import Verdict
from stream_consumer.table import Conflict, RollUpName, SessionName, Unavailable

#: Sessions that are written at a time: their events, then they.
SESSIONS_AT_A_TIME = 2000
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
            fold = _fold(arrived, batch.shard_id, store)
            folded = list(fold.sessions.values())
            rollups, marks = _write_rollups(fold, batch.shard_id, store)
            failures = _write_sessions(folded, batch.shard_id, marks, store)
        except Conflict as conflict:
            failure = f"lost {conflicts + 1} compare-and-sets in a row: {conflict}"
            continue
        except Unavailable as unavailable:
            return Outcome(conflicts=conflicts, failed_from=batch.first_sequence_number, failure=str(unavailable))
        if any(isinstance(error, Conflict) for error in failures):
            failure = f"lost {conflicts + 1} compare-and-sets in a row: {failures}"
            continue
        return _outcome(poison, folded, failures, rollups, conflicts)
    return Outcome(conflicts=MAX_ATTEMPTS, failed_from=batch.first_sequence_number, failure=failure)


def _fold(arrived: Sequence[Entry], shard_id: str, store: Store) -> Fold:
    """Fold events and erasures onto the stored sessions."""
    entries = by_session(arrived)
    stored = store.load_sessions(list(entries))
    erased = by_session([entry for entry in arrived if isinstance(entry, ErasureArrived)])
    # After the sessions: a tombstone that was not there yet is what lets their events be deleted.
    events = store.load_events([name for name in erased if name in stored and not stored[name].session.erased])
    return Fold(entries, shard_id, stored, {name: events.get(name, {}) for name in erased})


def _write_rollups(fold: Fold, shard_id: str, store: Store) -> tuple[int, list[Item]]:
    """Write every roll-up that the batch changes and that has not all of it already. How many that were, and the marks
    of all hours that it changes, also where an earlier attempt has written the roll-ups.
    """
    stored = store.load_rollups(list(fold.rollups))
    writes: list[tuple[Item, str | None]] = []
    new_sites: set[str] = set()
    marks: dict[tuple[str, int], str] = {}
    for name, last in fold.rollups.items():
        hour = name[0], name[1] - name[1] % HOUR_MS
        marks[hour] = max(marks.get(hour, ""), last)
        base = stored.get(name)
        if base is None:
            new_sites.add(name[0])
        if changed := fold.onto(name, base):
            writes.append((rollup_item(*changed), base.position if base else None))
    store.put_sites([site_item(site_id) for site_id in sorted(new_sites)])
    _raise_first(store.each(lambda write: store.save_rollup(*write), writes))
    return len(writes), [hour_mark(*hour, shard_id, at) for hour, at in marks.items()]


def _write_sessions(
    folded: Sequence[FoldedSession], shard_id: str, marks: Sequence[Item], store: Store
) -> list[Exception | None]:
    """Write the marks and events, then the sessions that moved; what became of each session. A session that was erased
    has no events any more: also if its erasure comes again, as what did it may have ended before they were gone.
    """
    store.put_footprints([one.footprint for one in folded if one.footprint])
    became: list[Exception | None] = []
    # Some at a time: the items of a whole batch would be most of its memory.
    for first in range(0, max(1, len(folded)), SESSIONS_AT_A_TIME):
        try:
            lot = folded[first : first + SESSIONS_AT_A_TIME]
            became += _write_lot(lot, shard_id, () if first else marks, store)
        except Unavailable as unavailable:
            if not first:
                raise
            return became + [unavailable] * (len(folded) - first)
    return became


def _write_lot(
    lot: Sequence[FoldedSession], shard_id: str, marks: Sequence[Item], store: Store
) -> list[Exception | None]:
    """Some of the sessions. Raises Unavailable where their events cannot be put: then none of them is written."""
    moved = {one.name: _items(one, shard_id) for one in lot if one.positions != one.base}
    store.put_events([chunk for _, chunks in moved.values() for chunk in chunks], marks)

    def save(one: FoldedSession) -> None:
        if one.name in moved:
            store.save_session(moved[one.name][0], one.base)
        if one.erasing:
            store.delete_events(one.name)

    return store.each(save, lot)


def _items(one: FoldedSession, shard_id: str) -> tuple[Item, list[Item]]:
    """A session's item, and the chunks to be put before it."""
    new = [(f"{shard_id}={entry.position}", entry.payload) for entry in one.kept]
    known = one.stored.events if one.stored and not one.session.erased else []
    return session_items(one.session, one.positions, one.stands, [*known, *new])


def _raise_first(failures: Iterable[Exception | None]) -> None:
    """Raise a conflict if there is one, else any failure: a conflict means that it is worth computing again."""
    found = [failure for failure in failures if failure]
    for failure in sorted(found, key=lambda failure: not isinstance(failure, Conflict)):
        raise failure


def _outcome(
    poison: Sequence[Poison],
    folded: Sequence[FoldedSession],
    failures: Sequence[Exception | None],
    rollups: int,
    conflicts: int,
) -> Outcome:
    failed = [(one, failure) for one, failure in zip(folded, failures, strict=True) if failure]
    done = [one for one, failure in zip(folded, failures, strict=True) if not failure]
    first = min((one for one, _ in failed), key=lambda one: int(one.first_sequence_number), default=None)
    failed_from = first.first_sequence_number if first else None
    # Not a Counter: to hash an Enum's member takes longer than to fold an event.
    count = {verdict: sum(one.verdicts.count(verdict) for one in done) for verdict in Verdict}
    # Poison at or after the first record not done comes again with it, and is counted then.
    diverted = Counter(
        entry.reason for entry in poison if failed_from is None or int(entry.sequence_number) < int(failed_from)
    )
    arrivals = [one.oldest_received for one in done if one.oldest_received is not None]
    return Outcome(
        applied=count[Verdict.APPLIED],
        duplicate=count[Verdict.DUPLICATE],
        late=count[Verdict.LATE],
        erased=count[Verdict.ERASED],
        quarantined=diverted,
        sessions=sum(one.positions != one.base for one in done),
        rollups=rollups,
        conflicts=conflicts,
        oldest_received=min(arrivals, default=None),
        failed_from=failed_from,
        failure=str(failed[0][1]) if failed else "",
    )
