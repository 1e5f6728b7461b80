"""An independent emulator of AWS that runs real Lambda code (ministack), and the function's package to run on it.

Its environment is `.venv-ministack`, made by `make emulator`: it pins botocore. It enforces the policies of roles
(``AUTH``). What it does not do as AWS does: the partial response of a Kinesis batch counts as success, nothing is bisected,
AT_TIMESTAMP is read as LATEST, a mapping has no batching window, an alias's weights do not share out a mapping's
batches, and a delivery stream does not read from Kinesis. So those are tested on `infra/local/` and in the simulation.
It holds the stacks data, consumer, compaction and archive; the others use resources that it does not know.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from infra.deploy import package
from producer.client import EventProducer, ProducerSettings
from tests.free_ports import free_ports

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-ministack" / "bin" / "python"
MISSING = "needs ministack in an environment of its own (make emulator)"
ACCOUNT = "123456789012"
_REGION = "us-east-1"

_T = TypeVar("_T")


@dataclass
class Emulator:
    """One running emulator."""

    url: str
    log: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes a process of ours use it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LIVEINSIGHT_"))}
        return clean | {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": _REGION,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_CONFIG_FILE": os.devnull,
            "PYTHONPATH": str(ROOT),
        }

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=_REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}, read_timeout=60),
        )


@contextmanager
def running(directory: Path) -> Iterator[Emulator]:
    """Start it with nothing in it, and end it."""
    (port,) = free_ports(1)
    log = directory / "emulator.log"
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "MINISTACK_ACCOUNT_ID": ACCOUNT,
        "MINISTACK_REGION": _REGION,
        "GATEWAY_PORT": str(port),
        "LAMBDA_EXECUTOR": "local",
        "AUTH": "true",
    }
    with log.open("w") as output:
        # A session of its own: its functions' processes end with it, whatever it does.
        process = subprocess.Popen(
            [PYTHON, ROOT / "tests" / "emulator_server.py"],
            cwd=directory,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    emulator = Emulator(f"http://127.0.0.1:{port}", log)
    try:
        until(lambda: process.poll() is not None or _answers(emulator.url), bool, 30)
        assert process.poll() is None, log.read_text()
        yield emulator
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def until(asked: Callable[[], _T], wanted: Callable[[_T], bool], seconds: float) -> _T:
    """Ask until the answer is as wanted; fails at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = asked()
        if wanted(answer):
            return answer
        assert time.monotonic() < deadline, f"after {seconds} s still {answer!r}"
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_ministack/health", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def put_page_views(emulator: Emulator, stream: str, session_id: str, *pages: str) -> None:
    """Send page views of one session of site ``shop``, each once the one before it is acknowledged."""
    with EventProducer(ProducerSettings(stream=stream), emulator.client("kinesis")) as producer:
        for page in pages:
            producer.track("page_view", site_id="shop", session_id=session_id, page_url=page).wait(10)


def function_zip(path: Path, **instead: str) -> Path:
    """The package that is deployed, of this environment's libraries; ``instead``: modules (``a__b`` is a/b.py) of other
    text.
    """
    others = {f"{name.replace('__', '/')}.py": text for name, text in instead.items()}
    made = zipfile.ZipFile(io.BytesIO(package.build(local=True).data))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as changed:
        for name in made.namelist():
            changed.writestr(name, others.pop(name, None) or made.read(name))
    assert not others, f"the package has no {', '.join(others)}"
    return path
