"""What moto does right but not for hours, and what it leaves out: a few patches for a server process of its own.

moto is made for tests that live for seconds. In a `make run` that is left on for a day, some of its methods
walk everything that was ever written, and some keep everything that was ever written. :func:`apply`
replaces just those by equals that do not (each says what it replaces, and why), for moto 5.2. It changes the
process it is called in: the embedded AWS's own, and no other.
"""

from __future__ import annotations

import copy
import time
from base64 import b64encode
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import moto.core.responses
import moto.core.utils
from moto.core.common_models import BaseModel
from moto.core.serialize import JSONSerializer
from moto.dynamodb.exceptions import ItemSizeTooLarge
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.dynamo_type import DynamoType, Item, LimitedSizeDict
from moto.dynamodb.models.table import SecondaryIndex, Table
from moto.kinesis.models import KinesisBackend, Record, Shard, Stream
from moto.moto_server.werkzeug_app import DomainDispatcherApplication

#: What one GetRecords call returns at most, in AWS as here.
MAX_RECORDS = 10_000
MAX_RECORDS_BYTES = 10 * 1024 * 1024
#: The limit that moto has found DynamoDB to have.
MAX_ITEM_BYTES = 405_000


def apply() -> None:
    """Patch moto in this process. Call it once, before the first request."""
    _forget_replaced_objects()
    _route_without_listing_directories()
    _seek_in_shards()
    _query_without_sorting_the_table()
    _sum_the_size_of_an_item_once()
    _write_attribute_values_directly()
    _enable_time_to_live()


def trim(stream: Any, now: float) -> int:
    """Drop the records of a moto ``Stream`` that are past its retention, as Kinesis does; returns how many.

    ``now`` is in seconds since 1970.
    """
    horizon = now - stream.retention_period_hours * 3600
    dropped = 0
    for shard in stream.shards.values():
        gone = 0
        for number in shard.sequence_numbers:
            if shard.records[number].created_at >= horizon:
                break
            del shard.records[number]
            gone += 1
        del shard.sequence_numbers[:gone]
        dropped += gone
    return dropped


def _forget_replaced_objects() -> None:
    # BaseModel keeps a reference to every instance (each version of each item, each copy in each query result)
    # for moto's own dashboard and reset call; the stream's metrics grow by two with each PutRecords. Nothing here
    # reads either.
    def without_tracking(cls: type, *_args: Any, **_kwargs: Any) -> Any:
        return object.__new__(cls)

    BaseModel.__new__ = without_tracking
    KinesisBackend._send_stream_metrics = lambda *_args, **_kwargs: None


def _route_without_listing_directories() -> None:
    # Each request lists moto's directories to find its backend, and inspects a class to find its method:
    # a third of the time of a small call.
    backend_for_host = DomainDispatcherApplication.get_backend_for_host
    DomainDispatcherApplication.get_backend_for_host = cache(backend_for_host)
    moto.core.responses.method_names_from_class = cache(moto.core.utils.method_names_from_class)


def _seek_in_shards() -> None:
    # GetRecords walks a shard from its first record and PutRecords lists all of its sequence numbers to find the
    # last. A sorted list of the numbers beside the records finds both at once. (moto's resharding does not keep
    # the list; it does not route to the new shards either, so nothing here reshards.)
    #
    # Numbers go up by one, but start at the time in microseconds, as real ones grow with time: what a process
    # that was killed handed out, and its reader noted down, is never handed out again by the next.
    created = Shard.__init__

    def create(self: Any, *args: Any, **kwargs: Any) -> None:
        created(self, *args, **kwargs)
        self.sequence_numbers = []
        self.next_number = time.time_ns() // 1000

    def put_record(self: Any, partition_key: str, data: str, explicit_hash_key: str) -> str:
        number = self.next_number
        self.next_number = number + 1
        self.records[number] = Record(partition_key, data, number, explicit_hash_key)
        self.sequence_numbers.append(number)
        return str(number)

    def get_records(self: Any, last_sequence_id: str, limit: int | None) -> tuple[list[Any], int, int]:
        last = int(last_sequence_id)
        numbers = self.sequence_numbers
        first = bisect_right(numbers, last)
        found: list[Any] = []
        room = MAX_RECORDS_BYTES
        for number in _slice(numbers, first, min(limit or MAX_RECORDS, MAX_RECORDS)):
            record = self.records[number]
            room -= len(record.data) * 3 // 4
            if found and room < 0:
                break
            found.append(record)
        if not found:
            return [], last, 0
        behind = self.records[numbers[-1]].created_at - found[-1].created_at
        return found, found[-1].sequence_number, int(behind * 1000)

    def max_sequence_number(self: Any) -> int:
        return self.sequence_numbers[-1] if self.sequence_numbers else 0

    def min_sequence_number(self: Any) -> int:
        return self.sequence_numbers[0] if self.sequence_numbers else 0

    def sequence_number_at(self: Any, at_timestamp: float) -> int:
        earlier = bisect_right(self.sequence_numbers, at_timestamp, key=lambda n: self.records[n].created_at)
        while earlier and self.records[self.sequence_numbers[earlier - 1]].created_at >= at_timestamp:
            earlier -= 1
        return self.sequence_numbers[earlier - 1] if earlier else 0

    Shard.__init__ = create
    Shard.put_record = put_record
    Shard.get_records = get_records
    Shard.get_max_sequence_number = max_sequence_number
    Shard.get_min_sequence_number = min_sequence_number
    Shard.get_sequence_number_at = sequence_number_at

    def shard_for_key(self: Any, partition_key: str, explicit_hash_key: str) -> Any:
        # moto leaves the last hash key of each shard's range to no shard at all.
        found = owner(self, partition_key, explicit_hash_key)
        if found is None and explicit_hash_key:
            found = next(shard for shard in self.shards.values() if shard.ending_hash == int(explicit_hash_key))
        return found

    owner = Stream.get_shard_for_key
    Stream.get_shard_for_key = shard_for_key


