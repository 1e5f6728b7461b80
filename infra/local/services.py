"""Child processes: started, watched, stopped in order.

Each service is a process group of its own with a log file of its own, so that a Ctrl-C in the terminal reaches only
the supervisor, which then stops them one after the other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

TAIL_LINES = 20


@dataclass(frozen=True)
class Service:
    """What to run. ``command`` is given to this Python; ``stop_within`` is in seconds.

    ``healthy`` tells, at any time after the start, whether the service does its work. A service that is to ``keep``
    data has its time to stop even when the user is in a hurry.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    healthy: Callable[[], bool] = lambda: True
    stop_within: float = 30.0
    keep: bool = False


class ServiceFailed(Exception):  # noqa: N818 - says what happened
    """A service ended by itself, or did not get healthy; the message has the tail of its log."""


class Interrupted(Exception):  # noqa: N818 - the user's wish, no error
    """SIGINT or SIGTERM came while something was waited for."""


class Services:
    """The running services of one supervisor. A context manager: its end stops what still runs.

    SIGINT and SIGTERM ask for an end. The first asks for an orderly one; with a second, every service is killed that
    keeps no data, and with a third every one.
    """

    def __init__(self, logs: Path) -> None:
        self.interruptions = 0
        self._logs = logs
        self._running: dict[str, tuple[Service, subprocess.Popen[bytes]]] = {}
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "infra.local.reaper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._handlers = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _interrupt(self, *_: object) -> None:
        self.interruptions += 1

    def log(self, name: str) -> Path:
        """The log file of a service."""
        return self._logs / f"{name}.log"

    def start(self, service: Service) -> None:
        """Start a service; it need not be healthy yet. Services are stopped in the reverse order of their start."""
        with self.log(service.name).open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - this Python, our own modules
                [sys.executable, *service.command],
                env={**service.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[service.name] = service, process
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(b"%d\n" % process.pid)
        self._reaper.stdin.flush()

    def wait_healthy(self, within: float) -> None:
        """Wait until every service is healthy, at most ``within`` seconds.

        Raises :class:`ServiceFailed` or :class:`Interrupted`.
        """
        deadline = time.monotonic() + within
        waiting = list(self._running)
        while True:
            self.check()
            waiting = [name for name in waiting if not self._running[name][0].healthy()]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise ServiceFailed(self._explain(waiting[0], f"did not get ready within {within:.0f} s"))
            time.sleep(0.05)

    def check(self) -> None:
        """Raise :class:`ServiceFailed` if a service has ended, :class:`Interrupted` if an end was asked for."""
        for name, (_, process) in self._running.items():
            if (code := process.poll()) is not None:
                raise ServiceFailed(self._explain(name, f"ended with {_describe(code)}"))
        if self.interruptions:
            raise Interrupted

    def watch(self) -> None:
        """Wait until :meth:`check` raises."""
        while True:
            self.check()
            time.sleep(0.1)

    def stop(self, within: float | None = None) -> list[str]:
        """Stop all, the last started first, each when the one before has ended; returns what went wrong.

        ``within`` shortens the time (s) of every service that keeps no data.
        """
        wrong = [
            f"{name} {trouble}; see {self.log(name)}"
            for name, (service, process) in reversed(self._running.items())
            if (trouble := self._stop(service, process, within))
        ]
        self._running.clear()
        if self._reaper.stdin is not None and not self._reaper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._reaper.stdin.write(b"done\n")
                self._reaper.stdin.close()
            self._reaper.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        return wrong

    def _stop(self, service: Service, process: subprocess.Popen[bytes], within: float | None) -> str | None:
        if process.poll() is not None:
            _signal_group(process.pid, signal.SIGKILL)
            return None
        # To the service alone: it knows when its own workers are to end.
        process.terminate()
        limit = service.stop_within if within is None or service.keep else min(within, service.stop_within)
        deadline = time.monotonic() + limit
        hurry_after = 2 if service.keep else 1
        while process.poll() is None:
            if self.interruptions > hurry_after or time.monotonic() > deadline:
                _signal_group(process.pid, signal.SIGKILL)
                process.wait()
                return "was killed before it had finished"
            time.sleep(0.02)
        # What a service may have left behind in its group (a worker of a worker) goes with it.
        _signal_group(process.pid, signal.SIGKILL)
        # A signal that came before the service could take it found nothing under way.
        orderly = {0} if service.keep else {0, -signal.SIGTERM}
        return None if process.returncode in orderly else f"ended with {_describe(process.returncode)}"

    def _explain(self, name: str, what: str) -> str:
        log = self.log(name)
        lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"{name} {what}. The end of {log}:", *(f"  {line}" for line in lines)])


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
