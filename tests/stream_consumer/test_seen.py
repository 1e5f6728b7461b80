from hypothesis import given
from hypothesis import strategies as st

from stream_consumer.seen import MAX_IDS, MAX_INTERVALS, MAX_SOURCES, Seen, Verdict
from tests.builders import NOON, an_event


def numbered(seq: int, source: str = "tab"):
    return an_event(1, event_id=f"id{seq}", seq=seq, source=source)


@given(st.lists(st.integers(1, 12), max_size=40))
def test_numbers_are_told_from_their_repeats_in_any_order(numbers: list[int]) -> None:
    seen, known = Seen(), set()
    for number in numbers:
        expected = Verdict.DUPLICATE if number in known else Verdict.APPLIED
        assert seen.admit(numbered(number)) is expected
        known.add(number)


@given(st.permutations(list(range(1, 15))))
def test_numbers_in_any_order_leave_the_same_memory(numbers: list[int]) -> None:
    seen = Seen()
    for number in numbers:
        seen.admit(numbered(number))
    (runs,) = seen.sources.values()
    assert runs == [0, 1, 14]


def test_more_gaps_than_are_kept_make_what_lies_behind_late_and_never_counted_twice() -> None:
    seen = Seen()
    odd = [2 * n + 1 for n in range(MAX_INTERVALS + 3)]
    assert [seen.admit(numbered(number)) for number in odd] == [Verdict.APPLIED] * len(odd)
    assert seen.admit(numbered(2)) is Verdict.LATE
    assert seen.admit(numbered(odd[0])) is Verdict.LATE
    assert seen.admit(numbered(odd[-1])) is Verdict.DUPLICATE
    assert seen.admit(numbered(odd[-1] + 1)) is Verdict.APPLIED
    (runs,) = seen.sources.values()
    assert len(runs) <= 1 + 2 * MAX_INTERVALS


def test_sources_beyond_the_bound_are_told_by_event_id() -> None:
    seen = Seen()
    for tab in range(MAX_SOURCES + 2):
        assert seen.admit(an_event(tab, seq=1, source=f"tab{tab}")) is Verdict.APPLIED
    assert len(seen.sources) == MAX_SOURCES
    for tab in range(MAX_SOURCES + 2):
        assert seen.admit(an_event(tab, seq=1, source=f"tab{tab}")) is Verdict.DUPLICATE


@given(st.lists(st.integers(1, 30), max_size=60))
def test_unnumbered_events_are_told_by_their_id(numbers: list[int]) -> None:
    seen, known = Seen(), set()
    for number in numbers:
        assert seen.admit(an_event(number)) is (Verdict.DUPLICATE if number in known else Verdict.APPLIED)
        known.add(number)


def test_the_same_event_under_another_time_is_still_a_repeat() -> None:
    seen = Seen()
    assert seen.admit(an_event(1)) is Verdict.APPLIED
    assert seen.admit(an_event(1, timestamp=NOON + 9_999_999)) is Verdict.DUPLICATE


def test_ids_are_forgotten_from_the_earliest_on_and_what_is_older_is_late() -> None:
    seen = Seen()
    for number in range(MAX_IDS + 10):
        assert seen.admit(an_event(number)) is Verdict.APPLIED
    assert len(seen.ids) == MAX_IDS
    assert seen.admit(an_event(3)) is Verdict.LATE
    assert seen.admit(an_event(-5)) is Verdict.LATE
    assert seen.admit(an_event(MAX_IDS)) is Verdict.DUPLICATE
    assert seen.admit(an_event(MAX_IDS + 10)) is Verdict.APPLIED
