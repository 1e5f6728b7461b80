"""The collector behind granian's RSGI: ``POST /events`` waits for Kinesis on the event loop, without a thread.

Flask answers everything else, in threads. There, too, long bodies are parsed, so that the loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from producer import gateway, posts
from producer.collector import PARSING, Sent, collector_of
from producer.gateway import end
from producer.posts import MAX_BODY_BYTES, MAX_DROPPED_BYTES, Answer, Refused

if TYPE_CHECKING:
    from flask import Flask
    from granian._granian import RSGIHeaders
    from granian._granian import RSGIHTTPProtocol as HTTPProtocol
    from granian.rsgi import Scope

#: A body of at most so many bytes is read and parsed at once. Each connection may have sent that much of one.
_SHORT = 16 * 1024
#: How many bodies that are longer, or may be, are in memory at a time.
_LONG_AT_A_TIME = 64

_log = logging.getLogger("liveinsight.collector")


class CollectorGateway(gateway.Gateway):
    """An RSGI application made of one of :func:`producer.collector.create_app`."""

    def __init__(self, app: Flask, threads: int) -> None:
        self._collector = collector_of(app)
        self._long = asyncio.Semaphore(_LONG_AT_A_TIME)
        self._parsing = asyncio.Semaphore(PARSING)
        super().__init__(app, threads)

    async def __call__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        if scope.method != "POST" or scope.path != "/events":
            await super().__call__(scope, protocol)
            return
        headers = _Headers(scope.headers)
        host = headers.get("host") or scope.authority or ""
        body = _Body(protocol)
        try:
            answer = await self._post(headers, host, body)
        except Refused as refused:
            await body.drop()
            answer = self._collector.refuse(refused)
        except Exception:  # noqa: BLE001 - one request's failure
            _log.exception("request failed: %s %s", scope.method, scope.path)
            answer = posts.internal_error()
        fields = posts.cross_origin(headers, host, self._collector.settings.allowed_origins)
        protocol.response_bytes(
            answer.status,
            [("Content-Type", "application/json"), *fields.items(), *answer.headers.items()],
            answer.body,
        )

    async def _post(self, headers: _Headers, host: str, body: _Body) -> Answer:
        taken = await self._take(headers, host, body)
        return taken if isinstance(taken, Answer) else await self._finish(taken)

    async def _take(self, headers: _Headers, host: str, body: _Body) -> Sent | Answer:
        """Not a part of what waits, so that nothing of the body is held meanwhile."""
        head = self._collector.check(headers, host)
        if head.length is not None and head.length <= _SHORT and not head.packed:
            return self._collector.take(head, await body.whole())
        async with self._long:
            beginning = await body.beginning(MAX_BODY_BYTES)
            async with self._parsing:
                return await self._in_thread(partial(self._collector.take, head, beginning))

    async def _finish(self, sent: Sent) -> Answer:
        loop = asyncio.get_running_loop()
        settled = loop.create_future()
        timer = loop.call_later(self._collector.settings.answer_within, end, settled)
        sent.receipt.when_settled(partial(self._waker.wake, settled))
        await settled
        timer.cancel()
        return self._collector.finish(sent, 0)


class _Headers:
    """A request's headers as :class:`producer.posts.Headers`, which granian gives one by one."""

    __slots__ = ("_get_all",)

    def __init__(self, headers: RSGIHeaders) -> None:
        self._get_all = headers.get_all  # type: ignore[attr-defined]  # missing in granian's stubs

    def get(self, name: str, /) -> str | None:
        values = self._get_all(name)
        return (values[0] if len(values) == 1 else ",".join(values)) if values else None


class _Body:
    """A request's body, read in one of two ways."""

    def __init__(self, protocol: HTTPProtocol) -> None:
        self._protocol = protocol
        self._parts: AsyncIterator[bytes] | None = None
        self._whole = False

    async def whole(self) -> bytes:
        """All of it: for one whose length is known. Empty if the client is gone before its end."""
        self._whole = True
        try:
            return await self._protocol()
        except Exception:  # noqa: BLE001 - granian has its own for each way of going
            return b""

    async def beginning(self, size: int) -> bytes:
        """All of it, or somewhat more than ``size`` bytes of it."""
        body = bytearray()
        while len(body) <= size and (part := await self._part()) is not None:
            body += part
        return bytes(body)

    async def drop(self) -> None:
        """Read what is left of it, within reason."""
        dropped = 0
        while dropped <= MAX_DROPPED_BYTES and (part := await self._part()) is not None:
            dropped += len(part)

    async def _part(self) -> bytes | None:
        if self._whole:
            return None
        # One iterator for both: granian gives no second one.
        self._parts = self._parts or aiter(self._protocol)
        try:
            return await anext(self._parts)  # with a default, anext ends granian 2.8's process
        except StopAsyncIteration:
            return None
