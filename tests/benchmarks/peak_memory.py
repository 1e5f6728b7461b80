"""How much memory a batch takes at its peak, in a process of its own that keeps nothing of what it writes.

``python -m tests.benchmarks.peak_memory FILE`` prints the bytes that a function with warm imports needs on top, from the
batch's JSON in the file on, as Lambda hands it over, to the last write; and those of the whole process then.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stream_consumer import kinesis_batch, lambda_handler
from stream_consumer.consume import consume
from stream_consumer.lambda_handler import without_collection
from stream_consumer.table import Tables
from tests.benchmarks.bench_cold_start import ENVIRON
from tests.builders import a_lambda_event, an_aggregate, an_event
from tests.fake_dynamodb import NAMES

#: A browser's, which loads the parser of such strings.
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"
#: More than are counted exactly, which loads the sketches.
_VISITORS = 300
_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")


class Forgetting:
    """A client of DynamoDB whose tables are always empty."""

    def batch_get_item(self, **_: Any) -> dict[str, Any]:
        return {"Responses": {}}

    def put_item(self, **_: Any) -> dict[str, Any]:
        return {}

    def batch_write_item(self, **_: Any) -> dict[str, Any]:
        return {}


class Peak(NamedTuple):
    """Bytes at the peak of a batch: ``on_top`` of a function that is warm, and of the ``whole`` process."""

    on_top: int
    whole: int


def of_batch(event: Mapping[str, Any]) -> Peak:
    """What consuming what Lambda hands over takes, in a fresh process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(event, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.peak_memory", file.name],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRON | {"PATH": os.environ["PATH"]},
        )
    return Peak(*map(int, done.stdout.split()))


def _consume(data: bytes) -> None:
    with without_collection():
        outcome = consume(kinesis_batch.read(json.loads(data)), Tables(Forgetting(), NAMES, writers=1))  # type: ignore[arg-type]
    assert outcome.applied, outcome


def _peak() -> int:
    """The most that this process has had in memory at a time, in bytes. (Where there is no /proc: since its parent's
    start, as a process begins with its parent's figure there.)
    """
    if _STATUS.exists():
        return _kilobytes("VmHWM:") * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _kilobytes(name: str) -> int:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(name))


def main(argv: Sequence[str]) -> int:
    """Print the bytes that the batch in the file needs."""
    lambda_handler._client()  # as a function has it, though none of its calls is made here
    visitors = [an_event(n, session_id=f"s{n}", user_agent=AGENT) for n in range(_VISITORS)]
    _consume(json.dumps(a_lambda_event([an_aggregate(visitors)])).encode())
    if _FORGET.exists():
        _FORGET.write_text("5")  # the peak of the imports is over: begin again with what is held now
    before = _peak()
    _consume(Path(argv[0]).read_bytes())
    print(_peak() - before, _peak())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
