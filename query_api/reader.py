"""Reads of the stored items: every one by key or index, never a scan.

Each read is eventually consistent. What has expired is not there, though DynamoDB may delete it
days later. Any failure is an :class:`Unavailable` whose text is a sentence for the client.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError

from producer.event import Event, decode
from query_api import statistics
from query_api.parameters import DAY_MS
from query_api.statistics import Active, Entry
from stream_consumer.items import (
    ACTIVE_BUCKETS,
    SITES,
    Item,
    active_bucket,
    read_chunk,
    read_rollup,
    read_session,
    rollup_key,
    session_key,
)
from stream_consumer.rollup import QUARTER_MS, RollUp
from stream_consumer.session import Session
from stream_consumer.table import TableNames, Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: DynamoDB's limit for one BatchGetItem.
_KEYS_PER_GET = 100
_UNPROCESSED_TRIES = 5
#: Entries read from one bucket of the index of active sessions. Ids are spread evenly over the buckets, so with
#: MAX_ACTIVE in all of them no bucket comes near it.
_ENTRIES_PER_BUCKET = 2 * statistics.MAX_ACTIVE // ACTIVE_BUCKETS
#: How far (minutes) a collector's clock may be ahead of ours before its sessions are not called active.
_CLOCK_SKEW = 5
#: Above all that a shard's id begins with.
_LAST = "\uffff"

_THROTTLED = frozenset(
    {"ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded", "ThroughputExceeded"}
)

_T = TypeVar("_T")


class Reader:
    """The tables, as the query API sees them. ``clock`` gives ms since 1970 UTC; thread-safe."""

    def __init__(
        self, client: DynamoDBClient, names: TableNames, *, clock: Callable[[], int], readers: int = 16
    ) -> None:
        self._client = client
        self._names = names
        self._clock = clock
        self._readers = readers
        self._pool = ThreadPoolExecutor(max_workers=readers, thread_name_prefix="read")

    def close(self) -> None:
        """Let no thread behind; reads after it fail."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Raise :class:`Unavailable` if the tables cannot be read."""
        self._get_item(self._names.rollups, {"pk": {"S": SITES}, "sk": {"S": SITES}})

    def sites(self) -> list[str]:
        """The sites of which there are figures, in order."""
        items = self._query(
            TableName=self._names.rollups,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": SITES}},
        )
        return sorted(item["sk"]["S"] for item in items)

    def rollups(self, site_id: str, start: int, end: int) -> Iterator[RollUp]:
        """The roll-ups of the quarters from ``start`` to before ``end`` (ms, both whole quarters): one query a day."""
        first, last = start, end - QUARTER_MS
        days = range(start // DAY_MS, last // DAY_MS + 1)

        def of(day: int) -> list[Item]:
            pk, low = rollup_key(site_id, max(first, day * DAY_MS), "")
            _, high = rollup_key(site_id, min(last, (day + 1) * DAY_MS - QUARTER_MS), _LAST)
            return self._query(
                TableName=self._names.rollups,
                KeyConditionExpression="pk = :pk AND sk BETWEEN :low AND :high",
                ExpressionAttributeValues={":pk": {"S": pk}, ":low": {"S": low}, ":high": {"S": high}},
            )

        # Some days at a time: a year's items at once would not fit into a small machine's memory.
        for some in _chunks(days, 2 * self._readers):
            for items in self._pool.map(of, some):
                for item in items:
                    yield read_rollup(item).rollup

    def session(self, site_id: str, session_id: str) -> Session | None:
        """One session, None if there is none."""
        item = self._get_item(self._names.sessions, {"pk": {"S": session_key(site_id, session_id)}})
        return read_session(item).session if item and self._lives(item) else None

    def sessions(self, site_id: str, session_ids: Sequence[str]) -> dict[str, Session]:
        """Those of the sessions that there are, by id."""
        keys = [{"pk": {"S": session_key(site_id, session_id)}} for session_id in dict.fromkeys(session_ids)]
        found = self._pool.map(self._get_sessions, _chunks(keys, _KEYS_PER_GET))
        sessions = (read_session(item).session for items in found for item in items if self._lives(item))
        return {session.session_id: session for session in sessions}

    def events(self, site_id: str, session_id: str) -> list[Event]:
        """The stored events of one session, each once, in order of event time."""
        items = self._query(
            TableName=self._names.session_events,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": session_key(site_id, session_id)}},
        )
        # A batch that was tried again with other borders has left overlapping chunks.
        by_position = {position: data for item in items if self._lives(item) for position, data in read_chunk(item)}
        events = [event for data in by_position.values() if isinstance(event := decode(data), Event)]
        return sorted(events, key=lambda event: (event.timestamp, event.event_id))

    def active(self, site_id: str) -> Active:
        """Who is on the site now."""
        now = self._clock()
        low, high = statistics.oldest_active_minute(now), now // 60_000 + _CLOCK_SKEW

        def of(bucket: int) -> list[Item]:
            return self._query(
                most=_ENTRIES_PER_BUCKET,
                TableName=self._names.sessions,
                IndexName="active",
                KeyConditionExpression="active_bucket = :bucket AND active_minute BETWEEN :low AND :high",
                ExpressionAttributeValues={
                    ":bucket": {"S": active_bucket(site_id, bucket)},
                    ":low": {"N": str(low)},
                    ":high": {"N": str(high)},
                },
                ScanIndexForward=False,
            )

        entries = statistics.newest(
            Entry(int(item["active_minute"]["N"]), item["pk"]["S"].partition("#")[2])
            for items in self._pool.map(of, range(ACTIVE_BUCKETS))
            for item in items
        )
        return statistics.active(entries, self.sessions(site_id, statistics.to_read(entries, now)), now)

    def _lives(self, item: Item) -> bool:
        return int(item["expires"]["N"]) * 1000 > self._clock()

    def _get_item(self, table: str, key: Item) -> Item | None:
        answer = _call(lambda: self._client.get_item(TableName=table, Key=key))
        return answer.get("Item")

    def _get_sessions(self, keys: list[Item]) -> list[Item]:
        table = self._names.sessions
        wanted: Any = {table: {"Keys": keys}}
        found: list[Item] = []
        for tries in range(_UNPROCESSED_TRIES):
            answer = _call(lambda: self._client.batch_get_item(RequestItems=wanted))  # noqa: B023 - called at once
            found += answer["Responses"].get(table, ())
            wanted = answer.get("UnprocessedKeys")
            if not wanted:
                return found
            time.sleep(random.uniform(0, 0.05 * 2**tries))  # noqa: S311 - jitter, not a secret
        raise Unavailable("DynamoDB limits our reads at the moment; try again in some seconds")

    def _query(self, most: int | None = None, **query: Any) -> list[Item]:
        """The items of a query, all of its pages or at least the first ``most``."""
        found: list[Item] = []
        while True:
            if most is not None:
                query["Limit"] = most - len(found)
            answer = _call(lambda: self._client.query(**query))
            found += answer["Items"]
            after = answer.get("LastEvaluatedKey")
            if not after or (most is not None and len(found) >= most):
                return found
            query["ExclusiveStartKey"] = after


def _call(call: Callable[[], Any]) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = call()
    except (ClientError, BotoCoreError) as error:
        raise Unavailable(f"{_explain(error)}; try again in some seconds") from error
    return answer


def _explain(error: ClientError | BotoCoreError) -> str:
    if isinstance(error, ClientError):
        code = error.response["Error"].get("Code", "")
        if code in _THROTTLED:
            return "DynamoDB limits our reads at the moment"
        if code == "ResourceNotFoundException":
            return "a table is not there: its stack is not created, or LIVEINSIGHT_*_TABLE names another"
        return f"DynamoDB refused a read ({code})"
    if isinstance(error, HTTPClientError | NoConnectionError):
        return "DynamoDB cannot be reached"
    if isinstance(error, NoCredentialsError):
        return "no AWS credentials were found"
    return "DynamoDB could not be asked"


def _chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    chunk: list[_T] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
