"""What the tables must hold: a pure fold of the log, event by event, with no batches and no failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from producer.event import Event, decode, encode
from producer.kpl import Aggregate, decode_record
from stream_consumer.compaction import Compaction
from stream_consumer.items import (
    merged_key,
    merged_sk,
    read_chunk,
    read_labels,
    read_rollup,
    read_totals,
    rollup_item,
    session_item,
)
from stream_consumer.kinesis_batch import position
from stream_consumer.merged import COUNTERS, HOUR_MS, TOTALS, hour_totals, labels_of, merge_labels, totals_of
from stream_consumer.rollup import Counter, Folding, RollUp, quarter_of, standing, visitor_of
from stream_consumer.seen import Verdict
from stream_consumer.session import Session
from tests.fake_dynamodb import NAMES, FakeDynamo, MemoryTables
from tests.simulation.world import AFTER_ALL, Shard


class Folded:
    """The tables as the log alone determines them; parents come before their children in ``shards``."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._sessions: dict[tuple[str, str], tuple[Session, dict[str, str]]] = {}
        self._rollups: dict[tuple[str, int, str], tuple[Folding, str]] = {}
        self.events: dict[str, bytes] = {}
        self.quarantine: set[tuple[str, str]] = set()
        for shard in shards:
            for number, data in enumerate(shard.records, shard.first_sequence_number):
                for index, payload in enumerate(_payloads(data)):
                    self._take(shard.shard_id, position(str(number), index), payload)
        self.sessions = {
            item["pk"]["S"]: item for item in (session_item(*session) for session in self._sessions.values())
        }
        self.rollups = {
            (item["pk"]["S"], item["sk"]["S"]): item
            for item in (rollup_item(folding.rollup(), at) for folding, at in self._rollups.values())
        }

    def differences(self, tables: MemoryTables) -> list[str]:
        """Where the tables are not what the log makes them, byte for byte."""
        return [
            *_differences("session", self.sessions, tables.sessions),
            *_differences("roll-up", self.rollups, tables.rollups),
            *_differences("events", self.events, stored_events(tables)),
            *_differences("quarantine", dict.fromkeys(self.quarantine), dict.fromkeys(tables.quarantine)),
        ]

    def _take(self, shard_id: str, at: str, payload: bytes) -> None:
        event = decode(payload)
        if not isinstance(event, Event):
            self.quarantine.add((shard_id, at))
            return
        name = (event.site_id, event.session_id)
        session, positions = self._sessions.setdefault(name, (Session(*name), {}))
        before = standing(session)
        positions[shard_id] = at
        if session.apply(event) is not Verdict.APPLIED:
            return
        after = standing(session)
        self.events[f"{shard_id}={at}"] = encode(event)
        for quarter in {quarter_of(event.timestamp), *(stand.quarter for stand in (before, after) if stand)}:
            rollup = (event.site_id, quarter, shard_id)
            folding = self._rollups[rollup][0] if rollup in self._rollups else Folding(RollUp(*rollup))
            if quarter == quarter_of(event.timestamp):
                folding.count_event(event, visitor_of(event))
            folding.move_session(before, after)
            self._rollups[rollup] = (folding, at)


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


def stored_events(tables: MemoryTables) -> dict[str, bytes]:
    """The stored events by position; chunks may repeat them."""
    return dict(pair for item in tables.events.values() for pair in read_chunk(item))


def _payloads(data: bytes) -> list[bytes]:
    record = decode_record(data)
    return [one.data for one in record.records] if isinstance(record, Aggregate) else [data]


def _differences(what: str, wanted: dict[Any, Any], found: dict[Any, Any]) -> list[str]:
    return [
        f"{what} {key}: {'missing' if key not in found else 'too many' if key not in wanted else 'differs'}"
        for key in wanted.keys() | found.keys()
        if key not in found or key not in wanted or wanted[key] != found[key]
    ]
