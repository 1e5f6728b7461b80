"""Which events a session has counted already: exact within bounds, and honest beyond them.

An event that its producer numbered (``source``, ``seq``) is remembered in intervals of numbers,
one list for each source; nearly always that is one interval, 1..n. Any other event is remembered
by a short hash of its id, for the latest events only. Where a bound is full, what falls behind it
is answered with :attr:`Verdict.LATE`: it may or may not have been counted, and no one guesses.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache

from msgspec import Struct

from producer.event import Event

#: Numbering processes (tabs, SDK processes) remembered by intervals; further ones by event ids.
MAX_SOURCES = 64
#: Runs of numbers kept for one source; more gaps than that raise the floor.
MAX_INTERVALS = 8
#: Event ids remembered where there are no numbers.
MAX_IDS = 256


class Verdict(Enum):
    """What becomes of an event."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    LATE = "late"
    ERASED = "erased"  # its session is erased, and takes nothing any more; or it is the erasure itself


class Seen(Struct, array_like=True):
    """The memory. ``sources`` maps a source's hash to ``[floor, first, last, first, last, ...]``;
    ``ids`` holds ``(event time ms, id hash)`` in order, ``floor`` the greatest that was forgotten.
    """

    sources: dict[str, list[int]] = {}
    ids: list[tuple[int, int]] = []
    floor: tuple[int, int] = (-1, 0)

    def admit(self, event: Event) -> Verdict:
        """Remember ``event``: APPLIED if it is new, DUPLICATE if not, LATE if that cannot be told."""
        if event.seq and event.source:
            source = _short(event.source)
            runs = self.sources.get(source)
            if runs is None and len(self.sources) < MAX_SOURCES:
                runs = self.sources[source] = [0]
            if runs is not None:
                return _admit_number(runs, event.seq)
        return self._admit_id((event.timestamp, _hash(event.event_id)))

    def admit_run(self, events: Sequence[Event]) -> bool:
        """Remember all of ``events``, at least one, if they are the next ones in order of one source, as nearly all
        are; else none of them. False says nothing about any: :meth:`admit` does.
        """
        first = events[0]
        source, number = first.source, first.seq
        if not number or not source:
            return False
        runs = self.sources.get(short := _short(source))
        if runs is None:
            if len(self.sources) >= MAX_SOURCES:
                return False
        elif len(runs) < 2 or number != runs[-1] + 1:
            return False
        for event in events:
            if event.seq != number or event.source != source:
                return False
            number += 1
        if runs is None:
            self.sources[short] = [0, first.seq, number - 1]
        else:
            runs[-1] = number - 1
        return True

    def _admit_id(self, mark: tuple[int, int]) -> Verdict:
        # The hash decides, not the time: the same event sent again may carry another event time.
        if any(known == mark[1] for _, known in self.ids):
            return Verdict.DUPLICATE
        if mark <= self.floor:
            return Verdict.LATE
        insort(self.ids, mark)
        if len(self.ids) > MAX_IDS:
            self.floor = self.ids.pop(0)
        return Verdict.APPLIED


def _admit_number(runs: list[int], number: int) -> Verdict:
    if number <= runs[0]:
        return Verdict.LATE
    if len(runs) > 1 and number == runs[-1] + 1:  # the next one in order: nearly every event
        runs[-1] = number
        return Verdict.APPLIED
    at = bisect_left(runs, number, 1)
    inside = at % 2 == 0  # an odd index is a run's first number, an even one its last
    if at < len(runs) and (inside or runs[at] == number):
        return Verdict.DUPLICATE
    joins_left = at > 1 and runs[at - 1] == number - 1
    joins_right = at < len(runs) and runs[at] == number + 1
    if joins_left and joins_right:
        del runs[at - 1 : at + 1]
    elif joins_left:
        runs[at - 1] = number
    elif joins_right:
        runs[at] = number
    else:
        runs[at:at] = [number, number]
    if len(runs) > 1 + 2 * MAX_INTERVALS:
        runs[0] = runs[2]
        del runs[1:3]
    return Verdict.APPLIED


@lru_cache(maxsize=4096)
def _short(source: str) -> str:
    return f"{_hash(source) >> 16:012x}"


@lru_cache(maxsize=4096)
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
