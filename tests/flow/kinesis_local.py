"""``kinesis-local`` from npm: a Kinesis of one process with real sequence numbers, that splits and merges shards."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from tests.flow.running import ROOT
from tests.free_ports import free_ports

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

#: Where `.ci/run` installs it; git ignores the folder.
PACKAGE = ROOT / ".liveinsight" / "npm" / "node_modules" / "kinesis-local"

#: By itself it listens on every address of the machine.
_ON_LOOPBACK_ONLY = """
const { Server } = require("net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) { return listen.call(this, port, "127.0.0.1", ...rest); };
require("./main.js");
"""


def missing() -> str:
    """Why kinesis-local cannot run here, and the remedy; '' where it can."""
    if not shutil.which("node"):
        return "needs Node.js (Debian: apt-get install nodejs npm)"
    if not (PACKAGE / "main.js").exists():
        return "needs kinesis-local, which .ci/run installs (npm install --prefix .liveinsight/npm kinesis-local)"
    return ""


@contextmanager
def kinesis_local(log: Path, resharding_ms: int) -> Iterator[KinesisClient]:
    """A client of a fresh one that ends with the block; ``log`` is the file for what it says.

    A stream is UPDATING for ``resharding_ms`` when its shards split or merge.
    """
    ports = dict(zip(("KINESIS_MOCK_PLAIN_PORT", "KINESIS_MOCK_TLS_PORT"), free_ports(2), strict=True))
    durations = dict.fromkeys(("SPLIT_SHARD_DURATION", "MERGE_SHARDS_DURATION"), f"{resharding_ms}ms")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["node", "-e", _ON_LOOPBACK_ONLY],
            cwd=PACKAGE,  # its certificate is found from there only
            env={"PATH": os.environ["PATH"], "CREATE_STREAM_DURATION": "0ms", "LOG_LEVEL": "WARN"}
            | {name: str(port) for name, port in ports.items()}
            | durations,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        kinesis = boto3.client(
            "kinesis",
            endpoint_url=f"http://127.0.0.1:{ports['KINESIS_MOCK_PLAIN_PORT']}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            # As the producer's own client: it retries by itself.
            config=Config(retries={"total_max_attempts": 1}, proxies={}, max_pool_connections=16),
        )
        _wait(kinesis, process, log)
        yield kinesis
    finally:
        process.kill()  # it holds nothing worth keeping, and takes its time over a SIGTERM
        process.wait()


def _wait(kinesis: KinesisClient, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not _answers(kinesis):
        assert process.poll() is None, f"kinesis-local ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"kinesis-local does not answer: {log.read_text()}"
        time.sleep(0.1)


def _answers(kinesis: KinesisClient) -> bool:
    try:
        kinesis.list_streams()
    except BotoCoreError:
        return False
    return True
