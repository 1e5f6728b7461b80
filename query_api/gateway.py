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
import io
import logging
import os
import socket
import struct
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from query_api.live import Stream

if TYPE_CHECKING:
    from flask import Flask, Response
    from granian._granian import RSGIHTTPProtocol as HTTPProtocol
    from granian.rsgi import Scope

#: Seconds between two looks at a client that has not yet got what was sent to it.
_UNREAD_PAUSE = 0.25

_Push = Callable[[], Coroutine[Any, Any, None]]

_log = logging.getLogger("liveinsight.query_api.gateway")


@dataclass
class _Request:
    """A request on its way: ``answered`` is done when it is, but for what ``push`` is still to send."""

    scope: Scope
    protocol: HTTPProtocol
    answered: asyncio.Future[None]
    push: _Push | None = None


class Gateway:
    """An RSGI application made of a WSGI one, which handles ``threads`` requests at a time.

    A response whose body is a :class:`~query_api.live.Stream` is sent as its events come. Request bodies are not
    read: the API takes none.
    """

    def __init__(self, app: Flask, threads: int) -> None:
        self._app = app
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._answered: deque[_Request] = deque()
        self._waking = False
        self._connections = Connections()
        self._streams: set[Stream] = set()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        app.after_request(_keep_stream)
        # Not a ThreadPoolExecutor, with which a fifth fewer requests a second are answered from the cache.
        for number in range(threads):
            threading.Thread(target=self._work, name=f"request-{number}", daemon=True).start()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def stop(self) -> None:
        """End every stream, also those that are still to begin. Thread-safe."""
        self._stopping = True
        if self._loop:
            self._loop.call_soon_threadsafe(self._end_streams)

    def _end_streams(self) -> None:
        for stream in self._streams:
            stream.end()

    async def __call__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        request = _Request(scope, protocol, asyncio.get_running_loop().create_future())
        self._requests.put(request)
        await request.answered
        if request.push:
            await request.push()

    def _work(self) -> None:
        while True:
            request = self._requests.get()
            try:
                request.push = self._answer(request.scope, request.protocol)
            except Exception:  # noqa: BLE001 - one request's failure, as under WSGI
                _log.exception("%s %s failed", request.scope.method, request.scope.path)
                request.protocol.response_empty(500, [])
            self._answered.append(request)
            if not self._waking:
                # One call wakes the loop for all who are answered until it runs.
                self._waking = True
                with suppress(RuntimeError):  # the loop is closed: the process ends
                    request.answered.get_loop().call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        self._waking = False
        while self._answered:
            answered = self._answered.popleft().answered
            if not answered.done():
                answered.set_result(None)

    def _answer(self, scope: Scope, protocol: HTTPProtocol) -> _Push | None:
        """Answer a request, whole; of a stream, return what sends it."""
        status = 500
        headers: list[tuple[str, str]] = []

        def start_response(
            given: str, fields: list[tuple[str, str]], exc_info: object = None
        ) -> Callable[[bytes], None]:
            nonlocal status, headers
            status, headers = int(given[:3]), fields
            return _write

        body: Iterable[bytes] = self._app.wsgi_app(_environ(scope), start_response)
        if isinstance(body, Stream):
            return lambda: self._push(protocol, status, headers, body, scope.client)
        try:
            protocol.response_bytes(status, headers, b"".join(body))
        finally:
            if close := getattr(body, "close", None):
                close()
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


def _write(data: bytes) -> None:
    raise NotImplementedError("PEP 3333's write() is for old frameworks; Flask returns its bodies")


def _environ(scope: Scope) -> dict[str, Any]:
    """PEP 3333's environ of a request without a body."""
    address, _, port = scope.server.rpartition(":")
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        # PEP 3333: the bytes of the path, each as one character.
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": address.strip("[]"),
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0].strip("[]"),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        key = name.upper().replace("-", "_")
        key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    # A request in absolute form names its host there.
    environ.setdefault("HTTP_HOST", scope.authority or "")
    return environ
