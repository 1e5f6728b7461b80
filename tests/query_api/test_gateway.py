"""The gateway in a real server process."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.free_ports import free_ports
from tests.query_api.streaming_app import MOST

ROOT = Path(__file__).parents[2]
THREADS = 4
SERVE = """
import sys
from producer.serving import serve
from query_api.gateway import Gateway
serve("tests.query_api.streaming_app:app", (sys.argv[1], int(sys.argv[2])), workers=1, threads=%d, grace=30,
      gateway=Gateway)
"""


class Server:
    def __init__(self, host="127.0.0.1") -> None:
        self.address = host, free_ports(1)[0]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE % THREADS, host, str(self.address[1])],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.connect().close()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                break

    def connect(self, **options):
        return socket.create_connection(self.address, timeout=20)

    def get(self, path, method="GET", **headers):
        """Status, headers, body."""
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def stream(self, site, receive_buffer=None):
        """A connection on which a stream was asked for."""
        connection = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET)
        connection.settimeout(20)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(self.address)
        connection.sendall(b"GET /stream?site=%s HTTP/1.1\r\nHost: here\r\n\r\n" % site.encode())
        return connection

    def open(self):
        return int(self.get("/open")[2])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.kill()


def until(asked, wanted, seconds=15):
    deadline = time.monotonic() + seconds
    while (found := asked()) != wanted:
        assert time.monotonic() < deadline, f"still {found!r}"
        time.sleep(0.02)


def read_until(connection, wanted):
    got = b""
    while wanted not in got:
        part = connection.recv(65_536)
        assert part, got
        got += part
    return got


def test_the_application_sees_the_request_as_wsgi_says(server) -> None:
    status, _, body = server.get(
        "/environ/caf%C3%A9%20%FF?a=1&b=%20x", **{"X-One": "1", "Content-Type": "text/plain", "Host": "example.com:80"}
    )
    seen = json.loads(body)
    assert status == 200
    assert seen["PATH_INFO"].startswith("/environ/cafÃ© ")
    wanted = {
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": "a=1&b=%20x",
        "HTTP_X_ONE": "1",
        "CONTENT_TYPE": "text/plain",
        "HTTP_HOST": "example.com:80",
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": str(server.address[1]),
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    assert {name: seen.get(name) for name in wanted} == wanted
    assert "HTTP_CONTENT_TYPE" not in seen


def test_headers_that_come_twice_are_one(server) -> None:
    connection = server.connect()
    connection.sendall(b"GET /environ/x HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nX-Two: 2\r\nConnection: close\r\n\r\n")
    assert b'"HTTP_X_TWO":"1,2"' in read_until(connection, b'"SERVER_PROTOCOL"')
    connection.close()


def test_head_has_the_headers_alone(server) -> None:
    status, headers, body = server.get("/body", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "10", b"")


def test_one_connection_carries_many_requests(server) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=20)
    for _ in range(5):
        connection.request("GET", "/body")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"0123456789")
    connection.close()


def test_a_body_that_nobody_reads_spoils_nothing(server) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=20)
    connection.request("GET", "/body", body=b"GET /fails HTTP/1.1\r\n\r\n" * 50)
    assert connection.getresponse().read() == b"0123456789"
    connection.close()
    assert server.get("/body")[0] == 200


def test_what_the_application_raises_is_a_500(server) -> None:
    assert server.get("/fails")[0] == 500
    assert server.get("/body")[0] == 200


def test_a_stream_comes_as_it_happens_and_a_client_that_goes_is_noticed_at_once(server) -> None:
    connection = server.stream("still")
    got = read_until(connection, b"data: ")
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/event-stream" in got
    assert b"retry: 3000\n\n" in got
    assert server.open() == 1
    connection.close()
    until(server.open, 0, seconds=3)  # the stream itself would have sent nothing for an hour


def test_head_of_a_stream_takes_no_place(server) -> None:
    assert server.get("/stream?site=still", "HEAD")[0] == 200
    until(server.open, 0)


def test_streams_far_beyond_the_threads_leave_room_for_requests(server) -> None:
    connections = [server.stream("still") for _ in range(MOST)]
    for connection in connections:
        read_until(connection, b"data: ")
    assert server.get("/body")[2] == b"0123456789"
    assert server.open() == MOST > THREADS
    assert server.get("/stream?site=still")[0] == 429
    for connection in connections:
        connection.close()
    until(server.open, 0)


def states(got):
    return [int(state) for state in re.findall(rb'"state":(\d+)', got)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells what a client has not read on Linux only")
def test_a_client_that_does_not_read_fills_no_memory_and_later_gets_the_newest(server) -> None:
    slow = server.stream("quick", receive_buffer=4096)
    quick = server.stream("quick")
    quick.settimeout(0.2)
    seen, deadline = b"", time.monotonic() + 3
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            seen += quick.recv(1_000_000)
    quick.close()
    assert len(states(seen)) > 50
    newest = states(seen)[-1]
    late, deadline = b"", time.monotonic() + 20
    while not states(late) or states(late)[-1] < newest:
        late += slow.recv(65_536)
        assert time.monotonic() < deadline
    # What was on its way when it stopped to read, and then the newest; of all that was between, nothing.
    assert len([state for state in states(late) if state <= newest]) <= 5
    slow.close()
    until(server.open, 0)


def test_sigterm_ends_streams_at_once() -> None:
    server = Server()
    try:
        connection = server.stream("still")
        read_until(connection, b"data: ")
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        rest = b"x"
        while rest:
            rest = connection.recv(65_536)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - began < 10  # of a grace of 30
        assert server.process.stderr.read() == ""
    finally:
        server.kill()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_stops_it_too(sent) -> None:
    server = Server()
    try:
        read_until(server.stream("still"), b"data: ")
        os.killpg(server.process.pid, sent)
        assert server.process.wait(timeout=20) == 0
    finally:
        server.kill()


def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    server = Server("::1")
    try:
        seen = json.loads(server.get("/environ/x")[2])
        assert (seen["REMOTE_ADDR"], seen["SERVER_NAME"]) == ("::1", "::1")
        connection = server.stream("quick")
        read_until(connection, b"data: ")
        connection.close()
        until(server.open, 0)
    finally:
        server.kill()
