"""While what the API stands on fails, whoever has had an answer goes on getting one. LIVEINSIGHT_LONG=1: 20 s of each fault."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from query_api.app import create_app
from query_api.reader import Reader
from query_api.settings import ApiSettings
from tests.builders import an_event
from tests.query_api.stored import NAMES, Consumer, tables
from tests.query_api.test_redis import Server

SECONDS = 20.0 if os.environ.get("LIVEINSIGHT_LONG") else 1.5
CLIENTS = 4
PATHS = (
    "/api/realtime/?site=blog",
    "/api/sessions/active/?site=blog",
    "/api/sessions/s1/?site=blog",
    "/api/sessions/s1/events/?site=blog",
    "/api/statistics/summary/?site=blog",
    "/api/statistics/timeseries/?site=blog&compare=previous",
    "/api/statistics/breakdown/?site=blog&dimension=page",
    "/api/statistics/hourly/?site=blog",
    "/api/sites/",
)
#: What an answer may take at most (s) while an old one stands in: its patience, Redis's timeouts, a busy machine.
BOUND = 2.5


class Failing:
    """DynamoDB's client, whose reads fail as ``fault`` says."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()  # moto is not made for several threads
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            match self.fault:
                case "failing":
                    raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
                case "slow":
                    time.sleep(1.0 + random.random())
                    raise ReadTimeoutError(endpoint_url="http://127.0.0.1:1")
                case "throttling" if random.random() < 0.8:
                    raise ClientError({"Error": {"Code": "ProvisionedThroughputExceededException"}}, name)
            with self._lock:
                return getattr(self._client, name)(**arguments)

        return call


class System:
    """The application with Redis, under load."""

    def __init__(self, client: Any, redis: Server, **settings: float) -> None:
        self.redis = redis
        self.dynamodb = Failing(client)
        reader = Reader(self.dynamodb, NAMES, clock=lambda: time.time_ns() // 1_000_000, readers=4)  # type: ignore[arg-type]
        lifetimes = ApiSettings(NAMES, live_lifetime=0.2, recent_lifetime=0.2, cache_url=redis.url)
        self.app = create_app(reader, lifetimes, **settings)  # type: ignore[arg-type]
        self._reader = reader

    def close(self) -> None:
        self._reader.close()
        for closed in self.app.extensions["liveinsight"]:
            closed.close()

    def under_load(self, seconds: float) -> tuple[Counter[tuple[int, bool]], float]:
        """How many answers there were by (status, marked as stale), and the slowest one's seconds."""
        seen: Counter[tuple[int, bool]] = Counter()
        slowest = [0.0]
        until = time.monotonic() + seconds

        def ask(number: int) -> None:
            http = self.app.test_client()
            while time.monotonic() < until:
                number += 1
                began = time.monotonic()
                answer = http.get(PATHS[number % len(PATHS)])
                slowest[0] = max(slowest[0], time.monotonic() - began)
                seen[answer.status_code, "LiveInsight-Stale" in answer.headers] += 1
                time.sleep(0.002)

        clients = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        return seen, slowest[0]


@pytest.fixture(scope="module")
def stored() -> Iterator[Any]:
    """Tables with a visit that is going on."""
    now = time.time_ns() // 1_000_000
    with tables() as client:
        Consumer(client).consume(
            [an_event(n, timestamp=now - 1000 * n, received_at=now - 1000 * n, seq=n, source="t") for n in (1, 2, 3)]
        )
        yield client


@contextmanager
def a_system(client: Any, directory: Path, **settings: float) -> Iterator[System]:
    redis = Server(directory)
    redis.start()
    made = System(client, redis, **settings)
    yield made
    made.close()
    redis.kill()


@pytest.fixture(scope="module")
def system(stored: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with a_system(stored, tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.mark.sized
@pytest.mark.parametrize("fault", ["failing", "slow", "throttling"])
def test_while_dynamodb_fails_old_answers_stand_in_and_say_so(system: System, fault: str) -> None:
    http = system.app.test_client()
    assert {http.get(path).status_code for path in PATHS} == {200}
    time.sleep(0.3)
    system.dynamodb.fault = fault
    try:
        seen, slowest = system.under_load(SECONDS)
    finally:
        system.dynamodb.fault = ""
    assert {status for status, _ in seen} == {200}, seen
    assert seen[200, True] > 0
    assert slowest < BOUND
    _is_well(system)


@pytest.mark.sized
def test_redis_killed_slows_answers_and_fails_none(stored: Any, tmp_path: Path) -> None:
    # With patience, so that an old answer would be Redis' doing, and not a busy machine's.
    with a_system(stored, tmp_path, patience=60.0, ahead=0.0) as system:
        _is_well(system)
        system.redis.kill()
        seen, slowest = system.under_load(SECONDS)
        assert set(seen) == {(200, False)}, seen
        assert slowest < BOUND
        system.redis.start()
        seen, _ = system.under_load(0.5)
        assert set(seen) == {(200, False)}, seen


@pytest.mark.sized
def test_redis_and_dynamodb_may_both_be_gone(system: System) -> None:
    _is_well(system)
    system.redis.kill()
    system.dynamodb.fault = "failing"
    try:
        seen, slowest = system.under_load(SECONDS)
    finally:
        system.dynamodb.fault = ""
        system.redis.start()
    assert {status for status, _ in seen} == {200}, seen
    assert slowest < BOUND


def test_what_was_never_answered_is_503_with_a_reason(system: System) -> None:
    system.dynamodb.fault = "failing"
    try:
        answer = system.app.test_client().get("/api/statistics/summary/?site=never-asked")
    finally:
        system.dynamodb.fault = ""
    assert answer.status_code == 503
    assert answer.json["error"]["reason"] == "unavailable"
    assert answer.headers["Retry-After"]


def _is_well(system: System) -> None:
    """Within seconds of the fault's end, every answer is fresh again."""
    http = system.app.test_client()
    deadline = time.monotonic() + 15
    for path in PATHS:
        while "LiveInsight-Stale" in (answer := http.get(path)).headers or answer.status_code != 200:
            assert time.monotonic() < deadline, (path, answer.status_code, answer.headers)
            time.sleep(0.05)
