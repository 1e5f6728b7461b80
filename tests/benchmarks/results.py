"""What a run of the benchmarks has found: as JSON, as a table of the terminal, and as the part of README.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.benchmarks.curve import Curve
from tests.benchmarks.measuring import Ratio, Row, Spread

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
#: Where what is published lies, from the repository's root on.
FILE = Path("tests/benchmarks/results.json")
README = Path("README.md")
RATIOS_CHART, GROWTH_CHART = Path(".readme/bench.svg"), Path(".readme/growth.svg")
_WIDTH = 150


class Results(Struct, frozen=True):
    """``skipped``: why, by the name of a benchmark that could not run here."""

    date: str
    python: str
    cores: int
    rows: list[Row] = []
    growth: list[Curve] = []
    skipped: dict[str, str] = {}

    @property
    def machine(self) -> str:
        """Where the figures are from, as far as it matters to them."""
        return f"{self.date}, {self.cores} cores, Python {self.python}"


def encoded(results: Results) -> bytes:
    """As JSON, the same for the same results."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def decoded(data: bytes) -> Results:
    """Raises ``msgspec.DecodeError`` for what are no results."""
    return msgspec.json.decode(data, type=Results)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.2g}"


def spread(value: Spread) -> str:
    """The median, and in brackets how far it goes, where it goes anywhere."""
    if value.low == value.high:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)} - {number(value.high)})"


def bound(ratio: Ratio) -> str:
    """What is to be reached; empty without a bound."""
    if ratio.bound is None:
        return ""
    return f"{'<=' if ratio.at_most else '>='} {ratio.bound:,.3g}"


def exponent(curve: Curve) -> str:
    """With two digits after the point, and 0 without a sign."""
    return f"{round(curve.exponent, 2) + 0.0:.2f}"


def terminal(results: Results) -> list[str]:
    """The tables, and the notes below."""
    lines = [results.machine, ""]
    if results.rows:
        head = ("what", "ours", "against", "ratio (least - greatest)", "to reach", "")
        lines += _aligned([head, *_cells(results)])
        notes = [f"{at}. {row.note}" for at, row in _noted(results)]
        lines += ["", *(line for note in notes for line in textwrap.wrap(note, _WIDTH, subsequent_indent="   "))]
    if results.growth:
        head = ("growth", "against", "from - to", "cost", "exponent", "")
        lines += ["", *_aligned([head, *map(_growth_cells, results.growth)])]
    lines += [f"{name} is skipped: {why}" for name, why in results.skipped.items()]
    return lines


def figures(results: Results) -> list[str]:
    """What each way of each row measured."""
    return [
        line
        for row in results.rows
        for line in (
            "",
            f"{row.name}, {row.unit}",
            *_aligned([(f"  {way}", spread(one)) for way, one in row.figures.items()]),
        )
    ]


def markdown(results: Results) -> str:
    """README.md's part, without its markers."""
    lines = [
        f"Measured {results.machine}. A ratio is ours divided by the other's in the same turn:",
        "the median, and in brackets the least and the greatest.",
        "",
        "| what | ours | against | ratio | to reach | |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in _cells(results)),
        "",
        f"![Each ratio with its spread, and what it is to reach]({RATIOS_CHART})",
    ]
    missed = [(at, row) for at, row in _noted(results) if any(ratio.reached is False for ratio in row.ratios)]
    if missed:
        lines += ["", "Not reached, and why:", "", *(f"- **{row.name}**: {row.note}" for _, row in missed)]
    lines += [f"\nNot measured: {name}, {why}" for name, why in results.skipped.items()]
    if results.growth:
        lines += [
            "",
            *growth_statement(results.growth),
            "",
            f"![What it costs against the size of the input]({GROWTH_CHART})",
            "",
            "| cost | against | from - to | cost there | exponent of the whole |",
            "|---|---|---|---|---|",
            *(f"| {' | '.join(_growth_cells(curve)[:5])} |" for curve in results.growth),
        ]
    notes = [f"{at}. {row.note}" for at, row in _noted(results)]
    if notes:
        lines += ["", "<details><summary>What is measured</summary>", "", *notes, "", "</details>"]
    return "\n".join(lines) + "\n"


def growth_statement(growth: list[Curve]) -> Iterator[str]:
    """Whether anything grows faster than its input."""
    faster = [curve for curve in growth if not curve.bounded]
    if not faster:
        yield "**Nothing grows faster than its input**: the exponent of a whole cost is at most 1, as far as it can be measured."
    for curve in faster:
        yield f"**{curve.name} grows faster than its input**, {curve.x}: with the exponent {exponent(curve)}."


def placed(readme: str, part: str) -> str:
    """``readme`` with the part between the markers replaced. Raises ValueError without exactly one pair of markers."""
    before, *rest = readme.split(f"{BEGIN}\n")
    if len(rest) != 1 or rest[0].count(END) != 1:
        raise ValueError(f"README.md needs {BEGIN} and {END} once, each on a line of its own")
    _, _, after = rest[0].partition(END)
    return f"{before}{BEGIN}\n{part}{END}{after}"


def _noted(results: Results) -> Iterator[tuple[int, Row]]:
    """The rows that have a note, numbered."""
    return zip(count(1), (row for row in results.rows if row.note))


def _cells(results: Results) -> Iterator[tuple[str, ...]]:
    """A line for each ratio; what a row's lines have in common stands in its first one."""
    numbers = {id(row): f" [{at}]" for at, row in _noted(results)}
    for row in results.rows:
        ours = f"{spread(row.figures[row.ours])} {row.unit}" if row.ours in row.figures else ""
        what = f"{row.name}{numbers.get(id(row), '')}"
        for ratio in row.ratios:
            reached = {True: "reached", False: "NOT reached", None: ""}[ratio.reached]
            yield what, ours, ratio.against, spread(ratio.value), bound(ratio), reached
            what = ours = ""
        if what:
            yield what, ours, "", "", "", ""


def _growth_cells(curve: Curve) -> tuple[str, ...]:
    first, last = curve.points[0], curve.points[-1]
    return (
        curve.name,
        curve.x,
        f"{number(first.x)} - {number(last.x)}",
        f"{number(first.y.median)} - {number(last.y.median)} {curve.y}",
        exponent(curve),
        "no faster than its input" if curve.bounded else "FASTER than its input",
    )


def _aligned(table: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table]
