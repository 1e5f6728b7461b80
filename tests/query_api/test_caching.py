import hashlib
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import msgspec
import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from query_api.caching import (
    Answer,
    Breaker,
    Fresh,
    Newest,
    Packed,
    Remote,
    Served,
    Shared,
    Tiers,
    answer_store,
    make_answer,
)
from stream_consumer.table import Unavailable


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock):
    """Makes a Shared that is closed in the end. Nothing is jittered unless the test says how."""
    made = []

    def shared(room=10, store=None, **options) -> Shared:
        options = {"jitter": lambda: 0.0, "patience": 5.0} | options
        made.append(Shared(store or Newest(room), clock, **options))
        return made[-1]

    yield shared
    for one in made:
        one.close()


class Counting:
    """Computes 1, 2, 3, ... each good for ``lifetime`` ms; raises ``error`` instead where that is set."""

    def __init__(self, clock, lifetime=100) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.threads: list[threading.Thread] = []
        self._clock = clock
        self._lifetime = lifetime

    def __call__(self) -> Fresh:
        self.calls += 1
        self.threads.append(threading.current_thread())
        if self.error:
            raise self.error
        return Fresh(self.calls, self._clock() + self._lifetime)


class Hanging:
    """Computes ``value`` once it may; ``begun`` is released by each call."""

    def __init__(self, clock, value="new") -> None:
        self.begun = threading.Semaphore(0)
        self.calls = 0
        self.error: Exception | None = None
        self._may = threading.Event()
        self._clock = clock
        self._value = value

    def __call__(self) -> Fresh:
        self.calls += 1
        self.begun.release()
        assert self._may.wait(10)
        if self.error:
            raise self.error
        return Fresh(self._value, self._clock() + 100)

    def end(self) -> None:
        self._may.set()


@contextmanager
def hanging(clock, *args):
    compute = Hanging(clock, *args)
    try:
        yield compute
    finally:
        compute.end()


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


class Named(Newest):
    """Tells the names that it was given."""

    def __init__(self) -> None:
        super().__init__(100)
        self.names: list[str] = []

    def set(self, key, value, timeout):
        self.names.append(key)
        super().set(key, value, timeout)


def eventually(true) -> bool:
    for _ in range(1000):
        if true():
            return True
        time.sleep(0.005)
    return False


def seconds(work) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


# What is fresh, and one flight for each key.


def test_a_value_is_kept_until_its_time_and_no_longer(clock, make) -> None:
    values, compute = make(), Counting(clock)
    assert values.get("a", compute) == Served(1, clock.now + 100, stale=0)
    clock.now += 99
    assert values.get("a", compute).value == 1
    assert values.get("b", compute).value == 2
    clock.now += 1
    assert values.get("a", compute).value == 3


def test_what_is_stale_at_once_is_not_kept(clock, make) -> None:
    store = Named()
    values, compute = make(store=store), Counting(clock, lifetime=0)
    assert [values.get("a", compute) for _ in range(2)] == [Served(1, clock.now), Served(2, clock.now)]
    assert store.names == []


def test_what_may_take_no_room_is_not_kept(clock, make) -> None:
    values, compute = make(keep=lambda value: value > 1), Counting(clock)
    assert [values.get("a", compute).value for _ in range(3)] == [1, 2, 2]


def test_the_oldest_gives_way_where_there_is_no_more_room(clock, make) -> None:
    values, compute = make(room=2), Counting(clock)
    assert [values.get(key, compute).value for key in "abacba"] == [1, 2, 1, 3, 2, 4]


def test_what_was_set_again_is_no_longer_the_oldest() -> None:
    store = Newest(2)
    for key in "abac":
        store.set(key, key, 10)
    assert [store.get(key) for key in "abc"] == ["a", None, "c"]


