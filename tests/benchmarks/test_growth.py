"""The curves are measured of what they say, on small sizes. How fast anything grows here says nothing."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks import bench_cost, growth
from tests.benchmarks.growth import QUICK


def test_each_curve_has_a_cost_at_each_size() -> None:
    found = {(curve.name, curve.x): curve for curve in growth.curves(quick=True)}
    inputs = {x: tuple(point.x for point in curve.points) for (_, x), curve in found.items()}
    assert inputs["events in a batch"] == QUICK.batches
    assert len(inputs["bytes of a batch"]) == len(QUICK.memory)
    assert inputs["sessions in a batch"] == QUICK.sessions
    assert inputs["pages in a quarter"] == QUICK.pages
    assert inputs["shards for the same events/s"] == inputs["shards of a quarter not merged"] == QUICK.shards
    assert inputs["sessions in the tables"] == QUICK.stored
    assert inputs["days in the tables"] == inputs["days of the range"] == QUICK.days
    for curve in found.values():
        assert all(0 < point.y.low <= point.y.median <= point.y.high for point in curve.points), curve
    memory = [point.x * point.y.median for point in found["memory of a batch", "bytes of a batch"].points]
    assert memory[-1] > 2 * memory[0]
    pages = [point.y.median for point in found["stored roll-up", "pages in a quarter"].points]
    assert pages[0] < pages[-1]


@pytest.mark.parametrize(("sessions", "pages"), [(1, 1), (40, 7), (400, 400)])
def test_a_log_has_as_many_sessions_and_pages_as_are_asked_for(sessions, pages) -> None:
    events = growth.log(400, sessions=sessions, pages=pages)
    assert len({event.session_id for event in events}) == sessions
    assert len({event.page_url for event in events}) == pages
    assert len({(event.session_id, event.seq) for event in events}) == len(events) == 400
    assert {event.timestamp // growth.QUARTER_MS for event in events} == {growth.NOON // growth.QUARTER_MS}


def test_a_million_events_cost_less_than_a_tenth_by_the_bills_own_figures() -> None:
    (row,) = bench_cost.rows(quick=True)
    tenth, *_ = row.ratios
    ours, theirs = row.figures["ours"].median, row.figures[tenth.against].median
    assert tenth.value.median == pytest.approx(ours / theirs)
    assert tenth.reached
    command = [sys.executable, "-m", "infra", "cost", "--json", "--events-per-day", str(bench_cost.EVENTS_PER_DAY)]
    command += ["--events-per-session", "5", "--together", "5"]
    bill = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert bill["liveinsight"]["usd_a_million_events"] == pytest.approx(ours)
