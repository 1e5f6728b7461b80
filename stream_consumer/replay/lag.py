"""How far the consumers of a generation are behind the stream: what they told last, and what the stream holds then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError
from msgspec import Struct

from stream_consumer.generations import Generation, scoped
from stream_consumer.items import SHARDS, read_shard
from stream_consumer.progress import ShardProgress
from stream_consumer.table import TableNames, Unavailable, query_items

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kinesis import KinesisClient

#: Who is this little behind (ms) is at the tip, where something always comes.
AT_THE_TIP_MS = 1000
#: GetRecords may answer without records far from the tip; so many answers are looked at.
_LOOKS = 50
#: GetRecords calls at once.
_READERS = 16


class ShardLag(Struct, frozen=True):
    """Where a shard's consumer stands.

    ``next_arrived``: when (ms) the first record came that is not done, 0 if all are. ``told``: what the consumer told
    last, None if nothing yet. ``closed``: the shard takes no more records.
    """

    shard_id: str
    next_arrived: int
    told: ShardProgress | None
    closed: bool

    def behind(self, now: int) -> int:
        """How old (ms) the first record is that is not done; 0 at the tip."""
        return max(0, now - self.next_arrived) if self.next_arrived else 0


class Stream:
    """A Kinesis stream, as an operator's command looks at it. All methods raise :class:`Unavailable`."""

    def __init__(self, kinesis: KinesisClient, name: str) -> None:
        self._kinesis = kinesis
        self.name = name

    def described(self) -> tuple[str, int, int]:
        """(ARN, when it was created (ms), how long (ms) it holds a record)."""
        answer = self._call("DescribeStreamSummary", self._kinesis.describe_stream_summary, StreamName=self.name)
        summary = answer["StreamDescriptionSummary"]
        created = round(summary["StreamCreationTimestamp"].timestamp() * 1000)
        return summary["StreamARN"], created, int(summary["RetentionPeriodHours"]) * 3_600_000

    def shards(self, **which: Any) -> list[dict[str, Any]]:
        """Every shard that the stream lists, open or closed; or ``which`` of them (ListShards' filter)."""
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"StreamName": self.name, **which}
        while True:
            answer = self._call("ListShards", self._kinesis.list_shards, **query)
            found += answer["Shards"]
            if not (after := answer.get("NextToken")):
                return found
            query = {"NextToken": after}

    def next_arrived(self, shard_id: str, after: str, read_from: int) -> int:
        """When (ms) the first record came behind sequence number ``after`` ('': of those that came from ``read_from``
        (ms) on; 0: of all); 0 if there is none.
        """
        where: dict[str, Any] = {"ShardIteratorType": "TRIM_HORIZON"}
        if after:
            where = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
        elif read_from:
            where = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": datetime.fromtimestamp(read_from / 1000, UTC)}
        first, _ = self._first(shard_id, where)
        return first[1] if first else 0

    def oldest(self, shard_id: str) -> tuple[str, int] | None:
        """Sequence number and arrival (ms) of the oldest record that the stream holds of a shard; None for none."""
        first, seen_all = self._first(shard_id, {"ShardIteratorType": "TRIM_HORIZON"})
        if first is None and not seen_all:
            raise Unavailable(f"GetRecords on {self.name}: {shard_id} answered {_LOOKS} times with nothing")
        return first

    def _first(self, shard_id: str, where: dict[str, Any]) -> tuple[tuple[str, int] | None, bool]:
        """The first record of a shard from a place on, and whether it was looked for up to the tip."""
        answer = self._call(
            "GetShardIterator", self._kinesis.get_shard_iterator, StreamName=self.name, ShardId=shard_id, **where
        )
        iterator = answer["ShardIterator"]
        for _ in range(_LOOKS):
            answer = self._call("GetRecords", self._kinesis.get_records, ShardIterator=iterator, Limit=1)
            for record in answer["Records"]:
                arrived: datetime = record["ApproximateArrivalTimestamp"]
                return (record["SequenceNumber"], round(arrived.timestamp() * 1000)), True
            iterator = answer.get("NextShardIterator")
            if not iterator or not answer.get("MillisBehindLatest"):
                return None, True
        return None, False

    def _call(self, what: str, call: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"{what} on {self.name}: {error}") from error


def told(client: DynamoDBClient, names: TableNames, generation: str) -> dict[str, ShardProgress]:
    """What each shard's consumer told last. Raises :class:`Unavailable`."""
    items = query_items(scoped(client, names, generation), names.rollups, SHARDS)
    return {item["sk"]["S"]: read_shard(item) for item in items}


def lags(stream: Stream, generation: Generation, progress: dict[str, ShardProgress]) -> list[ShardLag]:
    """Where the consumer of each shard of the stream stands, by shard. Raises :class:`Unavailable`."""

    def lag(shard: dict[str, Any]) -> ShardLag:
        shard_id = shard["ShardId"]
        last = progress.get(shard_id)
        arrived = stream.next_arrived(shard_id, last.sequence_number if last else "", generation.read_from)
        return ShardLag(shard_id, arrived, last, "EndingSequenceNumber" in shard.get("SequenceNumberRange", {}))

    with ThreadPoolExecutor(_READERS, thread_name_prefix="lag") as pool:
        return sorted(pool.map(lag, stream.shards()), key=lambda one: one.shard_id)


def longest(some: Sequence[ShardLag], now: int) -> int:
    """How old (ms) the oldest record is that is not done; 0 if all shards are at their tips."""
    return max((one.behind(now) for one in some), default=0)
