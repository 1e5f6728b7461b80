import os
import signal
import subprocess
import sys
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_consumer import __main__ as cli
from stream_consumer import compaction_commands, compaction_handler
from stream_consumer.compaction import GRACE_MS, Compacted, Compaction, start_of
from stream_consumer.consume import consume
from stream_consumer.generations import Generation, Generations, State
from stream_consumer.items import merged_key, merged_sk, read_labels, read_totals
from stream_consumer.merged import (
    DAY_MS,
    HOUR_MS,
    MAX_LABELS,
    TOTALS,
    Labels,
    day_totals,
    hour_totals,
    merge_labels,
    totals_of,
)
from stream_consumer.rollup import Counter, RollUp
from stream_consumer.table import TableNames, Unavailable
from tests.builders import NOON, a_batch, an_event
from tests.fake_dynamodb import NAMES, FakeDynamo, MemoryTables

HOUR = NOON - NOON % HOUR_MS
DAY = NOON - NOON % DAY_MS
AFTER_DAY = DAY + DAY_MS + HOUR_MS


def items_of(store: MemoryTables) -> dict:
    return dict(store.dynamo.tables[NAMES.rollups])


def test_an_hour_is_merged_when_it_is_over_and_its_day_when_that_is() -> None:
    store = MemoryTables()
    consume(a_batch([an_event(1), an_event(2, session_id="s2")]), store)
    compaction = Compaction(store.dynamo, NAMES)
    assert compaction.run(HOUR + HOUR_MS) == Compacted(sites=1)
    assert compaction.run(HOUR + HOUR_MS + GRACE_MS) == Compacted(sites=1, hours=1)
    assert store.marks("blog") == {merged_sk(DAY, whole_day=True)}
    assert compaction.run(AFTER_DAY) == Compacted(sites=1, days=1)
    assert store.marks("blog") == set()
    assert compaction.run(AFTER_DAY) == Compacted(sites=1)
    for whole_day, start in ((False, HOUR), (True, DAY)):
        totals = read_totals(items_of(store)[merged_key("blog", TOTALS, start, whole_day=whole_day)])
        assert sum(row[0] for row in totals.happened) == 2
        assert sum(row[0] for row in totals.began) == 2
        pages = read_labels(items_of(store)[merged_key("blog", "page", start, whole_day=whole_day)])
        assert pages.counter.rows == {"/p1": [1], "/p2": [1]}
        assert pages.received == totals.received == NOON + 2500


def test_what_comes_late_marks_its_hour_again_and_is_merged() -> None:
    store = MemoryTables()
    compaction = Compaction(store.dynamo, NAMES)
    consume(a_batch([an_event(1)]), store)
    compaction.run(AFTER_DAY)
    consume(a_batch([an_event(2)], first=2), store)
    assert store.marks("blog") == {f"{merged_sk(HOUR, whole_day=False)}#shardId-000000000000"}
    assert compaction.run(AFTER_DAY) == Compacted(sites=1, hours=1, days=1)
    totals = read_totals(items_of(store)[merged_key("blog", TOTALS, DAY, whole_day=True)])
    assert sum(row[0] for row in totals.happened) == 2
    assert sum(row[0] for row in totals.began) == 1


def test_merged_again_it_is_the_same_bytes() -> None:
    """Whatever order shards wrote in, and however often it ran on the way."""
    stores = []
    for order, runs in (((0, 1), 1), ((1, 0), 3)):
        store = MemoryTables()
        compaction = Compaction(store.dynamo, NAMES)
        for shard in order:
            events = [an_event(n + 100 * shard, session_id=f"s{shard}") for n in range(1, 5)]
            consume(a_batch(events, shard_id=f"shard-{shard}"), store)
            for _ in range(runs):
                compaction.run(AFTER_DAY)
        compaction.run(AFTER_DAY)
        stores.append(items_of(store))
    assert stores[0] == stores[1]


@pytest.mark.parametrize("fault", ["crash before", "crash after", "refused", "lost", "late"])
def test_a_run_that_ends_at_any_write_is_finished_by_the_next(fault: str) -> None:
    def filled() -> FakeDynamo:
        store = MemoryTables()
        consume(a_batch([an_event(1), an_event(2, event_type="conversion", conversion_type="sale")]), store)
        consume(a_batch([an_event(3, session_id="s3")], shard_id="shard-1"), store)
        return store.dynamo

    calm = filled()
    before = calm.writes
    Compaction(calm, NAMES).run(AFTER_DAY)
    writes = calm.writes - before
    assert writes > 20
    for at in range(1, writes + 1):
        dynamo = filled()
        dynamo.choose = lambda write, at=at, dynamo=dynamo, start=dynamo.writes: fault if write == start + at else ""
        with pytest.raises(BaseException):  # noqa: B017 - a crash, or Unavailable
            Compaction(dynamo, NAMES).run(AFTER_DAY)
        dynamo.choose = lambda _: ""
        dynamo.land_all()
        Compaction(dynamo, NAMES).run(AFTER_DAY)
        assert dynamo.tables == calm.tables