def test_many_who_want_the_same_at_once_cost_one_computation(clock, make) -> None:
    values = make()
    with hanging(clock, "value") as compute:
        threading.Thread(target=lambda: (compute.begun.acquire(timeout=10), time.sleep(0.05), compute.end())).start()
        assert together(lambda _: values.get("a", compute).value) == ["value"] * 20
    assert compute.calls == 1


@pytest.mark.parametrize("error", [Unavailable("not now"), ZeroDivisionError("not now"), TimeoutError("not now")])
def test_a_failure_is_shared_by_those_who_waited_and_not_kept(clock, make, error) -> None:
    values = make(stale_ms=1000)
    with hanging(clock) as compute:
        compute.error = error
        threading.Thread(target=lambda: (compute.begun.acquire(timeout=10), time.sleep(0.05), compute.end())).start()
        assert {repr(raised) for raised in together(lambda _: values.get("a", compute))} == {repr(error)}
    assert compute.calls < 20
    assert values.get("a", Counting(clock)) == Served(1, clock.now + 100)


def test_without_an_old_value_it_is_computed_in_the_thread_that_asks_and_waited_for(clock, make) -> None:
    values, compute = make(stale_ms=1000, patience=0), Counting(clock)
    values.get("a", compute)
    assert compute.threads == [threading.current_thread()]


def test_a_value_that_came_between_looking_and_computing_is_taken(clock, make) -> None:
    class ComesLate:
        looks = 0

        def get(self, key):
            self.looks += 1
            return Served("theirs", clock.now + 1) if self.looks > 1 else None

        def set(self, key, value, timeout):
            raise AssertionError("nothing is computed")

    assert make(store=ComesLate()).get("a", Counting(clock)).value == "theirs"


def test_different_keys_do_not_wait_for_each_other(clock, make) -> None:
    values, meet = make(), threading.Barrier(4, timeout=10)

    def work(place):
        return values.get(f"k{place}", lambda: Fresh(meet.wait() >= 0, clock.now + 100)).value

    assert together(work, threads=4) == [True] * 4


def test_a_fresh_value_is_one_look_and_not_even_a_new_object(clock, make) -> None:
    class Counted(Newest):
        looks = 0

        def get(self, key):
            self.looks += 1
            return super().get(key)

    store = Counted(10)
    values, compute = make(store=store, stale_ms=1000), Counting(clock)
    first, store.looks = values.get("a", compute), 0
    assert values.get("a", compute) is first
    assert store.looks == 1


def test_who_reads_while_a_value_is_replaced_finds_the_old_or_the_new_one() -> None:
    store, end = Newest(2), time.monotonic() + 0.2
    store.set("a", 0, 1)

    def work(place):
        if place:
            return all(store.get("a") is not None for _ in iter(lambda: time.monotonic() < end, False))
        return all(store.set("a", 1, 1) is None for _ in iter(lambda: time.monotonic() < end, False))

    assert together(work, threads=3) == [True] * 3


# Lifetimes.


@given(jitter=st.floats(0, 1, exclude_max=True), lifetime=st.integers(1, 10**8))
def test_a_lifetime_is_cut_by_a_tenth_at_most(jitter, lifetime) -> None:
    clock = Clock()
    until = Shared(Newest(1), clock, jitter=lambda: jitter).get("a", Counting(clock, lifetime)).until
    assert clock.now + lifetime * 0.9 <= until <= clock.now + lifetime
    assert (until == clock.now + lifetime) == (int(lifetime * 0.1 * jitter) == 0)


def test_values_of_equal_age_do_not_all_end_together(clock) -> None:
    values, compute = Shared(Newest(100), clock), Counting(clock, lifetime=10_000)
    assert len({values.get(f"k{n}", compute).until for n in range(100)}) > 50


def test_the_store_is_told_to_keep_it_for_as_long_as_it_may_be_given_out_stale(clock, make) -> None:
    class Told(Newest):
        def set(self, key, value, timeout):
            assert timeout == 1 + (1500 + 60_000) // 1000
            super().set(key, value, timeout)

    make(store=Told(1), stale_ms=60_000).get("a", Counting(clock, lifetime=1500))


