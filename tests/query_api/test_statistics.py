import pytest
from hypothesis import given
from hypothesis import strategies as st

from query_api import statistics
from query_api.statistics import Entry, active, newest, to_read
from stream_consumer.rollup import MINUTE_MS
from stream_consumer.session import Session
from tests.builders import NOON, an_event


def a_session(name: str, end: int, page: str = "/a") -> Session:
    session = Session("blog", name)
    session.apply(an_event(1, session_id=name, timestamp=end, page_url=page))
    return session


NOW = NOON + 40 * MINUTE_MS + 30_000

ages = st.one_of(
    st.integers(-3 * MINUTE_MS, 40 * MINUTE_MS),
    st.sampled_from([limit + by for limit in (5 * MINUTE_MS, 30 * MINUTE_MS) for by in (-1, 0, 1)]),
)


@given(st.dictionaries(st.integers(0, 99).map("s{}".format), ages, max_size=12), st.integers(0, 4))
def test_who_is_here_equals_what_reading_every_session_gives(ages, few) -> None:
    sessions = {name: a_session(name, NOW - age) for name, age in ages.items()}
    low = statistics.oldest_active_minute(NOW)
    entries = newest(
        Entry(session.end // MINUTE_MS, name) for name, session in sessions.items() if session.end // MINUTE_MS >= low
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MAX_ACTIVE_READ", few)
        wanted = to_read(entries, NOW)
        found = active(entries, {name: sessions[name] for name in wanted}, NOW)
    here = {name for name, session in sessions.items() if NOW - session.end < 30 * MINUTE_MS}
    assert sorted(found.order) == sorted(here)
    assert found.recent == sum(NOW - sessions[name].end < 5 * MINUTE_MS for name in here)
    assert found.order[:few] == sorted(found.order[:few], key=lambda name: (-sessions[name].end, name))
    by_minute = [sessions[name].end // MINUTE_MS for name in found.order]
    assert by_minute == sorted(by_minute, reverse=True)


def test_the_index_is_believed_only_where_the_session_is_not_read() -> None:
    moved_on, gone = a_session("moved", NOW), a_session("gone", NOW)
    entries = newest([Entry((NOW - 9 * MINUTE_MS) // MINUTE_MS, "moved"), Entry(NOW // MINUTE_MS, gone.session_id)])
    found = active(entries, {"moved": moved_on}, NOW)
    assert (found.order, found.recent) == (["moved"], 1)


def test_no_more_entries_are_counted_than_stated(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "MAX_ACTIVE", 3)
    assert newest(Entry(minute, f"s{minute}") for minute in range(9)) == [(8, "s8"), (7, "s7"), (6, "s6")]


def test_current_pages_are_the_last_ones_viewed() -> None:
    here = [a_session("a", NOW, "/x?q"), a_session("b", NOW, "/y"), a_session("c", NOW, "/x")]
    only_a_click = Session("blog", "d")
    only_a_click.apply(an_event(1, session_id="d", event_type="click"))
    assert statistics.current_pages([*here, only_a_click], 10) == [("/x", 2), ("/y", 1)]
    assert statistics.current_pages(here, 1) == [("/x", 2)]
