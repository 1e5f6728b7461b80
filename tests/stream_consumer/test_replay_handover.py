"""Where the stream takes over: never with a gap that nobody is told of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from stream_consumer.archive.refold import ShardEnd
from stream_consumer.merged import HOUR_MS
from stream_consumer.replay.handover import Gap, handover, settled
from stream_consumer.replay.lag import Stream
from stream_consumer.table import Unavailable

NOW = 1_700_000_000_000
HORIZON = NOW - 24 * HOUR_MS
A, B, C = (f"shardId-{number:012d}" for number in range(3))


def hours_ago(hours: float) -> int:
    return NOW - int(hours * HOUR_MS)


class FakeKinesis:
    """A stream of 24 h, created a year ago, that holds ``records``: by shard, (sequence number, arrival in ms).

    Shards of ``new`` were not there yet a day ago. A shard's first answer is empty, as of real ones.
    """

    def __init__(self, records: dict[str, list[tuple[int, int]]], new: tuple[str, ...] = (), age: float = 9000) -> None:
        self.records = records
        self.new = new
        self.created = datetime.fromtimestamp(hours_ago(age) / 1000, UTC)
        self.fails = False

    def describe_stream_summary(self, StreamName: str) -> dict[str, Any]:
        if self.fails:
            raise ClientError({"Error": {"Code": "LimitExceededException"}}, "DescribeStreamSummary")
        return {
            "StreamDescriptionSummary": {
                "RetentionPeriodHours": 24,
                "StreamCreationTimestamp": self.created,
                "StreamARN": "",
            }
        }

    def list_shards(
        self, StreamName: str = "", ShardFilter: dict[str, str] | None = None, NextToken: str = ""
    ) -> dict[str, Any]:
        assert bool(StreamName) != bool(NextToken)
        if ShardFilter:
            assert ShardFilter == {"Type": "AT_TRIM_HORIZON"}
            return {"Shards": [{"ShardId": one} for one in self.records if one not in self.new]}
        names = sorted(self.records)
        if not NextToken and len(names) > 1:
            return {"Shards": [{"ShardId": names[0]}], "NextToken": "more"}
        return {"Shards": [{"ShardId": one} for one in (names[1:] if NextToken else names)]}

    def get_shard_iterator(self, StreamName: str, ShardId: str, ShardIteratorType: str) -> dict[str, str]:
        assert ShardIteratorType == "TRIM_HORIZON"
        return {"ShardIterator": f"{ShardId}/0"}

    def get_records(self, ShardIterator: str, Limit: int) -> dict[str, Any]:
        shard, at = ShardIterator.split("/")
        held = self.records[shard]
        if at == "0" and held:
            return {"Records": [], "NextShardIterator": f"{shard}/1", "MillisBehindLatest": 5}
        found = [
            {
                "SequenceNumber": str(number),
                "ApproximateArrivalTimestamp": datetime.fromtimestamp(arrived / 1000, UTC),
            }
            for number, arrived in held[:Limit]
        ]
        return {"Records": found, "NextShardIterator": f"{shard}/2", "MillisBehindLatest": 0}


def asked(kinesis: FakeKinesis, ends: dict[str, ShardEnd], consumed: dict[str, str] | None = None) -> int:
    return handover(ends, Stream(kinesis, "events"), now=NOW, consumed=consumed)  # type: ignore[arg-type]


def test_a_stream_that_still_holds_the_archives_last_records_takes_over_an_hour_before_the_earliest_of_them() -> None:
    kinesis = FakeKinesis({A: [(90, hours_ago(23))], B: [(1000, hours_ago(20))]})
    ends = {A: ShardEnd("100", 3, hours_ago(12)), B: ShardEnd("1000", 0, hours_ago(11))}
    assert asked(kinesis, ends) == hours_ago(13)


def test_a_stream_that_begins_after_the_archives_end_is_refused_with_shard_and_times() -> None:
    kinesis = FakeKinesis({A: [(90, hours_ago(23))], B: [(1000, hours_ago(23))]})
    ends = {A: ShardEnd("100", 3, hours_ago(12)), B: ShardEnd("999", 0, hours_ago(30))}
    with pytest.raises(Gap) as refused:
        asked(kinesis, ends)
    assert str(refused.value) == (
        f"{B}: the archive ends at 2023-11-13 16:13 UTC, and in the stream, which keeps what came after "
        "2023-11-13 22:13 UTC, its oldest record came at 2023-11-13 23:13 UTC: what came in between may be in neither"
    )


@pytest.mark.parametrize("held", [[], [(150, hours_ago(2))]])
def test_a_shard_that_was_silent_is_taken_over_if_the_live_consumer_saw_no_more_than_the_archive(
    held: list[tuple[int, int]],
) -> None:
    ends = {A: ShardEnd("100", 3, hours_ago(40))}
    kinesis = FakeKinesis({A: held})
    with pytest.raises(Gap, match="it holds no record" if not held else "its oldest record came"):
        asked(kinesis, ends)
    assert asked(kinesis, ends, {A: "100"}) == (hours_ago(3) if held else 0)
    for unsaid in ("101", ""):
        with pytest.raises(Gap):
            asked(kinesis, ends, {A: unsaid})


def test_a_shard_that_is_newer_than_the_horizon_is_read_from_its_beginning() -> None:
    kinesis = FakeKinesis({A: [(90, hours_ago(23))], B: [(500, hours_ago(5))], C: []}, new=(B, C))
    assert asked(kinesis, {A: ShardEnd("100", 3, hours_ago(2))}) == hours_ago(6)


def test_an_old_shard_that_the_archive_does_not_know_is_refused_unless_nobody_ever_saw_a_record_of_it() -> None:
    kinesis = FakeKinesis({A: [(90, hours_ago(23))], B: []})
    ends = {A: ShardEnd("100", 3, hours_ago(2))}
    with pytest.raises(Gap, match=f"{B}: the archive has none of its records"):
        asked(kinesis, ends)
    with pytest.raises(Gap):
        asked(kinesis, ends, {A: "100", B: "7"})
    assert asked(kinesis, ends, {A: "100"}) == hours_ago(3)


def test_nothing_has_expired_from_a_stream_that_is_younger_than_its_retention() -> None:
    kinesis = FakeKinesis({A: [(500, hours_ago(5))], B: []}, age=20)
    assert asked(kinesis, {A: ShardEnd("100", 3, hours_ago(6))}) == hours_ago(6)
    assert asked(kinesis, {}) == hours_ago(6)


def test_every_shard_with_a_gap_is_named() -> None:
    kinesis = FakeKinesis({A: [(500, hours_ago(5))], B: [(500, hours_ago(5))]})
    with pytest.raises(Gap, match=f"{A}: .*; {B}: "):
        asked(kinesis, {})


def test_a_stream_that_cannot_be_asked_is_an_error_of_its_own() -> None:
    kinesis = FakeKinesis({})
    kinesis.fails = True
    with pytest.raises(Unavailable, match="DescribeStreamSummary on events"):
        asked(kinesis, {})


def test_a_shard_that_does_not_show_its_oldest_record_is_no_empty_one() -> None:
    class Far(FakeKinesis):
        def get_records(self, ShardIterator: str, Limit: int) -> dict[str, Any]:
            return {"Records": [], "NextShardIterator": ShardIterator, "MillisBehindLatest": 5}

    with pytest.raises(Unavailable, match=f"{A} answered"):
        asked(Far({A: []}), {A: ShardEnd("100", 0, hours_ago(1))}, {A: "100"})


def test_the_archive_is_folded_up_to_an_hour_that_the_stream_holds_for_long_yet() -> None:
    assert settled(NOW, 24 * HOUR_MS) == NOW - NOW % HOUR_MS - 12 * HOUR_MS
    assert settled(NOW, 168 * HOUR_MS) % HOUR_MS == 0
