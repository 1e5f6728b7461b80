from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from query_api import calendar
from query_api.definitions import DAY_MS, HOUR_MS, INTERVALS
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS

SYDNEY, KOLKATA = ZoneInfo("Australia/Sydney"), ZoneInfo("Asia/Kolkata")


def ms(text, zone="UTC") -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))
    return round(moment.timestamp() * 1000)


def clock(at, zone) -> datetime:
    return datetime.fromtimestamp(at / 1000, UTC).astimezone(zone)


def shown(borders, zone) -> list[str]:
    return [f"{clock(at, ZoneInfo(zone)):%H:%M}" for at in borders]


def hours(borders) -> list[float]:
    return [(after - before) / HOUR_MS for before, after in pairwise(borders)]


def test_minutes_and_quarters_are_those_of_utc() -> None:
    start = ms("2026-03-29T00:45Z")
    for name, length in {"minute": MINUTE_MS, "5m": 5 * MINUTE_MS, "15m": QUARTER_MS}.items():
        borders = calendar.borders(start, start + HOUR_MS, INTERVALS[name], ZoneInfo("Europe/Berlin"))
        assert borders == list(range(start, start + HOUR_MS + 1, length))


def test_hours_begin_at_the_local_hour_and_the_outermost_are_cut() -> None:
    start = ms("2026-01-31T10:15", "Asia/Kolkata")
    borders = calendar.borders(start, start + 2 * HOUR_MS, INTERVALS["hour"], KOLKATA)
    assert shown(borders, "Asia/Kolkata") == ["10:15", "11:00", "12:00", "12:15"]


@pytest.mark.parametrize(
    ("zone", "first", "last", "lengths"),
    [
        ("Europe/Berlin", "2026-03-28", "2026-03-31", [24, 23, 24]),
        ("Europe/Berlin", "2026-10-24", "2026-10-27", [24, 25, 24]),
        ("Australia/Lord_Howe", "2026-10-03", "2026-10-06", [24, 23.5, 24]),
        ("Australia/Lord_Howe", "2026-04-04", "2026-04-07", [24, 24.5, 24]),
        # Midnight does not exist: the day begins at 01:00, with what the clocks show first.
        ("America/Sao_Paulo", "2017-10-14", "2017-10-17", [24, 23, 24]),
        ("Africa/Cairo", "2026-04-23", "2026-04-26", [24, 23, 24]),
        ("Asia/Beirut", "2026-03-28", "2026-03-31", [24, 23, 24]),
        # 30 December 2011 never was.
        ("Pacific/Apia", "2011-12-28", "2012-01-01", [24, 24, 24]),
        ("Asia/Kathmandu", "2026-01-01", "2026-01-03", [24, 24]),
    ],
)
def test_days_begin_at_the_local_midnight(zone, first, last, lengths) -> None:
    borders = calendar.borders(ms(first, zone), ms(last, zone), INTERVALS["day"], ZoneInfo(zone))
    assert hours(borders) == lengths


@pytest.mark.parametrize(
    ("zone", "day", "slots"),
    [
        ("Europe/Berlin", "2026-03-29", ["00:00", "01:00", "03:00"]),
        ("Europe/Berlin", "2026-10-25", ["00:00", "01:00", "02:00", "02:00", "03:00"]),
        ("Australia/Lord_Howe", "2026-10-04", ["00:00", "01:00", "02:30", "03:00"]),
        ("Australia/Lord_Howe", "2026-04-05", ["00:00", "01:00", "02:00", "03:00"]),
        ("America/Sao_Paulo", "2017-10-15", ["01:00", "02:00", "03:00"]),
    ],
)
def test_hours_of_a_day_on_which_clocks_are_changed(zone, day, slots) -> None:
    start = ms(day, zone)
    borders = calendar.borders(start, start + DAY_MS, INTERVALS["hour"], ZoneInfo(zone))
    assert shown(borders, zone)[: len(slots)] == slots


def test_an_hour_of_90_minutes_is_found_from_anywhere_in_it() -> None:
    zone = ZoneInfo("Australia/Lord_Howe")
    start = ms("2026-04-05T01:00", "Australia/Lord_Howe")
    for minute in range(0, 90, 5):
        assert calendar.hour_of(start + minute * MINUTE_MS + 1, zone) == (start, start + 90 * MINUTE_MS)


def test_the_period_before_is_as_long_or_has_as_many_days() -> None:
    noon, zone = ms("2026-03-30T12:00", "Europe/Berlin"), ZoneInfo("Europe/Berlin")
    assert calendar.previous(noon, noon + DAY_MS, zone) == (noon - DAY_MS, noon)
    week = ms("2026-03-30", "Europe/Berlin"), ms("2026-04-06", "Europe/Berlin")
    assert calendar.previous(*week, zone) == (ms("2026-03-23", "Europe/Berlin"), week[0])
    assert hours(calendar.previous(*week, zone) + week[1:]) == [167, 168]
    days = calendar.borders(*week, INTERVALS["day"], zone)
    before = calendar.previous_borders(days, zone)
    assert hours(before) == [24] * 6 + [23]
    assert shown(before, "Europe/Berlin") == ["00:00"] * 8


