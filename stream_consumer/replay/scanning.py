"""Whole tables, read by an operator's command: a generation's items page by page, in several segments at once.

DynamoDB has no index of generations, and none is worth its writes: a scan reads the items of all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer.generations import FIRST, UNSCOPED, move, prefix_of
from stream_consumer.items import Item
from stream_consumer.table import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SEGMENTS = 4
#: Where a segment stands that is read to its end.
_END = "end"

#: Where each segment goes on, by its number: plain JSON, which outlives the process.
Places = Mapping[str, Any]


def scan(
    client: DynamoDBClient,
    table: str,
    generation: str,
    handle: Callable[[list[Item]], None],
    *,
    places: Places | None = None,
    saved: Callable[[Places], None] = lambda places: None,
    seen: Callable[[int], None] = lambda count: None,
    attributes: str = "",
) -> None:
    """Hand every item of a generation, under the keys that the first one's would have, to ``handle``, page by page.

    ``handle`` is called in several threads at once. After each page ``saved`` is told where all segments stand, one
    call at a time; from those ``places`` another scan goes on, and may repeat a page. ``seen`` is told of every item
    read, of whichever generation. ``attributes`` names the only ones wanted. Raises :class:`Unavailable`, and what
    ``handle`` raises.
    """
    stands: dict[str, Any] = {str(number): None for number in range(SEGMENTS)} | dict(places or {})
    lock, failed = threading.Lock(), threading.Event()
    prefix = prefix_of(generation)
    query: dict[str, Any] = {
        "TableName": table,
        "TotalSegments": SEGMENTS,
        "ConsistentRead": True,
        "FilterExpression": "begins_with(pk, :prefix)" if prefix else "NOT begins_with(pk, :prefix)",
        "ExpressionAttributeValues": {":prefix": {"S": prefix or "#"}},
    }
    if attributes:
        query["ProjectionExpression"] = attributes

    def read(number: int) -> None:
        try:
            while not failed.is_set() and stands[str(number)] != _END:
                start = stands[str(number)]
                answer = _page(client, query | {"Segment": number} | ({"ExclusiveStartKey": start} if start else {}))
                items = [move(item, generation, FIRST) for item in answer["Items"]]
                handle([item for item in items if item["pk"]["S"] not in UNSCOPED])
                with lock:
                    stands[str(number)] = answer.get("LastEvaluatedKey") or _END
                    seen(answer.get("ScannedCount", len(items)))
                    saved(dict(stands))
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(SEGMENTS, thread_name_prefix="scan") as pool:
        for done in [pool.submit(read, number) for number in range(SEGMENTS)]:
            done.result()


def size(client: DynamoDBClient, table: str) -> int:
    """How many items a table has, about: DynamoDB counts them every six hours. Raises :class:`Unavailable`."""
    try:
        return client.describe_table(TableName=table)["Table"].get("ItemCount", 0)
    except (ClientError, BotoCoreError) as error:
        raise Unavailable(f"DescribeTable on {table}: {error}") from error


def _page(client: DynamoDBClient, query: dict[str, Any]) -> Any:
    try:
        return client.scan(**query)
    except (ClientError, BotoCoreError) as error:
        raise Unavailable(f"Scan on {query['TableName']}: {error}") from error
