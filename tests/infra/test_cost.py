"""The bill: its arithmetic against cases computed by hand, its units against what the consumer does, its command."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import msgspec
import pytest

from infra import __main__ as cli
from infra import cost
from infra.local.stacks import CONSUMER, DATA, load_template
from infra.usage import (
    SECONDS,
    Assumed,
    Traffic,
    batch_ms,
    before_the_stream,
    busy,
    flow,
    least_shards,
    liveinsight,
    ordinary,
)
from stream_consumer.consume import consume
from stream_consumer.items import shard_item
from stream_consumer.progress import ShardProgress
from tests.benchmarks import bench_units
from tests.builders import a_batch
from tests.fake_dynamodb import MemoryTables

UNITS = json.loads(cost.UNITS.read_text())
PRICES = json.loads(cost.PRICES.read_text())
WRITTEN = {
    "session_units": 1,
    "session_bytes": 700,
    "bare_bytes": 500,
    "chunk_units": 0.2,
    "chunk_bytes": 140,
    "chunks": 0.2,
}
#: Round figures, to compute with by hand.
ROUND = {
    "measured": {"date": "2026-01-01"},
    "stream": {"event_bytes": 500, "record_bytes": 100},
    "written": {
        "1": {"1": WRITTEN | {"chunk_bytes": 0}},
        "10": {"1": WRITTEN, "10": WRITTEN | {"chunk_units": 0.65}},
    },
    "rollup_bytes": {"1": 1000, "1000": 1000},
    "mark_bytes": 100,
    "progress_bytes": 100,
    "index_entry_bytes": 200,
    "log": {"bytes_per_batch": 1300, "metrics": 13},
    "consumer": {
        "cpu_ms_per_event": 0.1,
        "cpu_ms_per_session": 0.1,
        "cpu_ms_per_batch": 0.1,
        "cpu_ms_per_rollup_kb": 0.1,
    },
    "compaction": {
        "write_units_per_site_hour": 20,
        "read_units_per_site_hour": 10,
        "calls_per_site_hour": 20,
        "cpu_ms_per_site_hour": 5,
        "write_units_per_site_day": 24,
        "read_units_per_site_day": 48,
        "stored_bytes_per_site_hour": 1000,
    },
}
#: A second has 100 events, one shard, and thus a batch of 100: 20 sessions with 5 each.
HAND = Traffic(
    8_640_000, events_per_session=10, together=5, event_gap=12, shards=1, sites=1, months=1, known_users=0, batch_size=1
)


def test_a_bill_is_what_one_computes_by_hand() -> None:
    # With a record a batch: 100 events of 64 lanes at two collectors, each 50 ms: 1.02 in a record, 98.06 records/s.
    records = 98.06
    used = liveinsight(HAND, ROUND)
    batches, _ = used["Lambda", "invocations"]
    assert batches / SECONDS == pytest.approx(records, rel=1e-3)
    assert used["Kinesis", "PUT payload units"][0] == pytest.approx(records * SECONDS, rel=1e-3)
    assert used["Kinesis", "shards"] == (730, "kinesis_shard_hour")

    full = replace(HAND, batch_size=500, batching_window=4.99)  # a record comes each 10 ms: a batch each 5 s
    moving = flow(full, ROUND, Assumed())
    assert (moving.batch_events, moving.batch_sessions) == pytest.approx((500, 100), rel=1e-3)
    used = liveinsight(full, ROUND)
    seconds_5 = SECONDS / 5
    for what, expected in {
        ("DynamoDB", "writes of sessions"): 100 * seconds_5,
        # 5 events of 10 at a time: between 0.2 units an event with one, and 0.65 with ten.
        ("DynamoDB", "writes of events"): 100 * SECONDS * 0.4,
        # A new session's minute is one write; a later write, 60 s on, always moves it, which is two.
        ("DynamoDB", "writes of their indexes"): 10 * SECONDS + (100 * seconds_5 - 10 * SECONDS) * 2,
        # Sessions last 120 s of the 900 s of a quarter.
        ("DynamoDB", "writes of roll-ups"): seconds_5 * (1 + 120 / 900),
        ("DynamoDB", "writes of marks and progress"): 2 * seconds_5 + 730 * 4,
        ("DynamoDB", "writes of compaction"): 730 * (20 + 2) + 730,
        ("DynamoDB", "reads of sessions"): 100 * seconds_5,
        # Each item is billed for 100 bytes more than it has; one index entry of a session, which has them.
        ("DynamoDB", "storage"): (
            10 * SECONDS * (700 + 100 + 200) + 100 * SECONDS * (140 + 0.2 * 100) + 730 * (4 * (1000 + 100) + 1000)
        )
        / 1e9,
        ("CloudWatch", "logs"): seconds_5 * (1300 + 700) / 1e9,
        ("X-Ray", "traces"): seconds_5,
    }.items():
        assert used[what][0] == pytest.approx(expected, rel=2e-3), what
    assert cost.bill({("DynamoDB", "writes"): (3e6, "dynamodb_write_unit")}, PRICES).total == pytest.approx(1.875)


def test_the_ordinary_design_is_what_one_computes_by_hand() -> None:
    used = ordinary(Traffic(1_000_000 * 12 / 365, months=0, retention_hours=24), ROUND)
    priced = cost.bill(used, PRICES)
    lines = {line[1]: line[4] for line in priced.lines}
    assert lines["writes of sessions"] + lines["writes of events"] + lines["writes of counters"] == pytest.approx(1.875)
    assert lines["PutMetricData"] == pytest.approx(10)
    assert lines["invocations"] == pytest.approx(0.2)
    assert lines["storage"] == 0


@pytest.mark.parametrize(("hours", "week", "long"), [(24, 0, 0), (48, 24, 0), (168, 144, 0), (8760, 144, 8592)])
def test_a_stream_is_billed_for_how_long_it_keeps_records(hours: float, week: float, long: float) -> None:
    used = liveinsight(replace(HAND, shards=0, retention_hours=hours), ROUND)
    stored_an_hour = used["Kinesis", "GB out"][0] / 730
    assert used.get(("Kinesis", "kept up to 7 days"), (0,))[0] == pytest.approx(stored_an_hour * week)
    assert used.get(("Kinesis", "kept for longer"), (0,))[0] == pytest.approx(stored_an_hour * long)


def test_what_is_not_given_is_as_the_templates_say() -> None:
    consumer, data = load_template(CONSUMER), load_template(DATA)
    assert consumer["Resources"]["ConsumerFunction"]["Properties"]["MemorySize"] == Assumed.memory_mb
    for template, parameter, name in (
        (consumer, "MaximumBatchingWindowInSeconds", "batching_window"),
        (consumer, "BatchSize", "batch_size"),
        (consumer, "Lanes", "lanes"),
        (data, "RetentionHours", "retention_hours"),
    ):
        assert template["Parameters"][parameter]["Default"] == getattr(Traffic, name), parameter


@pytest.mark.parametrize("shards", [0, 8])
@pytest.mark.parametrize("design", [liveinsight, ordinary, before_the_stream])
def test_more_traffic_never_costs_less(design, shards: int) -> None:
    rates = [10 ** (power / 8) for power in range(24, 80)]
    totals = [cost.bill(design(Traffic(rate, shards=shards), UNITS), PRICES).total for rate in rates]
    assert totals == sorted(totals)


def test_longer_windows_and_fuller_batches_cost_less() -> None:
    traffic = Traffic(1e8)
    by_window = [cost.bill(liveinsight(replace(traffic, batching_window=w), UNITS), PRICES).total for w in (1, 10, 60)]
    assert by_window == sorted(by_window, reverse=True)
    by_company = [cost.bill(liveinsight(replace(traffic, together=n), UNITS), PRICES).total for n in (1, 2, 5, 10)]
    assert by_company == sorted(by_company, reverse=True)


def test_a_batch_is_at_most_6_mb_however_many_records_it_may_have() -> None:
    some = Traffic(1e9, batching_window=300, batch_size=10_000)
    moving = flow(some, UNITS, Assumed())
    in_batch = moving.records / moving.batches
    assert in_batch * moving.record_bytes * 4 / 3 < 6 * 1024 * 1024
    assert in_batch > 2000


def test_of_five_events_in_a_session_and_batch_a_million_cost_a_tenth_of_the_ordinary_designs() -> None:
    """Stream, function, tables and metrics, without storage; on 100 million a day."""
    found = cost.report(Traffic(1e8, events_per_session=5, together=5), UNITS, PRICES)
    assert found["times_cheaper_for_events"] >= 10
    assert found["liveinsight"]["usd_a_million_events"] * 10 <= found["ordinary"]["usd_a_million_events"]


def test_a_provisioned_stream_bears_its_peak() -> None:
    traffic = Traffic(1e9, peak_factor=3)
    shards = least_shards(traffic, UNITS, Assumed())
    moving = flow(replace(traffic, shards=shards), UNITS, Assumed())
    assert moving.records * 3 / shards <= 1000
    assert moving.records * moving.record_bytes * 3 / shards <= 1e6


def test_it_says_how_much_of_the_time_a_shards_consumer_works() -> None:
    average, peak = busy(Traffic(1e8, peak_factor=3), UNITS, Assumed())
    assert 0 < average < peak < 1
    # Ten times the traffic on the shards of the one is too much for one batch at a time.
    shards = flow(Traffic(1e8), UNITS, Assumed()).shards
    assert busy(Traffic(1e9, shards=shards), UNITS, Assumed())[1] > 1
    # A batch of 450 events of 90 sessions: 0.1 ms for each of 450 + 90 + 1, 1.13 roll-ups of 1,000 bytes, 0.64 ms for each
    # of 2 gets, and 0.12 ms for each of 96.13 writes (5 batches of puts, 1.13 roll-ups, 90 sessions), at 0.58 of a CPU. With
    # 32 writers, 7 waits of 5 ms: 2 gets, 1 for the puts, 1 for the roll-ups, 3 for the sessions.
    hand = replace(HAND, batch_size=500, batching_window=4.49)
    moving = flow(hand, ROUND, Assumed())
    by_hand = 0.1 * (450 + 90 + 1) + 0.1 * 1.13 * 1000 / 1024 + 0.64 * 2 + 0.12 * 96.13
    assert batch_ms(hand, moving, ROUND, Assumed()) == pytest.approx(by_hand / (1024 / 1769) + 7 * 5, rel=1e-3)
    assert batch_ms(hand, moving, ROUND, Assumed(memory_mb=4096)) == pytest.approx(by_hand + 7 * 5, rel=1e-3)


def test_it_is_one_of_the_operators_commands(capsys) -> None:
    parser = argparse.ArgumentParser()
    cost.add(parser.add_subparsers(required=True))
    given = parser.parse_args(["cost", "--events-per-day", "1000"])
    assert given.run(given) == 0
    assert "1,000 events a day" in capsys.readouterr().out


def test_what_is_before_the_stream_is_what_one_computes_by_hand() -> None:
    # 100 events/s, 300 at the peak: two collectors and two of the query API, each half a CPU and 1 GB.
    used = before_the_stream(replace(HAND, events_per_request=2), ROUND)
    assert used["Fargate", "vCPUs"][0] == 4 * 0.5 * 730
    assert used["WAF", "requests"][0] == used["CloudFront", "requests"][0] == 50 * SECONDS
    assert used["Load balancer", "capacity units"][0] == pytest.approx(SECONDS * (100 * 500 + 50 * 1500) / 1e9)
    assert cost.bill(used, PRICES).by_service()["WAF"] == pytest.approx(5 + 4 + 50 * SECONDS * 6e-7)


def test_every_price_has_a_source_and_a_date_and_is_used() -> None:
    assert PRICES["region"] == "us-east-1"
    date.fromisoformat(PRICES["date"])
    for price in PRICES["prices"].values():
        assert price["usd"] > 0
        assert price["unit"]
        source = PRICES["sources"][price["source"]]
        assert source["where"]
        assert source["dated"]
    wanted: set[str] = set()
    for shards in (0, 2):
        for design in (liveinsight, ordinary, before_the_stream):
            usage = design(replace(HAND, shards=shards, retention_hours=8760), UNITS)
            wanted |= {price for _, price in usage.values()}
    assert wanted == set(PRICES["prices"])


def test_the_units_are_those_of_the_code_as_it_is() -> None:
    """Measured again in small. Figures of CPU are this machine's, so only their being there is looked at."""
    assert UNITS["measured"]["command"] == "make bench-units"
    date.fromisoformat(UNITS["measured"]["date"])
    again = bench_units.measure(quick=True)
    assert set(again) | {"measured"} == set(UNITS)
    assert again["stream"] == pytest.approx(UNITS["stream"], rel=0.05)
    for count, some in again["written"].items():
        for together, found in some.items():
            for name, value in found.items():
                about = pytest.approx(
                    UNITS["written"][count][together][name], rel=0.15, abs=5 if "bytes" in name else 0.02
                )
                assert value == about, (count, together, name)
    for count, size in again["rollup_bytes"].items():
        assert size == pytest.approx(UNITS["rollup_bytes"][count], rel=0.1)
    for name in ("mark_bytes", "progress_bytes", "index_entry_bytes"):
        assert again[name] == UNITS[name]
    assert again["log"] == pytest.approx(UNITS["log"], rel=0.1)
    for name in ("consumer", "compaction"):
        assert again[name].keys() == UNITS[name].keys()
    assert all(value > 0 for value in UNITS["consumer"].values())


