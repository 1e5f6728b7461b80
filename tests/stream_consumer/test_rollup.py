from collections import Counter as Tally

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stream_consumer.durations import bucket_of
from stream_consumer.rollup import (
    MAX_LABEL_BYTES,
    QUARTER_MS,
    SESSION_DIMENSIONS,
    SESSION_MEASURES,
    Counter,
    Folding,
    RollUp,
    bounded,
    quarter_of,
    split_conversion,
    standing,
)
from stream_consumer.seen import Verdict
from stream_consumer.session import Session
from stream_consumer.visitors import Visitors
from tests.builders import NOON, an_event

encode = msgspec.msgpack.Encoder(order="deterministic").encode


def rolled_up(events) -> dict[int, RollUp]:
    """The roll-ups of a log of events of one site and shard."""
    sessions: dict[str, Session] = {}
    foldings: dict[int, Folding] = {}
    for event in events:
        session = sessions.setdefault(event.session_id, Session("blog", event.session_id))
        before = standing(session)
        if session.apply(event) is not Verdict.APPLIED:
            continue
        after = standing(session)
        for quarter in {quarter_of(event.timestamp)} | {s.quarter for s in (before, after) if s}:
            folding = foldings.setdefault(quarter, Folding(RollUp("blog", quarter, "shard")))
            if quarter == quarter_of(event.timestamp):
                folding.count_event(event)
            folding.move_session(before, after)
    return {quarter: folding.rollup() for quarter, folding in foldings.items()}


logs = st.lists(
    st.builds(
        lambda number, session, at, kind, page, user: an_event(
            number,
            session_id=f"s{session}",
            timestamp=NOON + at,
            event_type=kind,
            page_url=f"/p{page}",
            user_id=user,
        ),
        st.integers(0, 10**6),
        st.integers(0, 3),
        st.integers(-QUARTER_MS, QUARTER_MS),
        st.sampled_from(["page_view", "click", "conversion", "heartbeat"]),
        st.integers(0, 3),
        st.sampled_from(["", "ann"]),
    ),
    max_size=12,
    unique_by=lambda event: event.event_id,
)


@given(logs)
def test_roll_ups_add_up_to_the_sessions_and_events(events) -> None:
    sessions: dict[str, Session] = {}
    for event in events:
        sessions.setdefault(event.session_id, Session("blog", event.session_id)).apply(event)
    rollups = rolled_up(events).values()

    per_minute = [minute for rollup in rollups for minute in rollup.minutes]
    assert sum(minute[0] for minute in per_minute) == len(events)
    assert sum(minute[1] for minute in per_minute) == sum(e.event_type == "page_view" for e in events)
    began = [minute for rollup in rollups for minute in rollup.began]
    totals = dict(zip(SESSION_MEASURES, map(sum, zip(*began, strict=True)), strict=False))
    if events:
        assert totals == {
            "sessions": len(sessions),
            "bounces": sum(s.bounced for s in sessions.values()),
            "duration": sum(s.duration for s in sessions.values()),
            "events": sum(s.events for s in sessions.values()),
            "page_views": sum(s.page_views for s in sessions.values()),
            "conversions": sum(s.conversions for s in sessions.values()),
            "converted": sum(s.conversions > 0 for s in sessions.values()),
        }
    durations = sum((Tally(rollup.durations) for rollup in rollups), Tally())
    assert durations == Tally(bucket_of(s.duration) for s in sessions.values())
    entries = Tally()
    for rollup in rollups:
        for label, row in rollup.counters.get("entry_page", Counter()).rows.items():
            entries[label] += row[0]
    assert entries == Tally(s.entry_page for s in sessions.values())


@given(logs, st.randoms())
def test_while_no_bound_is_reached_any_order_gives_the_same_bytes(events, random) -> None:
    shuffled = events[:]
    random.shuffle(shuffled)
    there = {quarter: encode(rollup) for quarter, rollup in rolled_up(events).items()}
    here = {quarter: encode(rollup) for quarter, rollup in rolled_up(shuffled).items()}
    # A quarter that a session has left again leaves an empty roll-up; it says nothing.
    for quarter in there.keys() ^ here.keys():
        rollup = (rolled_up(events) | rolled_up(shuffled))[quarter]
        assert not any(map(any, rollup.began))
        assert not any(map(any, rollup.minutes))
    assert all(there[quarter] == here[quarter] for quarter in there.keys() & here.keys())


