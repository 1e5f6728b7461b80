"""Everything around the consumer that can fail, under one source of choices.

The consumer's code is the real one, down to the calls of DynamoDB's client; the event source is the
state machine that the local one runs on. Simulated are the table behind the client, the stream, the
clock, and what goes wrong: :data:`FAULTS` at any write or read, writes that land late, redelivery
after a lost checkpoint, and shards that work while another one is in the middle of a batch.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError, ReadTimeoutError

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
from stream_consumer.consume import Outcome
from stream_consumer.table import TableNames, Tables

IDENTITY = EventSourceIdentity(
    "arn:aws:kinesis:us-east-1:123456789012:stream/events", "arn:aws:iam::123456789012:role/c"
)
NAMES = TableNames("sessions", "session-events", "rollups", "quarantine")

#: What can happen to a write. "late": the function ends, and the write lands when others have gone by.
FAULTS = ("refused", "lost", "crash before", "crash after", "late")
Choose = Callable[[int], str]


class Crash(BaseException):
    """The function's process ended here: a crash, a timeout, or the end of the machine."""


class FakeDynamo:
    """DynamoDB's client as far as the consumer calls it: conditions hold when a write lands, not when it is sent.

    ``choose(n)`` says what the n-th write meets: '' or one of FAULTS; ``between`` is called before each.
    ``read`` says the same of a read: '', "refused", or "stale" (a roll-up as it was before its last write, as
    a cache may hold it; sessions are always read as they are: the protocol needs that).
    """

    def __init__(
        self,
        choose: Choose = lambda _: "",
        between: Callable[[], None] = lambda: None,
        read: Callable[[], str] = lambda: "",
    ) -> None:
        self.tables: dict[str, dict[tuple[str, str], dict[str, Any]]] = {
            name: {} for name in (NAMES.sessions, NAMES.session_events, NAMES.rollups, NAMES.quarantine)
        }
        self.choose = choose
        self.between = between
        self.read = read
        self.writes = 0
        self._before: dict[tuple[str, str], dict[str, Any] | None] = {}
        self.faults: Counter[str] = Counter()
        self._limbo: list[tuple[int, Callable[[], None]]] = []

    def put_item(self, *, TableName: str, Item: dict[str, Any], **condition: Any) -> dict[str, Any]:
        self._write(lambda: self._put(TableName, Item, condition))
        return {}

    def batch_write_item(self, *, RequestItems: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        def write() -> None:
            for table, requests in RequestItems.items():
                for request in requests:
                    self._put(table, request["PutRequest"]["Item"], {})

        self._write(write)
        return {}

    def batch_get_item(self, *, RequestItems: dict[str, Any]) -> dict[str, Any]:
        (table, wanted), *_ = RequestItems.items()
        rows = self.tables[table]
        keys = [_key(key) for key in wanted["Keys"]]
        fault = self.read()
        if fault == "refused":
            self.faults["read refused"] += 1
            raise ClientError({"Error": {"Code": "InternalServerError"}}, "BatchGetItem")
        if fault == "stale" and table == NAMES.rollups:
            self.faults["read stale"] += 1
            rows = {key: old for key in keys if (old := self._before.get(key, rows.get(key)))}
        return {"Responses": {table: [rows[key] for key in keys if key in rows]}}

    def land_all(self) -> None:
        """Let every write that is still on its way arrive."""
        limbo, self._limbo = self._limbo, []
        for _, write in limbo:
            _late(write)

    def _write(self, write: Callable[[], None]) -> None:
        self.between()
        self.writes += 1
        due = [late for at, late in self._limbo if at <= self.writes]
        self._limbo = [(at, late) for at, late in self._limbo if at > self.writes]
        for late in due:
            _late(late)
        fault = self.choose(self.writes)
        if fault:
            self.faults[fault] += 1
        if fault == "crash before":
            raise Crash
        if fault == "refused":
            raise ClientError({"Error": {"Code": "ProvisionedThroughputExceededException"}}, "PutItem")
        if fault == "late":
            self._limbo.append((self.writes + 3, write))
            raise Crash
        write()
        if fault == "lost":
            raise ReadTimeoutError(endpoint_url="simulated")
        if fault == "crash after":
            raise Crash

    def _put(self, table: str, item: dict[str, Any], condition: dict[str, Any]) -> None:
        key = _key(item)
        held = self.tables[table].get(key)
        match condition.get("ConditionExpression"):
            case None:
                holds = True
            case "attribute_not_exists(pk)":
                holds = held is None
            case "pos = :base":
                holds = held is not None and held["pos"] == condition["ExpressionAttributeValues"][":base"]
            case "attribute_not_exists(pk) OR pos < :new":  # what a planted fault asks
                holds = held is None or held["pos"]["S"] < item["pos"]["S"]
            case unknown:
                raise AssertionError(unknown)
        if not holds:
            raise ClientError({"Error": {"Code": "ConditionalCheckFailedException"}, "Item": held}, "PutItem")
        if table == NAMES.rollups:
            self._before[key] = held
        self.tables[table][key] = item


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"] if "sk" in item else ""


def _late(write: Callable[[], None]) -> None:
    with suppress(ClientError):  # nobody is there any more to hear that the condition did not hold
        write()


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
    quarantined: int = 0
    invocations: int = 0
    failures: int = 0

    def note(self, outcome: Outcome) -> None:
        assert outcome.received == outcome.applied + outcome.duplicate + outcome.late + outcome.quarantined.total()
        self.received += outcome.received
        self.applied += outcome.applied
        self.duplicate += outcome.duplicate
        self.late += outcome.late
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
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self.dynamo = FakeDynamo(self._fault, self._elsewhere, self._read_fault)
        self.tables = Tables(self.dynamo, NAMES, writers=1)  # type: ignore[arg-type]
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

    def run(self) -> World:
        """Until every shard is drained and every late write has landed. Faults end after a while, or nothing would."""
        while active := self._active():
            self._step(self.rng.choice(active))
        self.dynamo.land_all()
        return self

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
        try:
            outcome = consumer.consume(kinesis_batch.read(json.loads(event)), self.tables)
        except Crash:
            self.ledger.failures += 1
            return FunctionError("r", "Crash", "")
        self.ledger.note(outcome)
        failures = [] if outcome.failed_from is None else [{"itemIdentifier": outcome.failed_from}]
        return Answered("r", {"batchItemFailures": failures})

    def _fault(self, _: int) -> str:
        return self.rng.choice(FAULTS) if self._unlucky(self.fault_rate) else ""

    def _read_fault(self) -> str:
        return self.rng.choice(("refused", "stale", "stale")) if self._unlucky(self.fault_rate / 2) else ""

    def _elsewhere(self) -> None:
        """Another shard's batch may be processed between two writes of this one's."""
        if len(self._working) == 1 and self.interleave and self.rng.random() < self.interleave:
            active = self._active()
            if active:
                other = self.rng.choice(active)
                for _ in range(3):
                    if not self._drained(other):
                        self._step(other)

    def _unlucky(self, rate: float) -> bool:
        self._patience += 1
        return self._patience < 400 and self.rng.random() < rate
