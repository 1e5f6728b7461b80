"""The simulated tables behind the function's own client: each write is encoded, signed, answered and retried as on AWS."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import botocore.session
import msgspec
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from stream_consumer.signed_writes import SignedWrites
from tests.fake_dynamodb import FakeDynamo, MemoryTables

_METHODS = {"PutItem": "put_item", "BatchWriteItem": "batch_write_item", "DeleteItem": "delete_item"}


class SignedTables(MemoryTables):
    """Those of one simulation at a time, the one that was begun last."""

    def __init__(self, dynamo: FakeDynamo) -> None:
        super().__init__(dynamo)
        _asked.dynamo = dynamo
        self._client: Any = SignedWrites(_asked, Credentials("an-id", "a-secret"), "")


class _Asked:
    """botocore's client for the rules, and a :class:`FakeDynamo` to answer: reads as they are, writes as requests."""

    def __init__(self) -> None:
        self.dynamo = FakeDynamo()
        config = Config(retries={"mode": "standard", "total_max_attempts": 4})
        client = botocore.session.Session().create_client(
            "dynamodb", region_name="us-east-1", endpoint_url="https://dynamodb.invalid", config=config
        )
        client.meta.events.register("before-send.dynamodb", self._answer)
        self.meta, self.exceptions = client.meta, client.exceptions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dynamo, name)

    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        method = _METHODS[request.headers["X-Amz-Target"].rpartition(".")[2]]
        try:
            status, said = 200, getattr(self.dynamo, method)(**_with_bytes(msgspec.json.decode(request.body)))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            status, said = 400, {"__type": f"com.amazonaws#{code}", "message": code, **error.response}
        return AWSResponse(request.url, status, {}, _Raw(msgspec.json.encode(said)))


class _Raw(BytesIO):
    def stream(self) -> Any:
        yield self.read()


def _with_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"B"}:
            return {"B": base64.b64decode(value["B"])}
        return {name: _with_bytes(one) for name, one in value.items()}
    return [_with_bytes(one) for one in value] if isinstance(value, list) else value


_asked = _Asked()
