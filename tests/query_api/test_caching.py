import threading
import time

import pytest

from query_api.caching import Fresh, Newest, Shared


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shared(clock, room=10, **options) -> Shared:
    return Shared(Newest(room), clock, **options)


class Counting:
    """Computes 1, 2, 3, ... each good for ``lifetime`` ms."""

    def __init__(self, clock, lifetime=100) -> None:
        self.calls = 0
        self._clock = clock
        self._lifetime = lifetime

    def __call__(self) -> Fresh:
        self.calls += 1
        return Fresh(self.calls, self._clock() + self._lifetime)


def test_a_value_is_kept_until_its_time_and_no_longer(clock) -> None:
    values, compute = shared(clock), Counting(clock)
    assert values.get("a", compute) == Fresh(1, clock.now + 100)
    clock.now += 99
    assert values.get("a", compute).value == 1
    assert values.get("b", compute).value == 2
    clock.now += 1
    assert values.get("a", compute).value == 3


def test_what_is_stale_at_once_is_not_kept(clock) -> None:
    values, compute = shared(clock), Counting(clock, lifetime=0)
    assert [values.get("a", compute).value for _ in range(2)] == [1, 2]


def test_what_may_take_no_room_is_not_kept(clock) -> None:
    values, compute = shared(clock, keep=lambda value: value > 1), Counting(clock)
    assert [values.get("a", compute).value for _ in range(3)] == [1, 2, 2]


def test_the_oldest_gives_way_where_there_is_no_more_room(clock) -> None:
    values, compute = shared(clock, room=2), Counting(clock)
    assert [values.get(key, compute).value for key in "abacba"] == [1, 2, 1, 3, 2, 4]


def together(work, threads=20) -> list:
    results: list = [None] * threads

    def run(place) -> None:
        try:
            results[place] = work(place)
        except Exception as error:  # noqa: BLE001
            results[place] = error

    running = [threading.Thread(target=run, args=(place,)) for place in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(10)
    return results


def test_many_who_want_the_same_at_once_cost_one_computation(clock) -> None:
    values, calls, started, go = shared(clock), [], threading.Event(), threading.Event()

    def compute() -> Fresh:
        calls.append(1)
        started.set()
        assert go.wait(10)
        return Fresh("value", clock.now + 100)

    def work(_):
        return values.get("a", compute).value

    threading.Thread(target=lambda: (started.wait(10), time.sleep(0.05), go.set())).start()
    assert together(work) == ["value"] * 20
    assert len(calls) == 1


def test_a_failure_is_shared_by_those_who_waited_and_not_kept(clock) -> None:
    values, calls, started, go = shared(clock), [], threading.Event(), threading.Event()

    def fail() -> Fresh:
        calls.append(1)
        started.set()
        assert go.wait(10)
        raise ConnectionError("not now")

    threading.Thread(target=lambda: (started.wait(10), time.sleep(0.05), go.set())).start()
    results = together(lambda _: values.get("a", fail))
    assert {str(error) for error in results} == {"not now"}
    assert len(calls) < 20
    assert values.get("a", Counting(clock)).value == 1


def test_a_value_that_came_between_looking_and_computing_is_taken(clock) -> None:
    class ComesLate:
        looks = 0

        def get(self, key):
            self.looks += 1
            return Fresh("theirs", clock.now + 1) if self.looks > 1 else None

        def set(self, key, value, timeout):
            raise AssertionError("nothing is computed")

    assert Shared(ComesLate(), clock).get("a", Counting(clock)).value == "theirs"


def test_different_keys_do_not_wait_for_each_other(clock) -> None:
    values, meet = shared(clock), threading.Barrier(4, timeout=10)

    def work(place):
        return values.get(f"k{place}", lambda: Fresh(meet.wait() >= 0, clock.now + 100)).value

    assert together(work, threads=4) == [True] * 4