# Stale values.


def with_old_value(make, clock, **options) -> Shared:
    """Holds 1 under "a", too old by 50 ms."""
    values = make(stale_ms=60_000, **options)
    values.get("a", Counting(clock))
    clock.now += 150
    return values


def test_a_refresh_within_the_patience_is_what_all_get(clock, make) -> None:
    values, compute = with_old_value(make, clock), Counting(clock)
    compute.calls = 1
    assert set(together(lambda _: values.get("a", compute))) == {Served(2, clock.now + 100)}
    assert compute.threads[0].name.startswith("refresh")


def test_a_slow_refresh_is_waited_for_no_longer_than_the_patience_and_then_the_old_value_is_marked(clock, make) -> None:
    values, until = with_old_value(make, clock, patience=0.1), clock.now - 50
    with hanging(clock) as compute:
        began = time.monotonic()
        results = together(lambda _: values.get("a", compute))
        lasted = time.monotonic() - began
        assert results == [Served(1, until, stale=50)] * 20
        assert 0.1 <= lasted < 2
        assert compute.calls == 1
        compute.end()
        assert eventually(lambda: values.get("a", compute) == Served("new", clock.now + 100, stale=0))
    assert compute.calls == 1


def test_patience_counts_from_when_the_refresh_began(clock, make) -> None:
    values = with_old_value(make, clock, patience=0.25)
    with hanging(clock) as compute:
        assert values.get("a", compute).stale
        clock.now += 250
        assert seconds(lambda: values.get("a", compute)) < 0.2
        assert values.get("a", compute).stale == 300


def test_where_a_refresh_fails_all_get_the_old_value_marked(clock, make) -> None:
    values, compute = with_old_value(make, clock), Counting(clock)
    compute.error = Unavailable("not now")
    assert set(together(lambda _: values.get("a", compute))) == {Served(1, clock.now - 50, stale=50)}
    assert compute.calls == 1


def test_the_mark_is_there_at_the_very_end_of_a_lifetime(clock, make) -> None:
    values, compute = with_old_value(make, clock), Counting(clock)
    compute.error = Unavailable("not now")
    clock.now -= 50
    assert values.get("a", compute).stale == 1


@pytest.mark.parametrize(("jitter", "part"), [(0.0, 0.75), (0.5, 1.0), (0.999, 1.2495)])
def test_after_failures_no_refresh_is_tried_for_a_second_then_longer_and_for_five_at_most(
    clock, make, jitter, part
) -> None:
    values, compute = with_old_value(make, clock, jitter=lambda: jitter), Counting(clock)
    compute.error = Unavailable("not now")
    for times, rest in enumerate([1000, 2000, 4000, 5000, 5000, 5000], start=1):
        assert values.get("a", compute).stale
        clock.now += int(rest * part) - 1
        assert {served.value for served in together(lambda _: values.get("a", compute), threads=4)} == {1}
        assert compute.calls == times
        clock.now += 1


def test_the_mark_vanishes_with_the_first_success_and_the_failures_are_forgotten(clock, make) -> None:
    values, compute = with_old_value(make, clock), Counting(clock)
    compute.error = Unavailable("not now")
    for _ in range(3):
        assert values.get("a", compute).stale
        clock.now += 5000
    compute.error = None
    assert values.get("a", compute) == Served(4, clock.now + 100, stale=0)
    clock.now += 100
    compute.error = Unavailable("not now")
    assert values.get("a", compute).stale
    clock.now += 750
    assert values.get("a", compute).stale
    assert compute.calls == 6


def test_one_key_failing_rests_no_other(clock, make) -> None:
    values, compute = with_old_value(make, clock), Counting(clock)
    values.get("b", Counting(clock))
    compute.error = Unavailable("not now")
    clock.now += 100
    assert values.get("a", compute).stale
    assert values.get("b", compute).stale
    assert compute.calls == 2


