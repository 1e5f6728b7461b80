"""The DynamoDB tables: loads, conditional saves, and puts that need no condition.

An error of the table is one of two things to the protocol: :class:`Conflict`, the item was not what
it was computed from, so compute again; or :class:`Unavailable`, stop here and let the batch be retried.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer.footprint import Footprint
from stream_consumer.items import (
    Item,
    StoredErasedUser,
    StoredRollUp,
    StoredSession,
    erased_user_key,
    footprint_key,
    join_positions,
    read_erased_user,
    read_footprint,
    read_rollup,
    read_session,
    rollup_key,
    session_key,
)
from stream_consumer.stored_events import read_chunk

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: DynamoDB's limits for one call.
_KEYS_PER_GET = 100
_ITEMS_PER_WRITE = 25
_UNPROCESSED_TRIES = 8
#: Above all that a sort key, or the id of a shard in one, begins with.
LAST = "\uffff"

SessionName = tuple[str, str]
RollUpName = tuple[str, int, str]
_T = TypeVar("_T")


class Conflict(Exception):  # noqa: N818 - the field's word for a lost compare-and-set
    """An item was not at the position that its new value was computed from."""


class Unavailable(Exception):  # noqa: N818 - says what is the matter, not whose error it is
    """The table could not be read or written; the cause says why."""


@dataclass(frozen=True)
class TableNames:
    """The physical names of the tables."""

    sessions: str
    session_events: str
    rollups: str
    quarantine: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> TableNames:
        """Read LIVEINSIGHT_SESSIONS_TABLE and so on; where one is not set, it is that of ``make run``."""
        return cls(
            sessions=environ.get("LIVEINSIGHT_SESSIONS_TABLE") or "liveinsight-local-sessions",
            session_events=environ.get("LIVEINSIGHT_SESSION_EVENTS_TABLE") or "liveinsight-local-session-events",
            rollups=environ.get("LIVEINSIGHT_ROLLUPS_TABLE") or "liveinsight-local-rollups",
            quarantine=environ.get("LIVEINSIGHT_QUARANTINE_TABLE") or "liveinsight-local-quarantine",
        )


def local_or_environ_dynamodb(environ: Mapping[str, str], *names: str) -> tuple[DynamoDBClient, TableNames]:
    """The client and tables of an operator's command: those of a `make run` on this machine, unless ``environ``
    sets one of ``names`` or an endpoint. Raises ``BotoCoreError`` or ValueError where it says too little.
    """
    import boto3
    from botocore.config import Config

    from producer.client import local_engine  # the function itself needs no producer

    config = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})
    # boto3 itself does not look at AWS_REGION.
    there = local_engine(environ, *names) or {"region_name": environ.get("AWS_REGION") or None}
    return boto3.client("dynamodb", config=config, **there), TableNames.from_environ(environ)


class Tables:
    """The stored items. ``writers`` saves run at once, as each waits for the network most of its time; with
    one, they are done one after the other, in order.
    """

    def __init__(self, client: DynamoDBClient, names: TableNames, *, writers: int = 16) -> None:
        self._client = client
        self._names = names
        self._writers = writers
        self._pool = ThreadPoolExecutor(max_workers=writers, thread_name_prefix="save") if writers > 1 else None

    def load_sessions(self, names: Sequence[SessionName]) -> dict[SessionName, StoredSession]:
        """The sessions among ``(site id, session id)`` that there are, read consistently."""
        by_key = {session_key(*name): name for name in names}
        found = get_items(self._client, self._names.sessions, [{"pk": {"S": key}} for key in by_key])
        return {by_key[item["pk"]["S"]]: read_session(item) for item in found}

    def load_rollups(self, names: Sequence[RollUpName]) -> dict[RollUpName, StoredRollUp]:
        """The roll-ups among ``(site id, quarter, shard id)`` that there are, read consistently."""
        by_key = {rollup_key(*name): name for name in names}
        found = get_items(self._client, self._names.rollups, [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in by_key])
        return {by_key[item["pk"]["S"], item["sk"]["S"]]: read_rollup(item) for item in found}

    def rollups_of(self, site_id: str, quarter: int) -> list[StoredRollUp]:
        """The roll-ups of a site and quarter of all shards, read consistently."""
        pk, low = rollup_key(site_id, quarter, "")
        _, high = rollup_key(site_id, quarter, LAST)
        return [read_rollup(item) for item in query_items(self._client, self._names.rollups, pk, low, high)]

    def user_sessions(self, site_id: str, user_id: str) -> list[str]:
        """The ids of a user's sessions, as the index has them: what was written last may not be there yet."""
        query = {
            "TableName": self._names.sessions,
            "IndexName": "user",
            "KeyConditionExpression": "user_key = :user",
            "ExpressionAttributeValues": {":user": {"S": session_key(site_id, user_id)}},
        }
        return [item["pk"]["S"].partition("#")[2] for item in _all_pages(self._client, query)]

    def load_footprints(self, names: Sequence[SessionName]) -> dict[SessionName, Footprint]:
        """The footprints of erased sessions ``(site id, session id)`` that there are, read consistently."""
        by_key = {footprint_key(*name): name for name in names}
        found = get_items(self._client, self._names.rollups, [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in by_key])
        return {by_key[item["pk"]["S"], item["sk"]["S"]]: read_footprint(item) for item in found}

    def delete_footprints(self, names: Iterable[SessionName]) -> None:
        """Delete footprints."""
        keys = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in (footprint_key(*name) for name in names)]
        delete_items(self._client, self._names.rollups, keys)

    def load_erased_user(self, key: str) -> StoredErasedUser | None:
        """What is known of a user's erasure, read consistently."""
        found = get_items(self._client, self._names.rollups, [erased_user_key(key)])
        return next(map(read_erased_user, found), None)

    def save_erased_user(self, item: Item, base: str | None) -> None:
        """Put what is known of a user's erasure, if the table's is still at ``base`` (None: there is none)."""
        self._save(self._names.rollups, item, base)

    def load_events(self, names: Sequence[SessionName]) -> dict[SessionName, dict[str, bytes]]:
        """The stored events of sessions ``(site id, session id)``, by ``shard=position``, read consistently."""
        found: dict[SessionName, dict[str, bytes]] = {}

        # In this order: what a session has no more in its item has been in a chunk since before.
        recent = {name: stored.events for name, stored in self.load_sessions(names).items()}

        def load(name: SessionName) -> None:
            chunks = (event for item in self._chunks_of(name) for event in read_chunk(item))
            found[name] = dict([*recent.get(name, ()), *chunks])

        _raise_first(self.each(load, names))
        return found

    def save_rollup(self, item: Item, base: str | None) -> None:
        """Put a roll-up if the table's is still at ``base`` (None: there is none)."""
        self._save(self._names.rollups, item, base)

    def save_session(self, item: Item, base: dict[str, str] | None) -> None:
        """Put a session if the table's is still folded up to ``base`` (None: there is none)."""
        self._save(self._names.sessions, item, None if base is None else join_positions(base))

    def put_events(self, items: Sequence[Item], marks: Sequence[Item]) -> None:
        """Put chunks of sessions' events, and the marks of the hours that changed."""
        puts = [*_of(self._names.session_events, items), *_of(self._names.rollups, marks)]
        # A batch of visits of one event each makes a call for 25 of them: one after the other, they would take longest.
        _raise_first(self.each(lambda some: put_items(self._client, some), list(_chunks(puts, _ITEMS_PER_WRITE))))

    def delete_events(self, name: SessionName) -> None:
        """Delete all stored events of one session."""
        table = self._names.session_events
        delete_items(self._client, table, [{"pk": item["pk"], "sk": item["sk"]} for item in self._chunks_of(name)])

    def put_footprints(self, items: Sequence[Item]) -> None:
        """Put the footprints of erased sessions; one that is there already stays as it is."""
        self._add(self._names.rollups, items)

    def put_quarantine(self, items: Sequence[Item]) -> None:
        """Put rejected payloads; one that is there already (and may be marked as redriven) stays as it is."""
        self._add(self._names.quarantine, items)

    def put_sites(self, items: Sequence[Item]) -> None:
        """Put entries of the list of sites."""
        put_items(self._client, _of(self._names.rollups, items))

    def put_shard(self, item: Item) -> None:
        """Put how far a shard's consumer has come."""
        put_items(self._client, _of(self._names.rollups, [item]))

    def each(self, work: Callable[[_T], None], values: Iterable[_T]) -> list[Exception | None]:
        """Do ``work`` on every value, several at once; what became of each, in order."""
        waiting = deque(enumerate(values))
        became: list[Exception | None] = [None] * len(waiting)

        def attempt_all() -> None:
            while True:
                try:
                    place, value = waiting.popleft()
                except IndexError:
                    return
                try:
                    work(value)
                except (Conflict, Unavailable) as failure:
                    became[place] = failure
                except BaseException:
                    waiting.clear()  # the other threads end as well
                    raise

        if self._pool is None:
            attempt_all()
        else:
            # Each thread takes what is next: a task for each value would cost a quarter of a write.
            threads = [self._pool.submit(attempt_all) for _ in range(min(self._writers, len(waiting)))]
            for thread in threads:
                thread.result()
        return became

    def _chunks_of(self, name: SessionName) -> list[Item]:
        return query_items(self._client, self._names.session_events, session_key(*name))

    def _add(self, table: str, items: Sequence[Item]) -> None:
        """Put those of the items that are not there."""

        def add(item: Item) -> None:
            with suppress(Conflict):
                self._save(table, item, None)

        _raise_first(self.each(add, items))

    def _save(self, table: str, item: Item, base: str | None) -> None:
        condition: dict[str, Any] = (
            {"ConditionExpression": "attribute_not_exists(pk)"}
            if base is None
            else {"ConditionExpression": "pos = :base", "ExpressionAttributeValues": {":base": {"S": base}}}
        )
        try:
            self._client.put_item(
                TableName=table, Item=item, ReturnValuesOnConditionCheckFailure="ALL_OLD", **condition
            )
        except ClientError as error:
            if error.response["Error"].get("Code") != "ConditionalCheckFailedException":
                raise Unavailable(f"PutItem on {table}: {error}") from error
            # A put whose answer was lost is sent again and meets itself: then it has landed.
            holds: Any = error.response.get("Item") or {}
            if "pos" not in item or holds.get("pos") != item["pos"]:
                raise Conflict(f"{table} {item['pk']['S']}") from error
        except BotoCoreError as error:
            raise Unavailable(f"PutItem on {table}: {error}") from error


