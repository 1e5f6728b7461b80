"""What an embedded AWS has kept of a stream that is older than its retention: so that a replay needs a base."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from infra.local.aws_state import Content, ShardContent, StreamContent

_HALF = 2**127


def keep_old_stream(state: Path, age: timedelta, idle: timedelta = timedelta(hours=1)) -> None:
    """Write the state of an embedded AWS whose stream, of two shards and empty, was made so long ago; the last run ended
    ``idle`` ago.
    """
    shards = {
        "shardId-000000000000": ShardContent("0", str(_HALF - 1), []),
        "shardId-000000000001": ShardContent(str(_HALF), str(2 * _HALF - 1), []),
    }
    now = datetime.now(UTC)
    stream = StreamContent((now - age).replace(tzinfo=None), shards)
    state.parent.mkdir(parents=True, exist_ok=True)
    saved_at = (now - idle).timestamp()
    state.write_bytes(msgspec.msgpack.encode(Content(saved_at, {"liveinsight-local-events": stream}, {}, {})))
    # A run's demo traffic begins with visitors from after the last run's end, which this tells.
    os.utime(state, (saved_at, saved_at))