def test_the_bills_units_are_what_the_consumer_uses() -> None:
    """Ten minutes of one site and shard, a batch each second, by the real consumer on a table that counts."""
    rate, length, gap = 8.0, 600, 15
    traffic = Traffic(
        rate * 86_400, events_per_session=10, event_gap=gap, sites=1, shards=1, known_users=0.2, batch_size=8
    )
    used = liveinsight(replace(traffic, batching_window=1), UNITS)
    some = bench_units.sessions(int(rate * length / 10) + 200)
    start = bench_units._END - 900_000
    arriving = []
    for number, one in enumerate(some):
        for at, event in enumerate(bench_units.lengthened(one, 10)):
            # The first ones were under way before; their earlier events came to nobody.
            when = start + int(number * 10_000 / rate) + at * gap * 1000 + number * 77 % 1000 - 150_000
            if start <= when < start + length * 1000:
                arriving.append(msgspec.structs.replace(event, timestamp=when, received_at=when + 300))
    arriving.sort(key=lambda event: event.received_at)
    dynamo = bench_units.CountingDynamo()
    tables = MemoryTables(dynamo)
    size = round(flow(traffic, UNITS, Assumed()).batch_events)
    for first in range(0, len(arriving), size):
        consume(a_batch(arriving[first : first + size], 1 + first), tables)
        tables.put_shard(shard_item(_progress(first)))
    events = len(arriving)
    assert abs(events - rate * length) < rate * length / 10
    by_event = rate * SECONDS
    writes = sum(
        used["DynamoDB", f"writes of {what}"][0] for what in ("sessions", "events", "roll-ups", "marks and progress")
    )
    assert dynamo.units["writes"] / events == pytest.approx(writes / by_event, rel=0.15)
    assert dynamo.units["index"] / events == pytest.approx(
        used["DynamoDB", "writes of their indexes"][0] / by_event, rel=0.2
    )
    reads = sum(used["DynamoDB", f"reads of {what}"][0] for what in ("sessions", "roll-ups"))
    assert dynamo.units["reads"] / events == pytest.approx(reads / by_event, rel=0.2)


