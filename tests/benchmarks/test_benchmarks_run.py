"""Each benchmark runs, short, and what it says is sound. What it measures here says nothing."""

import importlib
import json
import math
import os
import shutil

import pytest

from tests.benchmarks import bench_api, bench_cold_start, bench_collector, bench_reads, bench_replay, bench_units
from tests.benchmarks.__main__ import BENCHES
from tests.benchmarks.api_data import Plan, events_of, stored
from tests.benchmarks.measuring import Skipped
from tests.fake_dynamodb import NAMES

NOW = 1_772_323_200_000


def test_the_data_are_the_same_each_time_and_as_many_as_asked_for() -> None:
    plan = Plan(3_000, NOW, active=20)
    events = [event for shard in range(plan.shards) for event in events_of(plan, shard)]
    assert events == [event for shard in range(plan.shards) for event in events_of(plan, shard)]
    assert abs(len(events) - 3_000) < 300
    assert all(NOW - 24 * 3_600_000 <= event.timestamp <= event.received_at <= NOW for event in events)
    last = {}
    for event in events:
        last[event.session_id] = max(event.timestamp, last.get(event.session_id, 0))
    assert sum(at > NOW - 30 * 60_000 for at in last.values()) == 20
    tables = stored(plan).tables
    assert len(tables[NAMES.sessions]) == len(last) == plan.sessions


def test_without_wrk_the_api_is_not_measured_and_it_says_so(capsys) -> None:
    assert bench_api.main(["--wrk", "no-such-program"]) == 0
    assert capsys.readouterr().err == f"{bench_api.MISSING}\n"
    assert "apt install wrk" in bench_api.MISSING


def test_reads_of_a_month_are_far_fewer_than_its_roll_ups(tmp_path, capsys) -> None:
    file = tmp_path / "reads.json"
    assert bench_reads.main(["--quick", "--json", str(file)]) == 0
    answers = json.loads(file.read_text())["answers"]
    assert set(answers) == {f"{name}, {of}" for name in bench_reads.QUESTIONS for of in ("a day", "a month")}
    for answer in answers.values():
        assert 0 < answer["items"] < 12 + answer["days"] + 1
        assert answer["items"] * 10 < answer["rollups"]
    assert "breakdown, a month" in capsys.readouterr().out


@pytest.mark.long
def test_the_api_bears_some_dashboards(tmp_path, capsys) -> None:
    wrk = shutil.which(os.environ.get("WRK", "wrk"))
    if not wrk:
        pytest.skip(bench_api.MISSING)
    file = tmp_path / "api.json"
    status = bench_api.main(["--quick", "--wrk", wrk, "--json", str(file)])
    said = capsys.readouterr().out
    assert status == 0, said
    found = json.loads(file.read_text())
    for load in found["load"]:
        assert load["errors"] == {}
        assert load["rate"] > load["asked"] / 2
        assert 0 < load["p50"] <= load["p95"] <= load["p99"] <= load["max"]
    assert found["streams"]["opened"] == found["streams"]["wanted"] == 10
    assert found["streams"]["events"] >= 10
    assert set(found["saturated"]) == {"summary", "breakdown"}
    for ways in found["saturated"].values():
        assert all(one["rate"] > 0 and one["errors"] == {} for way in ways.values() for one in way)
    assert "no errors" in said


@pytest.fixture
def made_once(local_package, monkeypatch) -> None:
    """The package that cold starts are measured with."""
    monkeypatch.setattr(bench_cold_start, "_package", lambda: local_package.data)


@pytest.mark.parametrize("name", [name for name in BENCHES if name != "bench_collector"])
def test_each_benchmark_has_rows_of_figures_and_of_ratios_to_ours(name, request, capsys) -> None:
    if name == "bench_cold_start":
        request.getfixturevalue("made_once")
    try:
        rows = importlib.import_module(f"tests.benchmarks.{name}").rows(quick=True)
    except Skipped as why:
        pytest.skip(str(why))
    if not rows:
        pytest.skip(capsys.readouterr().err.strip() or "it cannot run here")
    for row in rows:
        assert row.ours in row.figures
        for figure in row.figures.values():
            assert 0 < figure.low <= figure.median <= figure.high < math.inf, row
        for ratio in row.ratios:
            assert 0 < ratio.value.low <= ratio.value.median <= ratio.value.high < math.inf, row


@pytest.mark.long
def test_the_collector_and_its_peers_answer_all_that_is_posted() -> None:
    if not shutil.which("wrk"):
        pytest.skip(bench_collector.MISSING)
    [row] = bench_collector.rows(quick=True)
    assert all(figures.median > 0 for figures in row.figures.values())
    assert row.note.count(" 0 x 503, 0 other refusals, 0 broken") == len(row.figures) == 3
    assert [ratio.against for ratio in row.ratios] == [name for name in row.figures if name != row.ours]


def test_a_replay_and_live_consumption_count_the_same_events_in_other_batches() -> None:
    some = bench_replay.records(2_000)
    live, large = list(bench_replay.live(some, 100)), list(bench_replay.replayed(some))
    assert [record for batch in live for record in batch] == [record for batch in large for record in batch] == some
    (_, events, writes), (_, again, fewer) = bench_replay.consumed(live, "g1"), bench_replay.consumed(large, "g2")
    assert events == again > 1_800
    assert fewer < writes


def test_the_units_of_a_bill_are_measured_into_a_file(tmp_path) -> None:
    file = tmp_path / "units.json"
    assert bench_units.main(["--quick", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["stream"]["event_bytes"] > 100


def test_a_cold_start_has_all_that_it_needs_in_the_package(made_once, tmp_path, capsys) -> None:
    file = tmp_path / "cold.json"
    assert bench_cold_start.main(["--quick", "--json", str(file)]) == 0
    ways = json.loads(file.read_text())["ways"]
    assert 0 < ways["imports"]["cpu_ms"] < ways["imports and clients"]["cpu_ms"]
    assert "imports and clients" in capsys.readouterr().out
