"""Local time: where the hours and days of a time zone begin, and which period came before. Pure.

Moments are ms since 1970 UTC. What begins at a local time begins, for figures, with the quarter of an hour in UTC
that it lies in: offsets have been whole quarters of an hour since 1972, so the two differ only before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from zoneinfo import ZoneInfo

from query_api.definitions import HOUR_MS, Interval
from stream_consumer.rollup import QUARTER_MS, quarter_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_DAY = timedelta(days=1)


def borders(start: int, end: int, interval: Interval, zone: ZoneInfo) -> list[int]:
    """The borders of every slot of ``interval`` from ``start`` to ``end`` (whole quarters), both among them.

    Minutes and quarters of an hour are UTC's, hours begin at a local :00, days at the local midnight, or with what the
    clocks show first where there is none. The first and the last slot are cut where the range begins or ends in them.
    """
    if interval.name == "day":
        return [start, *_days(start, end, zone), end]
    if interval.name == "hour":
        return [start, *_hours(start, end, zone), end]
    return [*range(start, end, interval.length), end]


def hour_of(at: int, zone: ZoneInfo) -> tuple[int, int]:
    """The local hour in which ``at`` lies: from, to before."""
    start = at = quarter_of(at)
    # Where clocks go back by half an hour, an hour has 90 minutes.
    for back in range(2 * HOUR_MS // QUARTER_MS):
        if _begins_hour(start := at - back * QUARTER_MS, zone):
            break
    return start, _next_hour(start, zone)


def on_the_clock(start: int, end: int, zone: ZoneInfo) -> int:
    """How long from ``start`` to ``end`` by the faces of local clocks, in ms: every day has 24 hours there."""
    return (_local(end, zone) - _local(start, zone)) // _MS


def previous(start: int, end: int, zone: ZoneInfo) -> tuple[int, int]:
    """The period that ends where this one starts: of as many local days if it is of whole ones, else as long in ms."""
    days = _whole_days(start, end, zone)
    if days is None:
        return 2 * start - end, start
    return quarter_of(_first_at(_local(start, zone, rounded=True) - days * _DAY, zone)), start


def previous_borders(inner: Sequence[int], zone: ZoneInfo) -> list[int]:
    """The borders of as many slots in the period before, the last of which is where ``inner`` starts.

    Slots of whole local days have the same local times as theirs: where clocks are changed one of them may be longer
    than its peer, or (its two borders equal) of no length.
    """
    start, end = inner[0], inner[-1]
    days = _whole_days(start, end, zone)
    if days is None:
        return [border - (end - start) for border in inner]
    first, _ = previous(start, end, zone)
    between = (_first_at(_local(border, zone) - days * _DAY, zone) for border in inner[1:-1])
    # An hour that the clocks show twice would lead back.
    return [*accumulate((min(border, start) for border in between), max, initial=first), start]


def _days(start: int, end: int, zone: ZoneInfo) -> Iterator[int]:
    """The local midnights between ``start`` and ``end``, as whole quarters."""
    last = start
    day = _local(start, zone).date()
    while True:
        day += _DAY
        # A date that a zone has skipped begins with the next one.
        border = quarter_of(_midnight(day, zone))
        if border >= end:
            return
        if border > last:
            yield border
            last = border


def _hours(start: int, end: int, zone: ZoneInfo) -> Iterator[int]:
    """Where local hours begin between ``start`` and ``end``, as whole quarters."""
    border = _next_hour(start, zone)
    while border < end:
        yield border
        border = _next_hour(border, zone)


def _next_hour(at: int, zone: ZoneInfo) -> int:
    """The first quarter after ``at`` with which a local hour begins."""
    offset = _offset(at, zone)
    begins = at + HOUR_MS - (at + offset) % HOUR_MS
    if quarter_of(begins) <= at:
        begins += HOUR_MS
    if _offset(begins, zone) == offset:
        return quarter_of(begins)
    quarter = at + QUARTER_MS
    while not _begins_hour(quarter, zone):
        quarter += QUARTER_MS
    return quarter


def _begins_hour(quarter: int, zone: ZoneInfo) -> bool:
    into = (quarter + _offset(quarter, zone)) % HOUR_MS
    if into == 0 or into > HOUR_MS - QUARTER_MS:
        return True
    # Clocks that go forward may leave a local :00 out.
    before = quarter - QUARTER_MS
    forward = _offset(quarter, zone) > _offset(before, zone)
    return forward and _local(quarter, zone).hour != _local(before, zone).hour


def _whole_days(start: int, end: int, zone: ZoneInfo) -> int | None:
    """How many local days it is from midnight to midnight; None if either is none."""
    first, last = _local(start, zone, rounded=True).date(), _local(end, zone, rounded=True).date()
    if (quarter_of(_midnight(first, zone)), quarter_of(_midnight(last, zone))) != (start, end):
        return None
    return (last - first).days


def _midnight(day: date, zone: ZoneInfo) -> int:
    return _first_at(datetime(day.year, day.month, day.day), zone)  # noqa: DTZ001 - a clock's face


def _first_at(face: datetime, zone: ZoneInfo) -> int:
    """When the zone's clocks first show ``face`` (naive) or, if they skip it, what comes after it."""
    at = (face.replace(tzinfo=zone) - _EPOCH) // _MS
    if _local(at, zone) != face:
        while _local(at - QUARTER_MS, zone) >= face:
            at -= QUARTER_MS
    return at


def _local(at: int, zone: ZoneInfo, *, rounded: bool = False) -> datetime:
    """What the zone's clocks show (naive), ``rounded`` up where a local day begins within the quarter from ``at``."""
    shown = (_EPOCH + at * _MS).astimezone(zone).replace(tzinfo=None, fold=0)
    if rounded:
        soon = (_EPOCH + (at + QUARTER_MS - 1) * _MS).astimezone(zone).replace(tzinfo=None, fold=0)
        if soon.date() > shown.date():
            return datetime(soon.year, soon.month, soon.day)  # noqa: DTZ001 - a clock's face
    return shown


def _offset(at: int, zone: ZoneInfo) -> int:
    offset = (_EPOCH + at * _MS).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // _MS
