"""The scheduled function that merges roll-ups: :mod:`stream_consumer.compaction` on AWS."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools import Logger

from stream_consumer.compaction import of_generations
from stream_consumer.table import TableNames

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

logger = Logger(service="compaction")


def handler(event: Mapping[str, Any], context: Any) -> dict[str, dict[str, int]]:
    """Merge what is due, of each generation; answers what was done, by generation. Raises ``Unavailable`` where the
    table cannot be read or written: the next run goes on where this one ended.
    """
    done = {}
    for generation, compaction in of_generations(_client(), TableNames.from_environ(os.environ)):
        done[generation] = asdict(compaction.run(time.time_ns() // 1_000_000))
        logger.info("compacted", extra={"generation": generation, **done[generation]})
    return done


@cache
def _client() -> DynamoDBClient:
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 6})
    return boto3.client("dynamodb", config=config)
