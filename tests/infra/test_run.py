"""`python -m infra.local`: what it refuses, how it starts, watches and stops, and the whole of it at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.local import reaper
from infra.local.__main__ import RunSettings, aws_environ
from tests.free_ports import free_ports

ROOT = Path(__file__).parents[2]


def environ(**more: str) -> dict[str, str]:
    """This process's environment without anything that a run reads from it."""
    mine = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "LIVEINSIGHT_", "DEMO")) and not name.endswith("_PORT") and name != "FRESH"
    }
    return mine | more


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "infra.local", *arguments],
        check=False,
        cwd=ROOT,
        env=environ(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("variable", ["COLLECTOR_PORT", "QUERY_PORT", "AWS_PORT"])
def test_a_taken_port_is_a_clear_error_before_anything_starts(tmp_path: Path, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = dict(zip(("COLLECTOR_PORT", "QUERY_PORT", "AWS_PORT"), map(str, free_ports(3)), strict=True))
        done = run(LIVEINSIGHT_DIR=str(tmp_path / "d"), **(ports | {variable: str(port)}))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 cannot be had" in done.stderr
    assert f"set {variable} " in done.stderr
    assert not (tmp_path / "d" / "logs").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--collector-port", "9000", "--query-port", "9000"], "COLLECTOR_PORT=9000: another service"),
        (["--aws-port", "0"], "AWS_PORT=0 is not a port"),
        (["--aws-port", "65536"], "AWS_PORT=65536 is not a port"),
        (["--demo", "maybe"], "argument --demo: invalid int value: 'maybe'"),
        (["--demo-rate", "-1"], "DEMO_RATE=-1.0"),
        (["--demo-rate", "nan"], "DEMO_RATE=nan"),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_clear_error(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run("--dir", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_settings_come_from_the_environment_and_arguments_win() -> None:
    variables = {
        "COLLECTOR_PORT": "1",
        "QUERY_PORT": "2",
        "AWS_PORT": "3",
        "DEMO_RATE": "4",
        "FRESH": "1",
        "ARCHIVE": "1",
    }
    settings = RunSettings.from_environ({**variables, "LIVEINSIGHT_DIR": "elsewhere"}, ["--query-port", "20"])
    assert settings == RunSettings(1, 20, 3, 4.0, True, Path("elsewhere"), None, True)
    assert RunSettings.from_environ({"DEMO": "0"}, []).demo_rate == 0
    assert RunSettings.from_environ({"DEMO": "", "COLLECTOR_PORT": ""}, []) == RunSettings()
    assert RunSettings.from_environ({"AWS_ENDPOINT_URL": "http://a:1"}, []).endpoint == "http://a:1"


def test_help_names_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        RunSettings.from_environ({}, ["--help"])
    shown = capsys.readouterr().out
    for variable in (
        "COLLECTOR_PORT QUERY_PORT AWS_PORT DEMO DEMO_RATE ARCHIVE FRESH LIVEINSIGHT_DIR AWS_ENDPOINT_URL".split()  # noqa: SIM905
    ):
        assert variable in shown


def test_real_credentials_never_reach_the_embedded_aws() -> None:
    mine = {
        "AWS_ACCESS_KEY_ID": "real",
        "AWS_SECRET_ACCESS_KEY": "real",
        "AWS_SESSION_TOKEN": "real",
        "AWS_PROFILE": "real",
        "AWS_REGION": "eu-central-1",
        "PATH": "/bin",
    }
    given = aws_environ(RunSettings(aws_port=7), mine)
    assert "real" not in given.values()
    assert given["AWS_ENDPOINT_URL"] == "http://127.0.0.1:7"
    assert given["AWS_REGION"] == given["AWS_DEFAULT_REGION"] == "us-east-1"
    assert given["PATH"] == "/bin"
    elsewhere = aws_environ(RunSettings(endpoint="http://a:1"), mine)
    assert elsewhere == mine | {"AWS_DEFAULT_REGION": "eu-central-1"}


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("--dir", str(tmp_path))
    assert done.returncode == 2
    assert f"another run uses {tmp_path}" in done.stderr


# A supervisor of three services, each of which notes how it ended. It runs in a process of its own, for it takes
# the signals.
SUPERVISOR = """
import os, sys
from pathlib import Path
from infra.local.services import *

child = '''
import signal, sys, time
name, wait, end = sys.argv[1:]
def stop(*_):
    if end == "never":
        return
    time.sleep(float(wait))
    print("stopping", name)
    with open("ended", "a") as ended:
        ended.write(name + chr(10))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: open("ended", "a").write("ctrl-c reached " + name + chr(10)))
print("started", name)
Path = __import__("pathlib").Path
Path(name).touch()
while not (end == "itself" and Path("go").exists()):
    time.sleep(0.01)
print("what went wrong")
sys.exit(3)
'''
plan = [line.split(":") for line in sys.argv[1:]]
with Services(Path(".")) as services:
    for name, wait, end in plan:
        services.start(Service(name, ["-c", child, name, wait, end], os.environ, Path(name).exists, 1 if end == "never" else 20, name == "aws"))
    try:
        services.wait_healthy(20)
        print("READY", flush=True)
        services.watch()
    except Interrupted:
        print("interrupted", flush=True)
    except ServiceFailed as failure:
        print(failure, flush=True)
    print(services.stop(), flush=True)
"""


@contextmanager
def supervised(directory: Path, *plan: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, *plan],
        cwd=directory,
        env=environ(PYTHONPATH=str(ROOT), RUN=str(directory)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        yield process
    finally:
        process.kill()
        process.wait()


def ended(directory: Path) -> list[str]:
    file = directory / "ended"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def eventually(holds: Callable[[], bool], within: float = 20.0) -> bool:
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes_with(variable: str) -> dict[int, str]:
    """The processes that have ``NAME=value`` in their environment: id and command line."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # A process that has ended and was not waited for has neither.
            if f"{variable}\0".encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_services_stop_in_reverse_order_each_after_the_one_before(tmp_path: Path, number: int) -> None:
    with supervised(tmp_path, "aws:0:ok", "source:0.1:ok", "collector:0.4:ok") as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    assert output == "interrupted\n[]\n"
    assert ended(tmp_path) == ["collector", "source", "aws"]


def test_a_service_that_does_not_stop_is_killed_after_its_time_and_told(tmp_path: Path) -> None:
    with supervised(tmp_path, "aws:0:ok", "stuck:0:never") as process:
        process.terminate()
        output, _ = process.communicate(timeout=20)
    assert "stuck was killed before it had finished; see stuck.log" in output
    assert ended(tmp_path) == ["aws"]


def test_a_second_signal_hurries_all_but_what_keeps_data(tmp_path: Path) -> None:
    with supervised(tmp_path, "aws:0.5:ok", "slow:4:ok", "slower:4:ok") as process:
        began = time.monotonic()
        process.terminate()
        time.sleep(0.3)
        process.terminate()
        output, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert "slow was killed" in output
    assert "slower was killed" in output
    assert ended(tmp_path) == ["aws"]


def test_a_service_that_ends_is_told_with_its_log_and_the_others_stop(tmp_path: Path) -> None:
    with supervised(tmp_path, "aws:0:ok", "broken:0:itself", "collector:0:ok") as process:
        (tmp_path / "go").touch()
        output, _ = process.communicate(timeout=20)
    assert "broken ended with exit code 3. The end of broken.log:\n  started broken\n  what went wrong" in output
    assert ended(tmp_path) == ["collector", "aws"]


@needs_proc
def test_services_do_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with supervised(tmp_path, "aws:0:ok", "source:0.1:ok", "collector:0.3:ok") as process:
        assert len(processes_with(f"RUN={tmp_path}")) == 5
        process.kill()
        process.wait()
        assert eventually(lambda: not processes_with(f"RUN={tmp_path}"))
    assert ended(tmp_path) == ["collector", "source", "aws"]


def test_the_reaper_has_nothing_to_do_after_an_orderly_end() -> None:
    assert reaper.read_groups(["12\n", "13\n"]) == [12, 13]
    assert reaper.read_groups(["12\n", "13\n", "done\n"]) == []
    assert reaper.read_groups([]) == []


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def post(url: str, body: object) -> dict[str, str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


@contextmanager
def whole_run(
    directory: Path, command: list[str], **variables: str
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A whole run that is ready: the process, the collector's address and the query API's."""
    collector, query, aws = free_ports(3)
    ports = {"COLLECTOR_PORT": str(collector), "QUERY_PORT": str(query), "AWS_PORT": str(aws)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ(LIVEINSIGHT_DIR=str(directory), **ports, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line == "READY\n":
                break
        assert said, "it said nothing"
        assert said[-1] == "READY\n", "".join(said)
        yield process, f"http://127.0.0.1:{collector}", f"http://127.0.0.1:{query}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@needs_proc
@pytest.mark.long
def test_a_whole_run_shows_an_event_and_keeps_it_over_a_stop_and_a_start(tmp_path: Path) -> None:
    # As make does it, but that this environment is taken as it is.
    make = ["make", "run", f"BIN={Path(sys.executable).parent}", "--old-file=.venv/.installed"]
    with whole_run(tmp_path, make, DEMO="0", ARCHIVE="1") as (process, collector, query):
        answer = post(f"{collector}/events", {"event_type": "page_view", "page_url": "https://www.example/hello"})
        active = f"{query}/api/sessions/active/"
        assert eventually(lambda: [one["session_id"] for one in get(active)] == [answer["session_id"]], 10)
        # What was acknowledged a moment before the stop counts too.
        later = post(f"{collector}/events", {"event_type": "page_view", "session_id": answer["session_id"]})
        assert later["session_id"] == answer["session_id"]
        process.terminate()
        output, _ = process.communicate(timeout=60)
        assert not processes_with(f"LIVEINSIGHT_DIR={tmp_path}")
    # make passes the signal on, waits, and then ends by it itself.
    assert process.returncode in (0, -signal.SIGTERM), output
    assert "error" not in output
    # The archive is written to the last record before it is kept, however long it would gather an object's.
    assert re.search(r"; saved 2 records and \d+ items and [12] objects in ", output)

    python = [sys.executable, "-m", "infra.local"]
    with whole_run(tmp_path, python, DEMO="0") as (process, collector, query):
        summary = f"{query}/api/statistics/summary/"
        assert get(summary)["total_events"] == 2
        post(f"{collector}/events", {"event_type": "page_view"})
        assert eventually(lambda: get(summary)["total_events"] == 3, 20)
        (aws,) = (
            pid for pid, line in processes_with(f"LIVEINSIGHT_DIR={tmp_path}").items() if "infra.local.aws" in line
        )
        os.kill(aws, signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "aws ended with signal SIGKILL. The end of " in output
    assert not processes_with(f"LIVEINSIGHT_DIR={tmp_path}")

    # The event source is further than the tables now. Had it stayed so, what it had left to do would never be done.
    with whole_run(tmp_path, python, DEMO="0") as (process, _, query):
        summary = f"{query}/api/statistics/summary/"
        assert eventually(lambda: "batch done" in (tmp_path / "logs" / "event-source.log").read_text())
        assert get(summary)["total_events"] == 2
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
