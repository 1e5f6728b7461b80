"""DynamoDB in memory, as far as the consumer calls it: conditions hold when a write lands, and calls fail when told to."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from botocore.exceptions import ClientError, ReadTimeoutError

from stream_consumer.items import SITES, Item, marks_key, read_session
from stream_consumer.stored_events import read_chunk
from stream_consumer.table import TableNames, Tables

SCAN_PAGE = 3
NAMES = TableNames("sessions", "session-events", "rollups", "quarantine")

#: What can happen to a write. "late": the function ends, and the write lands when others have gone by.
FAULTS = ("refused", "lost", "crash before", "crash after", "late")
Choose = Callable[[int], str]
#: The partition of a site's roll-ups of one day.
_ROLLUP = re.compile(r"[^#]+#[0-9]{6}")


class Crash(BaseException):
    """The function's process ended here: a crash, a timeout, or the end of the machine."""


class Kept(NamedTuple):
    """What a :class:`FakeDynamo` held at a moment: ``limbo`` is on its way to that one."""

    tables: dict[str, dict[tuple[str, str], dict[str, Any]]]
    before: dict[tuple[str, str], dict[str, Any] | None]
    writes: int
    faults: Counter[str]
    limbo: list[tuple[int, Callable[[], None]]]


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
        self.queried = 0
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
                    if "DeleteRequest" in request:
                        self.tables[table].pop(_key(request["DeleteRequest"]["Key"]), None)
                    else:
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

    def query(self, **query: Any) -> dict[str, Any]:
        values = {name: value["S"] for name, value in query["ExpressionAttributeValues"].items()}
        if self.read() == "refused":
            self.faults["read refused"] += 1
            raise ClientError({"Error": {"Code": "InternalServerError"}}, "Query")
        rows = sorted(self.tables[query["TableName"]].items())
        match query["KeyConditionExpression"]:
            case "pk = :pk AND sk BETWEEN :low AND :high":
                low, high = values[":low"], values[":high"]
                found = [item for key, item in rows if key[0] == values[":pk"] and low <= key[1] <= high]
            case "pk = :pk":
                found = [item for key, item in rows if key[0] == values[":pk"]]
            case "user_key = :user":  # an index of keys only
                whose = [item for _, item in rows if item.get("user_key") == {"S": values[":user"]}]
                found = [{name: item[name] for name in ("pk", "user_key", "started_at")} for item in whose]
            case unknown:
                raise AssertionError(unknown)
        self.queried += len(found)
        return {"Items": found}

    def get_item(self, *, TableName: str, Key: dict[str, Any], ConsistentRead: bool = False) -> dict[str, Any]:
        item = self.tables[TableName].get(_key(Key))
        return {"Item": item} if item else {}

    def scan(self, *, TableName: str, Segment: int, TotalSegments: int, **query: Any) -> dict[str, Any]:
        """Pages of SCAN_PAGE items; a segment has those partitions whose hash falls to it."""
        (prefix,) = (value["S"] for value in query["ExpressionAttributeValues"].values())
        wanted = query["FilterExpression"] == "begins_with(pk, :prefix)"
        assert wanted or query["FilterExpression"] == "NOT begins_with(pk, :prefix)"
        start = _key(query["ExclusiveStartKey"]) if "ExclusiveStartKey" in query else ("", "")
        left = sorted(
            (key, item)
            for key, item in self.tables[TableName].items()
            if zlib.crc32(key[0].encode()) % TotalSegments == Segment and key > start
        )
        page = left[:SCAN_PAGE]
        found = [item for key, item in page if key[0].startswith(prefix) == wanted]
        answer: dict[str, Any] = {"Items": found, "ScannedCount": len(page)}
        if len(left) > SCAN_PAGE:
            answer["LastEvaluatedKey"] = {name: page[-1][1][name] for name in ("pk", "sk") if name in page[-1][1]}
        return answer

    def describe_table(self, *, TableName: str) -> dict[str, Any]:
        return {"Table": {"ItemCount": len(self.tables[TableName])}}

    def delete_item(self, *, TableName: str, Key: dict[str, Any], **condition: Any) -> dict[str, Any]:
        def delete() -> None:
            assert condition["ConditionExpression"] == "pos = :base"
            held = self.tables[TableName].get(_key(Key))
            if held is None or held["pos"] != condition["ExpressionAttributeValues"][":base"]:
                raise ClientError({"Error": {"Code": "ConditionalCheckFailedException"}}, "DeleteItem")
            del self.tables[TableName][_key(Key)]

        self._write(delete)
        return {}

    def kept(self) -> Kept:
        """What it holds now. Items are replaced and never changed."""
        tables = {name: rows.copy() for name, rows in self.tables.items()}
        return Kept(tables, self._before.copy(), self.writes, self.faults.copy(), self._limbo.copy())

    def restore(self, kept: Kept) -> None:
        """Be as it was then."""
        self.tables = {name: rows.copy() for name, rows in kept.tables.items()}
        self._before = kept.before.copy()
        self.writes, self.faults, self._limbo = kept.writes, kept.faults.copy(), kept.limbo.copy()

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
            case "body = :held":
                holds = held is not None and held["body"] == condition["ExpressionAttributeValues"][":held"]
            case "attribute_not_exists(pk) OR pos < :new":  # what a planted fault asks
                holds = held is None or held["pos"]["S"] < item["pos"]["S"]
            case unknown:
                raise AssertionError(unknown)
        if not holds:
            raise ClientError({"Error": {"Code": "ConditionalCheckFailedException"}, "Item": held}, "PutItem")
        if table == NAMES.rollups:
            self._before[key] = held
        self.tables[table][key] = item


