"""Query parameters: what each takes, and text as a client wrote it -> typed values.

An empty parameter is an absent one (but for a label, of which '' is one), and parameters that a path does not know are
ignored. What cannot be understood is a :class:`ParameterError` that names it and its remedy.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from producer.event import DEFAULT_SITE, MAX_URL
from query_api.definitions import DAY_MS, DIMENSIONS, METRICS
from query_api.errors import Problem
from stream_consumer.acquisition import page_of
from stream_consumer.rollup import bounded

__all__ = ["DAY_MS", "ParameterError", "Span"]

MAX_LIMIT = 1000
MAX_PAGE_SIZE = 100
MAX_PAGE = 1_000_000
PAGE_ROWS = 25
MAX_CURSOR = 1024
MAX_USER_ID = 128
_MAX_GIVEN = 100

_SITE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ID = r"[A-Za-z0-9._:~@+=-]{1,128}"
#: The label of sessions that came from no other site, as the list of referrers shows it.
DIRECT = "Direct"
#: Metrics that are sums of whole numbers: what rows can be sorted by.
COUNTS = ("sessions", "page_views", "events", "conversions")

Arguments = Mapping[str, str]


class ParameterError(Problem, ValueError):
    """What is wrong with a parameter and what it takes, as one sentence for the client."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_parameter", message)


@dataclass(frozen=True)
class Parameter:
    """What a path takes: ``schema`` is its JSON Schema. Lists are written with commas."""

    name: str
    description: str
    schema: dict[str, Any]
    example: Any = None
    required: bool = False
    in_path: bool = False
    may_be_empty: bool = field(default=True, kw_only=True)


class Span(NamedTuple):
    """From ``start`` to before ``end``: ms since 1970 UTC, both whole quarters of an hour."""

    start: int
    end: int


class Page(NamedTuple):
    """A page of a list: its number, from 1, how many rows it has, and where it continues, if the client says."""

    number: int
    size: int
    cursor: str | None = None


class Slice(NamedTuple):
    """One label of a dimension."""

    dimension: str
    label: str


SITE = Parameter("site", "The site's id.", {"type": "string", "pattern": f"^{_SITE}$", "default": DEFAULT_SITE}, "blog")
SESSION_ID = Parameter("session_id", "The session's id.", {"type": "string", "pattern": f"^{_ID}$"}, "s1", True, True)
USER_ID = Parameter(
    "user_id",
    "What the site calls the user: event's user_id.",
    {"type": "string", "minLength": 1, "maxLength": MAX_USER_ID},
    "u-1001",
    True,
    True,
)
PAGE = Parameter(
    "page",
    "The number of a page of the list, from 1.",
    {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
    1,
)
PAGE_SIZE = Parameter(
    "page_size",
    "Rows on a page.",
    {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": PAGE_ROWS},
    50,
)
CURSOR = Parameter(
    "cursor",
    "Where to go on, from an answer's `next` or `previous`; rows that are new since then neither repeat nor hide any."
    " It goes before `page`.",
    {"type": "string", "maxLength": MAX_CURSOR},
)
VIEWED = Parameter(
    "page",
    "The page: its path, or its whole URL.",
    {"type": "string", "minLength": 1, "maxLength": MAX_URL},
    "/pricing",
    True,
    may_be_empty=False,
)
REFERRER = Parameter(
    "referrer",
    f"The referring host; empty or {DIRECT} for none.",
    {"type": "string", "maxLength": MAX_URL},
    "news.ycombinator.com",
    True,
)
METRIC_NAMES = Parameter(
    "metrics",
    "The metrics, with commas between them, in the order in which they are shown. Not every metric is kept for every"
    " interval and dimension: see /api/metrics/.",
    {"type": "array", "items": {"type": "string", "enum": list(METRICS)}, "uniqueItems": True},
    ["sessions", "page_views"],
)
DIMENSION = Parameter(
    "dimension",
    "What figures are broken down by.",
    {"type": "string", "enum": list(DIMENSIONS)},
    "source",
    True,
    may_be_empty=False,
)
ONE_DIMENSION = Parameter("dimension", "With `label`: figures of this label alone.", DIMENSION.schema)
LABEL = Parameter(
    "label", "A label of the dimension; empty is one too: none, or unknown.", {"type": "string", "maxLength": MAX_URL}
)
COMPARE = Parameter(
    "compare",
    "`previous`: with the period before, equally long (of a range of whole local days: of as many).",
    {"type": "string", "enum": ["previous"]},
    "previous",
)
FORMAT = Parameter(
    "format", "`csv`: a file for spreadsheets.", {"type": "string", "enum": ["json", "csv"], "default": "json"}
)


def limit_of(default: int | str) -> Parameter:
    """``limit`` with its default for one path."""
    schema: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}
    if isinstance(default, int):
        schema["default"] = default
    return Parameter("limit", f"The most rows (default: {default}).", schema, 10)


def read(query: str, known: Container[str]) -> dict[str, str]:
    """The parameters of a query string whose names are ``known``."""
    try:
        given = parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=_MAX_GIVEN)
    except ValueError:
        raise ParameterError(f"at most {_MAX_GIVEN} parameters in one request") from None
    found: dict[str, str] = {}
    for name, text in given:
        if name in known:
            if name in found:
                raise ParameterError(f"{name}: given more than once")
            found[name] = text
    return found