def _slice(numbers: list[int], start: int, count: int) -> Iterator[int]:
    return (numbers[at] for at in range(start, min(start + count, len(numbers))))


def _query_without_sorting_the_table() -> None:
    # A query sorts all items of the table before it looks for the ones it wants, and copies those whole, also where
    # an index holds their keys only. Here it is given nothing but what can be in its result, as the index holds it:
    # of a table without sort keys (the sessions), what changed since the last query is all that is looked at again.
    query = Table.query
    project = SecondaryIndex.project

    def query_candidates(self: Any, hash_key: Any, comparison: Any, operands: Any, *args: Any, **kwargs: Any) -> Any:
        # The remaining positional arguments: limit, start key, direction, projection, index name, ...
        index_name = kwargs.get("index_name", args[4] if len(args) > 4 else None)
        view = copy.copy(self)
        if index_name is None:
            view.items = {hash_key: self.items[hash_key]} if hash_key in self.items else {}
        elif index := next((index for index in self.all_indexes() if index.name == index_name), None):
            view.items = defaultdict(dict)
            items = self.items.under(index, hash_key) if isinstance(self.items, _Followed) else _all_items(self)
            for item in _matching(items, index.schema, hash_key, comparison, operands):
                if self.has_range_key:
                    view.items[item.hash_key][item.range_key] = project_keys(index, item)
                else:
                    view.items[item.hash_key] = project_keys(index, item)
        return query(view, hash_key, comparison, operands, *args, **kwargs)

    def project_keys(index: Any, item: Any) -> Any:
        if (index.projection or {}).get("ProjectionType") != "KEYS_ONLY":
            return project(index, item)
        held = [*index.table_key_attrs, *index.schema_key_attrs]
        return make_item(item.hash_key, item.range_key, {name: item.attrs[name] for name in held if name in item.attrs})

    created = Table.__init__

    def create(self: Any, *args: Any, **kwargs: Any) -> None:
        created(self, *args, **kwargs)
        if not self.has_range_key:
            self.items = _Followed()

    updated = DynamoDBBackend.update_item

    def update_item(self: Any, table_name: str, *args: Any, **kwargs: Any) -> Any:
        item = updated(self, table_name, *args, **kwargs)
        table = self.get_table(table_name)
        if isinstance(table.items, _Followed):
            table.items[item.hash_key] = item  # it was changed in its place
        return item

    Table.__init__ = create
    Table.query = query_candidates
    DynamoDBBackend.update_item = update_item
    SecondaryIndex.project = project_keys


