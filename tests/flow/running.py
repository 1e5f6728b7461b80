"""A whole LiveInsight on free ports of this machine, as `make run` starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.free_ports import free_ports

ROOT = Path(__file__).parents[2]


class Running:
    """One running system, and what a client says to it."""

    def __init__(self, process: subprocess.Popen[str], ports: dict[str, int], lines: list[str]) -> None:
        self.process = process
        self.ports = ports
        self.lines = lines
        self.collector = f"http://127.0.0.1:{ports['COLLECTOR_PORT']}"
        self.api = f"http://127.0.0.1:{ports['QUERY_PORT']}"
        self.environ = {**os.environ, **{name: str(port) for name, port in ports.items()}, "PYTHONPATH": str(ROOT)}

    def post(self, body: Any, **headers: str) -> dict[str, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.collector}/events", data, {"Content-Type": "text/plain", **headers})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.api + path, timeout=30) as answer:
            return json.load(answer)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.api + path, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def until(self, asked: Callable[[], Any], wanted: Callable[[Any], bool], seconds: float) -> tuple[Any, float]:
        """Ask until the answer is as wanted; the answer and how long (s) it took. Fails at the deadline."""
        began = time.monotonic()
        while True:
            answer = asked()
            took = time.monotonic() - began
            if wanted(answer):
                return answer, took
            assert took < seconds, f"after {seconds} s still {answer!r}"
            time.sleep(0.05)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=120)


@contextmanager
def running(directory: Path, **environ: str) -> Iterator[Running]:
    """Start everything, wait for READY, and stop it in the end."""
    ports = dict(zip(("COLLECTOR_PORT", "QUERY_PORT", "AWS_PORT"), free_ports(3), strict=True))
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.local"],
        cwd=ROOT,
        env={**_without_aws(os.environ), **{name: str(port) for name, port in ports.items()}}
        | {"DEMO": "0", "LIVEINSIGHT_DIR": str(directory)}
        | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.strip() == "READY":
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert ready.wait(90), "\n".join(lines)
        assert "READY" in lines, "\n".join(lines)
        yield Running(process, ports, lines)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _without_aws(environ: os._Environ[str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith(("AWS_ENDPOINT", "LIVEINSIGHT_"))}
