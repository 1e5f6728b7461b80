"""Generations: whole sets of figures side by side in the same tables, and the pointer to the one that is served.

Every session, event and roll-up belongs to a generation. A generation is written by consumers of its own, from a
point of the stream on; nothing of it is seen until the pointer names it. The items of two generations differ in the
prefix of their keys alone, so that the same events give the same bytes. What is of the stream or of the deployment
rather than of figures is of no generation: the quarantine, read keys, who was erased, and the list of generations
itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer.items import ERASURES, Item
from stream_consumer.table import TableNames, Unavailable, query_items

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: The generation of a deployment's beginning. The keys of its items have no prefix, and it is on no list.
FIRST = "g1"
#: Partition of the roll-up table that lists the generations; the sort key is the name of one, or POINTER.
GENERATIONS = "generations"
POINTER = "serving"
#: Partition keys of the roll-up table that belong to no generation ("keys" are the query API's read keys).
UNSCOPED = frozenset({GENERATIONS, ERASURES, "keys"})

_NAME = re.compile(r"g[1-9][0-9]{0,8}")
#: The attributes that hold keys of a generation's items.
_KEYS = ("pk", "active_bucket", "user_key")
_PARTITION = re.compile(r"(\w+) = (:\w+)")


class State(StrEnum):
    """What a generation is going through."""

    PREPARING = "preparing"  # what arrived before its start is being copied; nothing consumes into it
    CONSUMING = "consuming"  # consumers write it, whether it is served or not
    DROPPING = "dropping"  # nobody shall write it any more; it is being deleted
    DROPPED = "dropped"  # nothing is left of it; its name is not used again


class Generation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One generation. Times in ms since 1970 UTC.

    Its figures are of what arrived at the collectors before ``start``, copied from generation ``base``, and of all that
    came then, consumed; with ``start`` 0, of all that was consumed. ``read_from``: where its consumers begin in the
    stream (arrival there), 0 for its oldest record. ``archive``: the bucket that older events are read from, '' for
    none. ``progress`` is what an interrupted command needs to go on. ``mapping``: the id of its event source mapping on
    AWS.
    """

    name: str
    state: State = State.CONSUMING
    base: str = ""
    start: int = 0
    read_from: int = 0
    archive: str = ""
    created: int = 0
    progress: dict[str, Any] = {}
    mapping: str = ""

    @property
    def consumes(self) -> bool:
        """Whether consumers are to write it."""
        return self.state is State.CONSUMING


class Pointer(msgspec.Struct, frozen=True):
    """Which generation is served, which one was before (''), and since when (ms since 1970)."""

    serving: str = FIRST
    previous: str = ""
    since: int = 0


class Refused(Exception):  # noqa: N818 - says what is the case
    """It cannot be done as things are; the text says why, and what can be."""


def prefix_of(generation: str) -> str:
    """What the keys of a generation's items begin with. No site id has a ``#``, so no key of another begins so."""
    return "" if generation == FIRST else f"#{generation}#"


def generation_of(function_arn: str) -> str:
    """The generation that an invocation writes: the function's alias, as its ARN says, where it is one's name."""
    parts = function_arn.split(":")
    return parts[7] if len(parts) == 8 and _NAME.fullmatch(parts[7]) else FIRST


def is_name(text: str) -> bool:
    """Whether ``text`` can be a generation's name."""
    return _NAME.fullmatch(text) is not None


def move(item: Item, source: str, target: str) -> Item:
    """A stored item of generation ``source``, as raw as the table holds it, as one of ``target``."""
    old, new = prefix_of(source), prefix_of(target)
    return item | {name: {"S": new + item[name]["S"][len(old) :]} for name in _KEYS if name in item}


def scoped(client: DynamoDBClient, names: TableNames, generation: str) -> DynamoDBClient:
    """A client that sees ``generation`` alone, as if there were no other. It has the methods that LiveInsight uses."""
    if generation == FIRST:
        return client
    return cast("DynamoDBClient", _Scoped(client, names, prefix_of(generation)))