def test_a_value_too_old_even_for_that_is_not_given_out(clock, make) -> None:
    values, compute = make(stale_ms=1000), Counting(clock)
    values.get("a", compute)
    compute.error = Unavailable("not now")
    clock.now += 1099
    assert values.get("a", compute).stale == 999
    clock.now += 1
    with pytest.raises(Unavailable):
        values.get("a", compute)


def test_a_refresh_that_hangs_until_the_old_value_is_too_old_is_waited_for(clock, make) -> None:
    values = make(stale_ms=1000, patience=0)
    values.get("a", Counting(clock))
    clock.now += 500
    with hanging(clock) as compute:
        assert values.get("a", compute).stale
        clock.now += 1000
        threading.Timer(0.05, compute.end).start()
        assert values.get("a", compute) == Served("new", clock.now + 100)
    assert compute.calls == 1


def test_with_all_refreshers_hanging_other_old_values_are_given_out_at_once_and_nothing_queues(clock, make) -> None:
    values, before = make(room=200, stale_ms=60_000, patience=0.1), set(threading.enumerate())
    for n in range(100):
        values.get(f"k{n}", Counting(clock))
    clock.now += 150
    with hanging(clock) as compute:
        assert all(served.stale for served in together(lambda n: values.get(f"k{n}", compute), threads=8))
        assert compute.calls == 8
        others = Counting(clock)
        assert seconds(lambda: [values.get(f"k{n}", others).stale for n in range(8, 100)]) < 92 * 0.1 / 2
        assert others.calls == 0
        assert len(set(threading.enumerate()) - before) == 8
        compute.end()
        assert eventually(lambda: values.get("k99", others) == Served(1, clock.now + 100))
    assert others.calls == 1
    assert eventually(lambda: {values.get(f"k{n}", others).value for n in range(8)} == {"new"})


def test_a_fault_of_ours_is_raised_though_there_is_an_old_value_and_loses_no_flight(clock, make) -> None:
    values, compute = with_old_value(make, clock), Counting(clock)
    compute.error = ZeroDivisionError("a bug")
    assert {repr(error) for error in together(lambda _: values.get("a", compute))} == {repr(compute.error)}
    compute.error = None
    assert values.get("a", compute) == Served(compute.calls, clock.now + 100)


@pytest.mark.parametrize(("error", "logged"), [(ZeroDivisionError("a bug"), 1), (Unavailable("not now"), 0)])
def test_a_fault_of_ours_that_nobody_waited_for_is_logged(clock, make, caplog, error, logged) -> None:
    with ThreadPoolExecutor(1) as pool, hanging(clock) as compute:
        values = with_old_value(make, clock, patience=0, refreshers=pool)
        compute.error = error
        assert values.get("a", compute).stale
        compute.end()
    assert [(record.levelname, record.exc_info[1]) for record in caplog.records] == [("ERROR", error)] * logged


def test_a_fault_that_somebody_got_is_left_to_them_to_log(clock, make, caplog) -> None:
    values, compute = with_old_value(make, clock), Counting(clock)
    compute.error = LookupError("there is no such session")
    with pytest.raises(LookupError):
        values.get("a", compute)
    assert caplog.records == []


def test_a_store_that_breaks_its_word_loses_no_flight_either(clock, make) -> None:
    class Broken(Newest):
        def set(self, key, value, timeout):
            raise OSError("full")

    values = make(store=Broken(1))
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            values.get("a", Counting(clock))


def test_closed_it_lets_no_thread_behind_and_still_gives_out_what_there_is(clock, make) -> None:
    before = set(threading.enumerate())
    values = with_old_value(make, clock)
    assert values.get("a", Counting(clock)).stale == 0
    assert set(threading.enumerate()) - before
    values.close()
    assert eventually(lambda: not set(threading.enumerate()) - before)
    clock.now += 150
    compute = Counting(clock)
    assert [values.get("a", compute).stale for _ in range(2)] == [50, 50]
    assert compute.calls == 0


