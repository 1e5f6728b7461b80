"""The Lambda function's entry: environment in, one batch consumed, partial batch response out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools import Logger

from stream_consumer.consume import Outcome, consume
from stream_consumer.items import shard_item
from stream_consumer.kinesis_batch import Batch, read
from stream_consumer.metrics import SERVICE, emit
from stream_consumer.quarantine import PoisonGauge
from stream_consumer.table import TableNames, Tables, Unavailable

if TYPE_CHECKING:
    from aws_lambda_powertools import Tracer

#: The lag of a shard is told once in so many ms: it costs a write.
_LAG_EVERY_MS = 5_000

logger = Logger(service=SERVICE)
_lag_told: dict[str, int] = {}


@dataclass(frozen=True)
class ConsumerSettings:
    """What the environment decides. ``writers`` is how many saves wait for DynamoDB at once; above
    ``max_poison_share`` of poison the consumer stops, and at 1 never.
    """

    tables: TableNames
    writers: int = 16
    max_poison_share: float = 0.5
    tracing: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ConsumerSettings:
        """Read LIVEINSIGHT_*_TABLE, LIVEINSIGHT_WRITERS and LIVEINSIGHT_MAX_POISON_SHARE; the default tables
        are those of ``make run``.

        Tracing is on where X-Ray listens (Lambda says so by AWS_XRAY_DAEMON_ADDRESS) unless
        POWERTOOLS_TRACE_DISABLED is set.
        """
        disabled = environ.get("POWERTOOLS_TRACE_DISABLED", "").lower() in {"1", "true", "yes", "on"}
        return cls(
            TableNames.from_environ(environ),
            writers=int(environ.get("LIVEINSIGHT_WRITERS", "16")),
            max_poison_share=float(environ.get("LIVEINSIGHT_MAX_POISON_SHARE", "0.5")),
            tracing=bool(environ.get("AWS_XRAY_DAEMON_ADDRESS")) and not disabled,
        )


def handler(event: Mapping[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Consume one batch of a Kinesis event source mapping with ReportBatchItemFailures.

    Answers the first sequence number that is not done, from which the mapping then retries, or no
    failures. Raises only for an event that is no Kinesis batch.
    """
    started = time.perf_counter()
    batch = read(event)
    tracer = _tracer()
    if tracer is None:
        outcome = consume(batch, _tables(), _gauge())
    else:
        with tracer.provider.in_subsegment("## consume") as segment:
            outcome = consume(batch, _tables(), _gauge())
            segment.put_annotation("shard", batch.shard_id)
            segment.put_metadata("records", batch.records)
    _report(batch, outcome, (time.perf_counter() - started) * 1000)
    _tell_lag(batch.shard_id, outcome)
    if outcome.failed_from is None:
        return {"batchItemFailures": []}
    return {"batchItemFailures": [{"itemIdentifier": outcome.failed_from}]}


def _report(batch: Batch, outcome: Outcome, elapsed_ms: float) -> None:
    emit(outcome, batch.records, elapsed_ms, now_ms=time.time_ns() // 1_000_000)
    facts = {
        "shard": batch.shard_id,
        "first": batch.first_sequence_number,
        "records": batch.records,
        "received": outcome.received,
        "applied": outcome.applied,
        "duplicate": outcome.duplicate,
        "late": outcome.late,
        "quarantined": dict(outcome.quarantined),
        "sessions": outcome.sessions,
        "rollups": outcome.rollups,
        "ms": round(elapsed_ms, 1),
    }
    if outcome.failed_from is None:
        logger.info("batch done", extra=facts)
    else:
        logger.error("batch given back", extra={**facts, "failed_from": outcome.failed_from, "why": outcome.failure})


def _tell_lag(shard_id: str, outcome: Outcome) -> None:
    """Let the query API know how old the oldest of what has just been stored is."""
    now = time.time_ns() // 1_000_000
    if outcome.oldest_received is None or now - _lag_told.get(shard_id, 0) < _LAG_EVERY_MS:
        return
    _lag_told[shard_id] = now
    try:
        _tables().put_shard(shard_item(shard_id, now, max(0, now - outcome.oldest_received)))
    except Unavailable as why:  # the batch is done; that the lag could not be told is no reason to do it again
        logger.warning("the lag could not be told", extra={"shard": shard_id, "why": str(why)})


@cache
def _settings() -> ConsumerSettings:
    return ConsumerSettings.from_environ(os.environ)


@cache
def _gauge() -> PoisonGauge:
    return PoisonGauge(limit=_settings().max_poison_share)


@cache
def _tables() -> Tables:
    import boto3
    from botocore.config import Config

    settings = _settings()
    config = Config(
        connect_timeout=2,
        read_timeout=5,
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=settings.writers + 2,
        # What is sent is built in items.py alone; checking it again would cost a third of a call.
        parameter_validation=False,
    )
    return Tables(boto3.client("dynamodb", config=config), settings.tables, writers=settings.writers)


@cache
def _tracer() -> Tracer | None:
    if not _settings().tracing:
        return None
    from aws_lambda_powertools import Tracer  # 0.2 s of cold start, spent only where X-Ray listens

    return Tracer(service=SERVICE)
