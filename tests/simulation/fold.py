"""What the tables must hold: a pure fold of the log, event by event, with no batches and no failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from producer import erasure
from producer.erasure import Erasure
from producer.event import Event, decode, encode
from producer.kpl import Aggregate, decode_record
from stream_consumer.compaction import Compaction
from stream_consumer.footprint import ON_THE_WAY_MS, Footprint
from stream_consumer.items import (
    footprint_item,
    merged_key,
    merged_sk,
    read_labels,
    read_rollup,
    read_totals,
    rollup_item,
    session_item,
    session_key,
)
from stream_consumer.kinesis_batch import position
from stream_consumer.merged import COUNTERS, HOUR_MS, TOTALS, hour_totals, labels_of, merge_labels, totals_of
from stream_consumer.rollup import Counter, Folding, RollUp, Standing, quarter_of, standing
from stream_consumer.seen import Verdict
from stream_consumer.session import Session
from tests.fake_dynamodb import NAMES, FakeDynamo, MemoryTables
from tests.simulation.world import AFTER_ALL, Shard


class Folded:
    """The tables as the log alone determines them; parents come before their children in ``shards``."""

    def __init__(self, shards: Sequence[Shard], without: Iterable[tuple[str, str]] = ()) -> None:
        """``without``: sessions as if nothing had ever come of them."""
        self._sessions: dict[tuple[str, str], tuple[Session, dict[str, str]]] = {}
        self._rollups: dict[tuple[str, int, str], tuple[Folding, str]] = {}
        self._shards = shards
        self._applied: dict[tuple[str, str], dict[str, Event]] = {}
        self._without = frozenset(without)
        self.applied = 0
        self.erased: dict[tuple[str, str], Footprint] = {}
        self.quarantine: set[tuple[str, str]] = set()
        for shard in shards:
            for number, data in enumerate(shard.records, shard.first_sequence_number):
                for index, payload in enumerate(_payloads(data)):
                    self._take(shard.shard_id, position(str(number), index), payload)
        self.events = {where: encode(event) for events in self._applied.values() for where, event in events.items()}
        self.footprints = {
            (item["pk"]["S"], item["sk"]["S"]): item
            for item in (footprint_item(*name, footprint) for name, footprint in self.erased.items())
        }
        self.sessions = {
            item["pk"]["S"]: item for item in (session_item(*session) for session in self._sessions.values())
        }
        self.rollups = {
            (item["pk"]["S"], item["sk"]["S"]): item
            for item in (rollup_item(folding.rollup(), at) for folding, at in self._rollups.values())
        }

    def differences(self, tables: MemoryTables) -> list[str]:
        """Where the tables are not what the log makes them, byte for byte.

        Events of erased sessions may be left if a write of them landed late: `erase` deletes them again for that.
        """
        if tables.dynamo.faults["late"]:
            for name in self.erased:
                delete_events(tables, name)
        return [
            *_differences("footprint", self.footprints, tables.footprints),
            *_differences("session", self.sessions, tables.bare_sessions()),
            *_differences("roll-up", self.rollups, tables.rollups),
            *_differences("events", self.events, tables.stored_events()),
            *_differences("quarantine", dict.fromkeys(self.quarantine), dict.fromkeys(tables.quarantine)),
        ]

    def not_taken_back(self) -> list[str]:
        """Where the sums over shards are not as if erased sessions had never been."""
        never = Folded(self._shards, without=self.erased)
        return _differences("sums", sums(never.rollups.values()), sums(self.rollups.values())) if self.erased else []

    def _take(self, shard_id: str, at: str, payload: bytes) -> None:
        event = decode(payload)
        if not isinstance(event, Event):
            if erased := erasure.decode(payload):
                self._erase(shard_id, at, erased)
            else:
                self.quarantine.add((shard_id, at))
            return
        if (event.site_id, event.session_id) in self._without:
            return
        name = (event.site_id, event.session_id)
        session, positions = self._sessions.setdefault(name, (Session(*name), {}))
        before = standing(session)
        positions[shard_id] = at
        if session.apply(event) is not Verdict.APPLIED:
            return
        after = standing(session)
        self.applied += 1
        self._applied.setdefault(name, {})[f"{shard_id}={at}"] = event
        for quarter, folding in self._touched(shard_id, at, event.site_id, [event], before, after):
            if quarter == quarter_of(event.timestamp):
                folding.count_event(event)
            folding.move_session(before, after)

    def _erase(self, shard_id: str, at: str, erased: Erasure) -> None:
        name = (erased.site_id, erased.session_id)
        session, positions = self._sessions.get(name, (Session(*name), {}))
        if name in self._without:
            return
        if not session.erased:
            before = standing(session)
            events = [event for _, event in sorted(self._applied.pop(name, {}).items())]
            for quarter, folding in self._touched(shard_id, at, erased.site_id, events, before, None):
                for event in events:
                    if quarter == quarter_of(event.timestamp):
                        folding.take_back_event(event)
                folding.move_session(before, None)
            if events:
                arrivals = {(e.received_at + late) // HOUR_MS * HOUR_MS for e in events for late in (0, ON_THE_WAY_MS)}
                quarters = {quarter_of(event.timestamp) for event in events}
                self.erased[name] = Footprint(sorted(quarters), sorted(arrivals))
            session = Session(*name, received=erased.erased_at, erased=erased.erased_at)
        self._sessions[name] = (session, positions | {shard_id: at})

    def _touched(
        self,
        shard_id: str,
        at: str,
        site_id: str,
        events: Sequence[Event],
        before: Standing | None,
        after: Standing | None,
    ) -> Iterable[tuple[int, Folding]]:
        """The roll-ups that something at ``at`` changes, which have come so far with it."""
        quarters = {quarter_of(event.timestamp) for event in events}
        for quarter in quarters | {stand.quarter for stand in (before, after) if stand}:
            rollup = (site_id, quarter, shard_id)
            folding = self._rollups[rollup][0] if rollup in self._rollups else Folding(RollUp(*rollup))
            self._rollups[rollup] = (folding, at)
            yield quarter, folding


def compacted_differences(tables: MemoryTables) -> list[str]:
    """Where what is merged and not marked is not the merge of the roll-ups; then merges what is marked, and looks again."""
    wrong = []
    calm = FakeDynamo()
    calm.tables = tables.dynamo.tables
    settled = MemoryTables(calm)
    for when in ("as it was left", "merged to the end"):
        rollups = [read_rollup(item).rollup for item in settled.rollups.values()]
        hours = {(rollup.site_id, rollup.quarter - rollup.quarter % HOUR_MS) for rollup in rollups}
        for site_id, hour in hours:
            marks = settled.marks(site_id)
            if any(mark.startswith(merged_sk(hour, whole_day=False)) for mark in marks):
                continue
            ours = sorted(
                (r for r in rollups if r.site_id == site_id and 0 <= r.quarter - hour < HOUR_MS),
                key=lambda rollup: (rollup.quarter, rollup.shard_id),
            )
            held = calm.tables[NAMES.rollups].get(merged_key(site_id, TOTALS, hour, whole_day=False))
            if held is None or read_totals(held) != hour_totals(hour, map(totals_of, ours)):
                wrong.append(f"{when}: the totals of hour {hour} are not the merge of its roll-ups")
            for dimension in COUNTERS:
                wanted = merge_labels(hour, (labels_of(rollup, dimension) for rollup in ours)).counter
                held = calm.tables[NAMES.rollups].get(merged_key(site_id, dimension, hour, whole_day=False))
                if (read_labels(held).counter if held else Counter()) != wanted:
                    wrong.append(f"{when}: {dimension} of hour {hour} is not the merge of its roll-ups")
        Compaction(calm, NAMES).run(AFTER_ALL)  # type: ignore[arg-type]
    wrong += [f"left marked: {site_id} {settled.marks(site_id)}" for site_id in settled.sites if settled.marks(site_id)]
    return wrong


def sums(rollups: Iterable[Mapping[str, Any]]) -> dict[Any, int]:
    """What adds up over shards, each figure under its name; those that are 0 are left out."""
    found: dict[Any, int] = {}
    for rollup in (read_rollup(item).rollup for item in rollups):
        rows = {
            **{("minute", at): row for at, row in enumerate(rollup.minutes)},
            **{("began", at): row for at, row in enumerate(rollup.began)},
            **{("duration", bucket): [count] for bucket, count in rollup.durations.items()},
            **{(name, label): row for name, counter in rollup.counters.items() for label, row in counter.rows.items()},
            **{(name,): counter.other for name, counter in rollup.counters.items()},
        }
        for name, row in rows.items():
            for measure, amount in enumerate(row):
                figure = (rollup.site_id, rollup.quarter, *name, measure)
                found[figure] = found.get(figure, 0) + amount
    return {figure: amount for figure, amount in found.items() if amount}


def delete_events(tables: MemoryTables, name: tuple[str, str]) -> None:
    """Delete the stored events of a session."""
    for key in [key for key in tables.events if key[0] == session_key(*name)]:
        del tables.events[key]


def _payloads(data: bytes) -> list[bytes]:
    record = decode_record(data)
    return [one.data for one in record.records] if isinstance(record, Aggregate) else [data]


def _differences(what: str, wanted: dict[Any, Any], found: dict[Any, Any]) -> list[str]:
    return [
        f"{what} {key}: {'missing' if key not in found else 'too many' if key not in wanted else 'differs'}"
        for key in wanted.keys() | found.keys()
        if key not in found or key not in wanted or wanted[key] != found[key]
    ]