def site(arguments: Arguments) -> str:
    """``site``, by default the site of events that name none."""
    given = arguments.get("site") or DEFAULT_SITE
    if not re.fullmatch(_SITE, given):
        raise ParameterError("site: 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    return given


def is_session_id(text: str) -> bool:
    """Whether a session can have this id."""
    return bool(re.fullmatch(_ID, text))


def limit(arguments: Arguments, default: int) -> int:
    """``limit``: the number of rows, at most MAX_LIMIT if it is given."""
    return _whole("limit", arguments.get("limit"), default, MAX_LIMIT)


def page(arguments: Arguments) -> Page:
    """``page``, ``page_size`` and ``cursor``; by default the first page."""
    number = _whole("page", arguments.get("page"), 1, MAX_PAGE)
    size = _whole("page_size", arguments.get("page_size"), PAGE_ROWS, MAX_PAGE_SIZE)
    return Page(number, size, arguments.get("cursor") or None)


def page_or_list(arguments: Arguments) -> Page | None:
    """The page, None where the list is not asked for by pages: without ``page`` and ``cursor``."""
    asked = page(arguments)
    return asked if arguments.get("page") or asked.cursor else None


def viewed(arguments: Arguments) -> str:
    """``page`` as the roll-ups' label: the path alone, cut to their length."""
    given = _text("page", arguments.get("page") or "", MAX_URL)
    if not given:
        raise ParameterError("page: which page, like /pricing")
    return bounded(page_of(given))


def referrer(arguments: Arguments) -> str:
    """``referrer`` as the roll-ups' label, '' for none."""
    if "referrer" not in arguments:
        raise ParameterError("referrer: which host, like news.ycombinator.com; empty for sessions without one")
    given = _text("referrer", arguments["referrer"], MAX_URL)
    return "" if given == DIRECT else bounded(given.lower())


def dimension(arguments: Arguments) -> str:
    """``dimension``, which must be given."""
    found = one_of("dimension", arguments, DIMENSIONS)
    if not found:
        raise ParameterError(f"dimension: one of {', '.join(DIMENSIONS)}")
    return found


def one_label(arguments: Arguments) -> Slice | None:
    """``dimension`` and ``label``, which go together; None without both."""
    if not arguments.get("dimension"):
        if arguments.get("label"):
            raise ParameterError("label: goes with dimension, which says of what it is a label")
        return None
    if "label" not in arguments:
        raise ParameterError("label: goes with dimension; label= (empty) is the label of none or unknown")
    name = dimension(arguments)
    given = _text("label", arguments["label"], MAX_URL)
    return Slice(name, bounded(page_of(given) if name == "page" and given else given))


def metrics(arguments: Arguments, default: tuple[str, ...]) -> tuple[str, ...]:
    """``metrics`` in the order in which they are given."""
    given = arguments.get("metrics")
    if not given:
        return default
    names = tuple(given.split(",")) if len(given) <= MAX_URL else ("",)
    for name in names:
        if name not in METRICS:
            raise ParameterError(f"metrics: of {', '.join(METRICS)}, with commas between them")
    if len(set(names)) < len(names):
        raise ParameterError("metrics: each once")
    return names


def check_dimension_has(dimension: str, names: tuple[str, ...]) -> None:
    """Refuse metrics that there are not of each label of the dimension."""
    has = DIMENSIONS[dimension].metrics
    if lacking := [name for name in names if name not in has]:
        raise ParameterError(f"metrics: by {dimension} there is no {', '.join(lacking)}, only {', '.join(has)}")


def check_sorts(names: tuple[str, ...]) -> None:
    """Refuse metrics by the first of which rows cannot be sorted."""
    if names[0] not in COUNTS:
        raise ParameterError(f"metrics: rows are sorted by the first, which must be one of {', '.join(COUNTS)}")


def compares(arguments: Arguments) -> bool:
    """``compare``: whether the period before is asked for too."""
    return one_of("compare", arguments, ("previous",)) is not None


def wants_csv(arguments: Arguments) -> bool:
    """``format``: whether it is CSV."""
    return one_of("format", arguments, ("json", "csv")) == "csv"


def one_of(name: str, arguments: Arguments, values: Mapping[str, object] | tuple[str, ...]) -> str | None:
    """A parameter that is one of some names; None where it is not given."""
    given = arguments.get(name)
    if not given:
        return None
    if given not in values:
        raise ParameterError(f"{name}: one of {', '.join(values)}")
    return given


def _text(name: str, given: str, most: int) -> str:
    if len(given) > most:
        raise ParameterError(f"{name}: at most {most} characters")
    return given


def _whole(name: str, text: str | None, default: int, most: int) -> int:
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise ParameterError(f"{name}: a whole number from 1 to {most}")
    return int(text)
