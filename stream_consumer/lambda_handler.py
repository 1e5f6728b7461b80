"""The Lambda function's entry: environment in, one batch consumed, partial batch response out."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from aws_lambda_powertools import Logger

from stream_consumer.consume import Outcome, consume
from stream_consumer.generations import generation_of, scoped
from stream_consumer.items import shard_item
from stream_consumer.kinesis_batch import Batch, read
from stream_consumer.metrics import SERVICE, emit
from stream_consumer.progress import Pace
from stream_consumer.quarantine import PoisonGauge
from stream_consumer.table import TableNames, Tables, Unavailable

if TYPE_CHECKING:
    from aws_lambda_powertools import Tracer
    from mypy_boto3_dynamodb import DynamoDBClient

logger = Logger(service=SERVICE)


@dataclass(frozen=True)
class ConsumerSettings:
    """What the environment decides. ``writers`` is how many saves wait for DynamoDB at once; above
    ``max_poison_share`` of poison the consumer stops, and at 1 never.
    """

    tables: TableNames
    writers: int = 32
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
            writers=int(environ.get("LIVEINSIGHT_WRITERS", "32")),
            max_poison_share=float(environ.get("LIVEINSIGHT_MAX_POISON_SHARE", "0.5")),
            tracing=bool(environ.get("AWS_XRAY_DAEMON_ADDRESS")) and not disabled,
        )


def handler(event: Mapping[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Consume one batch of a Kinesis event source mapping with ReportBatchItemFailures.

    The generation that it goes into is the function's alias, if that is the name of one (``g2``). Answers the first
    sequence number that is not done, from which the mapping then retries, or no failures. Raises only for an event
    that is no Kinesis batch.
    """
    started = time.perf_counter()
    batch = read(event)
    generation = generation_of(getattr(context, "invoked_function_arn", ""))
    tables, gauge, tracer = _tables(generation), _gauge(generation), _tracer()
    if tracer is None:
        with without_collection():
            outcome = consume(batch, tables, gauge)
    else:
        with tracer.provider.in_subsegment("## consume") as segment:
            with without_collection():
                outcome = consume(batch, tables, gauge)
            segment.put_annotation("shard", batch.shard_id)
            segment.put_annotation("generation", generation)
            segment.put_metadata("records", batch.records)
    took = (time.perf_counter() - started) * 1000
    _report(batch, outcome, took, generation)
    _tell_progress(batch, outcome, took, generation)
    if outcome.failed_from is None:
        return {"batchItemFailures": []}
    return {"batchItemFailures": [{"itemIdentifier": outcome.failed_from}]}


@contextmanager
def without_collection() -> Iterator[None]:
    """Leave garbage with cycles for later. A batch makes objects by the hundred thousand, which all live to its end,
    and next to no cycles: looking for those again and again takes a quarter of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _report(batch: Batch, outcome: Outcome, elapsed_ms: float, generation: str) -> None:
    emit(outcome, batch.records, elapsed_ms, now_ms=_now(), generation=generation)
    facts = {
        "generation": generation,
        "shard": batch.shard_id,
        "first": batch.first_sequence_number,
        "records": batch.records,
        "received": outcome.received,
        "applied": outcome.applied,
        "duplicate": outcome.duplicate,
        "late": outcome.late,
        "erased": outcome.erased,
        "quarantined": dict(outcome.quarantined),
        "sessions": outcome.sessions,
        "rollups": outcome.rollups,
        "ms": round(elapsed_ms, 1),
    }
    if outcome.failed_from is None:
        logger.info("batch done", extra=facts)
    else:
        logger.error("batch given back", extra={**facts, "failed_from": outcome.failed_from, "why": outcome.failure})


def _tell_progress(batch: Batch, outcome: Outcome, took: float, generation: str) -> None:
    """Let others know how far this shard has come: the query API says how old its figures are, `replay status` too."""
    if outcome.failed_from is not None:
        return
    now = _now()
    oldest = outcome.oldest_received if outcome.oldest_received is not None else batch.last_arrived
    progress = _pace(generation).after(
        batch.shard_id,
        now=now,
        took=took,
        events=outcome.received,
        behind=max(0, now - oldest),
        sequence_number=batch.last_sequence_number,
        arrived=batch.last_arrived,
    )
    try:
        _tables(generation).put_shard(shard_item(progress))
    except Unavailable as why:  # the batch is done; that this could not be told is no reason to do it again
        logger.warning("the progress could not be told", extra={"shard": batch.shard_id, "why": str(why)})


def _now() -> int:
    return time.time_ns() // 1_000_000


@cache
def _settings() -> ConsumerSettings:
    return ConsumerSettings.from_environ(os.environ)


# One process may be invoked for several generations, each at its own place of the stream.


@cache
def _gauge(generation: str) -> PoisonGauge:
    return PoisonGauge(limit=_settings().max_poison_share)


@cache
def _pace(generation: str) -> Pace:
    return Pace()


@cache
def _tables(generation: str) -> Tables:
    settings = _settings()
    return Tables(scoped(_client(), settings.tables, generation), settings.tables, writers=settings.writers)


@cache
def _client() -> DynamoDBClient:
    import botocore.session
    from botocore.config import Config

    from stream_consumer.signed_writes import signed_writes

    settings = _settings()
    config = Config(
        connect_timeout=2,
        read_timeout=5,
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=settings.writers + 2,
        # What is sent is built in items.py alone; checking it again would cost a third of a call.
        parameter_validation=False,
    )
    # boto3 would make the very same client, and be a tenth of the cold start.
    session = botocore.session.get_session()
    return signed_writes(session, cast("DynamoDBClient", session.create_client("dynamodb", config=config)))


@cache
def _tracer() -> Tracer | None:
    if not _settings().tracing:
        return None
    from aws_lambda_powertools import Tracer  # 0.2 s of cold start, spent only where X-Ray listens

    return Tracer(service=SERVICE)
