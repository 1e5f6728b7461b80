import random

import pytest

from stream_consumer.visitors import EXACT, RELATIVE_STANDARD_ERROR, Visitors


def union(parts) -> Visitors:
    whole = Visitors()
    for part in parts:
        whole.merge(part)
    return whole


def visitors(names) -> Visitors:
    counted = Visitors()
    for name in names:
        counted.add(name)
    return counted


@pytest.mark.parametrize("size", [0, 1, EXACT - 1, EXACT, EXACT + 1, 1000, 20_000])
def test_the_same_visitors_give_the_same_bytes_however_they_came(size: int) -> None:
    names = [f"visitor {number}" for number in range(size)]
    expected = visitors(names).to_bytes()
    for seed in range(4):
        rng = random.Random(seed)
        rng.shuffle(names)
        stored = Visitors()
        for name in names + names[: size // 3]:
            stored.add(name)
            if rng.random() < 5 / (size + 1):
                stored = Visitors.from_bytes(stored.to_bytes())
        parts = [Visitors() for _ in range(seed + 1)]
        for name in names:
            rng.choice(parts).add(name)
        assert stored.to_bytes() == union(parts).to_bytes() == expected


@pytest.mark.parametrize("size", [0, 7, EXACT])
def test_few_are_counted_exactly(size: int) -> None:
    counted = visitors(map(str, range(size)))
    assert counted.exact
    assert counted.estimate() == size


@pytest.mark.parametrize("size", [EXACT + 1, 1000, 10_000, 50_000])
def test_many_are_estimated_within_the_stated_error(size: int) -> None:
    counted = visitors(map(str, range(size)))
    assert not counted.exact
    assert abs(counted.estimate() - size) < 3 * RELATIVE_STANDARD_ERROR * size
    assert len(counted.to_bytes()) < 2100


def test_an_exact_set_merges_into_a_sketch() -> None:
    many, few = visitors(map(str, range(1000))), visitors(map(str, range(900, 1100)))
    assert union([many, few]).to_bytes() == union([few, many]).to_bytes() == visitors(map(str, range(1100))).to_bytes()


def test_an_exact_set_forgets_and_a_sketch_cannot() -> None:
    some = visitors(map(str, range(EXACT)))
    assert some.forget(["3", "unknown"])
    assert not some.forget(["3"])
    assert some.to_bytes() == visitors(str(n) for n in range(EXACT) if n != 3).to_bytes()
    many = visitors(map(str, range(EXACT + 1)))
    before = many.to_bytes()
    assert not many.forget(["3"])
    assert many.to_bytes() == before
