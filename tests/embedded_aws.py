"""The embedded AWS in a process of its own, on any free port."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from infra.local import stacks

STREAM = "liveinsight-local-events"


@dataclass
class Embedded:
    """One run of `python -m infra.local.aws`."""

    process: subprocess.Popen[str]
    url: str

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(max_pool_connections=20, retries={"total_max_attempts": 1}),
        )

    def create_stack(self) -> dict[str, str]:
        return stacks.create_stack(self.client("cloudformation"), stacks.DATA, stacks.LOCAL_DATA)

    def create_stream(self) -> None:
        """The stack's stream without the stack, which takes its seconds."""
        self.client("kinesis").create_stream(StreamName=STREAM, ShardCount=2)

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Stop it; returns what it printed."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=30)
        return output


def start(*arguments: str) -> Embedded:
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.local.aws", "--port", "0", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return Embedded(process, line.split()[-1])
    raise AssertionError("it ended before it listened")
