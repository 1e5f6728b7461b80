"""`make bench`: one table of what each benchmark found, which goes on whatever one of them does, and what it publishes."""

import json
import os
import platform
import sys
from types import ModuleType

import pytest

from tests.benchmarks import __main__ as harness
from tests.benchmarks import charts
from tests.benchmarks.curve import Curve, Point
from tests.benchmarks.measuring import Ratio, Row, Skipped, Spread
from tests.benchmarks.results import (
    BEGIN,
    END,
    FILE,
    GROWTH_CHART,
    RATIOS_CHART,
    README,
    Results,
    decoded,
    encoded,
    markdown,
    placed,
)

TIMES = Spread(12.34, 11, 14)
WRITES = Row(
    "consumer with writes",
    "events/s",
    "ours",
    {"ours": Spread(41_234.5, 40_000, 43_000), "update_item": Spread(3_000, 2_900, 3_100)},
    [Ratio("update_item", TIMES, 10), Ratio("raw sockets", Spread(0.31, 0.3, 0.33), 0.5)],
    "Against a stub; the profile shows the client.",
)
MEMORY = Row(
    "memory",
    "MB",
    "ours",
    {"ours": Spread(120, 120, 120)},
    [Ratio("256 MB", Spread(0.47, 0.47, 0.47), 1, at_most=True)],
)
FLAT = Curve.of(
    "CPU of a batch", "sessions in the tables", "us/event", [Point(x, Spread(35, 34, 36)) for x in (0, 10, 100)]
)
STEEP = Curve.of("memory of a batch", "pages", "MB", [Point(x, Spread(x**2, x**2, x**2)) for x in (1, 10, 100)])


def _raising(error):
    def raise_it(quick):
        raise error

    return raise_it


