"""Reads of the stored items: every one by key or index, never a scan.

Each read is eventually consistent. What has expired is not there, though DynamoDB may delete it
days later. Any failure is an :class:`Unavailable` whose text is a sentence for the client.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError

from producer.event import Event, decode
from query_api import statistics
from query_api.statistics import Active, Entry
from stream_consumer.items import (
    ACTIVE_BUCKETS,
    SHARDS,
    SITES,
    Item,
    active_bucket,
    marks_key,
    merged_key,
    merged_sk,
    read_labels,
    read_rollup,
    read_session,
    read_totals,
    rollup_key,
    session_key,
)
from stream_consumer.merged import DAY_MS, HOUR_MS, TOTALS, Labels, Totals
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS, RollUp
from stream_consumer.session import Session
from stream_consumer.stored_events import read_chunk
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
#: Merged items asked for by one query: long stretches are read by several at once.
_DAYS_PER_QUERY = 61
_HOURS_PER_QUERY = 96
#: A consumer that has said nothing for this long (ms) may have had nothing to do.
_LAG_MS = 5 * 60 * 1000
#: How long (ms) a session that is quiet is not read again.
QUIET_MS = 30 * 1000
#: Events of a minute may come this long (ms) after it.
_DELAY_MS = 30 * 1000
_QUIET_SITES = 64
#: Sessions of one user that are told of.
MAX_USER_SESSIONS = 1000

_THROTTLED = frozenset(
    {"ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded", "ThroughputExceeded"}
)

_T = TypeVar("_T")


class Marks:
    """The hours and days of a site that are not merged as they are now: the sort keys of their marks."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._marked = {part for key in keys for part in (key[:6], key.partition("#")[0])}

    def in_day(self, day: int) -> bool:
        """Whether anything of the UTC day from ``day`` (ms) on is marked."""
        return merged_sk(day, whole_day=True) in self._marked

    def in_hour(self, hour: int) -> bool:
        """Whether the hour from ``hour`` (ms) on is marked."""
        return merged_sk(hour, whole_day=False) in self._marked


class _Held(NamedTuple):
    """An active session as it was read at ``at`` (ms), when the index had its last event in ``minute``."""

    minute: int
    at: int
    session: Session


