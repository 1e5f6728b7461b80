"""S3 in memory, as far as the archive calls it; listings come in pages of two."""

from __future__ import annotations

import io
from typing import Any

from botocore.exceptions import ClientError


class FakeS3:
    """A bucket. ``refused`` counts down: that many calls fail."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.got: list[str] = []
        self.listed: list[str] = []
        self.refused = 0

    def list_objects_v2(
        self, *, Bucket: str, Prefix: str, Delimiter: str = "", ContinuationToken: str = ""
    ) -> dict[str, Any]:
        self._called("ListObjectsV2")
        self.listed.append(Prefix)
        names = set()
        for key in self.objects:
            if key.startswith(Prefix):
                end = key.find(Delimiter, len(Prefix)) if Delimiter else -1
                names.add(key if end < 0 else key[: end + 1])
        left = sorted(name for name in names if name > ContinuationToken)
        page = left[:2]
        more = {"IsTruncated": True, "NextContinuationToken": page[-1]} if left[2:] else {"IsTruncated": False}
        folders = [{"Prefix": name} for name in page if name not in self.objects]
        return {
            "Contents": [{"Key": name} for name in page if name in self.objects],
            "CommonPrefixes": folders,
            **more,
        }

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        self._called("GetObject")
        self.got.append(Key)
        return {"Body": io.BytesIO(self.objects[Key])}

    def _called(self, operation: str) -> None:
        if self.refused:
            self.refused -= 1
            raise ClientError({"Error": {"Code": "SlowDown"}}, operation)