@pytest.fixture
def benches(monkeypatch):
    """Stand-ins for all benchmarks, by name; each finds nothing until it is given something to find."""
    found = {}
    for name in harness.ALL:
        module = found[name] = ModuleType(name)
        module.rows = module.curves = lambda quick: []
        monkeypatch.setitem(sys.modules, f"tests.benchmarks.{name}", module)
    found["bench_writes"].rows = lambda quick: [WRITES]
    found["bench_memory"].rows = lambda quick: [MEMORY]
    found["growth"].curves = lambda quick: [FLAT]
    return found


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository to publish in."""
    for path in (FILE, RATIOS_CHART):
        (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / README).write_text(f"# A\n\n{BEGIN}\nof before\n{END}\n\n## Z\n")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    return tmp_path


def _all_of(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_each_ratio_stands_beside_what_it_is_to_reach(benches, capsys) -> None:
    assert harness.main(["--date", "2026-03-01"]) == 0
    said = capsys.readouterr().out
    (first,) = (line for line in said.splitlines() if line.startswith("consumer with writes [1] "))
    assert "41,234 (40,000 - 43,000) events/s" in first
    assert first.split("update_item", 1)[1].split() == ["12.3", "(11", "-", "14)", ">=", "10", "reached"]
    (second,) = (line for line in said.splitlines() if line.strip().startswith("raw sockets"))
    assert second.split() == ["raw", "sockets", "0.31", "(0.3", "-", "0.33)", ">=", "0.5", "NOT", "reached"]
    assert "1. Against a stub; the profile shows the client." in said
    (memory,) = (line for line in said.splitlines() if line.startswith("memory "))
    assert memory.split("256 MB", 1)[1].split() == ["0.47", "<=", "1", "reached"]
    assert "0.00      no faster than its input" in said


def test_those_that_are_named_are_run_in_the_tables_order_and_told_whether_it_is_quick(benches) -> None:
    ran = []
    for name in ("bench_fold", "bench_cost", "bench_writes"):
        benches[name].rows = lambda quick, name=name: ran.append((name, quick)) or []
    assert harness.main(["bench_cost", "bench_fold", "--quick"]) == 0
    assert ran == [("bench_fold", True), ("bench_cost", True)]


def test_one_that_raises_is_told_and_the_others_go_on(benches, capsys) -> None:
    benches["bench_fold"].rows = _raising(RuntimeError("no such luck"))
    assert harness.main([]) == 1
    said = capsys.readouterr()
    assert "no such luck" in said.err
    assert "bench_fold FAILED" in said.out
    assert "consumer with writes" in said.out


def test_one_that_cannot_run_here_says_why_and_is_no_failure(benches, capsys) -> None:
    benches["bench_collector"].rows = _raising(Skipped("wrk is not installed"))
    assert harness.main([]) == 0
    said = capsys.readouterr().out
    assert "bench_collector is skipped: wrk is not installed" in said
    assert "bench_fold is skipped" in said  # it has no rows
    assert "bench_writes is skipped" not in said
    assert "consumer with writes" in said


def test_the_json_has_all_that_was_found_and_names_no_machine(benches, tmp_path) -> None:
    file = tmp_path / "found.json"
    assert harness.main(["--json", str(file), "--date", "2026-03-01"]) == 0
    found = json.loads(file.read_bytes())
    assert set(found) == {"date", "python", "cores", "rows", "growth", "skipped"}
    assert (found["date"], found["python"], found["cores"]) == ("2026-03-01", platform.python_version(), os.cpu_count())
    assert [row["name"] for row in found["rows"]] == ["consumer with writes", "memory"]
    assert found["growth"][0]["exponent"] == pytest.approx(0)
    assert decoded(file.read_bytes()).rows == [WRITES, MEMORY]


def test_a_full_run_is_published_and_a_second_one_alike_changes_nothing(benches, root, monkeypatch) -> None:
    monkeypatch.setattr(charts, "ratios_svg", lambda results: f"bars of {len(results.rows)}")
    monkeypatch.setattr(charts, "growth_svg", lambda results: f"curves of {len(results.growth)}")
    assert harness.main(["--publish", "--date", "2026-03-01"]) == 0
    results = decoded((root / FILE).read_bytes())
    readme = (root / README).read_text()
    assert readme == f"# A\n\n{BEGIN}\n{markdown(results)}{END}\n\n## Z\n"
    assert "2026-03-01" in readme
    assert (
        "| consumer with writes [1] | 41,234 (40,000 - 43,000) events/s | update_item | 12.3 (11 - 14) | >= 10 | reached |"
        in readme
    )
    assert "- **consumer with writes**: Against a stub; the profile shows the client." in readme
    assert "Nothing grows faster" in readme
    before = _all_of(root)
    assert set(before) == {FILE, README, RATIOS_CHART, GROWTH_CHART}
    assert (before[RATIOS_CHART], before[GROWTH_CHART]) == (b"bars of 2", b"curves of 1")
    assert harness.main(["--publish", "--date", "2026-03-01"]) == 0
    assert _all_of(root) == before
    (root / README).write_text(f"# A\n\n{BEGIN}\n{END}\n\n## Z\n")
    benches["bench_writes"].rows = _raising(AssertionError("nothing is measured again"))
    assert harness.main(["--republish"]) == 0
    assert _all_of(root) == before


@pytest.mark.parametrize(
    "arguments", [["--quick"], ["bench_writes", "growth"], []], ids=["quick", "some", "one failed"]
)
def test_less_than_a_full_run_is_not_published(benches, root, arguments, capsys) -> None:
    if not arguments:
        benches["bench_fold"].rows = _raising(RuntimeError)
    before = _all_of(root)
    harness.main(["--publish", *arguments])
    assert _all_of(root) == before
    assert "Nothing is published" in capsys.readouterr().out


def test_what_grows_faster_than_its_input_is_said_in_the_readme() -> None:
    said = markdown(Results("2026-03-01", "3.11.7", 2, growth=[FLAT, STEEP]))
    assert "**memory of a batch grows faster than its input**, pages: with the exponent 2.00" in said
    assert "Nothing grows" not in said


@pytest.mark.parametrize("readme", ["# A\n", f"{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_readme_without_one_pair_of_markers_is_left_alone(readme) -> None:
    with pytest.raises(ValueError, match="once"):
        placed(readme, "part\n")


def test_charts_say_in_text_what_they_show_and_are_the_same_each_time() -> None:
    results = Results("2026-03-01", "3.11.7", 2, [WRITES, MEMORY], [FLAT, STEEP])
    ratios, growth = charts.ratios_svg(results), charts.growth_svg(results)
    assert (ratios, growth) == (charts.ratios_svg(results), charts.growth_svg(results))
    for image in (ratios, growth):
        assert "font-family: sans-serif" in image
        assert "DejaVu" not in image
        assert "dc:date" not in image
    assert ">against raw sockets<" in ratios
    assert ">12.3x, to reach &gt;= 10<" in ratios
    assert ">exponent 2.00<" in growth


def test_what_the_readme_shows_is_what_the_committed_results_say() -> None:
    root = harness.ROOT
    results = decoded((root / FILE).read_bytes())
    assert encoded(results) == (root / FILE).read_bytes()
    readme = (root / README).read_text(encoding="utf-8")
    assert readme == placed(readme, markdown(results)), "README.md and results.json differ: run make bench"
    for chart in (RATIOS_CHART, GROWTH_CHART):
        image = (root / chart).read_text(encoding="utf-8")
        assert f"of results {charts.digest(results)}<" in image
        assert len(image) < 60_000


def test_all_can_be_listed_and_no_other_be_run(capsys) -> None:
    assert harness.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(harness.ALL)
    with pytest.raises(SystemExit) as exit_:
        harness.main(["bench_nothing"])
    assert exit_.value.code == 2
    assert "bench_nothing" in capsys.readouterr().err


def test_named_ones_are_told_with_every_figure(benches, capsys) -> None:
    assert harness.main(["bench_writes"]) == 0
    named = capsys.readouterr().out
    assert "update_item  3,000 (2,900 - 3,100)" in named
    assert harness.main([]) == 0
    assert "update_item  3,000 (2,900 - 3,100)" not in capsys.readouterr().out
