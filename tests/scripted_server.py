"""An HTTP server that does with each request what the next step of a script says, and keeps what came."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What came. Names of headers are in lower case; ``connection`` numbers the connection that it came on."""

    headers: dict[str, str]
    body: bytes
    connection: int


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> bytes:
    """A whole answer of DynamoDB, with its checksum. A header's name has ``_`` for ``-``; with '' it is left out."""
    said = {
        "content_type": "application/x-amz-json-1.0",
        "x_amzn_requestid": "R1",
        "x_amz_crc32": str(zlib.crc32(body)),
        "content_length": str(len(body)),
    } | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in said.items() if value)
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + body


Step = bytes | str | Callable[[Request], bytes]
#: Steps that answer nothing: the connection is reset, or kept waiting.
RESET, SILENCE = "reset", "silence"


@dataclass
class ScriptedServer:
    """``then`` is what is done when the script is at its end. With ``hang_up``, each connection is closed after its
    answer, without a word.
    """

    url: str = ""
    script: deque[Step] = field(default_factory=deque)
    then: Step = field(default_factory=answer)
    hang_up: bool = False
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def play(self, steps: Sequence[Step]) -> None:
        """Forget what came, and do these steps next."""
        self.requests.clear()
        self.script = deque(steps)

    def serve(self, client: socket.socket, number: int) -> None:
        with client, client.makefile("rb") as reader, suppress(OSError):
            while line := reader.readline():
                assert line.startswith(b"POST / HTTP/1.1")
                headers = {}
                while (line := reader.readline()) != b"\r\n":
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                request = Request(headers, reader.read(int(headers["content-length"])), number)
                self.requests.append(request)
                try:
                    step = self.script.popleft()
                except IndexError:
                    step = self.then
                if step == RESET:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if isinstance(step, str):
                    continue
                client.sendall(step if isinstance(step, bytes) else step(request))
                if self.hang_up:
                    return


@contextmanager
def scripted_server(tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """One on a free port of this machine, until the block ends."""
    server = ScriptedServer()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                server.connections += 1
                threading.Thread(target=secure, args=(client, server.connections), daemon=True).start()

    def secure(client: socket.socket, number: int) -> None:
        with suppress(OSError):  # a client that does not trust it ends the handshake
            server.serve(tls.wrap_socket(client, server_side=True) if tls else client, number)

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        server.url = f"{'https' if tls else 'http'}://localhost:{listening.getsockname()[1]}"
        threading.Thread(target=accept, daemon=True).start()
        yield server
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
