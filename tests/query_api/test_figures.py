"""What the API answers, against the raw events: in any zone, by hours and days as its clocks show them, late events and all."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.event import Event
from query_api.app import create_app
from query_api.definitions import DIMENSIONS, METRICS
from query_api.reader import Reader
from query_api.settings import ApiSettings
from stream_consumer.compaction import Compaction
from stream_consumer.consume import consume
from tests.builders import a_batch, an_event
from tests.fake_dynamodb import NAMES, MemoryTables
from tests.query_api import raw_figures

MINUTE = 60_000
QUARTER, HOUR, DAY = 15 * MINUTE, 60 * MINUTE, 24 * 60 * MINUTE
#: Zones, and days on which something happens to their clocks: half hours, quarters, days of 23 to 25 hours, no midnight.
DAYS = [
    ("UTC", "2024-02-29"),
    ("Asia/Seoul", "2023-12-31"),
    ("Asia/Kolkata", "2023-11-14"),
    ("Asia/Kathmandu", "2024-01-01"),
    ("Europe/Berlin", "2023-10-29"),
    ("Europe/Berlin", "2024-03-31"),
    ("America/New_York", "2023-11-05"),
    ("America/St_Johns", "2024-03-10"),
    ("Australia/Lord_Howe", "2023-10-01"),
    ("Australia/Lord_Howe", "2024-04-07"),
    ("Pacific/Chatham", "2024-04-07"),
    ("Africa/Cairo", "2024-04-26"),
    ("America/Sao_Paulo", "2018-11-04"),
]
INTERVALS = {"minute": MINUTE, "5m": 5 * MINUTE, "15m": QUARTER}
NOW = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)


@st.composite
def worlds(draw: Any) -> tuple[str, int, list[Event], MemoryTables]:
    """A zone, midday of a day there (ms), events of up to a day and a half around it, and the tables that hold them."""
    zone, day = draw(st.sampled_from(DAYS))
    noon = int(datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)
    events = []
    for number in range(draw(st.integers(1, 12))):
        session = draw(st.integers(0, 3))
        # On a border of a quarter, or beside it, more often than chance would have it.
        at = noon + draw(st.integers(-144, 144)) * QUARTER + draw(st.sampled_from([-1, 0, 1, 7 * MINUTE]))
        events.append(
            an_event(
                number,
                session_id=f"s{session}",
                timestamp=at,
                received_at=at + draw(st.sampled_from([0, 23 * HOUR])),
                event_type=draw(st.sampled_from(["page_view", "page_view", "click", "conversion", "heartbeat"])),
                page_url=draw(st.sampled_from(["/a", "/b?utm_source=news", "https://x.org/c"])),
                referrer=draw(st.sampled_from(["", "https://www.google.com/", "https://chatgpt.com/"])),
                country=draw(st.sampled_from(["", "KR"])),
                user_id=draw(st.sampled_from(["", "ann"])),
                conversion_type="sale",
                conversion_value=draw(st.sampled_from([0.0, 9.99])),
                conversion_currency="EUR",
            )
        )
    store = MemoryTables()
    size = draw(st.integers(1, 12))
    for first in range(0, len(events), size):
        assert consume(a_batch(events[first : first + size], first + 1), store).failed_from is None
        if draw(st.booleans()):
            Compaction(store.dynamo, NAMES).run(noon + draw(st.integers(-30, 60)) * HOUR)
    return zone, noon, events, store


def get(store: MemoryTables, path: str, **parameters: Any) -> dict[str, Any]:
    reader = Reader(store.dynamo, NAMES, clock=lambda: NOW, readers=1)
    app = create_app(reader, ApiSettings(NAMES), lambda: NOW)
    answer = app.test_client().get(f"{path}?{urlencode({'site': 'blog', **parameters})}")
    reader.close()
    for closed in app.extensions["liveinsight"]:
        closed.close()
    assert answer.status_code == 200, answer.json
    return dict(answer.json)


def borders_of(zone: str, interval: str, start: int, end: int) -> list[int]:
    """Where the clock of the zone begins another slot, found by looking at every quarter of an hour."""
    if interval in INTERVALS:
        return [*range(start, end, INTERVALS[interval]), end]
    clock = ZoneInfo(zone)

    def begins(at: int) -> bool:
        there = datetime.fromtimestamp(at / 1000, clock)
        before = datetime.fromtimestamp((at - QUARTER) / 1000, clock)
        return there.minute == 0 if interval == "hour" else there.date() != before.date()

    return [start, *(at for at in range(start + QUARTER, end, QUARTER) if begins(at)), end]


def local(zone: str, at: int) -> str:
    """A time (ms) as somebody there would write it, without an offset where that is clear, else in ms."""
    there = datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).replace(tzinfo=None)
    sure = int(there.replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000) == at
    return there.isoformat() if sure else str(at)


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(
        found[name]
        == (pytest.approx(value) if not isinstance(value, dict) else {k: pytest.approx(v) for k, v in value.items()})
        for name, value in wanted.items()
    )


@settings(max_examples=60)
@given(worlds(), st.sampled_from(["minute", "5m", "15m", "hour", "day"]), st.integers(-160, 140), st.integers(1, 200))
def test_every_point_and_total_is_what_the_events_say(world: Any, interval: str, first: int, quarters: int) -> None:
    zone, noon, events, store = world
    start = noon + first * QUARTER
    end = start + min(quarters, 96 if interval == "minute" else 200) * QUARTER
    metrics = [name for name, metric in METRICS.items() if interval in metric.intervals]
    answer = get(
        store,
        "/api/statistics/timeseries/",
        **{"from": local(zone, start), "to": local(zone, end)},
        tz=zone,
        interval=interval,
        metrics=",".join(metrics),
        compare="previous",
    )
    borders = borders_of(zone, interval, start, end)
    assert [datetime.fromisoformat(point["at"]).timestamp() * 1000 for point in answer["points"]] == borders[:-1]
    for point, (since, until) in zip(answer["points"], itertools.pairwise(borders), strict=True):
        wanted = raw_figures.figures(events, since, until)
        assert same(point, {name: wanted[name] for name in metrics})
        assert point["at"][-6:] == datetime.fromtimestamp(since / 1000, ZoneInfo(zone)).isoformat()[-6:]
    whole = raw_figures.figures(events, start, end)
    assert same(answer["totals"], {name: whole[name] for name in metrics})
    before = [int(datetime.fromisoformat(answer["previous"][end]).timestamp() * 1000) for end in ("from", "to")]
    assert before[1] == start
    earlier = raw_figures.figures(events, *before)
    assert same(answer["previous"]["totals"], {name: earlier[name] for name in metrics})


@settings(max_examples=40)
@given(worlds(), st.sampled_from(sorted(DIMENSIONS)), st.integers(-160, 140), st.integers(1, 300))
def test_every_row_of_a_breakdown_is_what_the_events_say(world: Any, name: str, first: int, quarters: int) -> None:
    zone, noon, events, store = world
    start, end = noon + first * QUARTER, noon + (first + quarters) * QUARTER
    answer = get(
        store,
        "/api/statistics/breakdown/",
        **{"from": local(zone, start), "to": local(zone, end)},
        tz=zone,
        dimension=name,
        limit=1000,
        compare="previous",
    )
    wanted = raw_figures.breakdown(events, start, end, name)
    assert {row["label"] for row in answer["results"]} == wanted.keys()
    span = end - start
    before = raw_figures.breakdown(events, start - span, start, name)
    for row in answer["results"]:
        assert same(row, {metric: wanted[row["label"]][metric] for metric in DIMENSIONS[name].metrics})
        if row["label"] in before and before[row["label"]] and not _whole_days(zone, start, end):
            assert same(row["previous"], {metric: before[row["label"]][metric] for metric in DIMENSIONS[name].metrics})
    assert (answer["more"], answer["other"]) == (0, None)


def _whole_days(zone: str, start: int, end: int) -> bool:
    """Whether the period before is counted in days, which may have another length."""
    return all(datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).strftime("%H%M") == "0000" for at in (start, end))