def get_items(client: DynamoDBClient, table: str, keys: Sequence[Item]) -> Iterator[Item]:
    """Those of the items that there are, read consistently; in no order. Raises :class:`Unavailable`."""
    for chunk in _chunks(keys, _KEYS_PER_GET):
        wanted: Any = {table: {"Keys": chunk, "ConsistentRead": True}}
        for tries in range(_UNPROCESSED_TRIES):
            try:
                answer = client.batch_get_item(RequestItems=wanted)
            except (ClientError, BotoCoreError) as error:
                raise Unavailable(f"BatchGetItem on {table}: {error}") from error
            yield from answer["Responses"].get(table, ())
            wanted = answer.get("UnprocessedKeys")
            if not wanted:
                break
            _back_off(tries)
        else:
            raise Unavailable(f"BatchGetItem on {table} left keys unprocessed {_UNPROCESSED_TRIES} times")


def query_items(client: DynamoDBClient, table: str, pk: str, low: str = " ", high: str = LAST) -> list[Item]:
    """The items of a partition with sort keys from ``low`` to ``high``, read consistently, in order. Raises
    :class:`Unavailable`.
    """
    query: dict[str, Any] = {
        "TableName": table,
        "KeyConditionExpression": "pk = :pk AND sk BETWEEN :low AND :high",
        "ExpressionAttributeValues": {":pk": {"S": pk}, ":low": {"S": low}, ":high": {"S": high}},
        "ConsistentRead": True,
    }
    return _all_pages(client, query)


