"""HTTP/1.1 connections to one endpoint that are kept open between requests, a fraction of a general client's cost.

What comes back is read as far as an AWS endpoint, or one that stands in for it, writes it. Errors are botocore's, so
that its rules for retries apply to them.
"""

from __future__ import annotations

import select
import socket
import ssl
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
    SSLError,
)

#: The most bytes of one line of an answer's head.
_LONGEST_LINE = 65_536


class Answer(NamedTuple):
    """What came back, named as botocore's own responses name it. The names of ``headers`` are in lower case."""

    status_code: int
    headers: dict[str, str]
    content: bytes

    @property
    def is_whole(self) -> bool:
        """Whether the content is what DynamoDB's checksum says, if there is one."""
        checksum = self.headers.get("x-amz-crc32")
        return checksum is None or checksum == str(zlib.crc32(self.content))


class KeptConnections:
    """Connections to the host of ``url``, as many as there are threads that need one at a time.

    Timeouts are in seconds, the second one for each wait for bytes. ``authorities`` is the path of the certificates
    that the host's is verified by.
    """

    def __init__(self, url: str, *, connect_timeout: float, read_timeout: float, authorities: str) -> None:
        self._url = url
        self._connect_timeout, self._read_timeout = connect_timeout, read_timeout
        self._authorities = authorities
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._path = parts.path or "/"
        self._secure = parts.scheme == "https"
        self._idle: list[_Connection] = []  # the last one used is the next: most likely it is still open

    def post(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a request and wait for its answer. ``headers`` has all but the length of the body. Raises botocore's
        ``ConnectionError`` where there is no connection, and ``HTTPClientError`` where there was one.
        """
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        head = f"POST {self._path} HTTP/1.1\r\n{''.join(lines)}Content-Length: {len(body)}\r\n\r\n"
        connection = self._take()
        try:
            answer = connection.exchange(head.encode("latin-1") + body)
        except BaseException as error:
            connection.close()  # whatever else comes on it may be the answer to this
            if isinstance(error, TimeoutError):
                raise ReadTimeoutError(endpoint_url=self._url, error=error) from error
            if isinstance(error, OSError):
                raise ConnectionClosedError(endpoint_url=self._url, error=error) from error
            if isinstance(error, ValueError):
                raise HTTPClientError(error=error) from error
            raise
        if connection.stays_open:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _take(self) -> _Connection:
        # Threads share the list; taking the last of it is one step, looking first whether there is one would be two.
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if connection.is_quiet:
                    return connection
                connection.close()
        return _Connection(self._open())

    def _open(self) -> socket.socket:
        try:
            opened = socket.create_connection((self._host, self._port), self._connect_timeout)
        except TimeoutError as error:
            raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=self._url, error=error) from error
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._secure:
                opened = self._tls.wrap_socket(opened, server_hostname=self._host)
            opened.settimeout(self._read_timeout)
        except OSError as error:
            opened.close()
            if isinstance(error, TimeoutError):
                raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
            raise SSLError(endpoint_url=self._url, error=error) from error
        return opened

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._authorities)


class _Connection:
    """One connection, with at most one request on its way."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._reader: BinaryIO = opened.makefile("rb")
        self._poll = select.poll()
        self._poll.register(opened, select.POLLIN)
        self.stays_open = True

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has come since the last answer: what comes unasked is the connection's end."""
        return not self._poll.poll(0)

    def exchange(self, request: bytes) -> Answer:
        """Send a request, read its answer. Raises OSError, ValueError for what is no HTTP."""
        self._socket.sendall(request)
        version, status, *_ = self._line().split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(f"no HTTP/1 answer: {version!r}")
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        said = headers.get("connection", "").lower()
        self.stays_open = said == "keep-alive" if version == "HTTP/1.0" else said != "close"
        return Answer(int(status), headers, self._content(headers))

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def _content(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self._line().partition(";")[0], 16):
                chunks.append(self._bytes(size))
                self._line()
            while self._line():
                pass
            return b"".join(chunks)
        if "content-length" in headers:
            return self._bytes(int(headers["content-length"]))
        self.stays_open = False
        return self._reader.read()

    def _line(self) -> str:
        line = self._reader.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise ConnectionError("the connection was closed before its answer was whole")
        return line.decode("latin-1").rstrip("\r\n")

    def _bytes(self, size: int) -> bytes:
        found = self._reader.read(size)
        if len(found) < size:
            raise ConnectionError("the connection was closed before its answer was whole")
        return found
