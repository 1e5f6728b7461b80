"""The quarantine: payloads that were no events, and their way back.

The consumer puts a payload aside under its position (:func:`stream_consumer.items.quarantine_item`).
An operator reads it here, and puts it on the stream again, repaired or as it was, once. And there is
a limit: if most of a shard is poison, something else is wrong, and :class:`PoisonGauge` stops the
consumer rather than let it divert everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from producer import erasure
from producer.batching import hash_key_of, lane_of, partition_key_of
from producer.event import Event, Rejected, decode, encode
from stream_consumer.items import Item
from stream_consumer.kinesis_batch import Batch, Poison

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kinesis import KinesisClient


@dataclass
class PoisonGauge:
    """The share of poison among a process's latest payloads, by shard.

    A share above ``limit`` among at least ``least`` payloads is too much. Older payloads weigh less: the
    counts are halved at each ``window``. A batch that comes again is counted once.
    """

    limit: float = 0.5
    least: int = 200
    window: int = 2000

    def __post_init__(self) -> None:
        self._counts: dict[str, tuple[str, int, int]] = {}  # shard -> (latest batch counted, poison, payloads)

    def too_much(self, batch: Batch) -> str:
        """Count a batch; why it must not be diverted, '' if it may."""
        latest, poison, payloads = self._counts.get(batch.shard_id, ("", 0, 0))
        if int(batch.first_sequence_number) > int(latest or -1):
            poison += sum(isinstance(entry, Poison) for entry in batch.entries)
            payloads += len(batch.entries)
            latest = batch.first_sequence_number
        if payloads > self.window:
            poison, payloads = poison // 2, payloads // 2
        self._counts[batch.shard_id] = (latest, poison, payloads)
        if payloads < self.least or poison <= self.limit * payloads:
            return ""
        return (
            f"{poison} of the last {payloads} payloads of {batch.shard_id} are poison, more than {self.limit:.0%}: "
            "the consumer stops and puts nothing in quarantine. Find out who writes to the stream; "
            "LIVEINSIGHT_MAX_POISON_SHARE=1 diverts all"
        )


class Quarantined(msgspec.Struct, frozen=True):
    """One quarantined payload. ``arrived``: when its record came into the stream, in s since 1970;
    ``size``: bytes of the payload as it came, of which as many are kept as an item holds; ``redriven``: the
    sequence number under which it was put on the stream again, '' if it was not.
    """

    shard_id: str
    position: str
    sequence_number: str
    reason: str
    detail: str
    arrived: int
    size: int
    payload: bytes
    redriven: str = ""

    @property
    def whole(self) -> bool:
        """Whether the payload is kept whole."""
        return len(self.payload) == self.size


class Unredrivable(Exception):  # noqa: N818 - says what is the case
    """A payload cannot go back as asked; the text says why and what can be done."""


def read_quarantined(item: Item) -> Quarantined:
    """The inverse of :func:`stream_consumer.items.quarantine_item`."""
    return Quarantined(
        shard_id=item["pk"]["S"],
        position=item["sk"]["S"],
        sequence_number=item["sequence_number"]["S"],
        reason=item["reason"]["S"],
        detail=item["detail"]["S"],
        arrived=int(item["arrived"]["N"]),
        size=int(item["size"]["N"]),
        payload=bytes(item["payload"]["B"]),
        redriven=item.get("redriven", {}).get("S", ""),
    )


class Quarantine:
    """The quarantine table, and the stream that its payloads go back to."""

    def __init__(self, dynamodb: DynamoDBClient, table: str) -> None:
        self._dynamodb = dynamodb
        self._table = table

    def list(self, *, reason: str = "", shard_id: str = "", redriven: bool = False) -> Iterator[Quarantined]:
        """The quarantined payloads, by shard and position; those that went back only with ``redriven``.

        Reads the whole table (or a shard's part): it is an operator's, and short while all is well.
        """
        if shard_id:
            pages: Any = self._dynamodb.get_paginator("query").paginate(
                TableName=self._table,
                KeyConditionExpression="pk = :shard",
                ExpressionAttributeValues={":shard": {"S": shard_id}},
            )
        else:
            pages = self._dynamodb.get_paginator("scan").paginate(TableName=self._table)
        for page in pages:
            for item in page["Items"]:
                one = read_quarantined(item)
                if (not reason or one.reason == reason) and (redriven or not one.redriven):
                    yield one

    def get(self, shard_id: str, position: str) -> Quarantined | None:
        """One payload by its place, None if there is none."""
        key: Any = {"pk": {"S": shard_id}, "sk": {"S": position}}
        item = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True).get("Item")
        return read_quarantined(item) if item else None

    def redrive(
        self,
        one: Quarantined,
        kinesis: KinesisClient,
        stream: str,
        lanes: int,
        *,
        repaired: bytes | None = None,
        as_it_was: bool = False,
    ) -> str:
        """Put a payload on the stream again and note it; the new record's sequence number.

        ``repaired`` is a whole event (JSON) in its place and keeps its event id, where that can still be
        read; ``as_it_was`` puts the payload back even if it is still no event (a mended consumer may read
        it). Raises :class:`Unredrivable`. Put back twice, it counts once: by its event id.
        """
        payload = one.payload if repaired is None else repaired
        if repaired is None and not one.whole:
            raise Unredrivable(f"only {len(one.payload)} of {one.size} bytes are kept; read it from the stream")
        event = decode(payload)
        if repaired is None and (found := erasure.decode(payload)):  # put aside by a consumer that knew no erasures
            lane = lane_of(found.session_id, lanes)
        elif isinstance(event, Rejected):
            if repaired is not None or not as_it_was:
                raise Unredrivable(
                    f"still no event: {event.reason}: {event.detail}. Repair it, or put it back as it was (--as-it-was)"
                )
            lane = 0
        else:
            original = event_id_of(one.payload)
            if original and event.event_id != original:
                raise Unredrivable(f"the event id was {original!r}; a repaired event keeps it, or it may count twice")
            payload, lane = encode(event), lane_of(event.session_id, lanes)
        answer = kinesis.put_record(
            StreamName=stream,
            Data=payload,
            PartitionKey=partition_key_of(lane),
            ExplicitHashKey=hash_key_of(lane, lanes),
        )
        self._dynamodb.update_item(
            TableName=self._table,
            Key={"pk": {"S": one.shard_id}, "sk": {"S": one.position}},
            UpdateExpression="SET redriven = :at",
            ExpressionAttributeValues={":at": {"S": answer["SequenceNumber"]}},
        )
        return answer["SequenceNumber"]


def event_id_of(payload: bytes) -> str:
    """The event id that a broken payload still shows, '' if it shows none."""

    class OnlyId(msgspec.Struct):
        event_id: str = ""

    event = decode(payload)
    if isinstance(event, Event):
        return event.event_id
    try:
        return msgspec.json.decode(payload, type=OnlyId).event_id
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ""
