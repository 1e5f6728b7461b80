"""The archive's objects: which hours there are, which objects an hour has, and what an object holds.

A key is ``events/yyyy/MM/dd/HH/name.gz``, by the UTC hour of the arrival of the object's oldest record, as Firehose
evaluates ``!{timestamp:...}``. So a record is in an object of its own hour or of an earlier one.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from stream_consumer.archive.lines import ArchivedRecord, BadLine, BadReason, read_line
from stream_consumer.merged import HOUR_MS
from stream_consumer.table import Unavailable

#: Where the delivery stream writes objects, and where what it could not make a line of.
PREFIX = "events/"
ERROR_PREFIX = "errors/"


class S3(Protocol):
    """What the archive needs of boto3's S3 client."""

    def list_objects_v2(self, **request: Any) -> Any: ...
    def get_object(self, *, Bucket: str, Key: str) -> Any: ...  # noqa: N803 - boto3's names


class ArchiveError(Exception):
    """The archive cannot be folded as it is. The text says what is the case, and what can be done."""


class DamagedObject(ArchiveError):  # noqa: N818 - says what is the case
    """An object has a line that cannot be read. ``line`` counts from 1; 0 stands for the object as a whole."""

    def __init__(self, bucket: str, key: str, line: int, bad: BadLine) -> None:
        super().__init__(f"s3://{bucket}/{key}, line {line}: {bad}")
        self.key = key
        self.line = line
        self.reason = bad.reason


def hour_prefix(hour: int, prefix: str = PREFIX) -> str:
    """What the keys of an hour (its start, ms since 1970) begin with."""
    return f"{prefix}{datetime.fromtimestamp(hour / 1000, UTC):%Y/%m/%d/%H}/"


class Archive:
    """The archive in a bucket. Every method raises :class:`Unavailable` where S3 cannot be read."""

    def __init__(self, s3: S3, bucket: str, prefix: str = PREFIX, *, error_prefix: str = ERROR_PREFIX) -> None:
        self._s3 = s3
        self.bucket = bucket
        self._prefix = prefix
        self._error_prefix = error_prefix

    def hours(self, since: int = 0, until: int | None = None) -> list[int]:
        """The starts (ms) of the UTC hours that have objects, ascending; those from that of ``since`` on, and before
        ``until``. One listing for each year, month and day in between, none of the objects.
        """
        return list(self._hours(self._prefix, since, until))

    def first_hour(self) -> int | None:
        """The first of all :meth:`hours`: there is no archive of what arrived before; None if there is no object."""
        prefix = self._prefix
        for _ in range(4):
            prefix = min(self._folders(prefix), default="")
            if not prefix:
                return None
        return self._hour(prefix, self._prefix)

    def failed_hours(self, since: int = 0, until: int | None = None) -> list[int]:
        """As :meth:`hours`, of what came to the delivery stream and is not in the archive."""
        return list(self._hours(self._error_prefix, since, until))

    def objects(self, hour: int) -> list[str]:
        """The keys of an hour's objects, in order."""
        prefix = hour_prefix(hour, self._prefix)
        return [one["Key"] for page in self._pages(Prefix=prefix) for one in page.get("Contents", ())]

    def records(self, key: str, bad: Callable[[DamagedObject], None] | None = None) -> Iterator[ArchivedRecord]:
        """What an object holds, line by line.

        A line that cannot be read raises :class:`DamagedObject`; or goes to ``bad``, and the next line follows.
        """
        try:
            body = self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"GetObject s3://{self.bucket}/{key}: {error}") from error
        number = 0
        lines = iter(gzip.GzipFile(fileobj=io.BytesIO(body)))
        while True:
            try:
                line = next(lines, None)
                if line is None:
                    return
                number += 1
                record = read_line(line)
            except BadLine as why:
                self._bad(key, number, why, bad)
            except EOFError as error:
                self._bad(key, 0, BadLine(BadReason.CUT_SHORT, str(error)), bad)
                return
            except (gzip.BadGzipFile, zlib.error) as error:
                self._bad(key, 0, BadLine(BadReason.NOT_GZIP, str(error)), bad)
                return
            else:
                yield record

    def _bad(self, key: str, line: int, why: BadLine, bad: Callable[[DamagedObject], None] | None) -> None:
        damage = DamagedObject(self.bucket, key, line, why)
        if bad is None:
            raise damage from why
        bad(damage)

    def _hours(self, prefix: str, since: int, until: int | None) -> Iterator[int]:
        """Walk years, months, days, hours: each a level of the keys."""
        first = hour_prefix(since, prefix)
        last = None if until is None else hour_prefix(until - 1, prefix)
        level = [prefix]
        for _ in range(4):
            level = [
                found
                for one in level
                for found in self._folders(one)
                if first[: len(found)] <= found and (last is None or found <= last[: len(found)])
            ]
        for found in level:
            yield self._hour(found, prefix)

    def _hour(self, found: str, prefix: str) -> int:
        try:
            hour = round(datetime.strptime(found[len(prefix) :] + "+0000", "%Y/%m/%d/%H/%z").timestamp() * 1000)
        except ValueError:
            hour = -1
        if hour < 0 or hour_prefix(hour, prefix) != found:
            raise ArchiveError(f"s3://{self.bucket}/{found} is no hour: {prefix} must hold the archive alone")
        return hour

    def _folders(self, prefix: str) -> list[str]:
        found: list[str] = []
        for page in self._pages(Prefix=prefix, Delimiter="/"):
            if lost := [one["Key"] for one in page.get("Contents", ()) if one["Key"] != prefix]:
                raise ArchiveError(f"s3://{self.bucket}/{lost[0]} is in no hour: {prefix} must hold the archive alone")
            found += [one["Prefix"] for one in page.get("CommonPrefixes", ())]
        return found

    def _pages(self, **request: Any) -> Iterator[Any]:
        while True:
            try:
                page = self._s3.list_objects_v2(Bucket=self.bucket, **request)
            except (ClientError, BotoCoreError) as error:
                raise Unavailable(f"ListObjectsV2 s3://{self.bucket}/{request['Prefix']}: {error}") from error
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]


def local_or_environ_archive(environ: Mapping[str, str]) -> Archive:
    """The archive of an operator's command: in the bucket that LIVEINSIGHT_ARCHIVE_BUCKET names, or in that of a
    `make run`, which is on this machine unless ``environ`` sets an endpoint. Raises botocore's errors, or ValueError
    where ``environ`` says too little.
    """
    import boto3
    from botocore.config import Config

    from producer.client import local_engine

    config = Config(connect_timeout=3, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 5})
    there = local_engine(environ, "LIVEINSIGHT_ARCHIVE_BUCKET") or {"region_name": environ.get("AWS_REGION") or None}
    bucket = environ.get("LIVEINSIGHT_ARCHIVE_BUCKET")
    if not bucket:
        sts: Any = boto3.client("sts", config=config, **there)
        bucket = f"liveinsight-local-archive-{sts.get_caller_identity()['Account']}"
    s3: Any = boto3.client("s3", config=config, **there)
    return Archive(s3, bucket)


def hour_of(at: int) -> int:
    """The start (ms) of the UTC hour that ``at`` is in."""
    return at - at % HOUR_MS
