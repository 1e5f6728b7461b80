"""A replay that is killed at random moments, and gone on with each time, ends as one that was not."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from producer.client import EventProducer, local_or_environ_kinesis
from stream_consumer.generations import FIRST, move, prefix_of
from stream_consumer.items import read_session
from stream_consumer.merged import HOUR_MS
from stream_consumer.stored_events import read_chunk
from tests.builders import an_event
from tests.fake_dynamodb import bare
from tests.flow.old_stream import keep_old_stream
from tests.flow.running import ROOT
from tests.free_ports import free_ports

pytestmark = pytest.mark.long

KILLS = 20
EVENTS = 4000
NOW = round(time.time() * 1000)
#: The replay's start: a full hour. Events are dated, and said to be received, before and after it.
CUT = NOW - NOW % HOUR_MS - 2 * HOUR_MS


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of an embedded AWS whose stream holds EVENTS events, all of them in the first generation."""
    (port,) = free_ports(1)
    state = tmp_path_factory.mktemp("aws") / "state"
    keep_old_stream(state, timedelta(days=3))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LIVEINSIGHT_"))}
    environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PYTHONPATH": str(ROOT),
    }
    aws = subprocess.Popen(
        [sys.executable, "-m", "infra.local.aws", "--port", str(port), "--state", str(state)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert aws.stdout
        while b"listening" not in aws.stdout.readline():
            assert aws.poll() is None
        stacks = subprocess.run(
            [sys.executable, "-m", "infra.local.stacks"], env=environ, check=True, capture_output=True
        )
        environ["LIVEINSIGHT_STREAM"] = json.loads(stacks.stdout)["StreamName"]
        rng = random.Random(5)
        with pytest.MonkeyPatch.context() as patch:
            for name in (
                "AWS_ENDPOINT_URL",
                "AWS_REGION",
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "LIVEINSIGHT_STREAM",
            ):
                patch.setenv(name, environ[name])
            kinesis, settings = local_or_environ_kinesis(os.environ)
            with EventProducer(settings, kinesis) as producer:
                for number in range(EVENTS):
                    received = CUT + round((number / EVENTS - 0.5) * 2 * HOUR_MS)
                    producer.send(
                        an_event(
                            number,
                            session_id=f"s{number // 100}-{rng.randrange(20)}",
                            user_id=f"u{rng.randrange(300)}",
                            page_url=f"https://example.com/{rng.randrange(40)}",
                            title=rng.randbytes(rng.choice((0, 0, 200))).hex(),  # some outgrow their session's item
                            timestamp=received - rng.choice((0, 0, 3000, 20 * 60_000)),
                            received_at=received,
                        )
                    )
        consume(environ, tmp_path_factory.mktemp("g1"), "")
        yield environ
    finally:
        aws.terminate()
        aws.wait(timeout=20)


def event_source(environ: dict[str, str], state: Path, generation: str) -> subprocess.Popen[bytes]:
    """The event source of a generation. Told to stop, it drains the stream."""
    command = [sys.executable, "-m", "infra.local.event_source", "--stream", environ["LIVEINSIGHT_STREAM"]]
    command += ["--handler", "stream_consumer.lambda_handler.handler", "--state", str(state), "--qualifier", generation]
    command += ["--batch-size", "15"]
    with (state.parent / f"{state.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)


def consume(environ: dict[str, str], state: Path, generation: str) -> None:
    """Bring a generation to the tip of the stream."""
    log = state.parent / f"{state.name}.log"
    said = log.read_text().count("starting behind") if log.exists() else 0
    process = event_source(environ, state, generation)
    deadline = time.monotonic() + 30
    while log.read_text().count("starting behind") == said and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=120) == 0, log.read_text()[-2000:]


def start(environ: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stream_consumer", "replay", "start", *arguments]
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)


def items(environ: dict[str, str], generation: str) -> dict[str, Any]:
    """The sessions and roll-ups of a generation, and its stored events by position."""
    client = boto3.client(
        "dynamodb",
        endpoint_url=environ["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    found: dict[str, Any] = {}
    for table in ("sessions", "rollups", "session-events"):
        for page in client.get_paginator("scan").paginate(TableName=f"liveinsight-local-{table}"):
            for item in page["Items"]:
                pk, prefix = item["pk"]["S"], prefix_of(generation)
                if not pk.startswith(prefix) or (not prefix and pk.startswith("#")):
                    continue
                moved = move(item, generation, FIRST)
                if table == "session-events":
                    found |= dict(read_chunk(moved))
                elif table == "sessions":
                    found |= dict(read_session(moved).events)
                    found[moved["pk"]["S"]] = bare(moved)
                elif moved["pk"]["S"].rpartition("#")[2].isdigit():
                    found[f"{moved['pk']['S']} {moved.get('sk', {}).get('S', '')}"] = moved
    return found


def test_a_replay_that_is_killed_again_and_again_ends_as_one_that_was_not(
    environ: dict[str, str], tmp_path: Path
) -> None:
    at = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(CUT / 1000))
    first = items(environ, "g1")
    assert len(first) > EVENTS
    rng = random.Random()
    killed = {"start": 0, "consuming": 0}
    process = start(environ, "--from", at)
    while killed["start"] < KILLS // 2:
        time.sleep(rng.uniform(0.2, 0.9))
        if process.poll() is not None:
            break
        kill(process)
        killed["start"] += 1
        process = start(environ, "--from", at)
    said, told = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, b"g2\n"), told.decode()
    state = tmp_path / "g2"
    while sum(killed.values()) < KILLS:
        process = event_source(environ, state, "g2")
        time.sleep(rng.uniform(0.5, 2.5))
        kill(process)
        killed["consuming"] += 1
    consume(environ, state, "g2")

    uninterrupted = start(environ, "--from", at, "--another")
    said, told = uninterrupted.communicate(timeout=120)
    assert (uninterrupted.returncode, said) == (0, b"g3\n"), told.decode()
    copied = re.search(rb"copied ([0-9,]+) sessions, ([0-9,]+) chunks of events, ([0-9,]+) roll-ups", told)
    assert copied, told.decode()
    assert all(int(count.replace(b",", b"")) for count in copied.groups()), "there is a base"
    began = time.monotonic()
    consume(environ, tmp_path / "g3", "g3")
    print(f"\nkilled {killed}; an uninterrupted replay takes {time.monotonic() - began:.1f} s")
    second, third = items(environ, "g2"), items(environ, "g3")
    assert second == third
    assert second == first, "and as the serving generation is"