class _Quiet:
    """Active sessions that need not be read again yet, of the sites that were asked for last. Thread-safe.

    An event moves its session in the index, unless it is of the same minute as the one before it.
    """

    def __init__(self) -> None:
        self._sites: OrderedDict[str, dict[str, _Held]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, site_id: str, entries: Iterable[Entry], now: int) -> dict[str, Session]:
        """Those of the entries that are known as they are, by id."""
        held = self._sites.get(site_id, {})
        return {
            entry.session_id: known.session
            for entry in entries
            if (known := held.get(entry.session_id))
            and known.minute == entry.minute < (known.at - _DELAY_MS) // MINUTE_MS
            and now - known.at < QUIET_MS
        }

    def keep(self, site_id: str, entries: Iterable[Entry], read: Mapping[str, Session], now: int) -> None:
        """Know what was ``read`` at ``now``, and of the others those that still have an entry."""
        minutes = {entry.session_id: entry.minute for entry in entries}
        with self._lock:
            held = {name: known for name, known in self._sites.get(site_id, {}).items() if name in minutes}
            held |= {name: _Held(minutes[name], now, session) for name, session in read.items()}
            self._sites[site_id] = held
            self._sites.move_to_end(site_id)
            if len(self._sites) > _QUIET_SITES:
                self._sites.popitem(last=False)


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
        self._quiet = _Quiet()

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

    def marks(self, site_id: str, start: int, end: int) -> Marks:
        """What is not merged, or not as it is now, of the days from ``start`` to before ``end`` (ms)."""
        low = merged_sk(start, whole_day=True)
        items = self._query(
            **_between(self._names.rollups, marks_key(site_id), low, merged_sk(end - 1, whole_day=True) + _LAST)
        )
        return Marks(item["sk"]["S"] for item in items)

    def rollups(self, site_id: str, quarters: Sequence[int]) -> Iterator[RollUp]:
        """The roll-ups of the quarters (their starts in ms, ascending), of all shards."""
        for item in self._runs(quarters, QUARTER_MS, DAY_MS // QUARTER_MS, partial(self._rollups_of, site_id)):
            yield read_rollup(item).rollup

    def merged_totals(self, site_id: str, days: Sequence[int], hours: Sequence[int]) -> Iterator[Totals]:
        """The totals of merged days and hours (their starts in ms, ascending)."""
        return map(read_totals, self._merged(site_id, TOTALS, days, hours))

    def merged_labels(self, site_id: str, part: str, days: Sequence[int], hours: Sequence[int]) -> Iterator[Labels]:
        """One counter of merged days and hours (their starts in ms, ascending)."""
        return map(read_labels, self._merged(site_id, part, days, hours))

    def lag(self) -> float | None:
        """Seconds that the consumer was behind the stream lately, None if it has not said so: nothing came."""
        since = self._clock() - _LAG_MS
        items = self._query(**_between(self._names.rollups, SHARDS, " ", _LAST))
        return max((int(item["behind"]["N"]) / 1000 for item in items if int(item["at"]["N"]) >= since), default=None)

    def user_sessions(self, site_id: str, user_id: str) -> list[Session]:
        """The sessions of a user, the newest MAX_USER_SESSIONS, the last begun first."""
        found = self._query(
            most=MAX_USER_SESSIONS,
            TableName=self._names.sessions,
            IndexName="user",
            KeyConditionExpression="user_key = :user",
            ExpressionAttributeValues={":user": {"S": session_key(site_id, user_id)}},
            ScanIndexForward=False,
        )
        sessions = self.sessions(site_id, [item["pk"]["S"].partition("#")[2] for item in found])
        return sorted(sessions.values(), key=lambda session: (-session.start, session.session_id))

    def session(self, site_id: str, session_id: str) -> Session | None:
        """One session, None if there is none, or it was erased."""
        item = self._get_item(self._names.sessions, {"pk": {"S": session_key(site_id, session_id)}})
        session = read_session(item).session if item and self._lives(item) else None
        return session if session and not session.erased else None

    def sessions(self, site_id: str, session_ids: Sequence[str]) -> dict[str, Session]:
        """Those of the sessions that there are and that were not erased, by id."""
        keys = [{"pk": {"S": session_key(site_id, session_id)}} for session_id in dict.fromkeys(session_ids)]
        found = self._pool.map(self._get_sessions, _chunks(keys, _KEYS_PER_GET))
        sessions = (read_session(item).session for items in found for item in items if self._lives(item))
        return {session.session_id: session for session in sessions if not session.erased}

    def events(self, site_id: str, session_id: str) -> list[Event]:
        """The stored events of one session, each once, in order of event time."""
        key = session_key(site_id, session_id)
        # In this order, the chunks consistently: what is no more in the item read has been in a chunk since before.
        item = self._get_item(self._names.sessions, {"pk": {"S": key}})
        recent = read_session(item).events if item and self._lives(item) else []
        chunks = self._query(
            TableName=self._names.session_events,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": key}},
            ConsistentRead=True,
        )
        # Some are in two of them, where a batch was tried again with other borders.
        by_position = dict(recent)
        for chunk in chunks:
            if self._lives(chunk):
                by_position.update(read_chunk(chunk))
        events = [event for data in by_position.values() if isinstance(event := decode(data), Event)]
        return sorted(events, key=lambda event: (event.timestamp, event.event_id))

    def active(self, site_id: str) -> Active:
        """Who is on the site now.

        A session that was read before, and has been quiet since, is read again only after QUIET_MS: what came late to
        it is told of that much later.
        """
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
        wanted = statistics.to_read(entries, now)
        quiet = self._quiet.of(site_id, entries, now)
        known = {session_id: quiet[session_id] for session_id in wanted if session_id in quiet}
        unknown = [session_id for session_id in wanted if session_id not in known]
        read = self.sessions(site_id, unknown)
        self._quiet.keep(site_id, entries, read, now)
        return statistics.active(entries, known | read, now)

    def _rollups_of(self, site_id: str, first: int, last: int) -> list[Item]:
        pk, low = rollup_key(site_id, first, "")
        return self._query(**_between(self._names.rollups, pk, low, rollup_key(site_id, last, _LAST)[1]))

    def _merged(self, site_id: str, part: str, days: Sequence[int], hours: Sequence[int]) -> Iterator[Item]:
        def of(first: int, last: int, *, whole_day: bool) -> list[Item]:
            pk, low = merged_key(site_id, part, first, whole_day=whole_day)
            _, high = merged_key(site_id, part, last, whole_day=whole_day)
            return self._query(**_between(self._names.rollups, pk, low, high))

        yield from self._runs(days, DAY_MS, _DAYS_PER_QUERY, partial(of, whole_day=True))
        yield from self._runs(hours, HOUR_MS, _HOURS_PER_QUERY, partial(of, whole_day=False))

    def _runs(
        self, starts: Sequence[int], length: int, most: int, query: Callable[[int, int], list[Item]]
    ) -> Iterator[Item]:
        """The items of all stretches (of ``length`` ms), by queries of at most ``most`` in a row, several at once."""
        runs: list[tuple[int, int]] = []
        for start in starts:
            # A partition of roll-ups ends with its day.
            follows = runs and runs[-1][1] + length == start and start % (most * length)
            runs[-1:] = [(runs[-1][0], start)] if follows else [*runs[-1:], (start, start)]
        # Some at a time: all items of a long stretch at once would not fit into a small machine's memory.
        for some in _chunks(runs, 2 * self._readers):
            for items in self._pool.map(lambda run: query(*run), some):
                yield from items

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


def _between(table: str, pk: str, low: str, high: str) -> dict[str, Any]:
    return {
        "TableName": table,
        "KeyConditionExpression": "pk = :pk AND sk BETWEEN :low AND :high",
        "ExpressionAttributeValues": {":pk": {"S": pk}, ":low": {"S": low}, ":high": {"S": high}},
    }


def _call(call: Callable[[], Any]) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = call()
    except (ClientError, BotoCoreError) as error:
        raise unavailable(error) from error
    return answer


def unavailable(error: ClientError | BotoCoreError) -> Unavailable:
    """What a client is told of a failed read."""
    return Unavailable(f"{_explain(error)}; try again in some seconds")


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
