"""Puts the archive's records in the order of their shards, with an hour or two of them in memory.

Objects are written at least once and in no order; positions must be folded in order, for what comes behind a later
one of its shard counts as a redelivery. So records wait here, compressed, until those of an hour later are in as well.
What comes even later is told from a repeat by the positions that went out lately, of which 8 bytes each are kept.
"""

from __future__ import annotations

import heapq
import zlib
from array import array
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from stream_consumer.archive.lines import ArchivedRecord

#: Records that are compressed together: few enough that a merge of many runs holds little, enough to compress well.
_CHUNK = 500

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[ArchivedRecord])

Chunk = tuple[str, bytes]  # position of its last record, records


class LateRecord(Exception):  # noqa: N818 - says what is the case
    """A record came behind what went out of its shard, and is no repeat that can be known."""

    def __init__(self, record: ArchivedRecord, behind: str) -> None:
        super().__init__(f"{record.shard_id} {record.position}, behind {behind}")
        self.record = record


class Window:
    """Records of all shards that are waiting. ``ends``: the position, by shard, up to which they are out already.

    What arrived before ``since`` (ms) may be late.
    """

    def __init__(self, ends: Mapping[str, str], since: int) -> None:
        self.ends = dict(ends)
        self._since = since
        self._runs: defaultdict[str, list[deque[Chunk]]] = defaultdict(list)
        #: Hashes of the positions that went out, ascending, each with the time before which they had arrived.
        self._out: list[tuple[int, array[int]]] = []

    def add(self, records: Iterable[ArchivedRecord]) -> None:
        """Take the records of one object. Raises :class:`LateRecord`."""
        for record in self._waiting(records):
            if record.arrived >= self._since and not self._went_out(record):
                raise LateRecord(record, self.ends[record.shard_id])

    def add_again(self, records: Iterable[ArchivedRecord], since: int, until: int) -> None:
        """Take the records of an object that a window with these ``ends`` had taken before: what is not behind them
        waits, the rest went out, up to those that had arrived before ``until`` (ms). Repeats of what arrived before
        ``since`` will not be known as such.
        """
        out = array("Q", [_hash(record) for record in self._waiting(records) if record.arrived >= since])
        if out:
            self._out.append((until, array("Q", sorted(out))))

    def take(self, before: int) -> Iterator[tuple[str, Iterator[ArchivedRecord]]]:
        """By shard, in the order of their ids, its waiting records up to the first that arrived at ``before`` (ms) or
        later; in the order of their positions, each once. Each shard must be read to its end before the next.
        """
        out = array("Q")
        for shard_id in sorted(self._runs):
            yield shard_id, self._of_shard(shard_id, before, out)
            runs = self._runs.pop(shard_id)
            for run in runs:
                while run and run[0][0] <= self.ends.get(shard_id, ""):
                    run.popleft()
            if left := [run for run in runs if run]:
                self._runs[shard_id] = left
        self._out.append((before, array("Q", sorted(out))))

    def forget(self, before: int) -> None:
        """Repeats of what had arrived before ``before`` (ms) need not be known as such any more."""
        self._out = [(until, out) for until, out in self._out if until > before]

    def _waiting(self, records: Iterable[ArchivedRecord]) -> list[ArchivedRecord]:
        """Put in what is to go out; the rest is returned."""
        ahead: defaultdict[str, dict[str, ArchivedRecord]] = defaultdict(dict)
        behind = []
        for record in records:
            position = record.position
            if position <= self.ends.get(record.shard_id, ""):
                behind.append(record)
            else:
                ahead[record.shard_id][position] = record
        for shard_id, found in ahead.items():
            ordered = sorted(found)
            self._runs[shard_id].append(
                deque(
                    _chunk([found[position] for position in ordered[at : at + _CHUNK]])
                    for at in range(0, len(ordered), _CHUNK)
                )
            )
        return behind

    def _of_shard(self, shard_id: str, before: int, out: array[int]) -> Iterator[ArchivedRecord]:
        end = self.ends.get(shard_id, "")
        for position, record in heapq.merge(*map(_records, self._runs[shard_id]), key=lambda one: one[0]):
            if position <= end:
                continue
            if record.arrived >= before:
                return
            self.ends[shard_id] = end = position
            out.append(_hash(record))
            yield record

    def _went_out(self, record: ArchivedRecord) -> bool:
        wanted = _hash(record)
        for _, out in self._out:
            at = bisect_left(out, wanted)
            if at < len(out) and out[at] == wanted:
                return True
        return False


def _chunk(records: list[ArchivedRecord]) -> Chunk:
    return records[-1].position, zlib.compress(_encoder.encode(records), 1)


def _records(run: deque[Chunk]) -> Iterator[tuple[str, ArchivedRecord]]:
    for _, chunk in run:
        for record in _decoder.decode(zlib.decompress(chunk)):
            yield record.position, record


def _hash(record: ArchivedRecord) -> int:
    return hash((record.shard_id, record.position)) & 0xFFFF_FFFF_FFFF_FFFF
