"""How fast a cost grows is told by its exponent, and nothing hides a steep end."""

import pytest

from tests.benchmarks.curve import Curve, Point, exponent
from tests.benchmarks.measuring import Spread

INPUTS = (1, 3, 10, 30, 100, 300, 1_000)


@pytest.mark.parametrize("power", [-1, 0, 0.5, 1, 2])
def test_a_power_is_its_own_exponent(power) -> None:
    assert exponent([(x, 7 * x**power) for x in INPUTS]) == pytest.approx(power)


def test_a_fixed_part_hides_no_growth_at_the_end() -> None:
    """Far below 1 over all, for the fixed part is most of it; but it grows as the square."""
    costs = [(x, 100_000 + x**2) for x in INPUTS]
    assert exponent(costs[:-2]) < 0.1
    assert exponent([(x, 100_000 + x**2) for x in (*INPUTS, 3_000, 10_000)]) > 1.7


def test_an_input_of_nothing_is_left_out() -> None:
    assert exponent([(0, 5), *((x, 2 * x) for x in INPUTS)]) == pytest.approx(1)
    with pytest.raises(ValueError, match="two inputs"):
        exponent([(0, 5), (1, 5)])


def test_a_cost_of_each_unit_is_made_one_of_all_of_them() -> None:
    points = [Point(x, Spread(3, 2, 4)) for x in INPUTS]
    assert Curve.of("CPU", "events", "us/event", points, of_each=True).exponent == pytest.approx(1)
    assert Curve.of("CPU", "sessions", "us/event", points).exponent == pytest.approx(0)


@pytest.mark.parametrize(("power", "bounded"), [(0.98, True), (1.05, True), (1.2, False), (2, False)])
def test_what_grows_faster_than_its_input_is_no_longer_bounded(power, bounded) -> None:
    curve = Curve.of("", "", "", [Point(x, Spread(x**power, 0, 0)) for x in INPUTS])
    assert curve.bounded is bounded
