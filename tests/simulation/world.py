"""Everything around the consumer that can fail, under one source of choices.

The consumer's code is the real one, down to the calls of DynamoDB's client; the event source is the
state machine that the local one runs on. Simulated are the table behind the client, the stream, the
clock, and what goes wrong: any of ``FAULTS`` at any write or read, writes that land late, redelivery
after a lost checkpoint, and shards that work while another one is in the middle of a batch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from infra.local.shard_mapping import (
    Answered,
    Discard,
    Done,
    EventSourceIdentity,
    FunctionError,
    Invoke,
    MappingSettings,
    Poll,
    Record,
    ShardMapping,
    Wait,
)
from stream_consumer import consume as consumer
from stream_consumer import kinesis_batch
from stream_consumer.compaction import Compaction
from stream_consumer.consume import Outcome
from stream_consumer.table import Unavailable
from tests.builders import NOON
from tests.fake_dynamodb import FAULTS, NAMES, Crash, FakeDynamo, MemoryTables

IDENTITY = EventSourceIdentity(
    "arn:aws:kinesis:us-east-1:123456789012:stream/events", "arn:aws:iam::123456789012:role/c"
)

#: A time (ms) at which every hour and day of the logs is over.
AFTER_ALL = NOON + 3 * 24 * 3600 * 1000


@dataclass(frozen=True)
class Shard:
    """One shard's records, all of them; a child's are read once its parents are drained."""

    shard_id: str
    records: tuple[bytes, ...]
    first_sequence_number: int = 1
    parents: tuple[str, ...] = ()


@dataclass
class Ledger:
    """What the batches' outcomes said, over a run."""

    received: int = 0
    applied: int = 0
    duplicate: int = 0
    late: int = 0
    erased: int = 0
    quarantined: int = 0
    invocations: int = 0
    failures: int = 0
    wrong: list[str] = field(default_factory=list)

    def note(self, outcome: Outcome, payloads: int) -> None:
        """Take one outcome of a batch of ``payloads``: of a batch that is done, each of them became something."""
        if outcome.received > payloads or (outcome.failed_from is None and outcome.received < payloads):
            self.wrong.append(f"{payloads} payloads, but {outcome}")
        self.received += outcome.received
        self.applied += outcome.applied
        self.duplicate += outcome.duplicate
        self.late += outcome.late
        self.erased += outcome.erased
        self.quarantined += outcome.quarantined.total()


@dataclass
class World:
    """A stream, its event source, the consumer and the tables, run by one seed until everything is done."""

    shards: Sequence[Shard]
    rng: random.Random
    fault_rate: float = 0.2
    batch_size: int = 4
    bisect: bool = True
    interleave: float = 0.0
    compact: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self.dynamo = FakeDynamo(self._fault, self._elsewhere, self._read_fault)
        self.tables = MemoryTables(self.dynamo)
        self.now = 1_700_000_000.0
        self._by_id = {shard.shard_id: shard for shard in self.shards}
        self._settings = MappingSettings(
            batch_size=self.batch_size,
            report_batch_item_failures=True,
            bisect_batch_on_function_error=self.bisect,
        )
        self._mappings: dict[str, ShardMapping] = {}
        self._checkpoints: dict[str, list[str | None]] = {shard.shard_id: [None] for shard in self.shards}
        self._working: list[str] = []
        self._patience = 0
        self.compaction = Compaction(self.dynamo, NAMES, lambda: f"{self.rng.random()}")  # type: ignore[arg-type]
        self._compacting = False

    def run(self) -> World:
        """Until every shard is drained and every late write has landed. Faults end after a while, or nothing would."""
        while active := self._active():
            self._step(self.rng.choice(active))
            self._compact()
        self.dynamo.land_all()
        return self

    def _compact(self) -> None:
        """Now and then the merging of hours runs, and may fail or end at any of its writes."""
        if self.compact and not self._compacting and self.rng.random() < self.compact:
            self._compacting = True
            with suppress(Crash, Unavailable):
                self.compaction.run(AFTER_ALL)
            self._compacting = False

    def _active(self) -> list[str]:
        drained = {name for name in self._by_id if self._drained(name)}
        return [
            name
            for name, shard in self._by_id.items()
            if name not in drained and name not in self._working and drained.issuperset(shard.parents)
        ]

    def _drained(self, name: str) -> bool:
        return name in self._mappings and self._mappings[name].drained

    def _step(self, name: str) -> None:
        mapping = self._mappings.get(name) or self._restart(name)
        match mapping.next(self.now):
            case Poll(limit):
                records = self._behind(mapping)
                mapping.polled(
                    records[:limit], millis_behind=int(len(records) > limit), closed=len(records) <= limit, now=self.now
                )
            case Invoke(batch):
                self._working.append(name)
                try:
                    outcome = self._invoke(batch.event)
                finally:
                    self._working.pop()
                mapping.invoked(outcome, self.now)
                self._checkpoint(name, mapping)
            case Wait(until):
                self.now = max(self.now, until)
            case Discard() as discard:
                raise AssertionError(f"a record was given up: {discard}")
            case Done():
                pass

    def _behind(self, mapping: ShardMapping) -> list[Record]:
        """The records that the mapping has not read."""
        shard = self._by_id[mapping.shard_id]
        return [
            Record(shard.shard_id, str(number), "lane", data, self.now)
            for number, data in enumerate(shard.records, shard.first_sequence_number)
            if mapping.position is None or number > int(mapping.position)
        ]

    def _restart(self, name: str, checkpoint: str | None = None) -> ShardMapping:
        mapping = ShardMapping(IDENTITY, name, self._settings, checkpoint=checkpoint, rng=self.rng)
        self._mappings[name] = mapping
        return mapping

    def _checkpoint(self, name: str, mapping: ShardMapping) -> None:
        """Save the checkpoint; now and then the event source ends before it is saved, and redelivers."""
        saved = self._checkpoints[name]
        if self._unlucky(self.fault_rate / 2):
            self._restart(name, saved[-1])
        elif mapping.checkpoint != saved[-1]:
            saved.append(mapping.checkpoint)

    def _invoke(self, event: bytes) -> Answered | FunctionError:
        self.ledger.invocations += 1
        batch = kinesis_batch.read(json.loads(event))
        try:
            outcome = consumer.consume(batch, self.tables)
        except Crash:
            self.ledger.failures += 1
            return FunctionError("r", "Crash", "")
        self.ledger.note(outcome, len(batch.entries))
        failures = [] if outcome.failed_from is None else [{"itemIdentifier": outcome.failed_from}]
        return Answered("r", {"batchItemFailures": failures})

    def _fault(self, _: int) -> str:
        return self.rng.choice(FAULTS) if self._unlucky(self.fault_rate) else ""

    def _read_fault(self) -> str:
        return self.rng.choice(("refused", "stale", "stale")) if self._unlucky(self.fault_rate / 2) else ""

    def _elsewhere(self) -> None:
        """Between two writes of a batch, or of the merging of hours, another shard's may be processed, or hours merged."""
        self._compact()
        at_work = len(self._working) + self._compacting
        if 0 < at_work <= 2 and len(self._working) < 2 and self.rng.random() < self.interleave:
            active = self._active()
            if active:
                other = self.rng.choice(active)
                for _ in range(3):
                    if not self._drained(other):
                        self._step(other)

    def _unlucky(self, rate: float) -> bool:
        self._patience += 1
        return self._patience < 400 and self.rng.random() < rate
