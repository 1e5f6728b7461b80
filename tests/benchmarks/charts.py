"""The charts of README.md, as SVG: the same bytes for the same results and the same matplotlib."""

from __future__ import annotations

import hashlib
import math
import re
import textwrap
from collections.abc import Sequence
from io import StringIO
from typing import Any

from tests.benchmarks.curve import Curve
from tests.benchmarks.measuring import Ratio, Row
from tests.benchmarks.results import Results, bound, encoded, exponent, number

_REACHED, _MISSED, _TOLD, _LINE = "#2a6f97", "#c8553d", "#9aa5b1", "#333333"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "liveinsight",  # else ids are random
    "font.family": ["sans-serif"],
    "font.size": 9,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
}
_COLUMNS = 3
#: Characters of a bar's label: the table has all of it.
_LABEL = 60
_UNSEEN = re.compile(r'<!--.*?-->\n?|(?<=<g) id="[^"]*"| transform="rotate\(-0 [^"]*"')
_ALONE = re.compile(r"<g>\n(<(?:use|text) .*>)\n</g>")
_ATTRIBUTE = re.compile(r'="[^"]*"')
_FRACTION = re.compile(r"(\.\d\d)\d+")


def digest(results: Results) -> str:
    """What a chart carries to say of which results it is."""
    return hashlib.sha256(encoded(results)).hexdigest()[:16]


def ratios_svg(results: Results) -> str:
    """A bar for each ratio that is to reach something, from 1 on, with its spread as whiskers and its bound as a mark."""
    bars = [
        (row, ratio)
        for row in results.rows
        for ratio in row.ratios
        if ratio.bound is not None and ratio.value.low > 0  # the others are in the table
    ]

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(figsize=(9, 0.9 + 0.36 * len(bars)), layout="constrained")
        low = high = 1.0
        for place, (_, ratio) in enumerate(bars):
            value = ratio.value
            axes.barh(place, value.median - 1, left=1, height=0.55, color=_REACHED if ratio.reached else _MISSED)
            axes.plot([value.low, value.high], [place] * 2, color=_LINE, linewidth=1, marker="|", markersize=7)
            axes.plot([ratio.bound] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
            right = max(1.0, value.high, ratio.bound)
            low, high = min(low, value.low, ratio.bound), max(high, right)
            axes.annotate(
                f"{number(value.median)}x, to reach {bound(ratio)}",
                (right, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(bars)), _labels(bars))
        axes.set_ylim(len(bars) - 0.4, -0.6)  # the first on top
        axes.set_xscale("log")
        # Room for what is written beside a bar.
        axes.set_xlim(low / 1.2, high * 10 ** max(0.4, 0.5 * math.log10(high / low)))
        axes.axvline(1, color=_LINE, linewidth=0.8)
        axes.xaxis.set_major_formatter(lambda x, _: f"{number(x)}x")
        figure.supxlabel(
            "ours divided by the other's; black: what to reach; whiskers: least and greatest; red: not reached",
            fontsize=8,
        )
        return figure

    return _svg(draw, results)


def growth_svg(results: Results) -> str:
    """Each curve by itself; the input is logarithmic, the cost begins at 0."""
    growth: Sequence[Curve] = results.growth

    def draw(plt: Any) -> Any:
        lines = max(1, math.ceil(len(growth) / _COLUMNS))
        figure, grid = plt.subplots(lines, _COLUMNS, figsize=(9, 2.1 * lines), layout="constrained", squeeze=False)
        for axes in list(grid.flat)[len(growth) :]:
            axes.axis("off")
        for axes, curve in zip(grid.flat, growth, strict=False):
            xs = [point.x for point in curve.points]
            color = _REACHED if curve.bounded else _MISSED
            axes.plot(xs, [point.y.median for point in curve.points], color=color, marker="o", markersize=3)
            axes.fill_between(
                xs,
                [point.y.low for point in curve.points],
                [point.y.high for point in curve.points],
                color=color,
                alpha=0.2,
                linewidth=0,
            )
            last = curve.points[-1]
            as_input = [last.y.median * (1 if curve.of_each else x / last.x) for x in xs]
            axes.plot(xs, as_input, color=_TOLD, linewidth=1, linestyle=":")
            if min(xs) > 0:
                axes.set_xscale("log")
            else:  # a table may be empty
                axes.set_xscale("symlog", linthresh=_least(xs))
            axes.set_xticks(_ticks(xs), map(_short, _ticks(xs)))
            axes.xaxis.set_minor_locator(plt.NullLocator())
            axes.yaxis.set_major_locator(plt.MaxNLocator(4))
            axes.yaxis.set_major_formatter(lambda y, _: _short(y))
            axes.set_ylim(0, 1.25 * max(point.y.high for point in curve.points))
            axes.set_title(curve.name, fontsize=9, fontweight="bold", loc="left")
            axes.set_xlabel(curve.x, fontsize=8)
            axes.set_ylabel(curve.y, fontsize=8)
            axes.tick_params(labelsize=7)
            axes.text(
                0.98, 0.96, f"exponent {exponent(curve)}", transform=axes.transAxes, ha="right", va="top", fontsize=8
            )
        figure.supxlabel("exponent: of the whole cost in its input; dotted: a cost that grows as its input", fontsize=8)
        return figure

    return _svg(draw, results)


def _svg(draw: Any, results: Results) -> str:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({**_STYLE, "font.sans-serif": ["DejaVu Sans", "sans-serif"]}):
        figure = draw(plt)
        written = StringIO()
        figure.savefig(
            written,
            format="svg",
            metadata={"Date": None, "Creator": None, "Description": f"of results {digest(results)}"},
        )
        plt.close(figure)
    # matplotlib measures with its own font; a reader's browser has another one.
    image = written.getvalue().replace("'DejaVu Sans', sans-serif", "sans-serif")
    # Nobody sees a hundredth of a point, comments, the names of groups, groups of one, or indentation.
    image = _UNSEEN.sub("", image)
    image = _ATTRIBUTE.sub(lambda found: _FRACTION.sub(r"\1", found[0]), image)
    image = "\n".join(filter(None, map(str.strip, image.splitlines()))) + "\n"
    return _ALONE.sub(r"\1", _ALONE.sub(r"\1", image))


def _labels(bars: Sequence[tuple[Row, Ratio]]) -> list[str]:
    return ["\n".join(_cut(line) for line in (row.name, f"against {ratio.against}")) for row, ratio in bars]


def _cut(line: str) -> str:
    return textwrap.shorten(line, _LABEL, placeholder=" ...")


def _least(xs: Sequence[float]) -> float:
    return min(x for x in xs if x > 0)


def _ticks(xs: Sequence[float]) -> Sequence[float]:
    """Powers of ten, or all where there are few."""
    tens = [x for x in xs if x == 0 or math.log10(x).is_integer()]
    return tens if len(tens) > 2 else xs


def _short(x: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if x >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:g}"