def test_a_mark_that_is_put_again_as_it_was_is_not_deleted() -> None:
    """An attempt that was given up may put its mark late, over that of a later batch."""
    store = MemoryTables()
    consume(a_batch([an_event(1)]), store)
    [(key, mark)] = [(key, item) for key, item in items_of(store).items() if key[0] == "blog#marks"]

    def meanwhile() -> None:
        if store.dynamo.writes == first_write + 1:  # after the claim
            store.dynamo.between = lambda: None
            consume(a_batch([an_event(2)], first=2), store)
            store.dynamo.tables[NAMES.rollups][key] = mark

    first_write = store.dynamo.writes
    store.dynamo.between = meanwhile
    Compaction(store.dynamo, NAMES).run(AFTER_DAY)
    assert key[1] in store.marks("blog")
    assert Compaction(store.dynamo, NAMES).run(AFTER_DAY).left == 0
    totals = read_totals(items_of(store)[merged_key("blog", TOTALS, HOUR, whole_day=False)])
    assert sum(row[0] for row in totals.happened) == 2


def test_runs_at_once_leave_what_one_leaves() -> None:
    alone = MemoryTables()
    log = [an_event(n, session_id=f"s{n}") for n in range(1, 4)]
    for number, event in enumerate(log, 1):
        consume(a_batch([event], first=number), alone)
    Compaction(alone.dynamo, NAMES).run(AFTER_DAY)
    for at in range(60):
        store = MemoryTables()
        consume(a_batch(log[:1]), store)
        nested = Compaction(store.dynamo, NAMES)

        def meanwhile(store: MemoryTables = store, nested: Compaction = nested, at: int = at) -> None:
            if store.dynamo.writes == at + 3:
                store.dynamo.between = lambda: None
                consume(a_batch(log[1:], first=2), store)
                nested.run(AFTER_DAY)

        store.dynamo.between = meanwhile
        Compaction(store.dynamo, NAMES).run(AFTER_DAY)
        store.dynamo.between = lambda: None
        consume(a_batch(log[1:], first=2), store)
        Compaction(store.dynamo, NAMES).run(AFTER_DAY)
        assert items_of(store) == items_of(alone)


def test_only_the_greatest_labels_are_held_apart_and_none_is_lost() -> None:
    some = Labels(0, Counter({f"/{n:05}": [n] for n in range(1, MAX_LABELS + 101)}, [7]), 5)
    merged = merge_labels(0, [some, Labels(0, Counter({"/00001": [10_000]}), 9)])
    assert len(merged.counter.rows) == MAX_LABELS
    assert merged.counter.rows["/00001"] == [10_001]
    assert merged.received == 9
    total = sum(row[0] for row in merged.counter.rows.values()) + merged.counter.other[0]
    assert total == sum(range(1, MAX_LABELS + 101)) + 7 + 10_000


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), max_size=6))
def test_a_day_adds_up_to_its_hours(quarters: list[int]) -> None:
    rollups = [RollUp("blog", HOUR + quarter * 900_000, f"shard-{n}") for n, quarter in enumerate(quarters)]
    for number, rollup in enumerate(rollups):
        rollup.minutes[3] = [1, 1, 0]
        rollup.began[3] = [1, 0, number, 1, 1, 0, 0]
        rollup.durations = {"0": 1}
    hour = hour_totals(HOUR, map(totals_of, rollups))
    day = day_totals(DAY, [hour])
    assert (day.end - day.start, hour.end - hour.start) == (DAY_MS, HOUR_MS)
    for quarter in range(4):
        at = (HOUR - DAY) // 900_000 + quarter
        assert day.happened[at] == [quarters.count(quarter), quarters.count(quarter), 0]
        assert day.durations[at] == ({"0": quarters.count(quarter)} if quarter in quarters else {})
        assert hour.happened[15 * quarter + 3][0] == quarters.count(quarter)


def test_a_sort_key_names_its_start() -> None:
    assert start_of(merged_sk(HOUR, whole_day=False)) == HOUR
    assert start_of(merged_sk(DAY, whole_day=True)) == DAY


def test_a_table_that_cannot_be_read_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="rollups"):
        Compaction(FakeDynamo(read=lambda: "refused"), NAMES).run(0)


def test_the_command_merges_what_is_due_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    store = MemoryTables()
    consume(a_batch([an_event(1)]), store)
    with mock.patch.object(compaction_commands, "local_or_environ_dynamodb", return_value=(store.dynamo, NAMES)):
        assert cli.main(["compact"]) == 0
        assert "g1: merged 1 hours and 1 days of 1 sites" in capsys.readouterr().out
        assert cli.main(["compact", "--site", "elsewhere"]) == 0
        assert "0 hours" in capsys.readouterr().out


def test_the_command_goes_on_through_failures_and_ends_on_sigterm() -> None:
    environ = os.environ | {"AWS_PORT": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-east-1"}
    environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}
    command = [sys.executable, "-m", "stream_consumer", "compact", "--every", "0.1"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert "trying again" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_the_scheduled_function_tells_what_it_did() -> None:
    store = MemoryTables()
    consume(a_batch([an_event(1)]), store)
    Generations(store.dynamo, NAMES).add(Generation("g2", State.PREPARING))
    Generations(store.dynamo, NAMES).add(Generation("g3"))
    with (
        mock.patch.object(compaction_handler, "_client", return_value=store.dynamo),
        mock.patch.object(TableNames, "from_environ", return_value=NAMES),
    ):
        assert compaction_handler.handler({}, None) == {
            "g1": {"sites": 1, "hours": 1, "days": 1, "left": 0},
            "g3": {"sites": 0, "hours": 0, "days": 0, "left": 0},
        }
