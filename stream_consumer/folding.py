"""A batch folded onto the sessions that the table holds, and what that changes in roll-ups.

Each session takes all of its events at once, and each roll-up gets sums: nothing of a batch depends on the order in
which sessions took turns, as long as the roll-up stands where it stood before the batch, and no bound of it is reached.
Where that is not so (a retry finds a part of the batch in the roll-up; a counter fills up on the way; an erasure takes
back what others of the batch brought) the same batch is folded again, step by step: an event, then the next one. Both
give the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from producer.event import Event, decode
from stream_consumer.footprint import footprint
from stream_consumer.items import MAX_STORED_EVENTS, Item, Positions, StoredRollUp, StoredSession, footprint_item
from stream_consumer.kinesis_batch import Arrived, ErasureArrived
from stream_consumer.rollup import Folding, RollUp, Standing, quarter_of, standing
from stream_consumer.seen import Verdict
from stream_consumer.session import Merged, Session
from stream_consumer.share import Passed, Share
from stream_consumer.table import RollUpName, SessionName

Entry = Arrived | ErasureArrived
#: The stored events of a session, by ``shard=position``.
StoredEvents = Mapping[str, bytes]


class Step(NamedTuple):
    """One applied event, or an erasure that takes events back, and the session's share of the roll-ups before and
    after it.
    """

    position: str
    session: SessionName
    before: Standing | None
    after: Standing | None
    event: Event | None = None
    taken_back: Sequence[Event] = ()


class FoldedSession(Struct):
    """One session with a batch folded onto it. ``entries``: what the batch has of it, in order. ``stored``: as it was
    before, None if it is new; ``base``: up to where it was folded then. ``kept``: the events to be stored. ``stands``:
    its standing now. ``erasing``: its erasure is in the batch, also if it comes again; ``footprint`` is the item that
    this makes, where there is anything to erase.
    """

    name: SessionName
    entries: list[Entry]
    session: Session
    base: Positions | None
    positions: Positions
    verdicts: list[Verdict] = []
    kept: list[Arrived] = []
    stands: Standing | None = None
    oldest_received: int | None = None
    erasing: bool = False
    footprint: Item | None = None
    stored: StoredSession | None = None

    @property
    def first_sequence_number(self) -> str:
        return self.entries[0].sequence_number


class Fold:
    """A batch of one shard, folded. ``sessions`` is by name, in the order in which they first came.

    ``batch`` is what it has of each session (:func:`by_session`), ``stored`` are those of them that the table has,
    ``erasing`` those whose erasure is in the batch, with their stored events.
    """

    def __init__(
        self,
        batch: Mapping[SessionName, list[Entry]],
        shard_id: str,
        stored: Mapping[SessionName, StoredSession],
        erasing: Mapping[SessionName, StoredEvents],
    ) -> None:
        self._shard_id = shard_id
        self._stored = stored
        self._erasing = erasing
        self._steps: list[Step] | None = None
        self._shares: dict[RollUpName, Share] = {}
        self._passed: defaultdict[str, Passed] = defaultdict(Passed)
        self._last: dict[RollUpName, str] = {}
        self._first = ""
        # An erasure takes back what others may have brought, and what was counted on the way.
        self._in_any_order = not erasing
        self.sessions = {name: self._fold(name, entries) for name, entries in batch.items()}
        for (site_id, _, _), share in self._shares.items():
            self._passed[site_id].add_pages(share.pages())

    @property
    def rollups(self) -> Mapping[RollUpName, str]:
        """The roll-ups that the batch changes, each with the position of the last change."""
        return self._last

    def onto(self, name: RollUpName, base: StoredRollUp | None) -> tuple[RollUp, str] | None:
        """The roll-up that the table has as ``base`` with what it has not yet of the batch, and up to where it is
        folded then; None if it has all.
        """
        if self._in_any_order and (base is None or base.position < self._first):
            folding = Folding(base.rollup if base else RollUp(*name))
            if folding.take(self._shares[name]):
                return folding.rollup(), self._last[name]
        pending = [step for step in self._steps_onto(name) if base is None or step.position > base.position]
        if not pending:
            return None
        folding = Folding(base.rollup if base else RollUp(*name))
        for step in pending:
            if step.event and quarter_of(step.event.timestamp) == name[1]:
                folding.count_event(step.event)
            for event in step.taken_back:
                if quarter_of(event.timestamp) == name[1]:
                    folding.take_back_event(event)
            folding.move_session(step.before, step.after)
        return folding.rollup(), pending[-1].position

    def _fold(self, name: SessionName, entries: list[Entry]) -> FoldedSession:
        held = self._stored.get(name)
        into = _start(name, held, entries)
        if not self._in_any_order:
            into.erasing = name in self._erasing
            self._note(_fold_steps(into, held, self._shard_id, self._erasing.get(name, {})))
            return into
        before = into.stands = held.standing(into.session) if held else None
        new = self._not_in(into)
        if not new:
            return into
        into.positions[self._shard_id] = new[-1].position
        room = MAX_STORED_EVENTS - into.session.events
        merged = into.session.apply_all([entry.event for entry in new])
        into.verdicts += merged.verdicts
        if not merged.applied:
            return into
        if len(merged.applied) < len(new):
            new = [one for one, verdict in zip(new, merged.verdicts, strict=True) if verdict is Verdict.APPLIED]
        into.kept = new[:room] if room > 0 else []
        into.oldest_received = merged.oldest_received
        after = into.stands = standing(into.session)
        assert after
        for landing in merged.landings:
            self._passed[name[0]].add_landing(landing)
        if (before.quarter if before else quarter_of(new[0].event.timestamp)) != after.quarter:
            # It began in an earlier quarter than was thought: every step of the way has a roll-up of its own.
            self._note(_fold_steps(_start(name, held, entries), held, self._shard_id, {}))
        else:
            self._count(name[0], new, merged, before, after)
        return into

    def _not_in(self, into: FoldedSession) -> list[Arrived]:
        """What the table's session has not yet; the rest is a redelivery. There is no erasure among the entries."""
        new: list[Arrived] = into.entries  # type: ignore[assignment]
        at, first = into.positions.get(self._shard_id, ""), new[0].position
        if first <= at:
            new = [entry for entry in new if entry.position > at]
            into.verdicts += [Verdict.DUPLICATE] * (len(into.entries) - len(new))
            first = new[0].position if new else ""
        if first and (not self._first or first < self._first):
            self._first = first
        return new

    def _count(
        self, site_id: str, new: Sequence[Arrived], merged: Merged, before: Standing | None, after: Standing
    ) -> None:
        """Count applied events of one session where they happened, and the session where it began and begins."""
        share = self._reach(site_id, after.quarter, new[-1].position)
        share.move_session(before, after)
        if quarter_of(merged.earliest) == quarter_of(merged.latest) == after.quarter:
            share.count_events(merged.applied)
            return
        of_quarter: defaultdict[int, list[Arrived]] = defaultdict(list)
        for entry in new:
            of_quarter[quarter_of(entry.event.timestamp)].append(entry)
        for quarter, some in of_quarter.items():
            self._reach(site_id, quarter, some[-1].position).count_events([entry.event for entry in some])

    def _note(self, steps: Iterable[Step]) -> None:
        """Take single steps into the shares of the roll-ups that they touch."""
        for step in steps:
            self._first = min(self._first or step.position, step.position)
            for site_id, quarter, _ in _touched(step, self._shard_id):
                share = self._reach(site_id, quarter, step.position)
                if step.event and quarter_of(step.event.timestamp) == quarter:
                    share.count_events((step.event,))
                before, after = (stand if stand and stand.quarter == quarter else None for stand in step[2:4])
                share.move_session(before, after)

    def _reach(self, site_id: str, quarter: int, position: str) -> Share:
        """The share of a roll-up, which has a change at ``position``."""
        name = site_id, quarter, self._shard_id
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = Share(self._passed[site_id])
            self._last[name] = position
        elif position > self._last[name]:
            self._last[name] = position
        return share

    def _steps_onto(self, name: RollUpName) -> list[Step]:
        """All changes of a roll-up, in order."""
        if self._steps is None:
            every: list[Step] = []
            for of, one in self.sessions.items():
                held = self._stored.get(of)
                again = _start(of, held, one.entries)
                every += _fold_steps(again, held, self._shard_id, self._erasing.get(of, {}))
            self._steps = sorted(every, key=lambda step: step.position)
        return [step for step in self._steps if name in _touched(step, self._shard_id)]