def test_refreshers_that_were_passed_in_are_used_and_stay_their_owners(clock, make) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        values, compute = with_old_value(make, clock, refreshers=pool), Counting(clock)
        values.get("a", compute)
        assert compute.threads[0].name.startswith("mine")
        values.close()
        assert pool.submit(lambda: 1).result(5) == 1


def test_who_waits_for_a_refresh_that_is_dropped_unbegun_gets_the_old_value(clock, make) -> None:
    pool = ThreadPoolExecutor(1)
    values = with_old_value(make, clock, refreshers=pool)
    with hanging(clock) as compute:
        pool.submit(compute)
        threading.Timer(0.1, pool.shutdown, kwargs={"wait": False, "cancel_futures": True}).start()
        assert seconds(lambda: values.get("a", compute)) < 4
        assert values.get("a", compute).stale == 50
        assert compute.calls == 1


def test_a_refresh_that_begins_though_it_was_said_that_it_could_not_ends_no_other(clock, make) -> None:
    class Overloaded(ThreadPoolExecutor):
        refused = 0

        def submit(self, work):
            running = super().submit(work)
            self.refused += 1
            if self.refused == 1:
                raise RuntimeError("can't start new thread")
            return running

    with Overloaded(4) as pool, hanging(clock) as first, hanging(clock) as second:
        store = Newest(1)
        values = with_old_value(make, clock, store=store, refreshers=pool, patience=0)
        assert values.get("a", first).stale
        assert first.begun.acquire(timeout=5)
        assert values.get("a", second).stale
        assert second.begun.acquire(timeout=5)
        clock.now -= 150  # what the first computes is kept as too old already
        first.end()
        assert eventually(lambda: store.get("a").value == "new")
        time.sleep(0.02)
        clock.now += 250
        assert values.get("a", second).stale
        assert not second.begun.acquire(timeout=0.1)


@given(st.lists(st.tuples(st.integers(0, 3000), st.booleans(), st.sampled_from("ab")), max_size=30))
def test_whatever_fails_when_what_is_given_out_is_as_old_as_it_says(steps) -> None:
    clock, computed, failed = Clock(), {}, {}
    values = Shared(Newest(10), clock, stale_ms=4000, patience=5.0, jitter=lambda: 0.5)
    for passes, works, key in steps:
        clock.now += passes
        has_old = key in computed and clock.now - computed[key] < 950 + 4000
        tried = False

        def compute(key=key, works=works) -> Fresh:
            nonlocal tried
            tried = True
            if not works:
                raise Unavailable("not now")
            computed[key] = clock.now
            return Fresh(clock.now, clock.now + 1000)

        try:
            served = values.get(key, compute)
        except Unavailable:
            assert not works
            assert not has_old
            continue
        assert served.value == computed[key]
        assert served.until == served.value + 950
        assert served.stale == (0 if clock.now < served.until else max(1, clock.now - served.until))
        assert served.stale < 4000
        if tried:
            assert works == (served.stale == 0)
            assert not has_old or clock.now - failed.get(key, 0) >= 1000
            if not works:
                failed[key] = clock.now
    values.close()


# Answers, and where they are kept.


def test_the_etag_of_an_answer_names_its_body_and_not_its_headers() -> None:
    one, other = make_answer(b"{}", {"X-A": "1"}), make_answer(b"{}", {})
    assert one == Answer(b"{}", one.etag, {"X-A": "1"})
    assert one.etag == other.etag == hashlib.blake2b(b"{}", digest_size=16).hexdigest()
    assert make_answer(b"{ }", {}).etag != one.etag


def test_in_this_process_answers_stay_as_they_are(clock) -> None:
    store = answer_store(Flask("test"), None)
    kept = Served(make_answer(b"{}", {"X-A": "é"}), clock.now)
    store.set("a", kept, 10)
    assert store.get("a") is kept
    assert store.get("b") is None