class _Scoped:
    """Puts the prefix before the keys of requests, and takes it off those of answers."""

    def __init__(self, client: DynamoDBClient, names: TableNames, prefix: str) -> None:
        self._client: Any = client
        self._tables = frozenset({names.sessions, names.session_events, names.rollups})
        self._prefix = prefix

    def get_item(self, *, TableName: str, Key: Item, **more: Any) -> Any:  # noqa: N803 - boto3's names
        answer = self._client.get_item(TableName=TableName, Key=self._put(TableName, Key), **more)
        return answer if "Item" not in answer else {**answer, "Item": self._take(TableName, answer["Item"])}

    def put_item(self, *, TableName: str, Item: Item, **more: Any) -> Any:  # noqa: N803
        return self._client.put_item(TableName=TableName, Item=self._put(TableName, Item), **more)

    def delete_item(self, *, TableName: str, Key: Item, **more: Any) -> Any:  # noqa: N803
        return self._client.delete_item(TableName=TableName, Key=self._put(TableName, Key), **more)

    def batch_get_item(self, *, RequestItems: Mapping[str, Any]) -> Any:  # noqa: N803
        asked = {table: self._each_key(table, wanted, self._put) for table, wanted in RequestItems.items()}
        answer = self._client.batch_get_item(RequestItems=asked)
        found = {
            table: [self._take(table, item) for item in items] for table, items in answer.get("Responses", {}).items()
        }
        left = {
            table: self._each_key(table, keys, self._take)
            for table, keys in (answer.get("UnprocessedKeys") or {}).items()
        }
        return {**answer, "Responses": found, "UnprocessedKeys": left}

    def batch_write_item(self, *, RequestItems: Mapping[str, Any]) -> Any:  # noqa: N803
        asked = {table: self._each_write(table, some, self._put) for table, some in RequestItems.items()}
        answer = self._client.batch_write_item(RequestItems=asked)
        left = {
            table: self._each_write(table, some, self._take)
            for table, some in (answer.get("UnprocessedItems") or {}).items()
        }
        return {**answer, "UnprocessedItems": left}

    def query(self, *, TableName: str, **query: Any) -> Any:  # noqa: N803
        # A query names its partition first. Where it goes on after a page it says so in whole keys, as it got them.
        named = _PARTITION.match(query["KeyConditionExpression"])
        if TableName in self._tables and named and named[1] in _KEYS:
            values = query["ExpressionAttributeValues"]
            query["ExpressionAttributeValues"] = values | {named[2]: {"S": self._prefix + values[named[2]]["S"]}}
        answer = self._client.query(TableName=TableName, **query)
        return {**answer, "Items": [self._take(TableName, item) for item in answer["Items"]]}

    def _put(self, table: str, item: Item) -> Item:
        if table not in self._tables or item["pk"]["S"] in UNSCOPED:
            return item
        changed = dict(item)
        for name in _KEYS:
            if name in item:
                changed[name] = {"S": self._prefix + item[name]["S"]}
        return changed

    def _take(self, table: str, item: Item) -> Item:
        if table not in self._tables:
            return item
        cut = len(self._prefix)
        return item | {
            name: {"S": item[name]["S"][cut:]}
            for name in _KEYS
            if name in item and item[name]["S"].startswith(self._prefix)
        }

    def _each_key(self, table: str, wanted: Mapping[str, Any], change: Any) -> dict[str, Any]:
        return {**wanted, "Keys": [change(table, key) for key in wanted["Keys"]]}

    def _each_write(self, table: str, requests: Sequence[Mapping[str, Any]], change: Any) -> list[dict[str, Any]]:
        """Puts and deletes, their items and keys changed."""
        return [
            {kind: {part: change(table, item) for part, item in content.items()} for kind, content in request.items()}
            for request in requests
        ]


