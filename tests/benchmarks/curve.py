"""A cost against the size of its input, and how fast it grows: the slope of a straight line through the logarithms.

A cost that grows as its input does has the exponent 1, one that does not depend on it 0, a quadratic one 2.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct

from tests.benchmarks.measuring import Spread

#: What an exponent of 1 may be above it: a measured one is never exact.
TOLERANCE = 0.1
#: The end of a curve is measured by itself, from this part of the greatest input on: it tells what is to come.
_END = 0.1


class Point(Struct, frozen=True):
    """The cost at an input of ``x``."""

    x: float
    y: Spread


class Curve(Struct, frozen=True):
    """``y`` names the cost with its unit, ``x`` the input; ``exponent`` is that of the whole cost in the input.
    ``of_each``: the costs are those of each unit of the input, so the whole cost is input times cost.
    """

    name: str
    x: str
    y: str
    points: list[Point]
    exponent: float
    of_each: bool = False

    @classmethod
    def of(cls, name: str, x: str, y: str, points: Sequence[Point], *, of_each: bool = False) -> Curve:
        """With the exponent of the points; raises ValueError where there are too few."""
        whole = [(point.x, point.y.median * (point.x if of_each else 1)) for point in points]
        return cls(name, x, y, list(points), exponent(whole), of_each)

    @property
    def bounded(self) -> bool:
        """Whether the cost grows no faster than its input."""
        return self.exponent <= 1 + TOLERANCE


def exponent(costs: Sequence[tuple[float, float]]) -> float:
    """How costs grow with inputs, as (input, cost): over the whole curve, or at its end if it is steeper there.

    Inputs and costs of 0 have no logarithm and are left out. Raises ValueError where fewer than two inputs are left.
    """
    known = [(math.log(x), math.log(y)) for x, y in costs if x > 0 and y > 0]
    if len(known) < 2:
        raise ValueError("a curve needs two inputs")
    last = max(x for x, _ in known)
    end = [(x, y) for x, y in known if x >= last + math.log(_END) - 1e-9]
    return max(_slope(known), _slope(end) if len(end) > 2 else -math.inf)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope
