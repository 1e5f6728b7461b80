"""Query parameters: text as a client wrote it -> typed values, or a :class:`ParameterError` that names what is wrong.

An empty parameter is an absent one, and parameters that a path does not know are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from producer.event import DEFAULT_SITE
from stream_consumer.rollup import QUARTER_MS

DAY_MS = 24 * 3600 * 1000
MAX_DAYS = 366
MAX_LIMIT = 1000
MAX_PAGE_SIZE = 100

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SESSION_ID = re.compile(r"[A-Za-z0-9._:~@+=-]{1,128}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The last moment (ms) that can be asked about: every time in an answer then has a year of four digits.
_LATEST = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)

Arguments = Mapping[str, str]


class ParameterError(ValueError):
    """What is wrong with a parameter and what it takes, as one sentence for the client."""


class Span(NamedTuple):
    """From ``start`` to before ``end``: ms since 1970 UTC, both whole quarters of an hour."""

    start: int
    end: int


class Page(NamedTuple):
    """A page of a list: its number, from 1, and how many rows it has."""

    number: int
    size: int

    @property
    def offset(self) -> int:
        """The number of rows before it."""
        return (self.number - 1) * self.size


def site(arguments: Arguments) -> str:
    """``site``, by default the site of events that name none."""
    given = arguments.get("site") or DEFAULT_SITE
    if not _SITE.fullmatch(given):
        raise ParameterError("site: 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    return given


def is_session_id(text: str) -> bool:
    """Whether a session can have this id."""
    return bool(_SESSION_ID.fullmatch(text))


def span(arguments: Arguments, now: int, max_days: int = MAX_DAYS) -> Span:
    """``from`` and ``to``, widened to whole quarters; by default the 24 hours before ``to``, which is by default now.

    ``now`` in ms. At most ``max_days`` days may be asked for.
    """
    end = _moment("to", arguments.get("to")) or now
    start = _moment("from", arguments.get("from"))
    if start is None:
        start = max(0, end - DAY_MS)
    if start >= end:
        raise ParameterError("from: must be before to (which is now where it is not given)")
    if end - start > max_days * DAY_MS:
        raise ParameterError(f"from, to: at most {max_days} days in one query here; ask for several stretches")
    return Span(start - start % QUARTER_MS, end + -end % QUARTER_MS)


def limit(arguments: Arguments, default: int) -> int:
    """``limit``: the number of rows, at most MAX_LIMIT."""
    return _whole("limit", arguments.get("limit"), default, MAX_LIMIT)


def page(arguments: Arguments) -> Page | None:
    """``page`` and ``page_size``; None where the list is not asked for by pages."""
    if not arguments.get("page"):
        return None
    number = _whole("page", arguments.get("page"), 1, 1_000_000)
    return Page(number, _whole("page_size", arguments.get("page_size"), 25, MAX_PAGE_SIZE))


def _whole(name: str, text: str | None, default: int, most: int) -> int:
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise ParameterError(f"{name}: a whole number from 1 to {most}")
    return int(text)


def _moment(name: str, text: str | None) -> int | None:
    if not text:
        return None
    try:
        at = int(text) if re.fullmatch(r"[0-9]{1,15}", text) else _iso(text)
    except (ValueError, OverflowError):
        raise ParameterError(
            f"{name}: a time like 2026-01-31, 2026-01-31T12:00:00Z or 2026-01-31T12:00:00%2B09:00,"
            " or milliseconds since 1970"
        ) from None
    if not 0 <= at <= _LATEST:
        raise ParameterError(f"{name}: a time from 1970 to 9998")
    return at


def _iso(text: str) -> int:
    # A '+' that was not written %2B reaches us as a space: 2026-01-31T12:00:00 09:00.
    moment = datetime.fromisoformat(re.sub(r"(?<=T)(.*) (?=[0-9:]+$)", r"\1+", text))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)