def by_session(arrived: Iterable[Entry]) -> dict[SessionName, list[Entry]]:
    """What a batch has of each session, in order."""
    found: dict[SessionName, list[Entry]] = {}
    for entry in arrived:
        of = entry.event if isinstance(entry, Arrived) else entry.erasure
        name = of.site_id, of.session_id
        entries = found.get(name)
        if entries is None:
            found[name] = [entry]
        else:
            entries.append(entry)
    return found


def _start(name: SessionName, held: StoredSession | None, entries: list[Entry]) -> FoldedSession:
    if held is None:
        return FoldedSession(name, entries, Session(*name), None, {})
    base = held.positions
    return FoldedSession(name, entries, held.session, base, dict(base), stored=held)


def _touched(step: Step, shard_id: str) -> list[RollUpName]:
    """The roll-ups that a step changes, each once, in order: so that a schedule of failures can be told again."""
    quarters = {quarter_of(event.timestamp) for event in step.taken_back}
    if step.event:
        quarters.add(quarter_of(step.event.timestamp))
    quarters.update(stand.quarter for stand in (step.before, step.after) if stand)
    return [(step.session[0], quarter, shard_id) for quarter in sorted(quarters)]


def _fold_steps(into: FoldedSession, held: StoredSession | None, shard_id: str, stored: StoredEvents) -> list[Step]:
    """Fold a session's entries onto it one by one; the changes, each with the position that made it."""
    stands = held.standing(into.session) if held else None
    steps: list[Step] = []
    for entry in into.entries:
        if entry.position <= into.positions.get(shard_id, ""):
            into.verdicts.append(Verdict.DUPLICATE)  # a redelivery: this very record is in the session already
            continue
        into.positions[shard_id] = entry.position
        before = stands
        if isinstance(entry, ErasureArrived):
            into.verdicts.append(Verdict.ERASED)
            if not into.session.erased:
                taken_back = _erase(into, entry, shard_id, stored)
                stands = None
                steps.append(Step(entry.position, into.name, before, None, taken_back=taken_back))
            continue
        verdict = into.session.apply(entry.event)
        into.verdicts.append(verdict)
        if verdict is not Verdict.APPLIED:
            continue
        stands = standing(into.session)
        steps.append(Step(entry.position, into.name, before, stands, entry.event))
        if into.session.events <= MAX_STORED_EVENTS:
            into.kept.append(entry)
        received = entry.event.received_at
        into.oldest_received = min(into.oldest_received or received, received)
    into.stands = stands
    return steps


def _erase(into: FoldedSession, entry: ErasureArrived, shard_id: str, stored: StoredEvents) -> list[Event]:
    """Make a tombstone of a session; the events that were counted of it, by their places in the stream: those stored
    as far as the table's session goes (others are of attempts at this batch), and those of the batch.
    """
    base = into.base or {}
    known = {where: data for where, data in stored.items() if _is_in(where, base)}
    known.update((f"{shard_id}={kept.position}", kept.payload) for kept in into.kept)
    events = [event for _, data in sorted(known.items()) if isinstance(event := decode(data), Event)]
    if into.session.events:
        into.footprint = footprint_item(*into.name, footprint(into.session, events))
    into.session = into.session.tombstone(entry.erasure.erased_at)
    into.kept = []
    return events


def _is_in(where: str, positions: Positions) -> bool:
    """Whether what is folded up to ``positions`` has the event at ``shard=position``."""
    shard_id, _, position = where.partition("=")
    return position <= positions.get(shard_id, "")
