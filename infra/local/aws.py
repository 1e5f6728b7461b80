"""The embedded AWS: moto's server in a process of its own, `python -m infra.local.aws --port 5555`.

moto keeps everything in memory. With ``--state FILE`` its content is read from that file as the resources are
created again, and written to it when the server is told to stop (SIGTERM, SIGINT).

Requests are handled one at a time, under one lock. moto is not made for concurrent writers: two PutRecords at once
can take the same sequence number, and one acknowledged record then replaces the other; two conditional writes of
one item can both find their condition true. (It computes under one GIL, so this costs no speed.)
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from moto.kinesis.models import kinesis_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from infra.local import aws_state, moto_patches

HOST = "127.0.0.1"
#: Seconds between two looks for records that are past the stream's retention.
TRIM_INTERVAL = 600.0

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Server(ThreadingHTTPServer):
    """Serves one WSGI application, one request at a time, over connections that are kept open.

    ``lock`` is held while the application handles a request: who holds it sees all state at rest.
    """

    daemon_threads = True
    # Every client of a `make run` may connect at once.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], app: WsgiApp) -> None:
        self.app = app
        self.lock = threading.Lock()
        super().__init__(address, Handler)


class Handler(BaseHTTPRequestHandler):
    """One connection. werkzeug's own handler closes it after each request; a client then pays for a new one."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def _answer(self) -> None:
        if self.headers.get("Transfer-Encoding"):
            self.send_error(411, explain="A body needs a Content-Length.")
            self.close_connection = True
            return
        # The body is read before the lock is taken, so that a slow client holds up nobody else.
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = ""
        headers: list[tuple[str, str]] = []

        def start_response(given: str, fields: list[tuple[str, str]], exc_info: object = None) -> None:
            nonlocal status, headers
            status, headers = given, fields

        def call() -> bytes:
            return b"".join(self.server.app(self._environ(body), start_response))

        try:
            # ReceiveMessage may wait for 20 s, and moto's queues have locks of their own.
            if self.headers.get("X-Amz-Target", "").startswith("AmazonSQS"):
                content = call()
            else:
                with self.server.lock:
                    content = call()
        except Exception:  # noqa: BLE001 - moto's own fault; as from AWS, the client may try again
            traceback.print_exc()
            status, headers, content = "500 Internal Server Error", [], b'{"__type": "InternalFailure"}'
        # The answer to a HEAD tells the length of what it does not give.
        known = {name.lower(): value for name, value in headers}
        length = known.get("content-length", "0") if self.command == "HEAD" else str(len(content))
        lines = [f"HTTP/1.1 {status}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() not in {"content-length", "connection"}]
        lines += [f"Content-Length: {length}", "", ""]
        self.wfile.write("\r\n".join(lines).encode("latin-1") + content)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer  # noqa: N815 - the names that http.server looks for

    def _environ(self, body: bytes) -> dict[str, Any]:
        url = urlsplit(self.path)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(url.path, "latin-1"),
            "QUERY_STRING": url.query,
            "REQUEST_URI": self.path,
            "RAW_URI": self.path,
            "REMOTE_ADDR": str(self.client_address[0]),
            "SERVER_NAME": HOST,
            "SERVER_PORT": str(self.server.server_port),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in self.headers.items():
            key = name.upper().replace("-", "_")
            environ[key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"] = value
        return environ

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: each of a thousand requests a second would be a line."""


def create_server(port: int) -> Server:
    """The embedded AWS, listening on 127.0.0.1 (``port`` 0: any free port). The caller runs ``serve_forever``.

    Patches moto in this process.
    """
    moto_patches.apply()
    return Server((HOST, port), DomainDispatcherApplication(create_backend_app))


def trim_streams(server: Server, now: float) -> int:
    """Drop the records that are past their stream's retention; returns how many. ``now``: seconds since 1970."""
    with server.lock:
        return sum(
            moto_patches.trim(stream, now)
            for account in kinesis_backends.values()
            for backend in account.values()
            for stream in backend.streams.values()
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.aws", description="The embedded AWS: moto's server.")
    parser.add_argument("--port", type=int, default=5555, help="port on 127.0.0.1 (default %(default)s)")
    parser.add_argument(
        "--state", type=Path, help="file to keep the content in between two runs (default: memory only)"
    )
    options = parser.parse_args(arguments)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = create_server(options.port)
    if options.state:
        aws_state.restore_as_created(options.state, lambda text: print(f"state: {text}", flush=True))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listening on http://{HOST}:{server.server_port}", flush=True)
    while not stop.wait(TRIM_INTERVAL):
        trim_streams(server, time.time())
    # Held to the end: what is acknowledged is saved, and what is not saved is not acknowledged.
    server.lock.acquire()
    if options.state:
        print(aws_state.save(options.state, time.time()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
