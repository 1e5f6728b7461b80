"""``python -m query_api`` as a process."""

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

from query_api.routes import ENDPOINTS
from query_api.settings import ApiSettings

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "query_api" / "settings.py"


def command(*arguments, **environ):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LIVEINSIGHT_"))}
    settings = {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_CONFIG_FILE": os.devnull,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "query_api", *arguments],
        cwd=ROOT,
        env={name: value for name, value in (clean | settings | environ).items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_it_serves_and_stops_with_0_though_dynamodb_is_gone_and_a_client_holds_on() -> None:
    with socket.socket() as nobody:  # bound, and never listening
        nobody.bind(("127.0.0.1", 0))
        process = command("--port", "0", AWS_ENDPOINT_URL=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        try:
            said = process.stderr.readline()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/ reads DynamoDB at http://127", said)[1])
            connection = connected(port)
            connection.request("GET", "/health/")
            answer = connection.getresponse()
            assert answer.status == 503
            unreachable = "DynamoDB cannot be reached; try again in some seconds"
            refused = {"error": {"status": 503, "reason": "unavailable", "message": unreachable}}
            assert json.load(answer) == refused
            connection.request("GET", "/api/statistics/summary")
            answer = connection.getresponse()
            assert (answer.status, json.load(answer)) == (503, refused)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)


def connected(port) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _ in range(400):
        try:
            connection.connect()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return connection
    raise AssertionError("it does not listen")


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = command("--port", str(port))
        _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said == (
        f"query_api: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port or --host\n"
    )


@pytest.mark.parametrize(
    ("environ", "named"),
    [({"AWS_REGION": ""}, "set AWS_REGION"), ({"LIVEINSIGHT_API_READERS": "0"}, "LIVEINSIGHT_API_READERS: '0' is not")],
)
def test_an_environment_that_will_not_do_is_one_clear_line(environ, named) -> None:
    process = command("--port", "0", **environ)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said.startswith("query_api: ")
    assert named in said
    assert said.count("\n") == 1


def test_the_help_tells_every_setting() -> None:
    process = command("--help")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    names = set(re.findall(r'"([A-Z]+_[A-Z_]+)"', SETTINGS.read_text())) - {"AWS_REGION"}
    assert len(names) == len(ApiSettings.__dataclass_fields__) - len({"tables", "region"})
    names |= {f"LIVEINSIGHT_{table}_TABLE" for table in ("SESSIONS", "SESSION_EVENTS", "ROLLUPS")}
    assert sorted(name for name in names if name not in said) == []


def test_the_help_tells_every_path() -> None:
    process = command("--help")
    said, _ = process.communicate(timeout=30)
    paths = {endpoint.path for endpoint in ENDPOINTS}
    assert len(paths) > 10
    # One line may tell of several: their last parts are named on it.
    missing = {
        path
        for path in paths
        if re.sub(r"<[a-z_]+>", "ID", path) not in said and path.strip("/").rpartition("/")[2] not in said
    }
    assert missing == set()
