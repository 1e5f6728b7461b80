"""How long sessions lasted, as a histogram: counts by bucket, which add up, and from which a median can be read.

Buckets are whole seconds up to 64 s; beyond, each doubling has 32 buckets, so that a bucket is never
wider than a thirty-second of what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

_EXACT_BITS = 6
_FINE_BITS = _EXACT_BITS - 1
#: A quantile read from a histogram is off by at most this share of it, or half a second.
RELATIVE_ERROR = 1 / (2 << _FINE_BITS)


def bucket_of(duration: int) -> str:
    """The name of the bucket of a duration in ms."""
    return _bucket(max(0, duration) // 1000)


@lru_cache(maxsize=8192)
def _bucket(seconds: int) -> str:
    doublings = max(0, seconds.bit_length() - _EXACT_BITS)
    return str((doublings << _FINE_BITS) + (seconds >> doublings))


def seconds_of(bucket: str) -> float:
    """The middle of a bucket in seconds; of the first one 0, where sessions of a single event are."""
    number = int(bucket)
    if number == 0:
        return 0.0
    doublings = max(0, (number >> _FINE_BITS) - 1)
    lowest = number - (doublings << _FINE_BITS)
    return ((lowest << doublings) + ((lowest + 1) << doublings)) / 2


def median(durations: Mapping[str, int]) -> float:
    """The middle one of the durations (the lower of two) in seconds, 0 of none."""
    rank = (sum(durations.values()) + 1) // 2
    for bucket, count in sorted(durations.items(), key=lambda row: int(row[0])):
        rank -= count
        if rank <= 0:
            return seconds_of(bucket)
    return 0.0