def test_a_session_counts_where_it_began_and_moves_when_an_earlier_event_comes() -> None:
    late = an_event(1, timestamp=NOON + 1000)
    early = an_event(2, timestamp=NOON - 1000, page_url="/first")
    rollups = rolled_up([late, early])
    assert not any(map(any, rollups[NOON].began))
    assert rollups[NOON].durations == {}
    assert "entry_page" not in rollups[NOON].counters or not rollups[NOON].counters["entry_page"].rows
    assert rollups[NOON - QUARTER_MS].began[14] == [1, 0, 2000, 2, 2, 0, 0]
    assert rollups[NOON - QUARTER_MS].durations == {"2": 1}
    assert rollups[NOON - QUARTER_MS].counters["entry_page"].rows == {"/first": [1, 0, 2000, 2, 2, 0, 0]}
    assert rollups[NOON].minutes[0] == [1, 1, 0]


def test_money_is_counted_by_currency_and_kind_of_conversion() -> None:
    conversion = an_event(
        1, event_type="conversion", conversion_type="sale\x1f", conversion_currency="EUR\x1f", conversion_value=2.5
    )
    [(label, row)] = rolled_up([conversion])[NOON].counters["conversion"].rows.items()
    assert split_conversion(label) == ("EUR ", "sale\x1f")
    assert row == [1, 2_500_000]


def test_a_counter_is_bounded_and_honest_about_the_rest() -> None:
    counter = Counter()
    for number in range(10):
        counter.add(f"page {number}", (1,), room=4)
    assert len(counter.rows) == 4
    assert counter.other == [6]
    counter.add("page 9", (-1,), room=4)  # a difference meets the row that its sum went to
    assert counter.other == [5]
    counter.add("page 0", (-1,), room=4)
    assert counter.rows["page 0"] == [0]  # kept: whoever comes to it again is counted where the others were
    counter.add("page 11", (1,), room=4)  # closed: no label is admitted any more
    assert counter.other == [6]
    assert sum(row[0] for row in counter.rows.values()) + counter.other[0] == 9


@given(st.text(max_size=300))
def test_a_label_is_bounded_in_bytes(label: str) -> None:
    cut = bounded(label)
    assert len(cut.encode()) <= MAX_LABEL_BYTES
    assert cut == label or (cut.endswith("…") and label.startswith(cut[:-1]))


def test_the_fullest_roll_up_fits_into_an_item() -> None:
    import hashlib

    folding = Folding(RollUp("x" * 64, NOON, "shardId-000000000000"))
    for number in range(1200):
        noise = "".join(hashlib.sha512(f"{number}-{part}".encode()).hexdigest() for part in range(2))
        page = f"/{noise[:120]}"
        query = "&".join(f"utm_{k}={noise[i : i + 100]}" for i, k in enumerate(["source", "medium", "campaign"]))
        event = an_event(
            number,
            session_id=f"s{number}",
            page_url=f"{page}?{query}&utm_term={noise[3:103]}&utm_content={noise[4:104]}",
            referrer=f"https://{noise[:100]}.org/",
            language=noise[:128],
            event_type="page_view",
            timestamp=NOON + number,
        )
        session = Session("x" * 64, event.session_id)
        session.apply(event)
        folding.count_event(event)
        folding.move_session(None, standing(session))
    rollup = folding.rollup()
    assert sum(minute[0] for minute in rollup.began) == 1200
    assert all(
        len(rollup.counters[name].rows) <= room for name, room in SESSION_DIMENSIONS.items() if name[:3] != "utm"
    )
    assert len(encode(rollup)) < 400_000
    assert Visitors.from_bytes(rollup.visitors).estimate() > 1000
