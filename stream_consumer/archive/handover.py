"""From the archive to the stream: where the one may end, and whether the other takes over without a gap.

Positions are the same in both, so an overlap counts once, and only a gap is to be feared: records that the archive has
not and that the stream has not any more. Sequence numbers have holes, so that nothing is between two of them cannot
be seen from them. A shard is taken over without a gap if one of these holds:

- nothing of it can have expired: shard or stream are younger than the retention;
- its oldest record in the stream is at or before the archive's last of it;
- those who consumed it live (their progress is in the tables) have not come further than the archive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer.archive.reader import ArchiveError, hour_of
from stream_consumer.archive.refold import ShardEnd, hour_text
from stream_consumer.merged import HOUR_MS
from stream_consumer.table import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

#: How much earlier than need be the stream is read: approximate arrivals are not quite in the order of a shard.
_OVERLAP_MS = HOUR_MS
#: Empty answers of a shard that has records further on.
_READS = 100


class Gap(ArchiveError):  # noqa: N818 - says what is the case
    """Records may be missing between the archive and the stream."""


def settled(now: int, retention: int) -> int:
    """The time (ms) up to which to fold the archive, so that the stream, which keeps records for ``retention`` (ms),
    takes over from there: the start of the hour that was half the retention ago.

    As late as it is safe, and as early: Firehose has had all that time to write its objects again (it tries for as long
    as the stream holds the records), and the stream's consumers have as long to come that far before they expire.
    """
    return hour_of(now - retention // 2)


def handover(
    ends: Mapping[str, ShardEnd],
    kinesis: KinesisClient,
    stream: str,
    *,
    now: int,
    consumed: Mapping[str, str] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """The arrival (ms) from which the stream is to be read to go on after ``ends``, 0 for its oldest record.

    ``ends`` are those of :class:`stream_consumer.archive.refold.Refolded`. ``consumed``: the last sequence number that
    a live consumer has done, by shard (the ``sequence_number`` of its ``ShardProgress``, '' where that does not say);
    None where nothing is known of live consumers.
    Raises :class:`Gap` with a sentence on every shard that may have one, and :class:`Unavailable`.
    """
    found = _Stream(kinesis, stream, pause)
    description = found.call("DescribeStreamSummary", kinesis.describe_stream_summary, StreamName=stream)
    summary = description["StreamDescriptionSummary"]
    horizon = now - summary["RetentionPeriodHours"] * HOUR_MS
    young = summary["StreamCreationTimestamp"].timestamp() * 1000 > horizon
    old = set() if young else found.shards(ShardFilter={"Type": "AT_TRIM_HORIZON"})
    starts: list[int] = []
    gaps: list[str] = []
    for shard_id in sorted(found.shards()):
        end = ends.get(shard_id)
        first = found.first(shard_id)
        if shard_id in old and (gap := _gap(shard_id, end, first, consumed, horizon)):
            gaps.append(gap)
        if first is not None:
            starts.append(first.arrived if end is None else max(first.arrived, end.arrived))
    if gaps:
        raise Gap("; ".join(gaps))
    return max(0, min(starts) - _OVERLAP_MS) if starts else 0


def _gap(
    shard_id: str, end: ShardEnd | None, first: ShardEnd | None, consumed: Mapping[str, str] | None, horizon: int
) -> str:
    """Why records of a shard older than the retention may be missing, '' where none can be."""
    if end and first and int(first.sequence_number) <= int(end.sequence_number):
        return ""
    seen = "" if consumed is None else consumed.get(shard_id, "-1")
    if seen and int(seen) <= int(end.sequence_number if end else -1):
        return ""
    archived = f"the archive ends at {hour_text(end.arrived)}" if end else "the archive has none of its records"
    holds = f"its oldest record came at {hour_text(first.arrived)}" if first else "it holds no record"
    return (
        f"{shard_id}: {archived}, and in the stream, which keeps what came after {hour_text(horizon)}, {holds}: "
        "what came in between may be in neither"
    )


class _Stream:
    """What is asked of the stream. Raises :class:`Unavailable`."""

    def __init__(self, kinesis: KinesisClient, name: str, pause: Callable[[float], None]) -> None:
        self._kinesis = kinesis
        self._name = name
        self._pause = pause

    def call(self, what: str, call: Any, **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"{what} on {self._name}: {error}") from error

    def shards(self, **which: Any) -> set[str]:
        found: set[str] = set()
        asked: dict[str, Any] = {"StreamName": self._name, **which}
        while True:
            answer = self.call("ListShards", self._kinesis.list_shards, **asked)
            found.update(shard["ShardId"] for shard in answer["Shards"])
            if not (after := answer.get("NextToken")):
                return found
            asked = {"NextToken": after}

    def first(self, shard_id: str) -> ShardEnd | None:
        """The oldest record that the stream holds of a shard."""
        iterator = self.call(
            "GetShardIterator",
            self._kinesis.get_shard_iterator,
            StreamName=self._name,
            ShardId=shard_id,
            ShardIteratorType="TRIM_HORIZON",
        )["ShardIterator"]
        for _ in range(_READS):
            answer = self.call("GetRecords", self._kinesis.get_records, ShardIterator=iterator, Limit=1)
            for record in answer["Records"]:
                arrived = round(record["ApproximateArrivalTimestamp"].timestamp() * 1000)
                return ShardEnd(record["SequenceNumber"], 0, arrived)
            iterator = answer.get("NextShardIterator")
            if not iterator or not answer.get("MillisBehindLatest"):
                return None
            self._pause(0.2)  # five reads a second are what a shard allows
        raise Unavailable(f"GetRecords on {self._name}: {shard_id} answers {_READS} times with nothing")
