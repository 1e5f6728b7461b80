"""A mergeable count of distinct visitors, in little room: exact while small, an estimate beyond.

Up to :data:`EXACT` visitors are kept as sorted hashes; more become a HyperLogLog sketch (Apache
DataSketches) of six-bit registers, which have no exception list. A sketch that is updated in place
keeps an estimator that depends on the order of updates, and so does the union of one sketch with
nothing; a union of two full ones drops it. Only such unions are ever stored or estimated from, so
the same visitors give the same bytes and the same figure whatever order they came in.

The sketches are those of the compiled module ``_datasketches``: the Python package around it only adds kernels that
need numpy, for which the functions' package has no room.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

#: Visitors counted exactly. Above 192, the size at which the sketch's own small modes, whose bytes
#: depend on order, have ended.
EXACT = 256
_LOG_REGISTERS = 11
#: One standard error of the estimate, relative: 1.04 / sqrt(2**11).
RELATIVE_STANDARD_ERROR = 0.023
_HASHES, _SKETCH = b"\x01", b"\x02"


class Visitors:
    """A set of visitors of which only the size can be read."""

    __slots__ = ("_hashes", "_sketch")

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._sketch: Any = None  # a datasketches.hll_union once there are more than EXACT

    def add(self, visitor: str) -> None:
        """Count a visitor; a visitor counted before changes nothing."""
        self._add(_hash(visitor))

    def forget(self, visitors: Iterable[str]) -> bool:
        """Uncount those of ``visitors`` that are counted exactly; whether there were any. A sketch cannot forget: it
        holds no visitor, only how rare the rarest hashes were.
        """
        known = self._hashes.intersection(map(_hash, visitors))
        self._hashes -= known
        return bool(known)

    def merge(self, other: Visitors) -> None:
        """Count all of another's visitors."""
        if other._sketch is None:
            for known in other._hashes:
                self._add(known)
            return
        self._promote()
        self._sketch.update(_result(other._sketch))

    def merge_bytes(self, data: bytes) -> None:
        """Count all visitors of another's :meth:`to_bytes`."""
        if data[:1] == _SKETCH:
            import _datasketches as datasketches

            self._promote()
            self._sketch.update(datasketches.hll_sketch.deserialize(data[1:]))
        elif data:
            for known in _hashes_of(data):
                self._add(known)

    def estimate(self) -> int:
        """How many: exact up to :data:`EXACT`, beyond with :data:`RELATIVE_STANDARD_ERROR`."""
        return len(self._hashes) if self._sketch is None else round(_result(self._sketch).get_estimate())

    @property
    def exact(self) -> bool:
        """Whether :meth:`estimate` is no estimate."""
        return self._sketch is None

    def to_bytes(self) -> bytes:
        """The same visitors give the same bytes."""
        if self._sketch is None:
            hashes = array("Q", sorted(self._hashes))
            return _HASHES + _little_endian(hashes)
        return _SKETCH + bytes(_result(self._sketch).serialize_compact())

    @classmethod
    def from_bytes(cls, data: bytes) -> Visitors:
        """The inverse of :meth:`to_bytes`; empty bytes are no visitors."""
        visitors = cls()
        visitors.merge_bytes(data)
        return visitors

    def _add(self, hashed: int) -> None:
        if self._sketch is not None:
            self._sketch.update(hashed)
            return
        self._hashes.add(hashed)
        if len(self._hashes) > EXACT:
            self._promote()

    def _promote(self) -> None:
        if self._sketch is None:
            import _datasketches as datasketches  # 0.03 s: not at cold start

            self._sketch = datasketches.hll_union(_LOG_REGISTERS)
            for hashed in sorted(self._hashes):
                self._sketch.update(hashed)
            self._hashes = set()


def _result(union: Any) -> Any:
    import _datasketches as datasketches

    kind = datasketches.tgt_hll_type.HLL_6
    in_order = union.get_result(kind)
    itself_twice = datasketches.hll_union(_LOG_REGISTERS)
    itself_twice.update(in_order)
    itself_twice.update(in_order)
    return itself_twice.get_result(kind)


def _hashes_of(data: bytes) -> array[int]:
    hashes = array("Q")
    hashes.frombytes(data[1:])
    return _native(hashes)


def _little_endian(hashes: array[int]) -> bytes:
    return _native(hashes).tobytes()


def _native(hashes: array[int]) -> array[int]:
    import sys

    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes


@lru_cache(maxsize=16384)
def _hash(visitor: str) -> int:
    return int.from_bytes(hashlib.blake2b(visitor.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1
