"""The archive's hours and objects, over a bucket in memory and over moto's."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from stream_consumer.archive.lines import ArchivedRecord, write_line
from stream_consumer.archive.reader import Archive, ArchiveError, hour_of, hour_prefix
from stream_consumer.merged import HOUR_MS
from stream_consumer.table import Unavailable
from tests.fake_s3 import FakeS3

NEW_YEAR = 1_704_067_200_000  # 2024-01-01 00:00 UTC
HOURS = [NEW_YEAR - 9000 * HOUR_MS, NEW_YEAR - HOUR_MS, NEW_YEAR, NEW_YEAR + HOUR_MS, NEW_YEAR + 800 * HOUR_MS]


def a_bucket(hours: list[int], each: int = 3) -> FakeS3:
    s3 = FakeS3()
    s3.objects = {f"{hour_prefix(hour)}{n}.gz": b"" for hour in hours for n in range(each)}
    s3.objects["errors/2024/01/01/00/processing-failed/x.gz"] = b""
    s3.objects["other/2023/01/01/00/x.gz"] = b""
    return s3


def test_hours_are_found_by_the_levels_of_the_keys_not_by_their_objects() -> None:
    s3 = a_bucket(HOURS, each=50)
    archive = Archive(s3, "bucket")
    assert archive.hours() == HOURS
    assert len(s3.listed) < 60
    assert all(prefix.count("/") <= 4 for prefix in s3.listed)
    assert archive.failed_hours() == [NEW_YEAR]
    assert Archive(FakeS3(), "bucket").hours() == []
    s3.listed.clear()
    assert archive.first_hour() == HOURS[0]
    assert len(s3.listed) < 12
    assert Archive(FakeS3(), "bucket").first_hour() is None


@given(st.lists(st.integers(0, 2_000), max_size=8, unique=True), st.integers(-9, 2_010), st.integers(0, 2_010))
def test_hours_from_one_on_and_before_another(offsets: list[int], since: int, until: int) -> None:
    hours = sorted(NEW_YEAR + offset * HOUR_MS for offset in offsets)
    first, end = NEW_YEAR + since * HOUR_MS + 5, NEW_YEAR + until * HOUR_MS + 7
    found = Archive(a_bucket(hours, each=1), "bucket").hours(first, end)
    assert found == [hour for hour in hours if hour_of(first) <= hour < end]


def test_a_stretch_costs_no_listing_of_what_is_outside_of_it() -> None:
    s3 = a_bucket(HOURS)
    assert Archive(s3, "bucket").hours(NEW_YEAR, NEW_YEAR + 1) == [NEW_YEAR]
    assert [one for one in s3.listed if "2022" in one or "/2023/" in one] == []


def test_an_hours_objects_come_in_order_over_pages() -> None:
    archive = Archive(a_bucket(HOURS, each=5), "bucket")
    assert archive.objects(NEW_YEAR) == [f"events/2024/01/01/00/{n}.gz" for n in range(5)]
    assert archive.objects(NEW_YEAR + 5 * HOUR_MS) == []


@pytest.mark.parametrize(
    "key",
    ["events/2024/01/01/24/x.gz", "events/2024/1/1/0/x.gz", "events/2024/aa/bb/cc/x", "events/2024/01/x", "events/x"],
)
def test_what_is_no_hour_is_an_error_that_names_it(key: str) -> None:
    s3 = a_bucket([])
    s3.objects[key] = b""
    with pytest.raises(ArchiveError, match=r"s3://bucket/events/.* is (in )?no hour"):
        Archive(s3, "bucket").hours()


def test_an_object_is_read_whole_also_if_it_is_of_several_gzip_members() -> None:
    records = [ArchivedRecord("shardId-000000000000", str(n), None, n, b"x" * n) for n in range(1, 5)]
    s3 = FakeS3()
    s3.objects["k"] = b"".join(gzip.compress(write_line(one)) for one in records)
    assert list(Archive(s3, "bucket").records("k")) == records


@pytest.fixture
def moto_s3() -> Iterator[Any]:
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
        client.create_bucket(Bucket="bucket")
        yield client


def test_moto_says_the_same(moto_s3: Any) -> None:
    archive = Archive(moto_s3, "bucket")
    assert archive.hours() == []
    record = ArchivedRecord("shardId-000000000000", "1", 2, 3, b"x")
    for hour in HOURS:
        moto_s3.put_object(Bucket="bucket", Key=f"{hour_prefix(hour)}a.gz", Body=gzip.compress(write_line(record)))
    assert archive.hours(HOURS[1], HOURS[3]) == HOURS[1:3]
    (key,) = archive.objects(NEW_YEAR)
    assert list(archive.records(key)) == [record]
    with pytest.raises(Unavailable, match=r"GetObject s3://bucket/none: .*NoSuchKey"):
        list(archive.records("none"))
    with pytest.raises(Unavailable, match="NoSuchBucket"):
        Archive(moto_s3, "no-bucket").hours()
