"""A WSGI application behind granian's RSGI: requests in a few threads, and what waits on the event loop without one.

A request that waits in a thread for something else costs two changes of thread and a fight over the interpreter's lock
when it goes on (each thread asks for it every 5 ms). A subclass answers such requests in tasks of the event loop.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from flask import Flask
    from granian._granian import RSGIHTTPProtocol as HTTPProtocol
    from granian.rsgi import Scope

T = TypeVar("T")

#: What sends the rest of a response, on the event loop.
Push: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_log = logging.getLogger("liveinsight.gateway")


class Waker:
    """Ends futures of one event loop from any thread: one call wakes the loop for all that end until it runs."""

    def __init__(self) -> None:
        self._ended: deque[asyncio.Future[None]] = deque()
        self._waking = False

    def wake(self, future: asyncio.Future[None]) -> None:
        """Let whoever awaits ``future`` go on. Thread-safe; never blocks or raises."""
        self._ended.append(future)
        if not self._waking:
            self._waking = True
            with suppress(RuntimeError):  # the loop is closed: the process ends
                future.get_loop().call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._waking = False
        while self._ended:
            end(self._ended.popleft())


def end(future: asyncio.Future[None]) -> None:
    """Let whoever awaits ``future`` go on, if it does. On the event loop."""
    if not future.done():
        future.set_result(None)


class Gateway:
    """An RSGI application made of a WSGI one, which handles ``threads`` requests at a time.

    Request bodies are not read. A subclass may answer some requests itself, or send what the application returns
    later (:meth:`_later`).
    """

    def __init__(self, app: Flask, threads: int) -> None:
        self._app = app
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._waker = Waker()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Not a ThreadPoolExecutor, with which a fifth fewer requests a second are answered from a cache.
        for number in range(threads):
            threading.Thread(target=self._do_work, name=f"request-{number}", daemon=True).start()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def stop(self) -> None:
        """The server is about to stop. Thread-safe."""

    async def __call__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        push = await self._in_thread(partial(self._answer, scope, protocol))
        if push:
            await push()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises, in one of the threads."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        results: list[T] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                results.append(call())
            except Exception as error:  # noqa: BLE001 - for whoever awaits it
                errors.append(error)
            self._waker.wake(done)

        self._work.put(work)
        await done
        if errors:
            raise errors[0]
        return results[0]

    def _do_work(self) -> None:
        while True:
            self._work.get()()

    def _later(
        self, scope: Scope, protocol: HTTPProtocol, status: int, headers: list[tuple[str, str]], body: Iterable[bytes]
    ) -> Push | None:
        """What sends a response that is not to be sent whole at once. In a thread."""
        return None

    def _answer(self, scope: Scope, protocol: HTTPProtocol) -> Push | None:
        """Answer a request, whole; or return what is to send the response. An error is logged and answered."""
        try:
            return self._ask_application(scope, protocol)
        except Exception:  # noqa: BLE001 - one request's failure, as under WSGI
            _log.exception("%s %s failed", scope.method, scope.path)
            protocol.response_empty(500, [])
            return None

    def _ask_application(self, scope: Scope, protocol: HTTPProtocol) -> Push | None:
        status = 500
        headers: list[tuple[str, str]] = []

        def start_response(
            given: str, fields: list[tuple[str, str]], exc_info: object = None
        ) -> Callable[[bytes], None]:
            nonlocal status, headers
            status, headers = int(given[:3]), fields
            return _write

        body: Iterable[bytes] = self._app.wsgi_app(_environ(scope), start_response)
        if push := self._later(scope, protocol, status, headers, body):
            return push
        try:
            protocol.response_bytes(status, headers, b"".join(body))
        finally:
            if close := getattr(body, "close", None):
                close()
        return None


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
