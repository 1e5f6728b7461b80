"""The served collector when more comes than it can take: it says so, it goes on, and its memory is bounded."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.bench_collector import Server, environ_for, server
from tests.benchmarks.stub_aws import stub

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")

WAITING = 200
LONG = 1_000_000


@contextmanager
def collector(delay: float, **settings: str) -> Iterator[Server]:
    """One whose calls to Kinesis take ``delay`` s."""
    with stub(delay=delay) as aws, server(["-m", "producer", "collector"], environ_for(aws.url, **settings)) as made:
        yield made


@pytest.fixture(scope="module")
def slow() -> Iterator[Server]:
    """Each event waits so long that many do at the same time."""
    with collector(0.2, LIVEINSIGHT_LINGER_SECONDS="1") as made:
        yield made


def post(made: Server, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=30)
    try:
        connection.request("POST", "/events", body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def health(made: Server) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=10)
    try:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def until(made: Server, waiting: int) -> None:
    """Return when so many requests wait for Kinesis."""
    deadline = time.monotonic() + 10
    while (found := health(made)["waiting"]) != waiting:
        assert time.monotonic() < deadline, f"{found} wait"
        time.sleep(0.02)


def sent(made: Server, data: bytes) -> socket.socket:
    """A connection on which that was sent."""
    connection = socket.create_connection(("127.0.0.1", made.port), timeout=30)
    connection.sendall(data)
    return connection


def answer_on(connection: socket.socket) -> tuple[int, str | None]:
    """Its status, and the reason of a refusal."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read()).get("reason")


def request(body: bytes, length: int | None = None) -> bytes:
    return b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (length or len(body), body)


def test_requests_that_wait_for_kinesis_need_no_thread_and_are_all_answered(slow: Server) -> None:
    with ExitStack() as open_ones:
        threads = slow.threads()
        connections = [
            open_ones.enter_context(sent(slow, request(b'{"event_type": "x", "event_id": "%d"}' % number)))
            for number in range(WAITING)
        ]
        until(slow, WAITING)
        assert slow.threads() <= threads + 1
        for number, connection in enumerate(connections):
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, json.loads(answer.read())["event_id"]) == (200, str(number))
        assert health(slow)["waiting"] == 0


def test_a_client_that_goes_away_leaves_nobody_waiting_and_its_event_on_the_stream(slow: Server) -> None:
    before = health(slow)["events_acknowledged"]
    connection = sent(slow, request(b'{"event_type": "x"}'))
    until(slow, 1)
    connection.close()
    until(slow, 0)
    assert health(slow)["events_acknowledged"] == before + 1


def test_clients_that_send_long_bodies_slowly_keep_nobody_else_out(slow: Server) -> None:
    with ExitStack() as open_ones:
        for _ in range(100):
            open_ones.enter_context(sent(slow, request(b"[", LONG)))
        assert post(slow, b'{"event_type": "x"}')[0] == 200
        assert health(slow)["status"] == "ok"


def test_what_the_stream_does_not_take_is_refused_and_not_kept() -> None:
    """Twenty times the buffer comes at once, while Kinesis is slow."""
    batch = json.dumps([{"event_type": "x", "title": "y" * 400, "session_id": str(number)} for number in range(200)])
    buffer = 2 * 2**20
    with collector(1, LIVEINSIGHT_MAX_BUFFER_BYTES=str(buffer)) as made, ExitStack() as open_ones:
        before = made.memory("VmRSS")
        connections = [
            open_ones.enter_context(sent(made, request(batch.encode()))) for _ in range(20 * buffer // len(batch))
        ]
        answers = Counter(answer_on(connection) for connection in connections)
        assert made.memory("VmHWM") - before < 80  # without a bound it is twice that
        assert answers.keys() == {(200, None), (503, "buffer_full")}
        assert answers[503, "buffer_full"] > len(connections) / 2
        assert health(made)["bytes_buffered"] == health(made)["waiting"] == 0
