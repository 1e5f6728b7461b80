"""The tables equal the fold of the log, whatever fails; and a consumer with a fault planted is caught.

`make simulate` runs more of the same for longer.
"""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_dynamodb import MemoryTables
from tests.simulation.exhaustive import check, erasing_logs, schedules, small_logs
from tests.simulation.logs import ROOM_FOR_ONE
from tests.simulation.planted import PLANTED, simulate
from tests.simulation.signed_tables import SignedTables

# Every small log is simulated somewhere; these are shared out so that two processes can do them at once.
EXHAUSTIVE_LOGS = [*small_logs(1), *small_logs(2), *small_logs(3)[::6]]
PARTS = 8
#: Fewer with two faults than there are: they take as long as all the others.
ERASING_LOGS = [*erasing_logs(2), *erasing_logs(3)[::9]]


@pytest.mark.parametrize("part", range(PARTS))
def test_every_schedule_of_small_logs(part: int, record_property) -> None:
    """Each way to cut each log into batches, each fault at each write, each second fault at each write after it; some
    with a session's first event in its item until the second one comes, some with every event in a chunk.
    """
    ran, injected, wrong = check(EXHAUSTIVE_LOGS[part::PARTS], room=ROOM_FOR_ONE if part % 4 else 0)
    record_property("schedules", ran)
    record_property("faults", injected.total())
    record_property("wrong", len(wrong))
    assert not wrong, wrong[:3]


@pytest.mark.parametrize("part", range(2))
def test_every_schedule_of_small_logs_with_an_erasure(part: int, record_property) -> None:
    room = ROOM_FOR_ONE if part else 0
    ran, injected, wrong = check(ERASING_LOGS[part::2], room=room)
    more, faults, wrong_too = check(erasing_logs(3)[part::2], faults_at_once=1, room=room)
    record_property("schedules", ran + more)
    record_property("faults", (injected + faults).total())
    record_property("wrong", len(wrong + wrong_too))
    assert not wrong + wrong_too, (wrong + wrong_too)[:3]


def test_a_schedule_that_goes_on_from_another_ones_moment_ends_as_it_does_from_the_begin() -> None:
    for log in (small_logs(2)[7], erasing_logs(2)[3]):
        for number, (schedule, tables) in enumerate(schedules(log, 2, MemoryTables)):
            if number % 5 == 0:
                alone = schedule.run()
                assert tables.dynamo.tables == alone.dynamo.tables, schedule
                assert (tables.writes, tables.dynamo.faults) == (alone.writes, alone.dynamo.faults), schedule


def test_every_fault_at_every_write_of_the_functions_own_client(monkeypatch, record_property) -> None:
    """Which tries again by itself: a write whose answer was lost lands twice."""
    monkeypatch.setattr("stream_consumer.signed_writes.time", SimpleNamespace(sleep=lambda _: None))
    ran, injected, wrong = check([*small_logs(2)[::4], *erasing_logs(2)[::2]], faults_at_once=1, store=SignedTables)
    record_property("schedules", ran)
    record_property("faults", injected.total())
    record_property("wrong", len(wrong))
    assert injected["lost"]
    assert not wrong, wrong[:3]


@settings(max_examples=400)
@given(st.integers(0, 2**63))
def test_random_schedules_of_larger_logs(seed: int) -> None:
    """Aggregates, reshards, redelivery, bisects, stale reads, late writes. A failing one: `python -m tests.simulation SEED`."""
    world, wrong = simulate(seed)
    assert not wrong, f"replay it with: python -m tests.simulation {seed}\n{wrong}"
    assert world.ledger.applied <= world.ledger.received


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_caught(fault: str, record_property) -> None:
    caught = next((seed for seed in range(500) if simulate(seed, fault)[1]), None)
    record_property("planted", 1)
    record_property("caught", int(caught is not None))
    assert caught is not None, f"500 schedules did not notice: {fault}"


def test_a_seed_replays_the_same_run() -> None:
    first, second = simulate(11)[0], simulate(11)[0]
    assert first.dynamo.tables == second.dynamo.tables
    assert (first.dynamo.faults, first.ledger) == (second.dynamo.faults, second.ledger)
