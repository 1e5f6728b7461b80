"""The bucket that holds the functions' packages, and templates too large to be sent with a request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from infra.deploy.package import Package
from infra.deploy.problems import Failed, is_code

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_ABSENT = ("404", "NoSuchBucket", "NoSuchKey", "NotFound")


class CodeBucket:
    """A bucket of this ``account``, by its ``name``. S3 is told the account with each call: bucket names are the whole
    world's, and one that another account has taken must get nothing.
    """

    def __init__(self, client: S3Client, name: str, account: str, region: str, say: Callable[[str], None]) -> None:
        self._client = client
        self.name = name
        self._account = account
        self._region = region
        self._say = say

    def ensure(self) -> None:
        """Make the bucket, private, unless it is there. Raises :class:`Failed` if another account has the name."""
        try:
            self._client.head_bucket(Bucket=self.name, ExpectedBucketOwner=self._account)
            return
        except ClientError as error:
            if is_code(error, "403"):
                raise Failed(
                    f"bucket {self.name} is not yours to use: another account may have the name; give --code-bucket"
                ) from error
            if not is_code(error, *_ABSENT):
                raise
        where: dict[str, Any] = {}
        if self._region != "us-east-1":  # which S3 does not take as a constraint
            where = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        self._client.create_bucket(Bucket=self.name, **where)
        self._client.put_public_access_block(
            Bucket=self.name,
            PublicAccessBlockConfiguration={
                "BlockPublicAcls": True,
                "BlockPublicPolicy": True,
                "IgnorePublicAcls": True,
                "RestrictPublicBuckets": True,
            },
            ExpectedBucketOwner=self._account,
        )
        self._say(f"made bucket {self.name}")

    def upload(self, package: Package) -> bool:
        """Put the package there unless it is; whether it was put."""
        try:
            self._client.head_object(Bucket=self.name, Key=package.key, ExpectedBucketOwner=self._account)
            return False
        except ClientError as error:
            if not is_code(error, *_ABSENT):
                raise
        self._client.put_object(
            Bucket=self.name,
            Key=package.key,
            Body=package.data,
            ContentType="application/zip",
            ExpectedBucketOwner=self._account,
        )
        return True

    def put_template(self, name: str, body: str) -> str:
        """Put a template there; its URL for CloudFormation."""
        data = body.encode()
        key = f"templates/{name}-{hashlib.sha256(data).hexdigest()[:20]}.yaml"
        self._client.put_object(Bucket=self.name, Key=key, Body=data, ExpectedBucketOwner=self._account)
        suffix = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        return f"https://{self.name}.s3.{self._region}.{suffix}/{key}"
