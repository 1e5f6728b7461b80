"""The process that a Lambda handler runs in: warm between invocations, killed at the timeout.

As in one of Lambda's execution environments, the handler's module is imported once, events go in and
responses come out as JSON, one at a time, and an exception fails the invocation but keeps the process.
A hung handler is ended by the operating system, so nothing of it runs on beside the retry.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from infra.local.shard_mapping import Answered, FunctionError, NotInvoked, Outcome, SettingsError

#: Seconds that the import of the handler's module may take; its own timeout counts from the event on.
INIT_TIMEOUT = 60.0


@dataclass(frozen=True)
class FunctionSettings:
    """The Lambda function: ``handler`` is "package.module.function", ``timeout`` is seconds for one batch.

    ``qualifier`` is the alias that is invoked, as the function's ARN says to it; '' for none.
    """

    handler: str
    name: str = "local-function"
    timeout: float = 120.0
    memory_mb: int = 1024
    qualifier: str = ""

    def __post_init__(self) -> None:
        if not all(part.isidentifier() for part in self.handler.split(".")) or "." not in self.handler:
            raise SettingsError(f"handler is {self.handler!r}; must be package.module.function")
        if self.timeout <= 0:
            raise SettingsError(f"the function's timeout is {self.timeout} s; must be more than 0")


class Function(Protocol):
    """Something that invocations of one shard can be sent to, one at a time."""

    def start(self) -> None:
        """Get ready, so that the first invocation need not wait. What goes wrong is for :meth:`invoke` to tell."""

    def invoke(self, event: bytes, request_id: str, arn: str) -> Outcome:
        """Run the handler on the event (JSON) and wait for how it went. Never raises for what the handler does."""

    def kill(self) -> None:
        """End what runs, from another thread: :meth:`invoke` then returns soon."""

    def close(self) -> None:
        """Let go of everything. Not while :meth:`invoke` runs."""


class WorkerProcess:
    """A :class:`Function` whose handler runs in a process of its own; one that ended is replaced when needed."""

    def __init__(self, settings: FunctionSettings) -> None:
        self._settings = settings
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        with contextlib.suppress(_NotStarted, _Failed):
            self._ready()

    def invoke(self, event: bytes, request_id: str, arn: str) -> Outcome:
        settings = self._settings
        invocation = {
            "function_name": settings.name,
            "invoked_function_arn": arn,
            "memory_limit_in_mb": settings.memory_mb,
            "aws_request_id": request_id,
            "timeout": settings.timeout,
        }
        try:
            self._ready()
            reply = self._exchange(settings.timeout, json.dumps(invocation).encode(), event)
        except _NotStarted as error:
            return NotInvoked(f"the worker process did not start: {error}")
        except _Failed as error:
            return FunctionError(request_id, error.kind, error.detail)
        return Answered(request_id, reply["response"])

    def kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        # The end of its pipe ends an idle worker; one that lingers has nothing left to do.
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(1.0)
        self._discard()

    def _ready(self) -> None:
        """A process that has imported the handler."""
        if self._process is None or not self._process.is_alive():
            self._start()
            self._exchange(INIT_TIMEOUT)

    def _start(self) -> None:
        self._discard()
        # Spawned, not forked: the threads of this process and their locks have no place in the handler's.
        context = multiprocessing.get_context("spawn")
        self._connection, childs_end = context.Pipe()
        process = context.Process(target=serve, args=(childs_end, self._settings.handler), daemon=True)
        try:
            process.start()
        except OSError as error:
            raise _NotStarted(error) from error
        finally:
            # Held by the child alone, so that its death shows as the end of the pipe.
            childs_end.close()
        self._process = process

    def _exchange(self, limit: float, *messages: bytes) -> dict[str, Any]:
        """Send the messages and wait for the reply; after ``limit`` seconds the process is killed."""
        connection, expired = self._connection, threading.Event()
        assert connection is not None

        def expire() -> None:
            expired.set()
            self.kill()

        # A timer rather than a bounded wait: sending to a process that does not read may block as well.
        timer = threading.Timer(limit, expire)
        timer.start()
        try:
            for message in messages:
                connection.send_bytes(message)
            reply: dict[str, Any] = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            code = self._discard()
            if expired.is_set():
                raise _Failed("Sandbox.Timedout", f"Task timed out after {limit:.2f} seconds") from None
            raise _Failed("Runtime.ExitError", f"the worker process ended with exit code {code}") from None
        finally:
            timer.cancel()
            timer.join()
        if expired.is_set() or reply.get("exits"):
            self._discard()
        if "error" in reply:
            raise _Failed(reply["error"], reply["detail"])
        return reply

    def _discard(self) -> int | None:
        """Be rid of the process, if any; its exit code."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        # It has closed its pipe, so it ends by itself, and then its own exit code is worth knowing.
        process.join(1.0)
        process.kill()
        process.join()
        return process.exitcode


class _NotStarted(Exception):  # noqa: N818 - goes no further than this module
    pass


class _Failed(Exception):  # noqa: N818 - goes no further than this module
    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


class LambdaContext:
    """What Lambda's Python runtime passes as ``context``."""

    def __init__(self, invocation: dict[str, Any]) -> None:
        self.function_name: str = invocation["function_name"]
        self.function_version = "$LATEST"
        self.invoked_function_arn: str = invocation["invoked_function_arn"]
        self.memory_limit_in_mb: int = invocation["memory_limit_in_mb"]
        self.aws_request_id: str = invocation["aws_request_id"]
        self.log_group_name = f"/aws/lambda/{self.function_name}"
        self.log_stream_name = f"local/[$LATEST]{os.getpid()}"
        self.identity = None
        self.client_context = None
        self.tenant_id = None
        self._deadline = time.monotonic() + invocation["timeout"]

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._deadline - time.monotonic()) * 1000))


def serve(connection: Connection, handler_name: str) -> None:
    """The worker process: import the handler, then answer invocations until the pipe ends."""
    # Signals go to whole process groups, but the batch in flight is the event source's to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()
    # An orphan's last reply has no reader; that is no error of the handler's.
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            handler = _load(handler_name)
        except Exception as error:  # noqa: BLE001 - whatever a module does at its import
            _reply(connection, {**_described(error), "exits": True})
            return
        _reply(connection, {})
        while True:
            invocation = json.loads(connection.recv_bytes())
            event = json.loads(connection.recv_bytes())
            _reply(connection, _run(handler, event, LambdaContext(invocation)))


def _run(handler: Callable[[Any, Any], object], event: Any, context: LambdaContext) -> dict[str, Any]:
    try:
        response = handler(event, context)
    except Exception as error:  # noqa: BLE001 - a handler's errors are the mapping's to retry
        return _described(error)
    try:
        return {"response": json.loads(json.dumps(response))}
    except (TypeError, ValueError, RecursionError) as error:
        return {"error": "Runtime.MarshalError", "detail": f"the response is no JSON: {error}"}


def _load(handler_name: str) -> Callable[[Any, Any], object]:
    module, _, function = handler_name.rpartition(".")
    loaded: Callable[[Any, Any], object] = getattr(importlib.import_module(module), function)
    return loaded


def _described(error: Exception) -> dict[str, Any]:
    return {"error": type(error).__name__, "detail": "".join(traceback.format_exception(error)).rstrip()}


def _reply(connection: Connection, reply: dict[str, Any]) -> None:
    # What the handler printed (its metrics, in EMF) must not wait in a buffer that a kill would lose.
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send_bytes(json.dumps(reply).encode())


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