def test_two_applications_share_nothing_by_themselves(clock) -> None:
    one, other = answer_store(Flask("one"), None), answer_store(Flask("other"), None)
    one.set("a", Served(make_answer(b"{}", {}), clock.now), 10)
    assert other.get("a") is None


def test_answers_in_this_process_are_bounded(clock) -> None:
    store = answer_store(Flask("test"), None)
    for n in range(2100):
        store.set(f"k{n}", Served(n, clock.now), 10)
    assert [n for n in range(2100) if store.get(f"k{n}") is not None] == list(range(100, 2100))


def test_in_this_process_too_it_is_flask_caching_that_keeps_them(clock) -> None:
    app = Flask("test")
    store = answer_store(app, None)
    assert list(app.extensions["cache"].values()) == [store]


def test_what_cannot_be_the_address_of_a_redis_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="scheme"):
        answer_store(Flask("test"), "http://127.0.0.1/")


def tiers() -> tuple[Tiers, Newest, Newest]:
    front, behind = Newest(10), Newest(10)
    return Tiers(front, behind), front, behind


def test_a_value_that_another_process_computed_is_used_and_from_then_on_at_hand(clock, make) -> None:
    store, _, behind = tiers()
    behind.set("a", Served("theirs", clock.now + 100), 10)
    values, compute = make(store=store), Counting(clock)
    assert values.get("a", compute).value == "theirs"
    behind.forget("a")
    assert values.get("a", compute).value == "theirs"
    assert compute.calls == 0


def test_a_fresh_value_of_another_process_needs_no_refresher(clock, make) -> None:
    store, _, behind = tiers()
    values = make(store=store, stale_ms=60_000)
    values.close()
    behind.set("a", Served("theirs", clock.now + 100), 10)
    assert values.get("a", Counting(clock)).stale == 0


def test_a_failing_key_rests_though_its_old_value_is_no_longer_at_hand(clock, make) -> None:
    store, front, _ = tiers()
    values, compute = with_old_value(make, clock, store=store), Counting(clock)
    compute.error = Unavailable("not now")
    for _ in range(3):
        assert values.get("a", compute).stale == 50
        front.forget("a")
    assert compute.calls == 1


def test_a_value_that_another_process_refreshed_is_used_where_ours_is_old(clock, make) -> None:
    store, _, behind = tiers()
    values, compute = make(store=store, stale_ms=60_000), Counting(clock)
    values.get("a", compute)
    clock.now += 150
    behind.set("a", Served("theirs", clock.now + 100), 10)
    assert values.get("a", compute) == Served("theirs", clock.now + 100, stale=0)
    assert compute.calls == 1


def test_an_old_value_of_another_process_is_an_old_value(clock, make) -> None:
    store, _, behind = tiers()
    behind.set("a", Served("theirs", clock.now - 50), 10)
    values, compute = make(store=store, stale_ms=60_000), Counting(clock)
    compute.error = Unavailable("not now")
    assert set(together(lambda _: values.get("a", compute))) == {Served("theirs", clock.now - 50, stale=50)}
    assert compute.calls == 1


def test_who_waits_while_the_leader_looks_behind_gets_the_old_value_in_time_too(clock, make) -> None:
    front, looking, found = Newest(10), threading.Event(), threading.Event()

    class Slow:
        def get(self, key):
            looking.set()
            assert found.wait(10)
            return Served("theirs", clock.now - 50)

        def set(self, key, value, timeout):
            pass

    values = make(store=Tiers(front, Slow()), stale_ms=60_000, patience=0.05)
    threading.Thread(target=lambda: (looking.wait(10), time.sleep(0.05), found.set())).start()
    with hanging(clock) as compute:
        assert set(together(lambda _: values.get("a", compute))) == {Served("theirs", clock.now - 50, stale=50)}


