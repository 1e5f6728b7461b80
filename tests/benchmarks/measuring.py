"""How benchmarks measure: several ways of doing one thing take turns in one run, and what is told are ratios.

A machine that others use too is slower at one moment than at the next. Ways that take turns are slowed alike, so the
ratio of two figures of one turn says more than either figure; its median over all turns, with the least and the
greatest, is what a :class:`Row` tells.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct
from tqdm import tqdm


class Skipped(Exception):
    """A benchmark cannot run here, and says what is missing; the others go on."""


class Spread(Struct, frozen=True):
    """The median of some figures, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))


class Ratio(Struct, frozen=True):
    """``value``: ours divided by the other's, of the same turn each time. ``bound``: what it is to reach, as a median;
    ``at_most``: reached from below (a share of time or cost), not from above. Without a bound it is told for comparison.
    """

    against: str
    value: Spread
    bound: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the bound is reached; None without one."""
        if self.bound is None:
            return None
        return self.value.median <= self.bound if self.at_most else self.value.median >= self.bound


class Row(Struct, frozen=True):
    """One line of the table. ``figures`` are in ``unit``, by the name of their way; ``ours`` names LiveInsight's.

    ``note``: a sentence on what was measured, and where a bound is not reached, why.
    """

    name: str
    unit: str
    ours: str
    figures: dict[str, Spread]
    ratios: list[Ratio]
    note: str = ""


def in_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int, what: str = "", *, warm: bool = True
) -> dict[str, list[float]]:
    """What each way returns, ``rounds`` times, taking turns. To ``warm`` caches, one turn more comes first and does not
    count; a way that can only be measured for a second or more leaves that out where nobody looks at the figures.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    turns = range(0 if warm else 1, rounds + 1)
    with tqdm(total=len(turns) * len(ways), desc=what, unit="run", disable=None, leave=False) as bar:
        for turn in turns:
            for name, measure in ways.items():
                figure = measure()
                if turn:
                    found[name].append(figure)
                bar.update()
    return found


def ratios(some: Sequence[float], others: Sequence[float]) -> Spread:
    """The first figures divided by the second ones of the same turn."""
    return Spread.of([one / other for one, other in zip(some, others, strict=True)])
