"""A batch folded at once gives, byte for byte, what its events give one after the other."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.erasure import Erasure
from producer.event import Event
from stream_consumer import rollup
from stream_consumer.consume import consume
from stream_consumer.rollup import EVENT_DIMENSIONS, QUARTER_MS, SESSION_DIMENSIONS, Folding
from tests.builders import NOON, a_batch, an_erasure, an_event
from tests.fake_dynamodb import MemoryTables

take = Folding.take


def bounded_by(room: int) -> ExitStack:
    """Roll-ups with room for so many labels in each dimension."""
    stack = ExitStack()
    stack.enter_context(mock.patch.dict(SESSION_DIMENSIONS, dict.fromkeys(SESSION_DIMENSIONS, room)))
    few = {name: (room, measures) for name, (_, measures) in EVENT_DIMENSIONS.items()}
    stack.enter_context(mock.patch.dict(EVENT_DIMENSIONS, few))
    return stack


def tables_of(entries: Sequence[Event | Erasure], cuts: Sequence[int]) -> MemoryTables:
    """What is in the tables after these batches."""
    tables = MemoryTables()
    for first, end in zip([0, *cuts], [*cuts, len(entries)], strict=True):
        if first < end:
            outcome = consume(a_batch(entries[first:end], first + 1), tables)
            assert outcome.failed_from is None
            assert outcome.received == end - first
    return tables


def one_by_one(entries: Sequence[Event | Erasure]) -> MemoryTables:
    """The same, with a batch for each event, and nothing folded at once."""
    with mock.patch.object(Folding, "take", return_value=False):
        return tables_of(entries, range(1, len(entries)))


def assert_same(found: MemoryTables, wanted: MemoryTables) -> None:
    assert found.bare_sessions() == wanted.bare_sessions()
    assert found.rollups == wanted.rollups
    assert found.marks("blog") == wanted.marks("blog")
    assert found.stored_events() == wanted.stored_events()
    assert found.footprints == wanted.footprints


@st.composite
def logs(draw: Any, erasures: bool = False) -> list[Event | Erasure]:
    """Visits of some sessions, mostly in order, on few pages around the border of a quarter."""
    entries: list[Event | Erasure] = []
    at = draw(st.sampled_from([NOON, NOON - 5_000, NOON - 200_000]))
    numbers: dict[str, int] = {}
    for number in range(draw(st.integers(1, 14))):
        session = draw(st.sampled_from("abcd"))
        if erasures and draw(st.integers(0, 7)) == 0:
            entries.append(an_erasure(session))
            continue
        at += draw(st.sampled_from([0, 1_000, 1_000, 4_000, -3_000, QUARTER_MS, -QUARTER_MS]))
        numbers[session] = numbers.get(session, 0) + draw(st.sampled_from([1, 1, 1, 1, 0, 2, -1]))
        numbered = draw(st.integers(0, 4)) > 0
        entries.append(
            an_event(
                draw(st.sampled_from([number, number, number, 3])),
                session_id=session,
                timestamp=at,
                received_at=at + draw(st.sampled_from([10, 500])),
                event_type=draw(
                    st.sampled_from(["page_view", "page_view", "heartbeat", "scroll", "conversion", "buy"])
                ),
                page_url=f"/{draw(st.integers(0, 4))}?utm_source={draw(st.integers(0, 1))}",
                referrer=draw(st.sampled_from(["", "https://a.example/", "https://b.example/"])),
                user_id=draw(st.sampled_from(["", "", "u1", "u2"])),
                source="tab" if numbered else "",
                seq=max(numbers[session], 1) if numbered else 0,
                conversion_value=1.5,
                conversion_currency=draw(st.sampled_from(["EUR", "USD"])),
                properties={"depth": draw(st.integers(0, 100))},
            )
        )
    return entries


cuts = st.lists(st.integers(0, 14), max_size=4).map(sorted)


@settings(max_examples=200)
@given(logs(), cuts, st.sampled_from([1, 2, 3, 4, 400]))
def test_any_batches_give_what_single_events_give(entries, cuts, room) -> None:
    """Also where bounds are reached, in whichever batch."""
    at_once: list[bool] = []
    cuts = [min(cut, len(entries)) for cut in cuts]
    with bounded_by(room), mock.patch.object(Folding, "take", lambda *of: at_once.append(took := take(*of)) or took):
        found = tables_of(entries, cuts)
    with bounded_by(room):
        assert_same(found, one_by_one(entries))
    note(f"at once: {all(at_once)}, step by step: {not all(at_once)}")
    if room == 400:
        assert all(at_once), "nothing else than a bound may hinder it"


@settings(max_examples=150)
@given(logs(erasures=True), cuts)
def test_with_erasures_too(entries, cuts) -> None:
    assert_same(tables_of(entries, [min(cut, len(entries)) for cut in cuts]), one_by_one(entries))


def visits_of_two_pages() -> list[Event]:
    return [
        an_event(1, session_id="a", page_url="/0", referrer="https://a.example/"),
        an_event(2, session_id="b", page_url="/1", referrer="https://b.example/"),
        an_event(3, session_id="c", page_url="/0", referrer="https://a.example/"),
    ]


@pytest.mark.parametrize(
    "on_the_way",
    [
        [an_event(4, session_id="c", page_url="/2"), an_event(5, session_id="c", page_url="/0")],
        [
            an_event(4, session_id="c", page_url="/0", timestamp=NOON + 100, referrer="https://c.example/"),
            an_event(5, session_id="c", page_url="/0", timestamp=NOON + 50, referrer="https://b.example/"),
        ],
        [
            an_event(4, session_id="c", page_url="/0", timestamp=NOON - 1, referrer="https://c.example/"),
            an_event(5, session_id="c", page_url="/0", timestamp=NOON - 2, referrer="https://b.example/"),
        ],
    ],
    ids=["an exit page", "a landing", "a landing in another quarter"],
)
def test_a_bound_that_is_only_passed_on_the_way_counts(on_the_way) -> None:
    """A label comes that finds no room, and is left again: single events close the counter, and so does the batch."""
    entries = [*visits_of_two_pages(), *on_the_way]
    with mock.patch.dict(SESSION_DIMENSIONS, dict.fromkeys(SESSION_DIMENSIONS, 2)):
        assert_same(tables_of(entries, [3]), one_by_one(entries))


@pytest.mark.parametrize("source", ["", "tab"])
def test_that_a_session_had_no_page_yet_counts_as_one(source) -> None:
    entries = [an_event(1, session_id="a", page_url="/0"), an_event(2, session_id="b", page_url="/1")]
    entries += [
        an_event(3, session_id="c", event_type="heartbeat", source=source, seq=1),
        an_event(4, session_id="c", page_url="/0", source=source, seq=2),
    ]
    with mock.patch.dict(SESSION_DIMENSIONS, dict.fromkeys(SESSION_DIMENSIONS, 2)):
        assert_same(tables_of(entries, [2]), one_by_one(entries))


def test_a_full_counter_keeps_rows_at_zero_so_that_no_order_matters() -> None:
    first, second = an_event(1, session_id="a", page_url="/0"), an_event(2, session_id="b", page_url="/1")
    away = an_event(3, session_id="a", page_url="/1")
    back = an_event(4, session_id="c", page_url="/0")
    with bounded_by(1):
        found = tables_of([first, second, away, back], [2])
        assert_same(found, one_by_one([first, second, away, back]))
    (item,) = found.rollups.values()
    exits = rollup_of(item).counters["exit_page"]
    assert exits.rows["/0"][0] == 1
    assert exits.other[0] == 2


def rollup_of(item: Any) -> rollup.RollUp:
    from stream_consumer.items import read_rollup

    return read_rollup(item).rollup


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_retry_takes_only_what_a_roll_up_has_not_yet(written) -> None:
    """An earlier attempt, of other borders, wrote the roll-ups and then no session."""
    entries = [an_event(number, session_id=f"s{number % 2}") for number in range(1, 5)]
    tables = tables_of(entries[:written], [])
    for key in list(tables.dynamo.tables["sessions"]):
        del tables.dynamo.tables["sessions"][key]
    assert consume(a_batch(entries), tables).applied == 4
    whole = tables_of(entries, [])
    assert tables.rollups == whole.rollups
    assert tables.sessions == whole.sessions