class Generations:
    """The list of generations, and the pointer: both in the table of roll-ups, both changed by compare-and-set.

    All methods raise :class:`Unavailable` where the table cannot be read or written.
    """

    def __init__(self, client: DynamoDBClient, names: TableNames) -> None:
        self._client = client
        self._table = names.rollups

    def pointer(self) -> Pointer:
        """Which generation is served. Read consistently: who asks after a promotion sees it."""
        item = self._get(POINTER)
        return msgspec.json.decode(item["body"]["S"], type=Pointer) if item else Pointer()

    def all(self) -> list[Generation]:
        """Every generation that there is or was, the oldest first; the first one too, though it is on no list."""
        items = query_items(self._client, self._table, GENERATIONS)
        found = {FIRST: Generation(FIRST)}
        found |= {item["sk"]["S"]: _read(item) for item in items if item["sk"]["S"] != POINTER}
        return sorted(found.values(), key=lambda one: int(one.name[1:]))

    def get(self, name: str) -> Generation | None:
        """One generation, None if there never was one of this name."""
        item = self._get(name)
        return _read(item) if item else Generation(FIRST) if name == FIRST else None

    def add(self, generation: Generation) -> bool:
        """List a new generation; False if its name was taken meanwhile."""
        return self._save(_item(generation), None)

    def change(self, old: Generation, new: Generation) -> Generation:
        """Save what has become of a generation, ``new``. Raises :class:`Refused` if it was not ``old`` any more."""
        if new != old and not self._save(_item(new), None if self._unlisted(old) else _body(old)):
            raise Refused(f"{old.name} was changed by another command meanwhile; look at `status`, and try again")
        return new

    def point(self, old: Pointer, new: Pointer) -> None:
        """Serve another generation, at once for all. Raises :class:`Refused` if the pointer is not ``old`` any more."""
        item = {"pk": {"S": GENERATIONS}, "sk": {"S": POINTER}, "body": {"S": msgspec.json.encode(new).decode()}}
        held = None if old == Pointer() else msgspec.json.encode(old).decode()
        if not self._save(item, held):
            raise Refused("another command has changed meanwhile which generation is served; look at `status`")

    def _unlisted(self, generation: Generation) -> bool:
        return generation.name == FIRST and generation == Generation(FIRST)

    def _get(self, sk: str) -> Item | None:
        key = {"pk": {"S": GENERATIONS}, "sk": {"S": sk}}
        answer = self._call("GetItem", self._client.get_item, TableName=self._table, Key=key, ConsistentRead=True)
        item: Item | None = answer.get("Item")
        return item

    def _save(self, item: Item, held: str | None) -> bool:
        condition: dict[str, Any] = (
            {"ConditionExpression": "attribute_not_exists(pk)"}
            if held is None
            else {"ConditionExpression": "body = :held", "ExpressionAttributeValues": {":held": {"S": held}}}
        )
        try:
            self._client.put_item(
                TableName=self._table, Item=item, ReturnValuesOnConditionCheckFailure="ALL_OLD", **condition
            )
        except ClientError as error:
            if error.response["Error"].get("Code") != "ConditionalCheckFailedException":
                raise Unavailable(f"PutItem on {self._table}: {error}") from error
            # A put whose answer was lost is sent again and meets itself.
            there: Any = error.response.get("Item") or {}
            return bool(there.get("body") == item["body"])
        except BotoCoreError as error:
            raise Unavailable(f"PutItem on {self._table}: {error}") from error
        return True

    def _call(self, what: str, call: Any, **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"{what} on {self._table}: {error}") from error


def _body(generation: Generation) -> str:
    return msgspec.json.encode(generation, order="deterministic").decode()


def _item(generation: Generation) -> Item:
    return {"pk": {"S": GENERATIONS}, "sk": {"S": generation.name}, "body": {"S": _body(generation)}}


def _read(item: Item) -> Generation:
    return msgspec.json.decode(item["body"]["S"], type=Generation)
