"""Stops the services of a `make run` whose supervisor went without stopping them, as by kill -9.

`python -m infra.local.reaper` is started by the supervisor before anything else, with a pipe as its standard input.
It is told each service's process group, one to a line, as that service is started. The pipe's end comes when the
supervisor is gone, however it went: then the services still there are stopped, the last to start first.
A line `done` before the end says that there is nothing left to do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

#: Seconds that a service may take to stop before it is killed.
GRACE = 90.0


def read_groups(lines: Iterable[str]) -> list[int]:
    """The process groups that are to be stopped once ``lines`` have ended, in the order of their start."""
    groups: list[int] = []
    for line in lines:
        if line.strip() == "done":
            return []
        groups.append(int(line))
    return groups


def stop(group: int, grace: float) -> None:
    """End a process group: SIGTERM to its leader, and SIGKILL to all when that has gone or after ``grace`` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(group, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and not _ended(group):
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _ended(process: int) -> bool:
    try:
        os.kill(process, 0)
        # An ended process stays until its new parent looks at it, and in a container that may be never.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for group in reversed(read_groups(sys.stdin)):
        stop(group, GRACE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