def test_of_two_tiers_the_newer_value_counts(clock) -> None:
    store, front, behind = tiers()
    front.set("a", Served("ours", clock.now), 10)
    behind.set("a", Served("theirs", clock.now - 1), 10)
    assert store.get("a").value == "ours"
    behind.set("a", Served("theirs", clock.now + 1), 10)
    assert store.near("a").value == "ours"
    assert store.get("a").value == store.near("a").value == "theirs"


def test_what_is_set_is_in_both_tiers(clock) -> None:
    store, front, behind = tiers()
    store.set("a", 1, 10)
    assert front.get("a") == behind.get("a") == 1


@given(
    st.integers(-(2**63), 2**63 - 1), st.binary(max_size=50), st.dictionaries(st.text(max_size=9), st.text(max_size=9))
)
def test_an_answer_comes_back_from_its_bytes(until, body, headers) -> None:
    served = Served(make_answer(body, headers), until)
    assert Packed().loads(Packed().dumps(served)) == served


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@given(
    st.binary() | st.recursive(st.integers() | st.text() | st.none(), st.lists, max_leaves=9).map(repr).map(str.encode)
)
def test_bytes_that_are_no_answer_are_a_miss(data) -> None:
    assert Packed().loads(data) is None


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"!" + pickle.dumps(Exploding()),
        pickle.dumps(Exploding()),
        msgspec.msgpack.encode((1, b"", "")),
        msgspec.msgpack.encode(("1", b"", "", {})),
        msgspec.msgpack.encode((1, b"", "", {"X": 1})),
        msgspec.msgpack.encode((1, b"", "", {})) + b"\0",
        msgspec.msgpack.encode((1, b"x" * 100, "", {}))[:50],
        b"\x94\x01\xc4\x00\xa1\xff\x80",
        b"\x91" * 10_000,
    ],
)
def test_bytes_that_nearly_are_an_answer_are_a_miss_and_none_are_unpickled(data) -> None:
    assert Packed().loads(data) is None


# A server that fails.


def test_a_breaker_admits_all_until_a_failure_and_then_one_after_each_rest() -> None:
    breaker = Breaker(3000)
    assert [breaker.admits(0), breaker.admits(0)] == [True, True]
    assert [breaker.failed(10), breaker.failed(20)] == [True, False]
    assert [breaker.admits(now) for now in (20, 3019, 3020, 3020, 9000)] == [False, False, True, False, False]
    assert breaker.failed(9000) is False
    assert [breaker.admits(now) for now in (11_999, 12_000)] == [False, True]
    assert [breaker.worked(12_000), breaker.worked(12_000)] == [True, False]
    assert [breaker.admits(12_001), breaker.admits(12_001)] == [True, True]


def test_a_success_begun_before_the_outage_does_not_end_it() -> None:
    breaker = Breaker(3000)
    breaker.failed(100)
    assert [breaker.worked(99), breaker.worked(100), breaker.admits(100)] == [False, False, False]


class Failing(Newest):
    """Raises ``error`` where that is set."""

    error: Exception | None = None
    asked = 0

    def get(self, key):
        self.asked += 1
        if self.error:
            raise self.error
        return super().get(key)

    def set(self, key, value, timeout):
        self.asked += 1
        if self.error:
            raise self.error
        super().set(key, value, timeout)


def test_a_failing_server_holds_nothing_is_left_alone_and_logged_once_for_each_outage(clock, caplog) -> None:
    caplog.set_level(logging.INFO)
    server = Failing(10)
    store = Remote(server, Breaker(3000), clock)
    store.set("a", 1, 10)
    for _ in range(2):
        server.error, server.asked = ConnectionError("refused"), 0
        for _ in range(10):
            assert store.get("a") is None
            store.set("a", 2, 10)
            clock.now += 1000
        assert server.asked == 4
        server.error = None
        clock.now += 3000
        assert [store.get("a") for _ in range(3)] == [1, 1, 1]
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    warning = "Redis fails (refused): answers go on without it; it is tried again now and then"
    assert said == [("WARNING", warning), ("INFO", "Redis works again")] * 2


