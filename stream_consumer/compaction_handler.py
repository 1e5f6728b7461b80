"""The scheduled function that merges roll-ups: :mod:`stream_consumer.compaction` on AWS."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from aws_lambda_powertools import Logger

from stream_consumer.compaction import Compaction
from stream_consumer.table import TableNames

logger = Logger(service="compaction")


def handler(event: Mapping[str, Any], context: Any) -> dict[str, int]:
    """Merge what is due; answers what was done. Raises ``Unavailable`` where the table cannot be read or written:
    the next run goes on where this one ended.
    """
    done = asdict(_compaction().run(time.time_ns() // 1_000_000))
    logger.info("compacted", extra=done)
    return done


@cache
def _compaction() -> Compaction:
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 6})
    return Compaction(boto3.client("dynamodb", config=config), TableNames.from_environ(os.environ))
