from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stream_consumer.durations import RELATIVE_ERROR, bucket_of, median, seconds_of

DURATIONS = st.integers(0, 400 * 24 * 3600 * 1000)


@given(DURATIONS)
def test_a_bucket_tells_its_durations_to_within_the_stated_error(duration: int) -> None:
    assert abs(seconds_of(bucket_of(duration)) - duration / 1000) <= max(1.0, (RELATIVE_ERROR * 1.04) * duration / 1000)


@given(DURATIONS, DURATIONS)
def test_a_longer_duration_is_never_in_a_lower_bucket(one: int, other: int) -> None:
    shorter, longer = sorted((one, other))
    assert int(bucket_of(shorter)) <= int(bucket_of(longer))


@given(st.lists(DURATIONS, min_size=1))
def test_the_median_is_the_middle_of_the_middle_ones_bucket(durations: list[int]) -> None:
    middle = sorted(durations)[(len(durations) - 1) // 2]
    assert median(Counter(map(bucket_of, durations))) == seconds_of(bucket_of(middle))


def test_sessions_of_one_event_lasted_no_time() -> None:
    assert median({bucket_of(0): 3, bucket_of(90_000): 2}) == 0
    assert median({}) == 0
