"""How far, and how fast, a shard's consumer has come: what is told after each batch that is done."""

from __future__ import annotations

from msgspec import Struct

#: Seconds after which what was measured counts half.
_HALF_LIFE = 10.0


class ShardProgress(Struct, frozen=True):
    """How far a shard's consumer had come at ``at`` (ms since 1970).

    ``behind``: how old (ms) the oldest of its latest batch was when that was done. The batch ended with record
    ``sequence_number``, which came into the stream at ``arrived`` (ms). Lately the consumer did ``rate`` events/s, and
    came forward ``speed`` seconds of the stream's time in each second; 0 where that is not known yet.
    """

    shard_id: str
    at: int
    behind: int
    sequence_number: str = ""
    arrived: int = 0
    rate: float = 0.0
    speed: float = 0.0


class Pace:
    """Measures the pace of each shard that a process consumes."""

    def __init__(self) -> None:
        self._latest: dict[str, ShardProgress] = {}

    def after(
        self, shard_id: str, *, now: int, took: float, events: int, behind: int, sequence_number: str, arrived: int
    ) -> ShardProgress:
        """A batch of ``events`` is done at ``now`` (ms), which ``took`` so many ms."""
        before = self._latest.get(shard_id)
        seconds = max(now - before.at if before else 0, took, 1) / 1000
        rate, speed = events / seconds, 0.0
        if before:
            new = 1 - 0.5 ** (seconds / _HALF_LIFE)
            speed = (arrived - before.arrived) / 1000 / seconds
            rate = before.rate + new * (rate - before.rate)
            speed = before.speed + new * (speed - before.speed) if before.speed else speed
        latest = ShardProgress(shard_id, now, behind, sequence_number, arrived, rate, max(0.0, speed))
        self._latest[shard_id] = latest
        return latest
