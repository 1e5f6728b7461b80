"""A replay on a running system: under traffic, with a client that polls all the time."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from unittest import mock

import pytest

from stream_consumer import __main__ as cli
from tests.flow.old_stream import keep_old_stream
from tests.flow.running import Running, running

#: Events in a second, about.
RATE = 20


class Client:
    """Polls an answer all the time, and keeps what it got: (status, generation, JSON)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = threading.Event()
        self.answers: list[tuple[int, str, Any]] = []
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stopped.wait(0.02):
            try:
                with urllib.request.urlopen(self._url, timeout=10) as answer:
                    self.answers.append((answer.status, answer.headers["LiveInsight-Generation"], json.load(answer)))
            except OSError as error:
                self.answers.append((getattr(error, "code", 0), "", str(error)))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("replay")
    # Older than its retention, as a stream is that has been in use; and no more of a past to send than is sent meanwhile.
    keep_old_stream(directory / "aws-state", timedelta(days=3), idle=timedelta(minutes=5))
    with running(directory, DEMO="1", DEMO_RATE=str(RATE)) as found:
        yield found


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def command(system: Running, *arguments: str) -> Done:
    """An operator's command against the running system; in this process, as a new one takes longer than most of them."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, system.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = cli.main(arguments)
    return Done(status, out.getvalue(), err.getvalue())


def replay(system: Running, *arguments: str) -> Done:
    return command(system, "replay", *arguments)


def status_of(system: Running, generation: str) -> dict[str, Any]:
    facts = json.loads(replay(system, "status", generation, "--json").stdout)
    return facts["generations"][0]


@pytest.mark.long
def test_the_last_hour_is_replayed_promoted_rolled_back_and_dropped_while_a_client_polls(system: Running) -> None:
    began = round(time.time() * 1000)
    for number in range(200):
        system.post({"site_id": "fixed", "event_type": "page_view", "session_id": f"s{number % 20}", "page_url": "/a"})
    span = f"from={began - 3_600_000}&to={began + 3_600_000}"
    fixed = f"{system.api}/api/statistics/summary/?site=fixed&{span}"
    system.until(lambda: system.get(fixed[len(system.api) :])["page_views"], lambda count: count == 200, 10)
    live = f"{system.api}/api/statistics/timeseries/?site=default&interval=hour&metrics=events,sessions&{span}"
    system.until(lambda: system.get(live[len(system.api) :])["totals"]["events"], lambda count: count > 100, 30)
    with Client(fixed) as still, Client(live) as moving:
        started = replay(system, "start", "--from", "1h")
        assert (started.returncode, started.stdout) == (0, "g2\n"), started.stderr
        assert status_of(system, "g2")["start"].endswith(":00:00Z"), "it is not all that the stream ever held"
        system.until(lambda: status_of(system, "g2")["behind"], lambda behind: behind < 1, 60)
        # A busy machine may never catch the current quarter of both at the same position: then it is asked again.
        for _ in range(6):
            diff = replay(system, "diff", "g2")
            assert diff.stdout.startswith("0 of "), diff.stdout + diff.stderr
            assert " and 0 of " in diff.stdout
            if diff.returncode == 0:
                break
        assert diff.returncode == 0 or "1 items did not come to rest" in diff.stdout, diff.stdout
        promoted = replay(system, "promote", "g2")
        assert promoted.returncode == 0, promoted.stderr
        system.until(lambda: still.answers[-1][1], lambda generation: generation == "g2", 5)
        time.sleep(1)
        assert replay(system, "rollback").returncode == 0
        system.until(lambda: still.answers[-1][1], lambda generation: generation == "g1", 5)
        assert replay(system, "promote", "g2").returncode == 0
        system.until(lambda: still.answers[-1][1], lambda generation: generation == "g2", 5)
        dropped = replay(system, "drop", "g1")
        assert (dropped.returncode, dropped.stdout) == (0, "g1 is dropped\n"), dropped.stderr
        time.sleep(1)
    for client in (still, moving):
        assert len(client.answers) > 50
        assert {status for status, _, _ in client.answers} == {200}
        assert {generation for _, generation, _ in client.answers} == {"g1", "g2"}
    constant = ("page_views", "total_sessions", "visitors", "bounce_rate", "avg_session_time", "conversions")
    assert len({tuple(told[name] for name in constant) for _, _, told in still.answers}) == 1
    counts = [told["totals"]["events"] for _, _, told in moving.answers]
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert counts[-1] > counts[0] > 100
    print(f"\n{len(counts)} polls, least step {min(steps)}, greatest {max(steps)}")
    # A generation may be behind the other one by what is under way, no more: a part of a second's traffic.
    assert min(steps) > -RATE


@pytest.mark.long
def test_an_erased_visitor_is_in_no_generation_and_a_later_replay_brings_nobody_back(system: Running) -> None:
    def views() -> int:
        return int(system.get("/api/statistics/summary/?site=forgetful")["page_views"])

    for number in range(6):
        system.post(
            {
                "site_id": "forgetful",
                "event_type": "page_view",
                "session_id": f"visit-{number % 3}",
                "user_id": "mia" if number % 3 else "ben",
                "page_url": "/private" if number % 3 else "/public",
            }
        )
    system.until(views, lambda count: count == 6, 10)
    done = command(system, "erase", "--site", "forgetful", "--user", "mia")
    assert done.returncode == 0, done.stdout + done.stderr
    system.until(views, lambda count: count == 2, 10)
    assert system.status("/api/sessions/visit-1/?site=forgetful") == 404
    assert system.get("/api/users/mia/sessions/?site=forgetful")["count"] == 0
    started = replay(system, "start", "--from", "TRIM_HORIZON")
    generation = started.stdout.strip()
    assert started.returncode == 0, started.stderr
    system.until(lambda: status_of(system, generation)["behind"], lambda behind: behind < 1, 60)
    assert replay(system, "promote", generation).returncode == 0
    time.sleep(2)
    assert views() == 2
    assert system.status("/api/sessions/visit-1/?site=forgetful") == 404
    assert system.get("/api/statistics/pages/?site=forgetful")[0]["page"] == "/public"
