"""Faults planted into the consumer: a simulation that lets one of them pass would prove nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer import consume as consumer
from stream_consumer import kinesis_batch, seen, stored_events
from stream_consumer.kinesis_batch import Batch
from stream_consumer.seen import Verdict
from stream_consumer.session import Session
from stream_consumer.table import Tables, Unavailable
from tests.simulation.fold import Folded, compacted_differences
from tests.simulation.logs import ROOM_FOR_ONE, TOPOLOGIES, random_shards
from tests.simulation.world import World

_save = Tables._save
_fold, _write_rollups, _write_sessions, _consume = (
    consumer._fold,
    consumer._write_rollups,
    consumer._write_sessions,
    consumer.consume,
)


def _sessions_first(arrived: Any, shard_id: str, store: Any) -> Any:
    fold = _fold(arrived, shard_id, store)
    failures = _write_sessions(list(fold.sessions.values()), shard_id, [], store)
    consumer._raise_first(failures)
    return fold


def _newer_than_held(self: Tables, table: str, item: Any, base: str | None) -> None:
    if "pos" not in item:
        return _save(self, table, item, base)
    try:
        self._client.put_item(TableName=table, Item=item, ConditionExpression="attribute_not_exists(pk) OR pos < :new")
    except (ClientError, BotoCoreError) as error:
        raise Unavailable(str(error)) from error
    return None


def _past_the_failed_record(batch: Batch, store: Any) -> Any:
    """Each record for itself, on past a failed one; answers the lowest that failed."""
    outcomes = [_consume(Batch(batch.shard_id, entry.sequence_number, 1, [entry]), store) for entry in batch.entries]
    failed = [outcome for outcome in outcomes if outcome.failed_from is not None]
    return min(failed, key=lambda outcome: int(outcome.failed_from)) if failed else outcomes[0]


def _one_position_for_all_shards(arrived: Any, shard_id: str, store: Any) -> Any:
    return _fold(arrived, "all", store)


def _two_batches_at_once(batch: Batch, store: Any) -> Any:
    """The batch's second half begins before its first half is written."""
    if len(batch.entries) < 2:
        return _consume(batch, store)
    half = len(batch.entries) // 2
    first = Batch(batch.shard_id, batch.first_sequence_number, half, batch.entries[:half])
    rest = batch.entries[half:]
    second = Batch(batch.shard_id, rest[0].sequence_number, len(rest), rest)
    outcomes = []

    def rollups_of_the_first(changes: Any, shard_id: str, its_store: Any) -> Any:
        with mock.patch.object(consumer, "_write_rollups", _write_rollups):
            outcomes.append(_consume(second, store))
        return _write_rollups(changes, shard_id, its_store)

    with mock.patch.object(consumer, "_write_rollups", rollups_of_the_first):
        outcome = _consume(first, store)
    return outcome if outcome.failed_from is not None else outcomes[-1] if outcomes else outcome


def _marks_first(changes: Any, shard_id: str, store: Any) -> Any:
    """Marks are put before the roll-ups that they stand for."""
    loads_nothing = mock.Mock(wraps=store, save_rollup=lambda item, base: None, put_sites=lambda items: None)
    loads_nothing.each = lambda work, values: []
    _, marks = _write_rollups(changes, shard_id, loads_nothing)
    store.put_events([], marks)
    return _write_rollups(changes, shard_id, store)[0], []


def _events_gone_first(folded: Any, shard_id: str, marks: Any, store: Any) -> Any:
    """The events of an erased session are deleted before its tombstone is there."""
    for one in folded:
        if one.erasing:
            store.delete_events(one.name)
    return _write_sessions(folded, shard_id, marks, store)


def _chunks_last(folded: Any, shard_id: str, marks: Any, store: Any) -> Any:
    """Sessions give up the events in their items before these are in chunks."""
    held: list[Any] = []
    late = mock.Mock(wraps=store)
    late.put_events = lambda items, marks: (held.extend(items), store.put_events([], marks))
    became = _write_sessions(folded, shard_id, marks, late)
    store.put_events(held, [])
    return became


def _gone_without_a_trace(self: Session, erased_at: int) -> Session:
    """An erased session is as if it had never been, instead of a tombstone."""
    return Session(self.site_id, self.session_id, received=erased_at)


def _unpadded(sequence_number: str) -> str:
    return f"   {sequence_number}."  # as long a prefix as the one with the number's length has


#: name -> (what is replaced, by what). ``None``: the fault is in the log, not in the consumer.
PLANTED: dict[str, tuple[Any, str, Callable[..., Any]] | None] = {
    "sessions written before roll-ups": (consumer, "_fold", _sessions_first),
    "condition position < new": (Tables, "_save", _newer_than_held),
    "going on past a failed record": (consumer, "consume", _past_the_failed_record),
    "two concurrent batches of one shard": (consumer, "consume", _two_batches_at_once),
    "one position for all shards": (consumer, "_fold", _one_position_for_all_shards),
    "positions compared as unpadded strings": (kinesis_batch, "of_record", _unpadded),
    "an aggregate that straddles shards": None,
    "marks put before the roll-ups": (consumer, "_write_rollups", _marks_first),
    "events deleted before the tombstone": (consumer, "_write_sessions", _events_gone_first),
    "sessions written before chunks": (consumer, "_write_sessions", _chunks_last),
    "no tombstone": (Session, "tombstone", _gone_without_a_trace),
    "no memory of event ids": (seen.Seen, "admit", lambda self, event: Verdict.APPLIED),
}


@contextmanager
def planted(name: str | None) -> Iterator[bool]:
    """Switch a fault on; yields whether logs shall have aggregates that straddle shards."""
    fault = PLANTED[name] if name else None
    if fault is None:
        yield name is not None
        return
    with mock.patch.object(*fault[:2], fault[2]):
        yield False


def simulate(seed: int, fault: str | None = None) -> tuple[World, list[str]]:
    """One random schedule; the world at its end, and where the tables are not the fold of the log."""
    rng = random.Random(seed)
    straddling = fault is not None and PLANTED[fault] is None
    shards = random_shards(rng, rng.randint(2, 12), rng.choice(list(TOPOLOGIES)), straddling=straddling)
    wanted = Folded(shards)
    world = World(
        shards,
        rng,
        fault_rate=rng.choice((0.0, 0.1, 0.3)),
        batch_size=rng.choice((1, 2, 4, 9)),
        bisect=rng.random() < 0.7,
        interleave=rng.choice((0.0, 0.2)),
        compact=rng.choice((0.0, 0.1, 0.3)),
    )
    # From none to all events of a session fit into its item.
    with planted(fault), mock.patch.object(stored_events, "MAX_RECENT_BYTES", rng.choice((0, ROOM_FOR_ONE, 600, 4096))):
        world.run()
    wrong = wanted.not_taken_back() + wanted.differences(world.tables)
    if world.compact:
        wrong += compacted_differences(world.tables)
    if fault is None:  # a planted fault shall show in the tables, not in what it says of itself
        wrong += world.ledger.wrong
    if world.ledger.applied > wanted.applied:
        wrong.append(f"{world.ledger.applied} events applied of {wanted.applied}")
    return world, wrong