def test_an_hour_that_the_day_before_did_not_have_is_empty_and_one_that_this_day_lacks_is_joined() -> None:
    zone = ZoneInfo("Europe/Berlin")

    def before(day, after, interval="hour") -> list[float]:
        start, end = ms(day, "Europe/Berlin"), ms(after, "Europe/Berlin")
        slots = calendar.borders(start, end, INTERVALS[interval], zone)
        return hours(calendar.previous_borders(slots, zone))

    assert before("2026-03-30", "2026-03-31") == [1, 1, 0] + [1] * 21
    assert before("2026-03-30", "2026-03-31", "15m") == [0.25] * 8 + [0] * 4 + [0.25] * 84
    assert before("2026-03-29", "2026-03-30") == [1, 2] + [1] * 21
    assert before("2026-10-26", "2026-10-27") == [1, 1, 2] + [1] * 21
    assert before("2026-10-25", "2026-10-26") == [1, 1, 0, 1] + [1] * 21


@cache
def a_zone(name) -> ZoneInfo:
    return ZoneInfo(name)


zones = st.sampled_from(sorted(available_timezones())).map(a_zone)
quarters = st.integers(0, ms("2037-12-01T00:00Z") // QUARTER_MS).map(lambda number: number * QUARTER_MS)
MODERN = ms("1990-01-01T00:00Z")


@settings(max_examples=300)
@given(zones, quarters, st.integers(1, 96 * 20), st.sampled_from(sorted(INTERVALS)))
@example(a_zone("Africa/Monrovia"), ms("1972-01-06T00:00Z"), 400, "hour")
@example(a_zone("America/St_Johns"), ms("2000-10-28T00:00Z"), 400, "day")
@example(a_zone("Pacific/Kwajalein"), ms("1993-08-19T00:00Z"), 400, "day")
def test_slots_cover_the_range_in_order_and_begin_where_clocks_say(zone, start, count, name) -> None:
    end = start + count * QUARTER_MS
    interval = INTERVALS[name]
    borders = calendar.borders(start, end, interval, zone)
    assert (borders[0], borders[-1]) == (start, end)
    assert all(before < after for before, after in pairwise(borders))
    assert all(border % min(interval.length, QUARTER_MS) == 0 for border in borders)
    if start < MODERN or interval.length < HOUR_MS:
        return
    for border in borders[1:-1]:
        now, just_before = clock(border, zone), clock(border - 1, zone)
        if name == "day":
            assert now.date() > just_before.date()
            assert (now.hour, now.minute) == (0, 0) or now.utcoffset() > just_before.utcoffset()
        else:
            assert now.minute == 0 or now.utcoffset() > just_before.utcoffset()
    # None is missing: between two borders the clocks show no other beginning.
    for before, after in pairwise(borders):
        for quarter in range(before + QUARTER_MS, after, QUARTER_MS):
            now = clock(quarter, zone)
            repeated = now.fold == 1 or clock(quarter - 1, zone).date() > now.date()
            assert (now.hour, now.minute) != (0, 0) or repeated or name == "hour"
            assert now.minute != 0 or name == "day"


@settings(max_examples=200)
@given(zones, st.dates(datetime(1972, 6, 1).date(), datetime(2037, 1, 1).date()), st.integers(1, 10), st.data())
def test_whole_days_are_preceded_by_as_many_whole_days(zone, first, days, data) -> None:
    def midnight(day) -> int:
        return calendar.borders(*range_around(day, zone), INTERVALS["day"], zone)[1]

    start, end = midnight(first), midnight(first + timedelta(days))
    if start == end:  # a date that the zone skipped
        return
    before = calendar.previous(start, end, zone)
    assert before == (midnight(first - timedelta(days)), start)
    slots = calendar.borders(start, end, data.draw(st.sampled_from(list(INTERVALS.values()))), zone)
    peers = calendar.previous_borders(slots, zone)
    assert (peers[0], peers[-1]) == before
    assert len(peers) == len(slots)
    assert peers == sorted(peers)


def range_around(day, zone) -> tuple[int, int]:
    """From within the local day before ``day`` to after its midnight."""
    utc = ms(f"{day.isoformat()}T00:00Z")
    start = next(
        at for at in range(utc - 40 * HOUR_MS, utc + 40 * HOUR_MS, HOUR_MS // 4) if clock(at, zone).date() >= day
    )
    return start - 2 * QUARTER_MS, start + 2 * DAY_MS


@settings(max_examples=200)
@given(zones, quarters, st.integers(1, 2000), st.sampled_from(sorted(INTERVALS)))
def test_the_period_before_has_as_many_slots_and_ends_where_this_one_starts(zone, start, count, name) -> None:
    slots = calendar.borders(start, start + count * QUARTER_MS, INTERVALS[name], zone)
    peers = calendar.previous_borders(slots, zone)
    assert len(peers) == len(slots)
    assert (peers[0], peers[-1]) == calendar.previous(slots[0], slots[-1], zone)
    assert peers[-1] == start
    assert peers == sorted(peers)
    assert peers[0] % QUARTER_MS == 0


@settings(max_examples=200)
@given(zones, quarters, st.integers(0, QUARTER_MS - 1))
def test_every_moment_lies_in_one_hour(zone, quarter, into) -> None:
    start, end = calendar.hour_of(quarter + into, zone)
    assert start <= quarter + into < end
    assert HOUR_MS // 4 <= end - start <= 3 * HOUR_MS
    assert start % QUARTER_MS == end % QUARTER_MS == 0
    assert calendar.hour_of(start, zone) == (start, end)
