from collections import Counter as Tally
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query_api import statistics
from query_api.statistics import Entry, Step, active, newest, rank, steps, summarise, to_read, total
from stream_consumer.acquisition import page_of
from stream_consumer.consume import consume
from stream_consumer.items import read_rollup
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS, RollUp, bounded
from stream_consumer.seen import Verdict
from stream_consumer.session import Session
from stream_consumer.visitors import EXACT, RELATIVE_STANDARD_ERROR
from tests.builders import NOON, a_batch, an_event
from tests.fake_dynamodb import MemoryTables

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605 Version/17.0 Mobile/15E148 Safari/604.1"

events = st.builds(
    lambda number, session, at, kind, page, user, referrer, agent, value: an_event(
        number,
        session_id=f"s{session}",
        timestamp=NOON + at,
        received_at=NOON + 10 * QUARTER_MS + number,
        event_type=kind,
        page_url=f"https://example.com/{page}",
        user_id=user,
        referrer=referrer,
        user_agent=agent,
        **({"conversion_value": value, "conversion_currency": "EUR"} if kind == "conversion" else {}),
    ),
    st.integers(0, 10**6),
    st.integers(0, 4),
    st.integers(-2 * QUARTER_MS, 2 * QUARTER_MS),
    st.sampled_from(["page_view", "page_view", "click", "conversion", "heartbeat"]),
    st.sampled_from(["", "a", "b?q=1", "c" * 200]),
    st.sampled_from(["", "", "ann", "bob"]),
    st.sampled_from(["", "https://www.google.com/", "https://news.example/x"]),
    st.sampled_from(["", PHONE]),
    st.sampled_from([0.0, 9.99, 0.1]),
)


class Reference:
    """The figures of a range, by going through the events and sessions themselves."""

    def __init__(self, log, start, end) -> None:
        sessions: dict[str, Session] = {}
        applied = []
        for event in log:
            session = sessions.setdefault(event.session_id, Session("blog", event.session_id))
            if session.apply(event) is Verdict.APPLIED:
                applied.append(event)
        self.happened = [event for event in applied if start <= event.timestamp < end]
        self.began = [session for session in sessions.values() if session.events and start <= session.start < end]
        self.views = [event for event in self.happened if event.event_type == "page_view"]
        self.conversions = [event for event in self.happened if event.event_type == "conversion"]

    def mean(self, figure) -> float:
        return sum(map(figure, self.began)) / len(self.began) if self.began else 0.0


def rolled_up(log, batch_size, moves):
    """The roll-ups that the consumer stores. With ``moves``, sessions change their shard half-way through."""
    store = MemoryTables()
    batches = [log[at : at + batch_size] for at in range(0, len(log), batch_size)]
    for number, batch in enumerate(batches):
        split = moves and number >= len(batches) / 2

        def shard_of(event, split=split):
            return f"shardId-00000000000{int(event.session_id[1:]) % 2 + 2 * split}"

        for shard_id, of_shard in groupby(sorted(batch, key=shard_of), key=shard_of):
            consume(a_batch(list(of_shard), 1 + number * batch_size, shard_id), store)
    return [read_rollup(item).rollup for item in store.rollups.values()]