def bare(session: Item) -> Item:
    """A session's item without the events in it: which these are depends on where batches ended."""
    return {name: value for name, value in session.items() if name != "recent"}


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"] if "sk" in item else ""


def _late(write: Callable[[], None]) -> None:
    with suppress(ClientError):  # nobody is there any more to hear that the condition did not hold
        write()


class MemoryTables(Tables):
    """The real tables over a :class:`FakeDynamo`, one write after the other, and views of what they hold."""

    def __init__(self, dynamo: FakeDynamo | None = None) -> None:
        self.dynamo = dynamo or FakeDynamo()
        super().__init__(self.dynamo, NAMES, writers=1)  # type: ignore[arg-type]

    @property
    def sessions(self) -> dict[str, Item]:
        return {key[0]: item for key, item in self.dynamo.tables[NAMES.sessions].items()}

    @property
    def rollups(self) -> dict[tuple[str, str], Item]:
        rows = self.dynamo.tables[NAMES.rollups].items()
        return {key: item for key, item in rows if _ROLLUP.fullmatch(key[0])}

    def marks(self, site_id: str) -> set[str]:
        """The sort keys of a site's marks."""
        return {key[1] for key in self.dynamo.tables[NAMES.rollups] if key[0] == marks_key(site_id)}

    @property
    def sites(self) -> set[str]:
        return {key[1] for key in self.dynamo.tables[NAMES.rollups] if key[0] == SITES}

    @property
    def events(self) -> dict[tuple[str, str], Item]:
        return self.dynamo.tables[NAMES.session_events]

    def stored_events(self) -> dict[str, bytes]:
        """The events of all sessions by ``shard=position``; some are in two places."""
        recent = (read_session(item).events for item in self.sessions.values())
        return dict(event for some in (*recent, *map(read_chunk, self.events.values())) for event in some)

    def bare_sessions(self) -> dict[str, Item]:
        """The sessions without the events in their items."""
        return {key: bare(item) for key, item in self.sessions.items()}

    @property
    def footprints(self) -> dict[tuple[str, str], Item]:
        rows = self.dynamo.tables[NAMES.rollups].items()
        return {key: item for key, item in rows if key[0].endswith("#erased")}

    @property
    def quarantine(self) -> dict[tuple[str, str], Item]:
        return self.dynamo.tables[NAMES.quarantine]

    @property
    def writes(self) -> int:
        return self.dynamo.writes