def _all_pages(client: DynamoDBClient, query: dict[str, Any]) -> list[Item]:
    found: list[Item] = []
    while True:
        try:
            answer = client.query(**query)
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"Query on {query['TableName']}: {error}") from error
        found += answer["Items"]
        if not (after := answer.get("LastEvaluatedKey")):
            return found
        query["ExclusiveStartKey"] = after


def put_items(client: DynamoDBClient, items: Iterable[tuple[str, Item]]) -> None:
    """Put items, each into its table, whatever is there. Raises :class:`Unavailable`."""
    _write(client, ((table, {"PutRequest": {"Item": item}}) for table, item in items))


def delete_items(client: DynamoDBClient, table: str, keys: Iterable[Item]) -> None:
    """Delete what there is of these keys. Raises :class:`Unavailable`."""
    _write(client, ((table, {"DeleteRequest": {"Key": key}}) for key in keys))


def _write(client: DynamoDBClient, requests: Iterable[tuple[str, Item]]) -> None:
    for chunk in _chunks(requests, _ITEMS_PER_WRITE):
        wanted: Any = {}
        for table, request in chunk:
            wanted.setdefault(table, []).append(request)
        tables = ", ".join(wanted)
        for tries in range(_UNPROCESSED_TRIES):
            try:
                answer = client.batch_write_item(RequestItems=wanted)
            except (ClientError, BotoCoreError) as error:
                raise Unavailable(f"BatchWriteItem on {tables}: {error}") from error
            wanted = answer.get("UnprocessedItems")
            if not wanted:
                break
            _back_off(tries)
        else:
            raise Unavailable(f"BatchWriteItem on {tables} left items unprocessed {_UNPROCESSED_TRIES} times")


def _raise_first(failures: Iterable[Exception | None]) -> None:
    for failure in failures:
        if failure:
            raise failure


def _of(table: str, items: Iterable[Item]) -> list[tuple[str, Item]]:
    return [(table, item) for item in items]


def _chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    remaining = iter(values)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _back_off(tries: int) -> None:
    time.sleep(random.uniform(0, 0.05 * 2**tries))  # noqa: S311 - jitter, not a secret
