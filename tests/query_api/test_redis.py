"""Answers shared by server processes through a real Redis, which fails."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flask import Flask

from query_api.caching import Fresh, Packed, Served, Shared, answer_store, make_answer
from stream_consumer.table import Unavailable
from tests.free_ports import free_ports

redis = pytest.importorskip("redis")
pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="there is no redis-server (Debian: apt-get install redis-server)"
)

ROOT = Path(__file__).parents[2]
#: What an answer may take (seconds) while Redis dies: its two timeouts, the patience, and a busy machine.
BOUND = 2.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Server:
    """A Redis of our own, which keeps nothing."""

    def __init__(self, directory) -> None:
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        self._directory = directory
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(400):
            with contextlib.suppress(redis.RedisError):
                if self.client.ping():
                    return
            time.sleep(0.02)
        raise AssertionError("it does not start")

    def send(self, number) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()
    server.client.close()


class Clock:
    """The real time (ms), and what the test has let pass besides."""

    def __init__(self) -> None:
        self.passed = 0

    def __call__(self) -> int:
        return now_ms() + self.passed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def process(clock):
    """Makes what one server process has."""
    made = []

    def one(url) -> Shared:
        made.append(Shared(answer_store(Flask("test"), url, clock), clock, stale_ms=3_600_000, jitter=lambda: 0.0))
        return made[-1]

    yield one
    for shared in made:
        shared.close()


def computing(clock, text, lifetime=60_000):
    def compute() -> Fresh:
        compute.calls += 1
        return Fresh(make_answer(text.encode(), {"X-A": "é"}), clock() + lifetime)

    compute.calls = 0
    return compute


def must_not():
    raise AssertionError("there is a fresh one")


def unavailable():
    raise Unavailable("not now")


def test_what_one_process_computed_another_uses(server, clock, process) -> None:
    now = now_ms()
    program = f"""
from flask import Flask
from query_api.caching import Fresh, Shared, answer_store, make_answer
shared = Shared(answer_store(Flask("test"), "{server.url}"), lambda: {now})
shared.get("a", lambda: Fresh(make_answer(b"theirs", {{"X-A": "\\u00e9"}}), {now} + 60_000))
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    found = process(server.url).get("a", must_not)
    assert found.value == make_answer(b"theirs", {"X-A": "é"})
    assert found.stale == 0
    assert 0 < found.until - now_ms() <= 60_000


def test_what_another_process_refreshed_is_used(server, clock, process) -> None:
    one, other = process(server.url), process(server.url)
    first = one.get("a", computing(clock, "first"))
    assert other.get("a", must_not) == first
    clock.passed += 60_000
    assert other.get("a", computing(clock, "second")).value.body == b"second"
    assert one.get("a", must_not).value.body == b"second"


def test_after_a_restart_an_old_answer_is_given_out_while_dynamodb_fails(server, clock, process) -> None:
    process(server.url).get("a", computing(clock, "old"))
    clock.passed += 60_000 + 5000
    found = process(server.url).get("a", unavailable)
    assert found.value.body == b"old"
    assert 5000 <= found.stale < 60_000


def test_what_redis_holds(server, clock, process) -> None:
    shared = process(server.url)
    served = shared.get("summary blog 1 2", computing(clock, "{}"))
    long = "realtime " + "é" * 3000
    shared.get(long, computing(clock, "{}"))
    assert Packed().loads(server.client.get("liveinsight:summary blog 1 2")) == served
    assert 3650 <= server.client.ttl("liveinsight:summary blog 1 2") <= 3661
    names = server.client.keys()
    assert all(name.startswith(b"liveinsight:") and len(name) < 220 for name in names)
    assert len(names) == 2
    assert process(server.url).get(long, must_not).value.body == b"{}"


def test_garbage_in_redis_is_a_miss_and_is_overwritten(server, clock, process, caplog) -> None:
    for key in "abcd":
        server.client.set(f"liveinsight:{key}", {"a": b"\x80\x04garbage", "b": b"", "c": b"!\x80\x04.", "d": b"1"}[key])
    server.client.rpush("liveinsight:e", "a list")
    shared = process(server.url)
    for key in "abcde":
        assert shared.get(key, computing(clock, "ours")).value.body == b"ours"
        assert process(server.url).get(key, must_not).value.body == b"ours"
    assert caplog.records == []


class Load:
    """Threads that go on asking for answers, each of which is old after 50 ms."""

    def __init__(self, shared, clock) -> None:
        self.slowest = 0.0
        self.answers = 0
        self.errors: list[Exception] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(shared, clock, n)) for n in range(8)]

    def _run(self, shared, clock, place) -> None:
        compute = computing(clock, "body", lifetime=50)
        for turn in range(10**9):
            if self._end.is_set():
                return
            began = time.monotonic()
            try:
                assert shared.get(f"k{(place + turn) % 12}", compute).value.body == b"body"
            except Exception as error:  # noqa: BLE001
                self.errors.append(error)
            lasted = time.monotonic() - began
            with self._lock:
                self.answers += 1
                self.slowest = max(self.slowest, lasted)
            time.sleep(0.002)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *args) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(10)

    def goes_on(self) -> bool:
        """Whether all threads together get some hundred answers more in time."""
        more = self.answers + 300
        for _ in range(1000):
            if self.answers >= more:
                return True
            time.sleep(0.01)
        return False


def test_killed_under_load_it_fails_no_answer_and_restarted_it_is_used_again(server, clock, process, caplog) -> None:
    caplog.set_level(logging.INFO)
    shared = process(server.url)
    with Load(shared, clock) as load:
        assert load.goes_on()
        server.kill()
        assert load.goes_on()
        server.start()
        clock.passed += 3000
        assert load.goes_on()
    assert load.errors == []
    assert load.slowest < BOUND
    answer = shared.get("after", computing(clock, "after"))
    assert process(server.url).get("after", must_not) == answer
    said = [(record.levelname, record.getMessage().split(" (")[0]) for record in caplog.records]
    assert said == [("WARNING", "Redis fails"), ("INFO", "Redis works again")]


def test_frozen_under_load_it_fails_no_answer_and_slows_few(server, clock, process, caplog) -> None:
    shared = process(server.url)
    with Load(shared, clock) as load:
        assert load.goes_on()
        server.send(signal.SIGSTOP)
        assert load.goes_on()
        server.send(signal.SIGCONT)
    assert load.errors == []
    assert load.slowest < BOUND
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_frozen_it_costs_one_timeout_and_then_nothing(server, clock, process) -> None:
    shared = process(server.url)
    shared.get("a", computing(clock, "a"))
    server.send(signal.SIGSTOP)
    began = time.monotonic()
    assert shared.get("b", computing(clock, "b")).value.body == b"b"
    assert time.monotonic() - began < BOUND
    began = time.monotonic()
    for n in range(20):
        shared.get(f"k{n}", computing(clock, "c"))
    assert time.monotonic() - began < 20 * 0.2 / 2
    server.send(signal.SIGCONT)


def test_without_it_from_the_beginning_answers_come_and_are_kept_here(clock, process, caplog) -> None:
    (port,) = free_ports(1)
    shared, compute = process(f"redis://:a-secret@127.0.0.1:{port}"), computing(clock, "ours")
    answers = [shared.get("a", compute) for _ in range(3)]
    assert answers == [Served(make_answer(b"ours", {"X-A": "é"}), answers[0].until)] * 3
    assert compute.calls == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a-secret" not in caplog.text