class _Followed(dict[Any, Any]):
    """The items of a table without sort keys by key, and by the partition key of each index that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._indexes: dict[str, _Index] = {}

    def __setitem__(self, key: Any, item: Any) -> None:
        super().__setitem__(key, item)
        for index in self._indexes.values():
            index.changed.add(key)

    def pop(self, key: Any, *default: Any) -> Any:
        for index in self._indexes.values():
            index.changed.add(key)
        return super().pop(key, *default)

    def under(self, index: Any, hash_key: Any) -> Iterable[Any]:
        """The items that an index has under ``hash_key``, in no order."""
        known = self._indexes.get(index.name)
        if known is None:
            name = next(key["AttributeName"] for key in index.schema if key["KeyType"] == "HASH")
            known = self._indexes[index.name] = _Index(name, set(self))
        for key in known.changed:
            known.held.get(known.place.pop(key, None), {}).pop(key, None)
            item = self.get(key)
            value = item.attrs.get(known.attribute) if item is not None else None
            if value is not None:
                known.place[key] = value.value
                known.held[value.value][key] = item
        known.changed.clear()
        return list(known.held.get(hash_key.value, {}).values())


class _Index:
    """An index as of the last query: what it has under each partition key, and where each item is."""

    def __init__(self, attribute: str, changed: set[Any]) -> None:
        self.attribute = attribute
        self.changed = changed
        self.place: dict[Any, Any] = {}
        self.held: defaultdict[Any, dict[Any, Any]] = defaultdict(dict)


def _all_items(table: Any) -> Iterator[Any]:
    for held in table.items.values():
        if table.has_range_key:
            yield from held.values()
        else:
            yield held


def _matching(
    items: Iterable[Any], schema: list[dict[str, str]], hash_key: Any, comparison: str | None, operands: Any
) -> Iterator[Any]:
    names = {key["KeyType"]: key["AttributeName"] for key in schema}
    hash_name, range_name, wanted = names["HASH"], names.get("RANGE"), hash_key.value
    for item in items:
        value = item.attrs.get(hash_name)
        if value is None or value.value != wanted:
            continue
        if range_name is not None:
            bound = item.attrs.get(range_name)
            if bound is None or (comparison is not None and not bound.compare(comparison, operands)):
                continue
        yield item


def make_item(hash_key: Any, range_key: Any, values: dict[str, Any]) -> Any:
    """A moto ``Item`` of attributes (``DynamoType``) that were checked before."""
    item = object.__new__(Item)
    item.hash_key, item.range_key = hash_key, range_key
    item.attrs = LimitedSizeDict()
    dict.update(item.attrs, values)
    return item


def _sum_the_size_of_an_item_once() -> None:
    # Each attribute that is set on an item sums the sizes of all that were set before.
    def create(self: Any, hash_key: Any, range_key: Any, attrs: dict[str, Any]) -> None:
        self.hash_key, self.range_key = hash_key, range_key
        self.attrs = LimitedSizeDict()
        dict.update(self.attrs, {name: DynamoType(value) for name, value in attrs.items()})
        if self.size() > MAX_ITEM_BYTES:
            raise ItemSizeTooLarge

    Item.__init__ = create


def _write_attribute_values_directly() -> None:
    # An item's attributes are in the form of the wire already. moto's serializer tries ten names in two spellings on
    # each of them: half a millisecond for an item.
    serialize_structure = JSONSerializer._serialize_type_structure

    def write(self: Any, serialized: Any, value: Any, shape: Any, key: str) -> None:
        if shape.name == "AttributeValue" and key:
            serialized[key] = attribute_value(value)
        else:
            serialize_structure(self, serialized, value, shape, key)

    JSONSerializer._serialize_type_structure = write


def attribute_value(value: Any, write_blob: Callable[[bytes], Any] = lambda blob: b64encode(blob).decode()) -> Any:
    """One attribute (a moto ``DynamoType``, or the wire's form) in the wire's form: ``{"S": "text"}``.

    ``write_blob`` is what becomes of bytes: base64 text on the wire.
    """
    kind, content = (value.type, value.value) if isinstance(value, DynamoType) else next(iter(value.items()))
    if kind == "M":
        content = {name: attribute_value(inner, write_blob) for name, inner in content.items()}
    elif kind == "L":
        content = [attribute_value(inner, write_blob) for inner in content]
    elif kind == "B":
        content = write_blob(content)
    elif kind == "BS":
        content = [write_blob(one) for one in content]
    return {kind: content}


def _enable_time_to_live() -> None:
    # moto's CloudFormation leaves out a table's TimeToLiveSpecification.
    create = Table.create_from_cloudformation_json.__func__

    def create_with_ttl(
        cls: Any, /, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **kwargs: Any
    ) -> Any:
        table = create(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs)
        wanted = cloudformation_json["Properties"].get("TimeToLiveSpecification")
        if wanted and str(wanted.get("Enabled")).lower() == "true":
            table.ttl = {"TimeToLiveStatus": "ENABLED", "AttributeName": wanted["AttributeName"]}
        return table

    Table.create_from_cloudformation_json = classmethod(create_with_ttl)
