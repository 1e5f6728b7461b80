"""What an amount of traffic uses of each AWS service in a month, from measured sizes: of LiveInsight, and of the
ordinary design that calls a function and writes three items for every event.

Pure arithmetic over ``units.json``, which ``make bench-units`` measures. What is assumed and not measured is named
here, once, in :class:`Assumed`. GB are 10^9 bytes, but for what is billed by the KB (1,024 bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

from stream_consumer.items import SESSION_LIFETIME_S

HOURS = 730.0  # of a month, as AWS bills it
SECONDS = HOURS * 3600
DAYS = HOURS / 24
_KB = 1024
_GB = 1e9
_PUT_UNIT = 25 * _KB
#: The most that Lambda hands over at a time.
_INVOCATION = 6 * _KB * _KB
_READ_UNIT = 4 * _KB
#: What each stored item is billed for besides its bytes; `index_entry_bytes` of the units has it already.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
_ITEM_BYTES = 100
_QUARTER_S = 900.0
_WEEK_HOURS = 168.0

#: (service, what of it): how much, in the unit of the price with the second name.
Usage: TypeAlias = dict[tuple[str, str], tuple[float, str]]


@dataclass(frozen=True)
class Assumed:
    """What is not measured. Times in ms, sizes in bytes.

    ``call_cpu``: CPU of one call of boto3, against a server that answers at once; ``write_cpu``: of one of the
    consumer's own writes (`make bench`). ``round_trip``: of DynamoDB and CloudWatch. ``memory_mb``: of the
    function, which gets a whole CPU at 1,769 MB. ``platform_log``: what Lambda itself logs of an invocation.
    ``trace_share``: recorded by X-Ray beside the first of each second.
    ``shard_records`` and ``shard_bytes``: a shard's limits for a second; provisioned streams are filled to
    ``fill`` of them at the peak, on-demand ones have twice their peak. ``collector_events``: a collector's
    events/s at the peak; at least ``collectors`` run. ``poll``: Lambda looks for records so often, in s.
    ``log_days``: how long logs are kept, as the templates say.
    """

    call_cpu: float = 0.64
    write_cpu: float = 0.12
    round_trip: float = 5.0
    memory_mb: float = 1024
    platform_log: float = 700
    trace_share: float = 0.05
    shard_records: float = 1000
    shard_bytes: float = 1e6
    fill: float = 0.8
    on_demand_shards: int = 4
    record_frame: float = 600
    collector_events: float = 1000
    collectors: int = 2
    writers: int = 32
    poll: float = 1.0
    log_days: float = 30

    @property
    def memory_gb(self) -> float:
        return self.memory_mb / 1024

    @property
    def cpu(self) -> float:
        """What part of a CPU the function has; of more than one, Python uses one."""
        return min(1.0, self.memory_mb / 1769)


@dataclass(frozen=True)
class Front:
    """What stands before the stream (web.yaml, edge.yaml) and beside it (monitoring.yaml).

    A task of ``task_vcpus`` and ``task_gb`` runs for each collector, and ``api_tasks`` for the query API; ``endpoints``
    of interfaces, each in one zone, lead out of the network. ``request_bytes`` come with a request besides its events.
    ``rules`` of the firewall; ``alarm_metrics``: of all alarms.
    """

    task_vcpus: float = 0.5
    task_gb: float = 1.0
    api_tasks: int = 2
    endpoints: int = 4
    request_bytes: float = 1500
    rules: int = 4
    alarm_metrics: int = 40


@dataclass(frozen=True)
class Traffic:
    """What comes, and how the stack is set. Times in s unless named otherwise. Raises ValueError for what cannot be.

    ``sites`` share the traffic equally. ``event_gap``: between a session's events. ``together``: events of a session
    in one batch; 0: what ``event_gap`` and the batching window make of it. ``shards``: 0 is an on-demand stream.
    ``months`` of data are stored. ``known_users``: share of sessions whose user is known. ``events_per_request``: that
    a tracker posts at a time.
    """

    events_per_day: float
    events_per_session: float = 10
    together: float = 0
    event_gap: float = 15
    peak_factor: float = 3
    retention_hours: float = 24
    batching_window: float = 1
    batch_size: int = 500
    shards: int = 0
    sites: int = 10
    months: float = 12
    known_users: float = 0.2
    lanes: int = 64
    linger: float = 0.05
    events_per_request: float = 1.5

    def __post_init__(self) -> None:
        for name, low, high in (
            ("events_per_day", 1, 1e13),
            ("events_per_session", 1, 1e6),
            ("together", 0, self.events_per_session),
            ("event_gap", 0.001, 86_400),
            ("peak_factor", 1, 1000),
            ("retention_hours", 24, 8760),
            ("batching_window", 0, 300),
            ("batch_size", 1, 10_000),
            ("shards", 0, 100_000),
            ("sites", 1, 1e7),
            ("months", 0, 1200),
            ("known_users", 0, 1),
            ("linger", 0.001, 60),
            ("events_per_request", 1, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must be {low:g} to {high:g}")


@dataclass(frozen=True)
class Flow:
    """How the traffic moves, on average over a month; rates are for each second.

    ``events`` come in ``records`` of ``record_bytes`` over ``shards``; ``batches`` of all shards, each with
    ``batch_events`` of ``batch_sessions`` at ``batch_sites``.
    """

    events: float
    records: float
    record_bytes: float
    shards: int
    batches: float
    batch_events: float
    batch_sessions: float
    batch_sites: float


def flow(traffic: Traffic, units: Mapping[str, Any], assumed: Assumed) -> Flow:
    """How ``traffic`` moves through producers, stream and mapping."""
    events = traffic.events_per_day / 86_400
    peak = events * traffic.peak_factor
    collectors = _collectors(peak, assumed)
    in_record = _in_slot(events * traffic.linger / collectors / traffic.lanes)
    record_bytes = in_record * units["stream"]["event_bytes"] + units["stream"]["record_bytes"]
    records = events / in_record
    load = max(
        records * traffic.peak_factor / assumed.shard_records,
        records * record_bytes * traffic.peak_factor / assumed.shard_bytes,
    )
    shards = traffic.shards or max(assumed.on_demand_shards, math.ceil(2 * load))
    # A batch begins with a record, and is sent when its window is over or it is full.
    of_shard = records / shards
    window = max(traffic.batching_window, assumed.poll)
    fits = min(traffic.batch_size, _INVOCATION / (record_bytes * 4 / 3 + assumed.record_frame))
    every = max(1 / of_shard, min(window + 1 / of_shard, fits / of_shard))
    batch_events = events / shards * every
    together = traffic.together or _in_slot(min(window, every) / traffic.event_gap)
    together = max(1.0, min(together, traffic.events_per_session, batch_events))
    sites = traffic.sites * (1 - (1 - 1 / traffic.sites) ** (batch_events / together))
    return Flow(
        events=events,
        records=records,
        record_bytes=record_bytes,
        shards=shards,
        batches=shards / every,
        batch_events=batch_events,
        batch_sessions=batch_events / together,
        batch_sites=sites,
    )


def least_shards(traffic: Traffic, units: Mapping[str, Any], assumed: Assumed) -> int:
    """Of a provisioned stream that bears the peak."""
    moving = flow(traffic, units, assumed)
    load = max(moving.records / assumed.shard_records, moving.records * moving.record_bytes / assumed.shard_bytes)
    return max(1, math.ceil(load * traffic.peak_factor / assumed.fill))


def liveinsight(traffic: Traffic, units: Mapping[str, Any], assumed: Assumed | None = None) -> Usage:
    """What LiveInsight uses in a month."""
    assumed = assumed or Assumed()
    moving = flow(traffic, units, assumed)
    batches = moving.batches * SECONDS
    writes = moving.batch_sessions * batches
    sessions = moving.events * SECONDS / traffic.events_per_session
    together = moving.batch_events / moving.batch_sessions
    written = _written(traffic, units, together)
    session_bytes = written["session_bytes"]
    # A put costs the larger of the two items; the last minute of activity is in an index, and moving there is two.
    moved = min(1.0, traffic.event_gap * together / 60)
    indexed = sessions * (1 + traffic.known_users) + max(0.0, writes - sessions) * moved * 2
    rollups = batches * moving.batch_sites * (1 + _spilled(traffic))
    in_quarter = _in_quarter(traffic, moving)
    rollup_write, rollup_read, _ = _over_a_quarter(units["rollup_bytes"], in_quarter)
    quarters = traffic.sites * min(moving.shards, max(1.0, in_quarter * moving.shards)) * SECONDS / _QUARTER_S
    merged = units["compaction"]
    hours = traffic.sites * HOURS
    usage = _stream(traffic, moving.records, moving.record_bytes, moving.shards)
    duration = batch_ms(traffic, moving, units, assumed)
    usage |= {
        ("Lambda", "invocations"): (batches, "lambda_request"),
        ("Lambda", "GB-s of the consumer"): (batches * duration / 1000 * assumed.memory_gb, "lambda_gb_second"),
        ("Lambda", "GB-s of compaction"): (
            hours * (merged["cpu_ms_per_site_hour"] + merged["calls_per_site_hour"] * _call_ms(assumed)) / 1000,
            "lambda_gb_second",
        ),
        ("DynamoDB", "writes of sessions"): (
            writes * written["session_units"],
            "dynamodb_write_unit",
        ),
        ("DynamoDB", "writes of their indexes"): (indexed, "dynamodb_write_unit"),
        ("DynamoDB", "writes of events"): (
            moving.events * SECONDS * written["chunk_units"],
            "dynamodb_write_unit",
        ),
        ("DynamoDB", "writes of roll-ups"): (rollups * rollup_write, "dynamodb_write_unit"),
        ("DynamoDB", "writes of marks and progress"): (
            batches * (moving.batch_sites * _units(units["mark_bytes"]) + _units(units["progress_bytes"])) + quarters,
            "dynamodb_write_unit",
        ),
        ("DynamoDB", "writes of compaction"): (
            hours * (merged["write_units_per_site_hour"] + 2 * moving.shards)
            + hours / 24 * merged["write_units_per_site_day"],
            "dynamodb_write_unit",
        ),
        ("DynamoDB", "reads of sessions"): (writes * math.ceil(session_bytes / _READ_UNIT), "dynamodb_read_unit"),
        ("DynamoDB", "reads of roll-ups"): (rollups * rollup_read, "dynamodb_read_unit"),
        ("DynamoDB", "reads of compaction"): (
            hours * 4 * moving.shards * rollup_read
            + hours * merged["read_units_per_site_hour"]
            + hours / 24 * merged["read_units_per_site_day"],
            "dynamodb_read_unit",
        ),
    }
    kept = min(traffic.months * DAYS, SESSION_LIFETIME_S / 86_400) / DAYS
    index = units["index_entry_bytes"] * (1 + traffic.known_users)
    chunk_bytes = written["chunk_bytes"] + written["chunks"] * _ITEM_BYTES
    stored = kept * (sessions * (session_bytes + _ITEM_BYTES + index) + moving.events * SECONDS * chunk_bytes)
    final_rollup = _at(units["rollup_bytes"], max(1.0, in_quarter)) + _ITEM_BYTES
    stored += traffic.months * (quarters * final_rollup + hours * merged["stored_bytes_per_site_hour"])
    return usage | _stored(stored) | _watched(units, assumed, moving.batches)


def ordinary(traffic: Traffic, units: Mapping[str, Any], assumed: Assumed | None = None) -> Usage:
    """What the ordinary design uses: each event a record, a call of the function, an item of its own and an update
    of its session and of a counter, of 1 KB each, and a PutMetricData.
    """
    assumed = assumed or Assumed()
    events = traffic.events_per_day / 86_400 * SECONDS
    sessions = events / traffic.events_per_session
    event_bytes = units["stream"]["event_bytes"]
    shards = max(assumed.on_demand_shards, math.ceil(events / SECONDS * traffic.peak_factor * 2 / 1000))
    if traffic.shards:
        shards = max(
            traffic.shards,
            math.ceil(events / SECONDS * traffic.peak_factor / assumed.shard_records / assumed.fill),
        )
    usage = _stream(traffic, events / SECONDS, event_bytes, shards)
    usage |= {
        ("Lambda", "invocations"): (events, "lambda_request"),
        ("Lambda", "GB-s of the consumer"): (
            events * 4 * _call_ms(assumed) / 1000 * assumed.memory_gb,
            "lambda_gb_second",
        ),
        ("DynamoDB", "writes of sessions"): (events, "dynamodb_write_unit"),
        ("DynamoDB", "writes of events"): (events, "dynamodb_write_unit"),
        ("DynamoDB", "writes of counters"): (events, "dynamodb_write_unit"),
        ("CloudWatch", "PutMetricData"): (events, "metric_call"),
    }
    kept = min(traffic.months * DAYS, SESSION_LIFETIME_S / 86_400) / DAYS
    session_bytes = _written(traffic, units, 1)["bare_bytes"]
    stored = kept * (sessions * (session_bytes + _ITEM_BYTES) + events * (event_bytes + _ITEM_BYTES))
    return usage | _stored(stored) | _watched(units, assumed, events / SECONDS, own_log=0)


def before_the_stream(
    traffic: Traffic, units: Mapping[str, Any], assumed: Assumed | None = None, front: Front | None = None
) -> Usage:
    """What collectors, query API, edge and alarms use in a month: the same for either design."""
    assumed, front = assumed or Assumed(), front or Front()
    moving = flow(traffic, units, assumed)
    tasks = _collectors(moving.events * traffic.peak_factor, assumed) + front.api_tasks
    requests = moving.events * SECONDS / traffic.events_per_request
    taken_gb = (moving.events * SECONDS * units["stream"]["event_bytes"] + requests * front.request_bytes) / _GB
    put_gb = moving.records * moving.record_bytes * SECONDS / _GB
    return {
        ("Fargate", "vCPUs"): (tasks * front.task_vcpus * HOURS, "fargate_vcpu_hour"),
        ("Fargate", "memory"): (tasks * front.task_gb * HOURS, "fargate_gb_hour"),
        ("Load balancer", "load balancer"): (HOURS, "load_balancer_hour"),
        # A unit is 1 GB in an hour; of what else it has (25 new connections a second, ...) the edge needs less.
        ("Load balancer", "capacity units"): (taken_gb, "load_balancer_unit_hour"),
        ("VPC endpoints", "endpoints"): (front.endpoints * HOURS, "endpoint_hour"),
        ("VPC endpoints", "GB to the stream"): (put_gb, "endpoint_gb"),
        ("CloudFront", "requests"): (requests, "edge_request"),
        ("CloudFront", "GB to the origin"): (taken_gb, "edge_origin_gb"),
        ("WAF", "web ACL"): (1, "firewall_month"),
        ("WAF", "rules"): (front.rules, "firewall_rule_month"),
        ("WAF", "requests"): (requests, "firewall_request"),
        ("Alarms", "alarms"): (front.alarm_metrics, "alarm_month"),
    }


def _collectors(peak: float, assumed: Assumed) -> int:
    """How many bear so many events/s."""
    return max(assumed.collectors, math.ceil(peak / assumed.collector_events))


def _stream(traffic: Traffic, records: float, record_bytes: float, shards: int) -> Usage:
    month = records * SECONDS
    stored = records * record_bytes * 3600 / _GB  # for each hour that it is kept
    week = max(0.0, min(traffic.retention_hours, _WEEK_HOURS) - 24)
    long = max(0.0, traffic.retention_hours - _WEEK_HOURS)
    usage: Usage = {}
    if traffic.shards:
        usage["Kinesis", "shards"] = (shards * HOURS, "kinesis_shard_hour")
        usage["Kinesis", "PUT payload units"] = (month * max(1.0, record_bytes / _PUT_UNIT + 0.5), "kinesis_put_unit")
        if week:
            usage["Kinesis", "kept up to 7 days"] = (shards * HOURS, "kinesis_shard_hour_week")
    else:
        usage["Kinesis", "stream"] = (HOURS, "kinesis_stream_hour")
        billed = max(_KB, record_bytes + _KB / 2)  # what rounding up adds to records of any length
        usage["Kinesis", "GB in"] = (month * billed / _GB, "kinesis_gb_in")
        usage["Kinesis", "GB out"] = (month * record_bytes / _GB, "kinesis_gb_out")
        if week:
            usage["Kinesis", "kept up to 7 days"] = (stored * week, "kinesis_on_demand_week_gb_month")
    if long:
        usage["Kinesis", "kept for longer"] = (stored * long, "kinesis_long_gb_month")
    return usage


def _stored(stored_bytes: float) -> Usage:
    return {
        ("DynamoDB", "storage"): (stored_bytes / _GB, "dynamodb_gb_month"),
        ("DynamoDB", "point-in-time recovery"): (stored_bytes / _GB, "dynamodb_backup_gb_month"),
    }


def _watched(units: Mapping[str, Any], assumed: Assumed, calls: float, own_log: float | None = None) -> Usage:
    own = units["log"]["bytes_per_batch"] if own_log is None else own_log
    logged = calls * SECONDS * (own + assumed.platform_log) / _GB
    traced = min(calls, 1.0) + max(0.0, calls - 1.0) * assumed.trace_share
    return {
        ("CloudWatch", "logs"): (logged, "logs_gb_in"),
        ("CloudWatch", "logs kept"): (logged * assumed.log_days / DAYS, "logs_gb_month"),
        ("CloudWatch", "metrics"): (units["log"]["metrics"], "metric_month"),
        ("X-Ray", "traces"): (traced * SECONDS, "trace"),
    }


def batch_ms(traffic: Traffic, moving: Flow, units: Mapping[str, Any], assumed: Assumed) -> float:
    """How long (ms) the consumer takes for a batch: its CPU at its share of one, and the round trips it waits for."""
    sessions = math.ceil(moving.batch_sessions)
    rollups = moving.batch_sites * (1 + _spilled(traffic))
    _, _, rollup_kb = _over_a_quarter(units["rollup_bytes"], _in_quarter(traffic, moving))
    gets = math.ceil(sessions / 100) + math.ceil(rollups / 100)
    written = _written(traffic, units, moving.batch_events / moving.batch_sessions)
    batch_writes = math.ceil((moving.batch_events * written["chunks"] + moving.batch_sites) / 25) + 1
    writes = batch_writes + rollups + moving.batch_sessions
    waits = gets + sum(math.ceil(some / assumed.writers) for some in (batch_writes, rollups, sessions))
    cpu = units["consumer"]
    busy = (
        cpu["cpu_ms_per_event"] * moving.batch_events
        + cpu["cpu_ms_per_session"] * moving.batch_sessions
        + cpu["cpu_ms_per_batch"]
        + cpu["cpu_ms_per_rollup_kb"] * rollups * rollup_kb
        + assumed.call_cpu * gets
        + assumed.write_cpu * writes
    )
    return float(busy / assumed.cpu + waits * assumed.round_trip)


def busy(traffic: Traffic, units: Mapping[str, Any], assumed: Assumed) -> tuple[float, float]:
    """What part of the time the consumer of a shard works, on average and at the peak. From 1 on it falls behind: it
    takes one batch at a time, though larger ones then than are counted with here.
    """
    shards = flow(traffic, units, assumed).shards
    peak = replace(traffic, events_per_day=traffic.events_per_day * traffic.peak_factor, peak_factor=1, shards=shards)
    shares = []
    for one in (replace(traffic, shards=shards), peak):
        moving = flow(one, units, assumed)
        shares.append(batch_ms(one, moving, units, assumed) / 1000 * moving.batches / shards)
    return shares[0], shares[1]


def _spilled(traffic: Traffic) -> float:
    """Of the time of a quarter, how long sessions go on that began in the one before, and are counted there."""
    return min(1.0, traffic.events_per_session * traffic.event_gap / _QUARTER_S)


def _in_quarter(traffic: Traffic, moving: Flow) -> float:
    """Events of one roll-up."""
    return moving.events / traffic.sites / moving.shards * _QUARTER_S


def _call_ms(assumed: Assumed) -> float:
    return assumed.call_cpu / assumed.cpu + assumed.round_trip


def _in_slot(mean: float) -> float:
    """How many there are in a slot that is not empty, if ``mean`` fall into each at random."""
    return mean / -math.expm1(-mean) if mean > 1e-9 else 1.0


def _units(size: float) -> int:
    return max(1, math.ceil(size / _KB))


def _written(traffic: Traffic, units: Mapping[str, Any], together: float) -> dict[str, float]:
    """How a session's events are written if so many of it come together: see ``tests/benchmarks/bench_units.py``."""
    measured = units["written"]
    # Beyond what was measured it is the same for each write and event.
    events = min(traffic.events_per_session, max(map(float, measured)))
    of = {
        count: {
            name: _at({at: one[name] for at, one in some.items()}, min(together, float(count)))
            for name in next(iter(some.values()))
        }
        for count, some in measured.items()
    }
    return {name: _at({count: one[name] for count, one in of.items()}, events) for name in next(iter(of.values()))}


def _at(sizes: Mapping[str, float], count: float) -> float:
    """The measured size at ``count``, between the counts that were measured in a straight line."""
    points = sorted((float(at), size) for at, size in sizes.items())
    if count <= points[0][0]:
        return points[0][1]
    for (low, small), (high, large) in pairwise(points):
        if count <= high:
            return small + (large - small) * (count - low) / (high - low)
    (low, small), (high, large) = points[-2:]
    return large + (large - small) * (count - high) / (high - low)


def _over_a_quarter(sizes: Mapping[str, float], events: float) -> tuple[float, float, float]:
    """(write units, read units, KB) of a roll-up, on average while ``events`` come into it one by one."""
    steps = 60
    grown = [_at(sizes, max(1.0, events * (step + 0.5) / steps)) for step in range(steps)]
    return (
        sum(map(_units, grown)) / steps,
        sum(math.ceil(size / _READ_UNIT) for size in grown) / steps,
        sum(grown) / steps / _KB,
    )
