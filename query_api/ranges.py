"""Ranges of time as a client asks for them: ``from``, ``to``, ``tz``, ``interval`` and ``hour``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from query_api import calendar
from query_api.definitions import DAY_MS, INTERVALS, METRICS, Interval
from query_api.parameters import Arguments, Parameter, ParameterError, Slice, Span, one_of
from stream_consumer.rollup import QUARTER_MS, quarter_of

MAX_DAYS = 366
#: Distinct visitors of local days are read from quarters of an hour, of UTC days from one item each.
MAX_DAYS_OF_LOCAL_VISITORS = 92

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The last moment (ms) that can be asked about: every time in an answer then has a year of four digits.
_LATEST = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_MILLISECONDS = "[0-9]{1,15}"
# A '+' that was not written %2B reaches us as a space: 2026-01-31T12:00:00 09:00.
_ISO = "[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?(Z|[+ -][0-9]{2}:[0-9]{2})?)?"
_MOMENT = {"type": "string", "pattern": f"^({_MILLISECONDS}|{_ISO})$"}
_FORMS = "a time like 2026-01-31, 2026-01-31T12:00:00Z or 2026-01-31T12:00:00%2B09:00, or milliseconds since 1970"
_WIDENED = "Without an offset: local to `tz`. Ranges are widened to whole quarters of an hour in UTC."


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"


FROM = Parameter(
    "from",
    f"The range's start, ISO 8601 or ms since 1970 (default: 24 hours before `to`). {_WIDENED}",
    _MOMENT,
    "2026-01-01",
)
TO = Parameter("to", f"The range's end, not in it (default: now). {_WIDENED}", _MOMENT, "2026-01-08")
TZ = Parameter(
    "tz",
    "The time zone, by its IANA name, in which hours and days begin.",
    {"type": "string", "pattern": "^[A-Za-z0-9_+/-]{1,64}$", "default": "UTC"},
    "Asia/Seoul",
)
INTERVAL = Parameter(
    "interval",
    "The step of time (default: the finest of 5m up to a day, hour up to 14 days, and day that has the metrics)."
    f" The longest range: {', '.join(f'{step.name} {_days(step.most_days)}' for step in INTERVALS.values())}.",
    {"type": "string", "enum": list(INTERVALS)},
    "hour",
)
HOUR = Parameter(
    "hour",
    "Any moment of the hour, ISO 8601 or ms since 1970; without an offset: local to `tz`.",
    _MOMENT,
    "2026-01-31T12:00:00Z",
    True,
    may_be_empty=False,
)


class Range(NamedTuple):
    """A range and its zone; ``asked``: its length (ms) before it was widened, on the clock's face if that is less.

    ``key`` stands for it in the keys of answers. A range up to now is another stretch of time each quarter, but the
    same question: so its last answer is there to stand in when a quarter begins while the tables cannot be read.
    """

    span: Span
    zone: ZoneInfo
    asked: int
    key: tuple[int | None, int | None, str]

    @property
    def up_to_now(self) -> bool:
        """Whether it goes on with the clock."""
        return self.key[1] is None

    @property
    def previous(self) -> Span:
        """The period before."""
        start, end = calendar.previous(*self.span, self.zone)
        if start < 0:
            raise ParameterError("compare: the period before begins before 1970; ask for a shorter or later range")
        return Span(start, end)


def zone(arguments: Arguments) -> ZoneInfo:
    """``tz``, by default UTC."""
    name = arguments.get("tz") or "UTC"
    # Only known names: a name is a path to ZoneInfo.
    if name not in _zone_names():
        raise ParameterError("tz: a time zone's IANA name, like Europe/Berlin, Asia/Seoul or UTC")
    return ZoneInfo(name)


def span(arguments: Arguments, now: int, max_days: int = MAX_DAYS) -> Range:
    """``from``, ``to`` and ``tz``; by default the 24 hours before ``to``, which is by default now.

    ``now`` in ms. At most ``max_days`` days may be asked for.
    """
    local = zone(arguments)
    given_end = _moment("to", arguments.get("to"), local)
    end = now if given_end is None else given_end
    given_start = _moment("from", arguments.get("from"), local)
    start = max(0, end - DAY_MS) if given_start is None else given_start
    if start >= end:
        raise ParameterError("from: must be before to (which is now where it is not given)")
    # Where clocks go back a day has 25 hours, and is a day.
    asked = min(end - start, calendar.on_the_clock(start, end, local))
    if asked > max_days * DAY_MS:
        raise ParameterError(f"from, to: at most {max_days} days in one query here; ask for several stretches")
    # Now is within a quarter, also at its very first moment: all who ask in it ask for the same.
    last = quarter_of(now) + QUARTER_MS if given_end is None else end + -end % QUARTER_MS
    whole = Span(quarter_of(start), last)
    to = None if given_end is None else whole.end
    since = None if to is None and given_start is None else whole.start
    return Range(whole, local, asked, (since, to, local.key))


def interval(arguments: Arguments, range_: Range, metrics: tuple[str, ...], label: Slice | None) -> Interval:
    """``interval``: by default the finest of 5m, hour and day that fits the range and has the metrics."""
    fine = label is None and not any(METRICS[name].by_quarter for name in metrics)
    name = one_of("interval", arguments, INTERVALS)
    if name is None:
        finest = "5m" if range_.asked <= DAY_MS and fine else "hour"
        name = finest if range_.asked <= 14 * DAY_MS else "day"
    found = INTERVALS[name]
    if found.length < QUARTER_MS and label is not None:
        raise ParameterError(f"interval: figures of one label are kept by 15m, not by {name}; use 15m, hour or day")
    if found.length < QUARTER_MS and not fine:
        coarse = ", ".join(metric for metric in metrics if METRICS[metric].by_quarter)
        raise ParameterError(f"metrics: {coarse} are kept by 15m, not by {name}; use interval=15m, hour or day")
    if range_.asked > found.most_days * DAY_MS:
        longer = [step.name for step in INTERVALS.values() if step.most_days * DAY_MS >= range_.asked]
        remedy = f"interval={longer[0]} or a shorter range" if longer else "a shorter range"
        raise ParameterError(f"from, to: at most {_days(found.most_days)} with interval={name}; use {remedy}")
    return found


def check_visitors(range_: Range, interval: Interval) -> None:
    """Refuse distinct visitors of too many days that are not UTC's."""
    if range_.asked <= MAX_DAYS_OF_LOCAL_VISITORS * DAY_MS:
        return
    if any(border % DAY_MS for border in calendar.borders(*range_.span, interval, range_.zone)[1:-1]):
        raise ParameterError(
            f"metrics: visitors by day in {range_.zone.key} for at most {MAX_DAYS_OF_LOCAL_VISITORS} days;"
            " use tz=UTC or a shorter range"
        )


def hour(arguments: Arguments) -> Range:
    """``hour`` and ``tz``: the local hour."""
    local = zone(arguments)
    at = _moment("hour", arguments.get("hour"), local)
    if at is None:
        raise ParameterError(f"hour: {_FORMS}")
    start, end = calendar.hour_of(at, local)
    whole = Span(max(0, start), end)
    return Range(whole, local, end - start, (*whole, local.key))


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def _moment(name: str, text: str | None, local: tzinfo) -> int | None:
    if not text:
        return None
    try:
        at = int(text) if re.fullmatch(_MILLISECONDS, text) else _iso(text, local)
    except (ValueError, OverflowError):
        raise ParameterError(f"{name}: {_FORMS}") from None
    if not 0 <= at <= _LATEST:
        raise ParameterError(f"{name}: a time from 1970 to 9998")
    return at


def _iso(text: str, local: tzinfo) -> int:
    if not re.fullmatch(_ISO, text):
        raise ValueError
    moment = datetime.fromisoformat(re.sub("(?<=.{12}) ", "+", text))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=local)
    return (moment - _EPOCH) // timedelta(milliseconds=1)
