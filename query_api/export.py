"""Breakdowns as CSV, for spreadsheets. Pure."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET

from query_api.answers import Breakdown, Values
from query_api.parameters import Span
from query_api.representation import OTHER

#: More rows than any spreadsheet is read through; the rest is told as cut.
MAX_ROWS = 100_000
#: With one of these a cell begins that a spreadsheet computes, or that ends the cell before it.
_FORMULAS = frozenset("=+-@\t\r\n")


def as_csv(found: Breakdown) -> bytes:
    """One line for each label, its metrics in their order; money in one column for each currency.

    With a byte order mark: without one, Excel takes UTF-8 for the code page of the machine. Whoever reads the figures
    by program has JSON.
    """
    compares = any(row.previous is not UNSET for row in found.results)
    shown: list[tuple[str, Values, Values | None]] = [
        (row.label, row, row.previous if isinstance(row.previous, Values) else None) for row in found.results
    ]
    if found.other is not None:
        shown.append((OTHER, found.other, None))
    columns = [(name, currency) for name in found.metrics for currency in _currencies(name, shown)]
    text = io.StringIO(newline="")
    # All text is quoted, so that no other separator, as some countries' spreadsheets take, begins a cell within it.
    lines = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    titles = [_title(*column) for column in columns]
    lines.writerow(
        [found.dimension, *map(harmless, titles), *(harmless(f"previous {title}") for title in titles if compares)]
    )
    for label, now, before in shown:
        cells = [_cell(now, *column) for column in columns]
        if compares:
            cells += [_cell(before, *column) for column in columns]
        lines.writerow([harmless(label), *cells])
    return text.getvalue().encode("utf-8-sig", "replace")


def harmless(text: str) -> str:
    """The text as no spreadsheet takes it for a formula: after an apostrophe if it begins like one.

    Spreadsheets skip blanks and invisible characters before a formula, and some take full-width signs for plain ones.
    """
    first = next((char for char in text if not _is_skipped(char)), "")
    plain = unicodedata.normalize("NFKC", first)
    return f"'{text}" if plain[:1] in _FORMULAS else text


def file_name(site: str, dimension: str, span: Span) -> str:
    """A file name of letters, digits, '.', '_' and '-' only."""
    days = (f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d}" for at in span)
    return "_".join(["liveinsight", site, dimension, *days]) + ".csv"


def _is_skipped(char: str) -> bool:
    return char not in "\t\r\n" and (char.isspace() or unicodedata.category(char) in {"Cc", "Cf", "Zs", "Zl", "Zp"})


def _currencies(name: str, shown: Iterable[tuple[str, Values, Values | None]]) -> Sequence[str | None]:
    if name != "conversion_values":
        return [None]
    values = [values for _, *both in shown for values in both if isinstance(values, Values)]
    return sorted({currency for one in values for currency in _amounts(one)})


def _title(name: str, currency: str | None) -> str:
    return name if currency is None else f"{name} {currency}"


def _cell(values: Values | None, name: str, currency: str | None) -> Any:
    if values is None:
        return ""
    return getattr(values, name) if currency is None else _amounts(values).get(currency, 0)


def _amounts(values: Values) -> dict[str, float]:
    amounts = values.conversion_values
    return amounts if isinstance(amounts, dict) else {}
