"""The function that Firehose calls for every record on its way into the archive: a record in, its line out.

Firehose takes KPL aggregates apart before it calls (Kinesis developer guide, "Use the KPL with Amazon Data
Firehose"), and says where in the stream each payload stood. What it makes of an aggregate that no sound producer made
is not documented: if it opens one that the consumer quarantines whole, the archive has what is in it.

It keeps what the function marks as failed under the archive's error prefix, but without its position: such a payload
is not lost, and not in the archive either. So that is for what has no line at all, its position is logged, and the
fold of the archive does not pass over it in silence (:meth:`stream_consumer.archive.reader.Archive.failed_hours`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aws_lambda_powertools import Logger

from stream_consumer.archive.lines import ArchivedRecord, write_line

#: Lambda's limit for a response. The template's BufferSizeInMBs is chosen so that events do not come near it: base64
#: twice makes 0.5 MB 0.9, and to a record its position adds some 300 bytes, fewer than its metadata to the request.
MAX_RESPONSE_BYTES = 6 * 1024 * 1024
#: What a record takes of the response beside its id and its data.
_ENVELOPE_BYTES = 64

logger = Logger(service="archive")


def handler(event: Mapping[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Answer every record of a Firehose transformation event, in order: ``Ok`` with its line, or ``ProcessingFailed``.

    Failed is a record that does not come from a Kinesis stream, and one whose line would take the response over
    Lambda's limit (Firehose would then lose the whole batch). Raises nothing for what a record holds.
    """
    records = event["records"]
    room = MAX_RESPONSE_BYTES - sum(len(record["recordId"]) + _ENVELOPE_BYTES for record in records)
    answers: list[dict[str, str]] = []
    for record in records:
        answer = {"recordId": record["recordId"], "result": "ProcessingFailed"}
        if not record.get("kinesisRecordMetadata"):
            _tell(record, "it has no position: the delivery stream's source must be the Kinesis stream")
        elif len(data := base64.b64encode(write_line(_archived(record))).decode()) > room:
            _tell(record, "the response would be too large: lower the processor's BufferSizeInMBs")
        else:
            answer |= {"result": "Ok", "data": data}
            room -= len(data)
        answers.append(answer)
    return {"records": answers}


def _archived(record: Mapping[str, Any]) -> ArchivedRecord:
    where = record["kinesisRecordMetadata"]
    index = where.get("subsequenceNumber")
    return ArchivedRecord(
        shard_id=where["shardId"],
        sequence_number=str(where["sequenceNumber"]),
        index=None if index in (None, "") else int(index),
        arrived=_milliseconds(where["approximateArrivalTimestamp"]),
        payload=base64.b64decode(record["data"]),
    )


def _milliseconds(arrived: float | str) -> int:
    """The guides show both forms: ms since 1970, and ISO 8601."""
    if isinstance(arrived, str):
        return round(datetime.fromisoformat(arrived).timestamp() * 1000)
    return int(arrived)


def _tell(record: Mapping[str, Any], why: str) -> None:
    logger.error("not archived", extra={"why": why, "where": record.get("kinesisRecordMetadata") or {}})
