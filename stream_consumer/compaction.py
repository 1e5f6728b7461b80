"""Compaction: merge the roll-ups of hours, and hours of days, that are over, and again when something came late.

The consumer marks each hour whose roll-ups it changes. A run claims an hour's marks, merges its roll-ups, marks its
day, and deletes those marks that are still as it claimed them: whoever changed something meanwhile has put them
anew. A day is merged likewise from its hours. So what has no mark is merged and complete, whenever a run ends, and
however many run at once: every write of a merged item is a compare-and-set on what the one before it was made of.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer.generations import Generations, scoped
from stream_consumer.items import (
    SITES,
    Item,
    day_mark,
    marks_key,
    merged_item,
    merged_key,
    merged_sk,
    read_labels,
    read_rollup,
    read_totals,
    rollup_key,
)
from stream_consumer.merged import (
    COUNTERS,
    DAY_MS,
    HOUR_MS,
    TOTALS,
    Labels,
    Totals,
    day_totals,
    hour_totals,
    labels_of,
    merge_labels,
    totals_of,
)
from stream_consumer.rollup import QUARTER_MS
from stream_consumer.table import LAST, Conflict, TableNames, Unavailable, query_items

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: Merging an hour waits this long (ms) after its end: most of what comes late comes within it.
GRACE_MS = 2 * 60 * 1000
PARTS = (TOTALS, *COUNTERS)

_log = logging.getLogger("liveinsight.compaction")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Compacted:
    """What a run merged. ``left``: hours and days that are over, and still have a mark."""

    sites: int = 0
    hours: int = 0
    days: int = 0
    left: int = 0


def of_generations(client: DynamoDBClient, names: TableNames) -> list[tuple[str, Compaction]]:
    """The compaction of each generation that is consumed, by its name. Raises :class:`Unavailable`."""
    return [
        (generation.name, Compaction(scoped(client, names, generation.name), names))
        for generation in Generations(client, names).all()
        if generation.consumes
    ]


class Compaction:
    """Merges a roll-up table's hours and days, of the generation that ``client`` sees."""

    def __init__(
        self, client: DynamoDBClient, names: TableNames, token: Callable[[], str] = lambda: uuid.uuid4().hex
    ) -> None:
        """``token`` gives another text at each call."""
        self._client = client
        self._table = names.rollups
        self._token = token

    def sites(self) -> list[str]:
        """The sites that there are."""
        return sorted(item["sk"]["S"] for item in self._query(SITES))

    def run(
        self,
        now: int,
        sites: Iterable[str] | None = None,
        progress: Callable[[Sequence[Any]], Iterable[Any]] = lambda due: due,
    ) -> Compacted:
        """Merge what is marked and over at ``now`` (ms), of ``sites`` or all. May be interrupted and run again.

        ``progress`` sees the list of a site's hours, and of its days, and gives them back one by one. Raises
        :class:`Unavailable` where the table cannot be read or written.
        """
        total = Compacted()
        for site_id in self.sites() if sites is None else sites:
            hours, days, left = self._run_site(site_id, now, progress)
            total = Compacted(total.sites + 1, total.hours + hours, total.days + days, total.left + left)
        return total

    def _run_site(
        self, site_id: str, now: int, progress: Callable[[Sequence[Any]], Iterable[Any]]
    ) -> tuple[int, int, int]:
        over = merged_sk(now - GRACE_MS, whole_day=False)
        marks = self._query(marks_key(site_id))
        by_hour: dict[str, list[Item]] = {}
        for mark in marks:
            when = mark["sk"]["S"].partition("#")[0]
            if ":" in when and when < over:
                by_hour.setdefault(when, []).append(mark)
        left = 0
        for when in progress(sorted(by_hour)):
            left += not self._merge_hour(site_id, start_of(when), by_hour[when])
        days = self._days_over(site_id, over)
        for mark in progress(days):
            left += not self._merge_day(site_id, mark)
        return len(by_hour), len(days), left

    def _days_over(self, site_id: str, over: str) -> list[Item]:
        """The marks of days that are over, and of which no hour has a mark."""
        marks = {mark["sk"]["S"]: mark for mark in self._query(marks_key(site_id))}
        waiting = {sk.partition(":")[0] for sk in marks if ":" in sk}
        return [mark for sk, mark in marks.items() if ":" not in sk and sk < over[:6] and sk not in waiting]

    def _merge_hour(self, site_id: str, hour: int, marks: Sequence[Item]) -> bool:
        claimed = [claim for mark in marks if (claim := self._claim(mark))]
        pk, low = rollup_key(site_id, hour, "")
        _, high = rollup_key(site_id, hour + HOUR_MS - QUARTER_MS, LAST)

        def merge() -> tuple[str, dict[str, Totals | Labels]]:
            items = self._query(pk, low, high)
            rollups = [read_rollup(item).rollup for item in items]
            parts: dict[str, Totals | Labels] = {TOTALS: hour_totals(hour, map(totals_of, rollups))}
            for dimension in COUNTERS:
                some = [labels_of(rollup, dimension) for rollup in rollups if dimension in rollup.counters]
                parts[dimension] = merge_labels(hour, some)
            return _made_of(items), parts

        made_of = self._merge(site_id, hour, merge, whole_day=False)
        self._put(day_mark(site_id, hour - hour % DAY_MS, made_of))
        gone = [self._unmark(claim) for claim in claimed]
        return all(gone) and len(claimed) == len(marks)

    def _merge_day(self, site_id: str, mark: Item) -> bool:
        day = start_of(mark["sk"]["S"])
        claim = self._claim(mark)
        if claim is None:
            return False

        def merge() -> tuple[str, dict[str, Totals | Labels]]:
            parts: dict[str, Totals | Labels] = {}
            made_of = ""
            for part in PARTS:
                pk, low = merged_key(site_id, part, day, whole_day=False)
                _, high = merged_key(site_id, part, day + DAY_MS - HOUR_MS, whole_day=False)
                items = self._query(pk, low, high)
                if part == TOTALS:
                    parts[part] = day_totals(day, map(read_totals, items))
                    made_of = _made_of(items)
                else:
                    parts[part] = merge_labels(day, map(read_labels, items))
            return made_of, parts

        self._merge(site_id, day, merge, whole_day=True)
        return self._unmark(claim)

    def _merge(
        self,
        site_id: str,
        start: int,
        merge: Callable[[], tuple[str, dict[str, Totals | Labels]]],
        *,
        whole_day: bool,
    ) -> str:
        """Write all parts of a merged stretch. A part without labels has no item unless it had one."""
        while True:
            keys = {part: merged_key(site_id, part, start, whole_day=whole_day) for part in PARTS}
            bases = self._bases(list(keys.values()))
            made_of, parts = merge()
            try:
                # Totals last: they tell what a day is made of.
                for part, merged in sorted(parts.items(), key=lambda one: one[0] == TOTALS):
                    base = bases.get(keys[part])
                    empty = isinstance(merged, Labels) and not merged.counter.rows and not merged.counter.other
                    if not (empty and base is None):
                        self._save(merged_item(keys[part], made_of, merged), base)
            except Conflict as conflict:
                _log.info("merging again, as another run was faster: %s", conflict)
                continue
            return made_of

    def _query(self, pk: str, low: str = " ", high: str = LAST) -> list[Item]:
        return query_items(self._client, self._table, pk, low, high)

    def _bases(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """What the stored items of ``keys`` were made of, where there are any."""
        wanted: Any = {
            self._table: {
                "Keys": [{"pk": {"S": pk}, "sk": {"S": sk}} for pk, sk in keys],
                "ConsistentRead": True,
                "ProjectionExpression": "pk, sk, pos",
            }
        }
        found: list[Item] = []
        while wanted:
            answer = self._call("BatchGetItem", lambda: self._client.batch_get_item(RequestItems=wanted))  # noqa: B023
            found += answer["Responses"].get(self._table, ())
            wanted = answer.get("UnprocessedKeys")
        return {(item["pk"]["S"], item["sk"]["S"]): item["pos"]["S"] for item in found}

    def _save(self, item: Item, base: str | None) -> None:
        condition: dict[str, Any] = (
            {"ConditionExpression": "attribute_not_exists(pk)"}
            if base is None
            else {"ConditionExpression": "pos = :base", "ExpressionAttributeValues": {":base": {"S": base}}}
        )
        try:
            self._client.put_item(TableName=self._table, Item=item, **condition)
        except ClientError as error:
            if error.response["Error"].get("Code") == "ConditionalCheckFailedException":
                raise Conflict(f"{item['pk']['S']} {item['sk']['S']}") from error
            raise Unavailable(f"PutItem on {self._table}: {error}") from error
        except BotoCoreError as error:
            raise Unavailable(f"PutItem on {self._table}: {error}") from error

    def _put(self, item: Item) -> None:
        self._call("PutItem", lambda: self._client.put_item(TableName=self._table, Item=item))

    def _claim(self, mark: Item) -> Item | None:
        """Put something of our own in a mark's place, before what it stands for is read; None if it has changed.

        That it still is what was read would not do in its place: a retry may put the same mark twice.
        """
        claim = {**mark, "pos": {"S": self._token()}}
        try:
            self._save(claim, mark["pos"]["S"])
        except Conflict:
            return None
        return claim

    def _unmark(self, mark: Item) -> bool:
        """Delete a mark if it is still as it was claimed; whether it is gone."""
        try:
            self._client.delete_item(
                TableName=self._table,
                Key={"pk": mark["pk"], "sk": mark["sk"]},
                ConditionExpression="pos = :base",
                ExpressionAttributeValues={":base": mark["pos"]},
            )
        except ClientError as error:
            if error.response["Error"].get("Code") == "ConditionalCheckFailedException":
                return False
            raise Unavailable(f"DeleteItem on {self._table}: {error}") from error
        except BotoCoreError as error:
            raise Unavailable(f"DeleteItem on {self._table}: {error}") from error
        return True

    def _call(self, what: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"{what} on {self._table}: {error}") from error


def start_of(when: str) -> int:
    """The start (ms) of the day or hour that a merged item's sort key names."""
    day, _, hour = when.partition(":")
    return int(day) * DAY_MS + int(hour or 0) * HOUR_MS


def _made_of(items: Iterable[Item]) -> str:
    """A name of exactly these items at their positions."""
    said = hashlib.blake2b(digest_size=16)
    for item in items:
        said.update(f"{item['sk']['S']} {item['pos']['S']}\n".encode())
    return said.hexdigest()