def ranked(labels) -> list[tuple[str, int]]:
    return sorted(Tally(labels).items(), key=lambda row: (-row[1], row[0]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(events, max_size=25),
    st.integers(1, 8),
    st.booleans(),
    st.integers(-2, 1),
    st.integers(1, 4),
)
def test_every_figure_equals_what_counting_the_events_gives(log, batch_size, moves, first, quarters) -> None:
    start, end = NOON + first * QUARTER_MS, NOON + (first + quarters) * QUARTER_MS
    rollups = rolled_up(log, batch_size, moves)
    figures = total(rollup for rollup in rollups if start <= rollup.quarter < end)
    known = Reference(log, start, end)

    summary = summarise(figures)
    assert summary.sessions == len(known.began)
    assert summary.events == len(known.happened)
    assert summary.page_views == len(known.views)
    assert summary.visitors == len({event.user_id or event.session_id for event in known.happened})
    assert summary.visitors_error == 0
    assert summary.average_seconds == pytest.approx(known.mean(lambda session: (session.end - session.start) / 1000))
    assert summary.bounce_rate == pytest.approx(
        known.mean(lambda session: session.page_views <= 1 and session.interactions == 0)
    )
    assert summary.pages_per_session == pytest.approx(known.mean(lambda session: session.page_views))
    assert summary.conversions == len(known.conversions)
    assert summary.conversion_rate == pytest.approx(min(1, known.mean(lambda session: session.conversions)))
    value = sum(round(event.conversion_value * 1_000_000) for event in known.conversions) / 1_000_000
    assert summary.conversion_values == ({"EUR": value} if value else {})
    assert summary.as_of == max((event.received_at for event in known.happened), default=None)

    assert rank(figures, "page", 100) == (ranked(bounded(page_of(event.page_url)) for event in known.views), 0)
    assert rank(figures, "event_type", 100) == (ranked(event.event_type for event in known.happened), 0)
    for dimension, label in {
        "referrer": lambda session: session.landing.acquisition.referrer,
        "source": lambda session: session.landing.acquisition.source,
        "channel": lambda session: session.landing.acquisition.channel,
        "device": lambda session: session.landing.agent.device,
        "browser": lambda session: session.landing.agent.browser,
        "entry_page": lambda session: bounded(session.entry_page),
        "exit_page": lambda session: bounded(session.exit_page),
    }.items():
        assert rank(figures, dimension, 100) == (ranked(map(label, known.began)), 0), dimension

    for step in steps(figures, start, end):
        within = range(step.at, step.at + 5 * MINUTE_MS)
        assert step == Step(
            step.at,
            events=sum(event.timestamp in within for event in known.happened),
            page_views=sum(event.timestamp in within for event in known.views),
            conversions=sum(event.timestamp in within for event in known.conversions),
            sessions=sum(session.start in within for session in known.began),
        )
    for minute in statistics.minutes(rollups, start + MINUTE_MS, 7):
        within = range(minute.at, minute.at + MINUTE_MS)
        everything = Reference(log, minute.at, minute.at + MINUTE_MS)
        assert (minute.events, minute.page_views) == (len(everything.happened), len(everything.views))
        assert minute.sessions == sum(session.start in within for session in everything.began)


def test_a_range_without_anything_has_figures_all_the_same() -> None:
    summary = summarise(total([]))
    assert (summary.sessions, summary.visitors, summary.bounce_rate, summary.as_of) == (0, 0, 0, None)
    assert rank(total([]), "page", 10) == ([], 0)
    assert steps(total([]), NOON, NOON + QUARTER_MS) == [Step(NOON + minute * MINUTE_MS) for minute in (0, 5, 10)]


def test_what_roll_ups_had_no_room_for_is_told_and_the_total_is_right() -> None:
    log = [
        an_event(number, page_url=f"/p{number}", session_id=f"s{2 * number}", timestamp=NOON) for number in range(450)
    ]
    log += [an_event(1000 + number, page_url="/p449", timestamp=NOON + QUARTER_MS) for number in range(3)]
    figures = total(rolled_up(log, 100, moves=False))
    pages = rank(figures, "page", 2)
    assert pages.rows == [("/p449", 3), ("/p0", 1)]
    assert pages.other == 50
    assert sum(views for _, views in rank(figures, "page", 1000).rows) + pages.other == summarise(figures).page_views


def test_currencies_beyond_the_roll_ups_room_are_one_value() -> None:
    currencies = ["other", *(f"C{number:02}" for number in range(19))]
    log = [
        an_event(number, event_type="conversion", conversion_value=1.5, conversion_currency=currency, timestamp=NOON)
        for number, currency in enumerate(currencies)
    ]
    figures = total(rolled_up(log, 20, moves=False))
    values = summarise(figures).conversion_values
    assert values["C00"] == 1.5
    assert values["other"] == 5 * 1.5
    assert sum(values.values()) == 20 * 1.5
    assert summarise(figures).conversion_values == values


def test_more_visitors_than_are_counted_exactly_are_an_estimate_that_says_so() -> None:
    many = 4 * EXACT
    log = [an_event(number, user_id=f"u{number}", session_id=f"s{number}", timestamp=NOON) for number in range(many)]
    summary = summarise(total(rolled_up(log, many, moves=False)))
    assert summary.visitors == pytest.approx(many, rel=4 * RELATIVE_STANDARD_ERROR)
    assert summary.visitors_error == RELATIVE_STANDARD_ERROR


def test_adding_up_changes_no_roll_up() -> None:
    (rollup,) = rolled_up([an_event(1)], 1, moves=False)
    before = repr(rollup)
    total([rollup, rollup, RollUp("blog", NOON, "another")])
    assert repr(rollup) == before


def a_session(name: str, end: int, page: str = "/a") -> Session:
    session = Session("blog", name)
    session.apply(an_event(1, session_id=name, timestamp=end, page_url=page))
    return session


NOW = NOON + 40 * MINUTE_MS + 30_000

ages = st.one_of(
    st.integers(-3 * MINUTE_MS, 40 * MINUTE_MS),
    st.sampled_from([limit + by for limit in (5 * MINUTE_MS, 30 * MINUTE_MS) for by in (-1, 0, 1)]),
)


@settings(deadline=None)
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