def test_a_hanging_server_holds_up_nobody_but_who_found_out(clock) -> None:
    server, threads = Failing(10), []
    store = Remote(server, Breaker(3000), clock)
    server.error = TimeoutError("timed out")
    assert store.get("a") is None
    clock.now += 3000
    hangs, may = threading.Event(), threading.Event()
    server.get = lambda key: (hangs.set(), may.wait(10))[1]
    threads.append(threading.Thread(target=store.get, args=("a",)))
    threads[0].start()
    assert hangs.wait(5)
    clock.now += 60_000
    assert together(lambda _: store.get("a")) == [None] * 20
    may.set()
    threads[0].join(5)


def test_something_else_under_the_name_is_a_miss_and_no_outage(clock, caplog) -> None:
    server = Failing(10)
    store = Remote(server, Breaker(3000), clock)
    server.error = ValueError("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert store.get("a") is None
    server.error = None
    store.set("a", 1, 10)
    assert store.get("a") == 1
    assert caplog.records == []


@given(
    st.lists(st.text() | st.text("#abc é\n\ud800", min_size=190, max_size=3000), min_size=2, max_size=6, unique=True)
)
def test_whatever_a_client_sent_has_a_name_of_its_own_that_is_short_and_plain(keys) -> None:
    server = Named()
    store = Remote(server, Breaker(3000), Clock())
    for place, key in enumerate(keys):
        store.set(key, place, 10)
    assert [store.get(key) for key in keys] == list(range(len(keys)))
    assert all(len(name) <= 200 and name.isascii() and name.isprintable() for name in server.names)


def test_a_key_cannot_be_made_to_look_like_the_name_of_another() -> None:
    server = Named()
    store = Remote(server, Breaker(3000), Clock())
    store.set("é", 1, 10)
    assert store.get(server.names[0]) is None


def test_a_short_plain_key_is_its_own_name() -> None:
    server = Named()
    Remote(server, Breaker(3000), Clock()).set("summary blog 1 2", 1, 10)
    assert server.names == ["summary blog 1 2"]


def test_what_many_want_is_computed_anew_before_its_time_is_over_and_nobody_waits(clock) -> None:
    shared = Shared(Newest(10), clock, ahead=0.4, stale_ms=1000, jitter=lambda: 0.0)
    computed = []
    go_on, begun = threading.Event(), threading.Event()

    def compute():
        computed.append(clock())
        if len(computed) > 1:
            begun.set()
            assert go_on.wait(10)
        return Fresh(len(computed), clock() + 1000)

    assert shared.get("k", compute).value == 1
    clock.now += 599
    assert shared.get("k", compute).value == 1
    assert len(computed) == 1, "most of its time is left"
    clock.now += 1
    for _ in range(5):
        assert shared.get("k", compute).value == 1, "it is still good"
    assert begun.wait(10)
    assert len(computed) == 2, "one flight"
    go_on.set()
    deadline = time.monotonic() + 10
    while shared.get("k", compute).value == 1:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert shared.get("k", compute).until == computed[1] + 1000
    shared.close()


def test_a_renewal_that_fails_changes_nothing_while_the_value_is_good(clock) -> None:
    shared = Shared(Newest(10), clock, ahead=0.4, stale_ms=1000, jitter=lambda: 0.0)
    assert shared.get("k", lambda: Fresh("old", clock() + 1000)).value == "old"
    clock.now += 700
    failed = threading.Event()

    def fail():
        failed.set()
        raise Unavailable("gone")

    assert shared.get("k", fail) == Served("old", 1000 + clock() - 700, 0, 400)
    assert failed.wait(10)
    assert shared.get("k", fail).stale == 0
    shared.close()
