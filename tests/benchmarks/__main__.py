"""``make bench``: every figure beside its peer and its floor, as ratios; how cost grows; a table, JSON and charts.

A benchmark never fails a run: what does not reach its bound is told, and the exit status is 0. One that raises is told,
the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from tests.benchmarks import charts
from tests.benchmarks.curve import Curve
from tests.benchmarks.measuring import Row, Skipped
from tests.benchmarks.results import (
    FILE,
    GROWTH_CHART,
    RATIOS_CHART,
    README,
    Results,
    decoded,
    encoded,
    figures,
    markdown,
    placed,
    terminal,
)

#: Modules of this package with ``rows(quick) -> list[Row]``, in the order of the table. One that cannot run here raises
#: Skipped, or says why and has no rows.
BENCHES = (
    "bench_fold",
    "bench_writes",
    "bench_producer",
    "bench_put_units",
    "bench_collector",
    "bench_cached_reads",
    "bench_cold_start",
    "bench_replay",
    "bench_memory",
    "bench_cost",
)
#: The module with ``curves(quick) -> list[Curve]``.
GROWTH = "growth"
ALL = (*BENCHES, GROWTH)
ROOT = Path(__file__).parents[2]


def run(names: Sequence[str], *, quick: bool, date: str) -> tuple[Results, list[str]]:
    """What the named ones found, one after the other; and the names of those that raised, which is told at once."""
    rows: list[Row] = []
    growth: list[Curve] = []
    skipped: dict[str, str] = {}
    failed: list[str] = []
    with tqdm(names, unit="bench", disable=None) as bar:
        for name in bar:
            bar.set_description(name)
            try:
                module = importlib.import_module(f"tests.benchmarks.{name}")
                if name == GROWTH:
                    growth += module.curves(quick)
                elif some := module.rows(quick):
                    rows += some
                else:
                    skipped[name] = "it cannot run here, and has said why"
            except Skipped as why:
                skipped[name] = str(why)
            except Exception:  # noqa: BLE001 - the others' figures are worth having all the same
                failed.append(name)
                bar.write(f"{name} failed:\n{traceback.format_exc()}", file=sys.stderr)
    results = Results(date, platform.python_version(), os.cpu_count() or 1, rows, growth, skipped)
    return decoded(encoded(results)), failed  # as they will be read: whole numbers are floats then, too


def publish(results: Results, root: Path) -> None:
    """Write the results, the charts and README.md's part."""
    readme = placed((root / README).read_text(encoding="utf-8"), markdown(results))
    images = {RATIOS_CHART: charts.ratios_svg(results), GROWTH_CHART: charts.growth_svg(results)}
    (root / FILE).write_bytes(encoded(results))
    for path, image in images.items():
        (root / path).write_text(image, encoding="utf-8")
    (root / README).write_text(readme, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which, with every figure (default: all, which --list names)"
    )
    parser.add_argument("--quick", action="store_true", help="small and short: does it work?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was found there")
    parser.add_argument("--date", metavar="DATE", help="that stands in the results (default: today's, UTC)")
    parser.add_argument(
        "--publish",
        action="store_true",
        help=f"write {FILE}, the charts and README.md's part, if all have run in full",
    )
    parser.add_argument("--republish", action="store_true", help=f"of what {FILE} holds: measure nothing")
    parser.add_argument("--list", action="store_true", help="name them all")
    given = parser.parse_args(argv)
    if given.list:
        print("\n".join(ALL))
        return 0
    if given.republish:
        publish(decoded((ROOT / FILE).read_bytes()), ROOT)
        return 0
    if unknown := sorted(set(given.names) - set(ALL)):
        parser.error(f"there is no {', '.join(unknown)}; --list names them all")
    names = [name for name in ALL if name in given.names] if given.names else ALL
    results, failed = run(names, quick=given.quick, date=given.date or datetime.now(UTC).date().isoformat())
    print("\n".join([*terminal(results), *(f"{name} FAILED" for name in failed)]))
    if given.names:
        print("\n".join(figures(results)))
    if given.quick:
        print("This was quick: what it shows is that it works, and no more.")
    if given.json:
        given.json.write_bytes(encoded(results))
    if given.publish:
        if failed or given.quick or len(names) < len(ALL):
            print("Nothing is published: not all have run in full.")
        else:
            publish(results, ROOT)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
