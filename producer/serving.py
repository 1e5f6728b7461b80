"""Serving a Flask application over HTTP: granian, with its snares stepped around.

- A server would share a port that another one has; here a taken port is an error.
- It keeps one place of its backpressure for each open connection, idle ones too, so browsers that hold
  theirs would lock everybody else out. There are places enough here, and idle connections are closed.
- A worker may lock itself up when two signals come at once, and they do: a terminal's Ctrl-C and systemd's
  SIGTERM go to all processes, and then the main process sends one to its workers. A worker heeds the first.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from flask import Flask

#: How many connections a worker holds, most of them idle: browsers keep theirs for minutes.
_CONNECTIONS = 8192
#: When an idle one is closed (s): after a load balancer would have closed it (AWS's: 60 s), or it sends into the void.
_IDLE_SECONDS = 65
#: How much (bytes) of a request's body is read at a time: each connection that sends holds that much.
_READ_AHEAD = 32 * 1024
#: After how many new objects the garbage collector looks for cycles. Requests leave few, and small ones.
_GARBAGE = 10_000


def at_least_one(text: str) -> int:
    """An argparse type: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


def port_number(text: str) -> int:
    """An argparse type: a port, or 0 for a free one."""
    number = int(text)
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{text}: a port is 0 to 65535")
    return number


def free_address(host: str, port: int) -> tuple[str, int]:
    """The numeric address and port to listen on. Raises ValueError if they cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            free: tuple[str, int] = probe.getsockname()[:2]
            return free
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from None


def url_of(address: tuple[str, int]) -> str:
    """The URL of what listens on an address."""
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Gateway(Protocol):
    """An RSGI application that answers with a WSGI one, and ends by itself what does not end."""

    def __call__(self, scope: Any, protocol: Any) -> Any:
        """Answer one request."""

    def stop(self) -> None:
        """The server is about to stop: end every stream. Called in any thread."""


def serve(
    application: str,
    address: tuple[str, int],
    *,
    workers: int,
    threads: int,
    grace: int,
    gateway: Callable[[Flask, int], Gateway] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was begun and return.

    ``application`` names a function ``module:function`` that makes the Flask application, called in each worker;
    ``threads`` is how many requests a worker handles at a time; a worker that is not done ``grace`` s after the
    signal is killed. With a ``gateway``, which is given the application and ``threads``, granian speaks RSGI to that.
    """
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops
    from granian.http import HTTP1Settings
    from granian.log import LogLevels

    server = Granian(
        application,
        address=address[0],
        port=address[1],
        interface=Interfaces.RSGI if gateway else Interfaces.WSGI,
        loop=Loops.asyncio,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=_IDLE_SECONDS * 1000, max_buffer_size=_READ_AHEAD),
        workers=workers,
        blocking_threads=None if gateway else threads,
        backpressure=_room_for(_CONNECTIONS),
        workers_kill_timeout=grace,
        log_level=LogLevels.error,
    )
    server.serve(target_loader=partial(_worker, application, threads, gateway), wrap_loader=False)


def _worker(application: str, threads: int, gateway: Callable[[Flask, int], Gateway] | None) -> Callable[..., Any]:
    """The application of a worker process, which stops at the first SIGTERM and heeds no signal after it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    made: list[Gateway] = []
    stop = (signal.getsignal(signal.SIGTERM), made)
    threading.Thread(target=_stop_once, args=stop, name="stop", daemon=True).start()
    module, _, function = application.partition(":")
    app: Flask = getattr(importlib.import_module(module), function)()
    # Else a fifth of a request's time goes into looking at the modules, and at the requests that wait, again and again.
    gc.freeze()
    gc.set_threshold(_GARBAGE)
    if not gateway:
        return app
    made.append(gateway(app, threads))
    return made[0]


def _stop_once(inherited: object, made: list[Gateway]) -> None:
    signal.sigwait({signal.SIGTERM})
    time.sleep(0.1)  # the main process may have got the same signal, and should know before a worker is gone
    while (handler := signal.getsignal(signal.SIGTERM)) is inherited:
        time.sleep(0.01)  # the server is not yet up
    if made:
        made[0].stop()
        # The event loop's handler is not to be called, it waits for a signal: it gets this one.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    elif callable(handler):
        handler(signal.SIGTERM, None)


def _room_for(connections: int) -> int:
    """How many connections this process may have open, at most ``connections``; raises its limit to that."""
    besides = 256  # files of its own, and connections to AWS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < connections + besides:
        soft = connections + besides if hard == resource.RLIM_INFINITY else min(connections + besides, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - besides, 1)
    return connections