def _progress(number: int) -> ShardProgress:
    return ShardProgress("shardId-000000000000", 1_772_323_200_000, 1000, str(number), 1_772_323_200_000, 8.0, 1.0)


def test_the_command_prints_both_bills_by_service(capsys) -> None:
    assert cli.main(["cost", "--events-per-day", "1000000"]) == 0
    said = capsys.readouterr().out
    for service in ("Kinesis", "Lambda", "DynamoDB", "CloudWatch", "X-Ray"):
        assert f"\n{service} " in said
    assert "LiveInsight         ordinary" in said
    assert "us-east-1" in said
    assert f"prices read {PRICES['date']}" in said


def test_as_json_the_services_add_up_and_prices_come_with_their_sources(capsys) -> None:
    assert cli.main(["cost", "--events-per-day", "1e7", "--shards", "auto", "--retention-hours", "168", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for design in ("liveinsight", "ordinary"):
        one = found[design]
        assert sum(one["services"].values()) == pytest.approx(one["usd_a_month"])
        assert sum(line["usd"] for line in one["lines"]) == pytest.approx(one["usd_a_month"])
    assert found["usd_a_month"] == pytest.approx(
        found["liveinsight"]["usd_a_month"] + found["before_the_stream"]["usd_a_month"]
    )
    assert found["traffic"]["shards"] == found["least_shards"] > 0
    assert found["sources"] == PRICES["sources"]
    assert found["times_cheaper"] == pytest.approx(
        found["ordinary"]["usd_a_month"] / found["liveinsight"]["usd_a_month"]
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--events-per-day", "0"], "events_per_day is 0"),
        (["--events-per-day", "1", "--retention-hours", "23"], "retention_hours is 23"),
        (["--events-per-day", "1", "--memory-mb", "64"], "memory_mb is 64"),
        (["--events-per-day", "1", "--shards", "none"], "shards is 'none'"),
        (["--events-per-day", "1", "--prices", "no-such-file"], "no-such-file"),
    ],
)
def test_what_cannot_be_is_refused_and_named(arguments: list[str], why: str, capsys) -> None:
    assert cli.main(["cost", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_a_price_that_is_missing_is_named(tmp_path: Path, capsys) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({**PRICES, "prices": {}}))
    assert cli.main(["cost", "--events-per-day", "1", "--prices", str(file)]) == 2
    assert "kinesis_stream_hour" in capsys.readouterr().err
