"""An AWS that answers at once, or after a fixed delay, in a process of its own: what a benchmark's client talks to.

It speaks the JSON protocol of DynamoDB and Kinesis as far as LiveInsight and its peers call them, and remembers items
by key, so that what was put can be read. It judges nothing: conditions hold, throughput has no limit, signatures are not
looked at. So what is measured against it is the client's own cost, and how it bears the delay.

    with stub(delay=0.004) as aws:
        client = boto3.client("dynamodb", endpoint_url=aws.url, ...)
"""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_TARGET = re.compile(rb"(?i)\r\nx-amz-target: *[\w.]*\.(\w+)")
#: The key attributes of every table here.
_KEYS = ("pk", "sk")


class Items:
    """What was put, by table and key, and how many calls of each operation came."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._tables: dict[str, dict[tuple[str, ...], Any]] = {}
        self._records = 0
        self._answers: dict[str, Callable[[Any], Any]] = {
            "PutItem": self._put_item,
            "UpdateItem": lambda _: {},
            "DeleteItem": lambda _: {},
            "BatchWriteItem": self._batch_write_item,
            "BatchGetItem": self._batch_get_item,
            "PutRecord": lambda _: self._record(),
            "PutRecords": self._put_records,
            "PutMetricData": lambda _: {},
            "Forget": self._forget,
            "Calls": lambda _: self.calls,
        }

    def answer(self, operation: str, asked: bytes) -> bytes:
        """The body of the answer."""
        if operation not in {"Forget", "Calls"}:
            self.calls[operation] += 1
        return msgspec.json.encode(self._answers[operation](msgspec.json.decode(asked)))

    def _put_item(self, asked: Any) -> Any:
        self._put(asked["TableName"], asked["Item"])
        return {}

    def _batch_write_item(self, asked: Any) -> Any:
        for table, requests in asked["RequestItems"].items():
            for request in requests:
                if "PutRequest" in request:
                    self._put(table, request["PutRequest"]["Item"])
        return {"UnprocessedItems": {}}

    def _batch_get_item(self, asked: Any) -> Any:
        answers = {}
        for table, wanted in asked["RequestItems"].items():
            rows = self._tables.get(table, {})
            answers[table] = [rows[key] for key in map(_key, wanted["Keys"]) if key in rows]
        return {"Responses": answers, "UnprocessedKeys": {}}

    def _put_records(self, asked: Any) -> Any:
        return {"FailedRecordCount": 0, "Records": [self._record() for _ in asked["Records"]]}

    def _record(self) -> Any:
        self._records += 1
        return {"SequenceNumber": str(self._records), "ShardId": "shardId-000000000000"}

    def _put(self, table: str, item: Any) -> None:
        self._tables.setdefault(table, {})[_key(item)] = item

    def _forget(self, _: Any) -> Any:
        self._tables.clear()
        self.calls.clear()
        return {}


def _key(item: Any) -> tuple[str, ...]:
    return tuple(item[name]["S"] for name in _KEYS if name in item)


class _Connection(asyncio.Protocol):
    """One client's connection, kept open; requests that came together are answered in order."""

    def __init__(self, items: Items, delay: float) -> None:
        self._items, self._delay = items, delay
        self._got = b""

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (end := self._got.find(_HEAD_END)) >= 0:
            head, after = self._got[:end], end + len(_HEAD_END)
            length = _LENGTH.search(head)
            whole = after + int(length[1] if length else 0)
            if len(self._got) < whole:
                return
            target = _TARGET.search(head)
            body, self._got = self._got[after:whole], self._got[whole:]
            answer = self._items.answer(target[1].decode() if target else "Calls", body or b"{}")
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._send, answer)
            else:
                self._send(answer)

    def _send(self, answer: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nx-amzn-RequestId: stub\r\n"
            b"x-amz-crc32: %d\r\nContent-Length: %d\r\n\r\n%b" % (zlib.crc32(answer), len(answer), answer)
        )


@dataclass(frozen=True)
class Stub:
    """A stub that runs. ``url`` is an endpoint for boto3."""

    url: str

    def forget(self) -> None:
        """Forget all items and calls."""
        self._ask("Forget")

    def calls(self) -> dict[str, int]:
        """How often each operation was called since the start, or :meth:`forget`."""
        found: dict[str, int] = msgspec.json.decode(self._ask("Calls"))
        return found

    def _ask(self, operation: str) -> bytes:
        from http.client import HTTPConnection

        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        try:
            connection.request("POST", "/", b"{}", {"X-Amz-Target": f"Stub.{operation}"})
            return connection.getresponse().read()
        finally:
            connection.close()


@contextmanager
def stub(*, delay: float = 0.0, core: int | None = None) -> Iterator[Stub]:
    """One that answers ``delay`` s after a request came, until the block ends. ``core``: the only one that it runs on,
    where the system lets one choose.
    """
    command = [sys.executable, "-m", "tests.benchmarks.stub_aws", str(delay), "" if core is None else str(core)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout
        port = process.stdout.readline().strip()
        assert port, "the stub did not start"
        yield Stub(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


async def _serve(delay: float) -> None:
    items = Items()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(items, delay), "127.0.0.1", 0, backlog=2048
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import os

    if sys.argv[2] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[2])})
    asyncio.run(_serve(float(sys.argv[1])))
