"""The Flask application behind granian's RSGI: requests in threads, streams without one.

Under WSGI granian reads a streamed body in one of its threads, until the client has gone. A thousand streams are then
a thousand threads, and these take ordinary requests as well: once some hundred of those wait at a time, the threads
fight over the interpreter's lock (each asks for it every 5 ms) and a sixth of the throughput is left. Here a stream
is a task of the event loop, and requests have their own few threads.

What granian 2.8 does with a stream, and decides the code below:
- It tells of a client that has gone at once (``client_disconnect``); WSGI would at the next chunk.
- It takes every chunk that it is given, without limit and without waiting, so a client that does not read would fill
  the memory. The kernel knows how much of what was sent has not arrived: while there is any, nothing more is sent.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from producer import gateway
from query_api.live import Stream

if TYPE_CHECKING:
    from flask import Flask, Response
    from granian._granian import RSGIHTTPProtocol as HTTPProtocol
    from granian.rsgi import Scope

#: Seconds between two looks at a client that has not yet got what was sent to it.
_UNREAD_PAUSE = 0.25


class Gateway(gateway.Gateway):
    """An RSGI application made of a WSGI one, which handles ``threads`` requests at a time.

    A response whose body is a :class:`~query_api.live.Stream` is sent as its events come. Request bodies are not
    read: the API takes none.
    """

    def __init__(self, app: Flask, threads: int) -> None:
        self._connections = Connections()
        self._streams: set[Stream] = set()
        self._stopping = False
        app.after_request(_keep_stream)
        super().__init__(app, threads)

    def stop(self) -> None:
        """End every stream, also those that are still to begin. Thread-safe."""
        self._stopping = True
        if self._loop:
            self._loop.call_soon_threadsafe(self._end_streams)

    def _end_streams(self) -> None:
        for stream in self._streams:
            stream.end()

    def _later(
        self, scope: Scope, protocol: HTTPProtocol, status: int, headers: list[tuple[str, str]], body: Iterable[bytes]
    ) -> gateway.Push | None:
        if isinstance(body, Stream):
            return partial(self._push, protocol, status, headers, body, scope.client)
        return None

    async def _push(
        self, protocol: HTTPProtocol, status: int, headers: list[tuple[str, str]], stream: Stream, client: str
    ) -> None:
        transport = protocol.response_stream(status, headers)
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def say_ready() -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(ready.set)

        gone = asyncio.ensure_future(protocol.client_disconnect())
        gone.add_done_callback(lambda _: stream.end())
        self._streams.add(stream)
        try:
            if self._stopping:
                stream.end()
            stream.when_ready(say_ready)
            while not stream.over:
                await ready.wait()
                ready.clear()
                while self._connections.unread(client) and not stream.over:
                    await asyncio.sleep(_UNREAD_PAUSE)
                if not stream.over and (chunk := stream.take()):
                    await transport.send_bytes(chunk)
        finally:
            self._streams.discard(stream)
            stream.close()
            gone.cancel()


class Connections:
    """The connections of this process, by the address of the client (``1.2.3.4:5678``, ``[::1]:5678``)."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    def unread(self, client: str) -> int:
        """How many bytes that were sent to a client have not arrived there; 0 where the system does not tell."""
        descriptor = self._descriptors.get(client)
        if descriptor is None or _peer(descriptor) != client:
            self._find()
            descriptor = self._descriptors.get(client)
        if descriptor is None:
            return 0
        try:
            # For a socket this request is SIOCOUTQ (Linux: man 7 tcp).
            (unread,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return 0
        return int(unread)

    def _find(self) -> None:
        with suppress(OSError):  # no such directory here: not Linux
            found = ((_peer(int(name)), int(name)) for name in os.listdir("/proc/self/fd"))
            self._descriptors = {peer: descriptor for peer, descriptor in found if peer}


def _peer(descriptor: int) -> str:
    """The address that a connected socket's other end has; empty if it is no such socket (any more)."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        if borrowed.family not in {socket.AF_INET, socket.AF_INET6}:
            return ""
        host, port = borrowed.getpeername()[:2]
    except OSError:
        return ""
    finally:
        borrowed.detach()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _keep_stream(response: Response) -> Response:
    """Let a stream come out of Flask as it is, and not wrapped into an iterator that waits."""
    if isinstance(response.response, Stream):
        response.direct_passthrough = True
    return response
