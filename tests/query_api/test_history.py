"""Every figure, read through merged hours and days or not, against the raw events."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.event import Event
from query_api.definitions import DAY_MS, DIMENSIONS, HOUR_MS, METRICS, Metric
from query_api.history import History, cover
from query_api.parameters import Span
from query_api.reader import Marks, Reader
from query_api.statistics import Figures, total
from stream_consumer.compaction import Compaction
from stream_consumer.consume import consume
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS
from stream_consumer.visitors import EXACT, RELATIVE_STANDARD_ERROR
from tests.builders import NOON, a_batch, an_event
from tests.fake_dynamodb import NAMES, MemoryTables
from tests.query_api import raw_figures

DAY = NOON - NOON % DAY_MS
#: A quarter or three after midnight of zones, whole and half hours off; borders of hours and days.
MOMENTS = st.one_of(
    st.integers(DAY - DAY_MS, DAY + 2 * DAY_MS),
    st.builds(
        lambda border, beside: border + beside,
        st.sampled_from([DAY, DAY + DAY_MS, DAY + HOUR_MS, DAY + 5 * HOUR_MS + 2 * QUARTER_MS, DAY + 9 * HOUR_MS]),
        st.sampled_from([-1, 0, 1]),
    ),
)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@st.composite
def logs(draw: Any) -> list[Event]:
    """Events of one site: some sessions of one or many events, of known users or not, in no order."""
    events = []
    for number in range(draw(st.integers(0, 14))):
        session = draw(st.integers(0, 4))
        at = draw(MOMENTS)
        events.append(
            an_event(
                number,
                session_id=f"s{session}",
                timestamp=at,
                received_at=at + draw(st.sampled_from([0, 500, 3 * HOUR_MS])),
                event_type=draw(
                    st.sampled_from(["page_view", "page_view", "click", "conversion", "heartbeat", "signup"])
                ),
                page_url=draw(
                    st.sampled_from(["https://x.org/a?utm_source=news&utm_medium=email", "https://x.org/b", "/c#d", ""])
                ),
                referrer=draw(st.sampled_from(["", "https://www.google.com/", "https://blog.example/post"])),
                user_agent=draw(st.sampled_from(["", FIREFOX])),
                country=draw(st.sampled_from(["", "KR", "DE"])),
                language=draw(st.sampled_from(["", "ko"])),
                user_id=draw(st.sampled_from(["", f"u{session % 2}"])),
                conversion_type=draw(st.sampled_from(["sale", "trial"])),
                conversion_value=draw(st.sampled_from([0.0, 0.1, 19.99])),
                conversion_currency=draw(st.sampled_from(["EUR", "KRW"])),
            )
        )
    return events


@st.composite
def stored(draw: Any) -> tuple[list[Event], MemoryTables]:
    """A log, and the tables after it was consumed by batches of two shards, with hours and days merged on the way."""
    events = draw(logs())
    store = MemoryTables()
    compaction = Compaction(store.dynamo, NAMES)
    size = draw(st.integers(1, 5))
    for first in range(0, len(events), size):
        for shard in ("shard-0", "shard-1"):
            ours = [e for e in events[first : first + size] if int(e.session_id[1:]) % 2 == int(shard[-1])]
            if ours:
                assert consume(a_batch(ours, first + 1, shard), store).failed_from is None
        if draw(st.booleans()):
            compaction.run(
                draw(st.sampled_from([DAY, DAY + 7 * HOUR_MS, DAY + DAY_MS + 4 * MINUTE_MS, DAY + 5 * DAY_MS]))
            )
    return events, store


def history_of(store: MemoryTables) -> History:
    return History(Reader(store.dynamo, NAMES, clock=lambda: DAY + 3 * DAY_MS, readers=1))


def read(figures: Figures, metrics: Any = METRICS) -> dict[str, Any]:
    return {name: METRICS[name].value(figures) for name in metrics}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return (
        found == pytest.approx(wanted)
        if "conversion_values" not in wanted
        else (
            found["conversion_values"] == pytest.approx(wanted["conversion_values"])
            and {**found, "conversion_values": 0} == pytest.approx({**wanted, "conversion_values": 0})
        )
    )


@st.composite
def spans(draw: Any) -> Span:
    quarters = st.integers(-2 * 96, 3 * 96)
    start, end = sorted(draw(st.tuples(quarters, quarters).filter(lambda pair: pair[0] != pair[1])))
    return Span(DAY + start * QUARTER_MS, DAY + end * QUARTER_MS)


@settings(max_examples=100)
@given(stored(), spans(), st.data())
def test_every_figure_equals_what_the_raw_events_say(made: Any, span: Span, data: Any) -> None:
    events, store = made
    inner = data.draw(st.sets(st.integers(span.start // QUARTER_MS, span.end // QUARTER_MS), max_size=4))
    borders = sorted({span.start, *(at * QUARTER_MS for at in inner), span.end})
    found = history_of(store).over_time("blog", borders)
    for (start, end), figures in zip(itertools.pairwise(borders), found, strict=True):
        assert same(read(figures), raw_figures.figures(events, start, end))
    assert same(read(total(found)), raw_figures.figures(events, *span))
    assert same(read(history_of(store).over_time("blog", span)[0]), raw_figures.figures(events, *span))
    arrivals = [e.received_at for e in events if span.start <= e.timestamp < span.end]
    assert total(found).received >= max(arrivals, default=0)


@settings(max_examples=60)
@given(stored(), spans(), st.sampled_from([MINUTE_MS, 5 * MINUTE_MS]))
def test_steps_finer_than_a_quarter_have_what_is_kept_by_the_minute(made: Any, span: Span, step: int) -> None:
    events, store = made
    span = Span(span.start, min(span.end, span.start + 12 * HOUR_MS))
    borders = list(range(span.start, span.end + 1, step))
    by_minute = [name for name, metric in METRICS.items() if not metric.by_quarter]
    found = history_of(store).over_time("blog", borders)
    for (start, end), figures in zip(itertools.pairwise(borders), found, strict=True):
        wanted = raw_figures.figures(events, start, end)
        assert same(read(figures, by_minute), {name: wanted[name] for name in by_minute})


@settings(max_examples=100)
@given(stored(), spans(), st.sampled_from(sorted(DIMENSIONS)), st.data())
def test_every_breakdown_equals_what_the_raw_events_say(made: Any, span: Span, name: str, data: Any) -> None:
    events, store = made
    dimension = DIMENSIONS[name]
    history = history_of(store)
    found = history.by_label("blog", span, name)
    wanted = raw_figures.breakdown(events, *span, name)
    assert found.rows.keys() == wanted.keys()
    assert found.other is None
    for label, figures in found.rows.items():
        assert same(read(figures, dimension.metrics), {metric: wanted[label][metric] for metric in dimension.metrics})
    middle = data.draw(st.integers(span.start // QUARTER_MS, span.end // QUARTER_MS)) * QUARTER_MS
    borders = sorted({span.start, middle, span.end})
    for label in {*wanted, "no such label"}:
        apart = history.over_time_of("blog", borders, name, label)
        for (start, end), figures in zip(itertools.pairwise(borders), apart, strict=True):
            there = raw_figures.breakdown(events, start, end, name).get(label)
            if there:
                assert same(read(figures, dimension.metrics), {metric: there[metric] for metric in dimension.metrics})
            else:
                assert not any(read(figures, dimension.metrics).values())


@settings(max_examples=30)
@given(stored())
def test_a_merged_past_is_read_from_a_few_items(made: Any) -> None:
    events, store = made
    Compaction(store.dynamo, NAMES).run(DAY + 10 * DAY_MS)
    store.dynamo.queried = 0
    [figures] = history_of(store).over_time("blog", (DAY - 2 * DAY_MS, DAY + 3 * DAY_MS))
    assert figures.events == len(events)
    assert store.dynamo.queried <= 5


def test_what_no_row_was_kept_for_is_other() -> None:
    store = MemoryTables()
    many = [
        an_event(n, session_id=f"s{n}", event_type="conversion", conversion_type=f"kind {n}", conversion_value=1.0)
        for n in range(1, 260)
    ]
    consume(a_batch(many), store)
    span = Span(NOON, NOON + QUARTER_MS)
    for _ in range(2):
        found = history_of(store).by_label("blog", span, "conversion_type")
        assert len(found.rows) == 200
        assert found.other is not None
        assert (found.other.conversions, found.other.values) == (59, {"other": 59_000_000})
        [figures] = history_of(store).over_time("blog", span)
        assert figures.values == {"": 200_000_000, "other": 59_000_000}
        Compaction(store.dynamo, NAMES).run(NOON + 3 * DAY_MS)


def test_more_visitors_than_are_counted_exactly_are_the_same_estimate_however_they_are_read() -> None:
    many = 4 * EXACT
    store = MemoryTables()
    for first in range(0, many, 256):
        some = [
            an_event(n, user_id=f"u{n}", session_id=f"s{n}", timestamp=NOON + n * 3000)
            for n in range(first, first + 256)
        ]
        consume(a_batch(some, first + 1, f"shard-{first % 512}"), store)
    day = Span(NOON - NOON % DAY_MS, NOON - NOON % DAY_MS + DAY_MS)
    estimates = set()
    for _ in range(2):
        history = history_of(store)
        [whole] = history.over_time("blog", day)
        assert not whole.visitors.exact
        estimates.add(whole.visitors.estimate())
        estimates.add(total(history.over_time("blog", range(day.start, day.end + 1, HOUR_MS))).visitors.estimate())
        Compaction(store.dynamo, NAMES).run(NOON + 3 * DAY_MS)
    [estimate] = estimates
    assert estimate == pytest.approx(many, rel=4 * RELATIVE_STANDARD_ERROR)


@given(spans(), st.sets(st.integers(-2 * 24, 3 * 24)), st.booleans(), st.booleans())
def test_a_cover_is_the_stretch_itself_and_nothing_marked_is_read_merged(
    span: Span, marked: set[int], fine_days: bool, fine_hours: bool
) -> None:
    hours = {DAY + hour * HOUR_MS for hour in marked}
    marks = Marks(f"{hour // DAY_MS:06d}:{hour % DAY_MS // HOUR_MS:02d}#shard" for hour in hours)
    chosen = cover(span, marks, fine_days=fine_days, fine_hours=fine_hours)
    lengths = {DAY_MS: chosen.days, HOUR_MS: chosen.hours, QUARTER_MS: chosen.quarters}
    parts = sorted((start, start + length) for length, starts in lengths.items() for start in starts)
    assert parts[0][0] == span.start
    assert parts[-1][1] == span.end
    assert all(one[1] == next_one[0] for one, next_one in itertools.pairwise(parts))
    assert not hours & set(chosen.hours)
    assert not any(day <= hour < day + DAY_MS for day in chosen.days for hour in hours)


def test_every_metric_says_what_it_is() -> None:
    for metric in METRICS.values():
        assert isinstance(metric, Metric)
        assert len(metric.definition) > 20
    for dimension in DIMENSIONS.values():
        assert set(dimension.metrics) <= METRICS.keys()
