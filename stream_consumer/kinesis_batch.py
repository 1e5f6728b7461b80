"""A Lambda event of Kinesis records -> positioned events and erasures, in order, and what is neither.

A **position** names one event of the stream for ever: its shard, its record's sequence number and
its index inside the aggregate. Within a shard, positions compare as strings as the stream orders
them: sequence numbers have up to 129 digits and no fixed width, so their length comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pybase64
from msgspec import Struct

from producer import erasure
from producer.erasure import Erasure
from producer.event import Event, Rejected, decode
from producer.kpl import Aggregate, Malformed, Plain, decode_record


class Arrived(Struct, frozen=True, gc=False):
    """One event where the stream holds it: the ``index``-th of a record. ``payload``: its bytes there, from which
    ``event`` was decoded.
    """

    of_record: str  # what the positions of the record's events begin with: most are never asked for
    index: int
    event: Event
    payload: bytes

    @property
    def position(self) -> str:
        return f"{self.of_record}{self.index:06d}"

    @property
    def sequence_number(self) -> str:
        return self.of_record[3:-1]


class ErasureArrived(Struct, frozen=True):
    """One session's erasure where the stream holds it."""

    position: str
    sequence_number: str
    erasure: Erasure


class Poison(Struct, frozen=True):
    """One payload that is neither: why, when it came into the stream (s), and the payload itself, as it came."""

    position: str
    sequence_number: str
    arrived: int
    reason: str
    detail: str
    payload: bytes


Entry = Arrived | ErasureArrived | Poison


class Batch(Struct, frozen=True, gc=False):
    """What one invocation was handed: the records of one shard, decoded, in the stream's order.

    ``last_sequence_number`` and ``last_arrived`` (ms) are of its last record.
    """

    shard_id: str
    first_sequence_number: str
    records: int
    entries: list[Entry]
    last_sequence_number: str = ""
    last_arrived: int = 0


def position(sequence_number: str, index: int) -> str:
    """The position of the ``index``-th event of a record, as a string that sorts as the shard does."""
    return f"{of_record(sequence_number)}{index:06d}"


def of_record(sequence_number: str) -> str:
    """What the positions of a record's payloads begin with."""
    return f"{len(sequence_number):03d}{sequence_number}."


def corrected(at: str) -> str:
    """The position of an item that is folded up to ``at`` and was then corrected: after ``at`` (which may be a
    corrected one), and before all that comes later in the stream.
    """
    folded, _, times = at.partition("~")
    return f"{folded}~{int(times or 0) + 1}"


def read(lambda_event: Mapping[str, Any]) -> Batch:
    """Decode what Lambda's event source mapping hands over.

    Poison never raises. ``ValueError`` is for what no mapping sends: no records at all, or
    records of several shards in one batch.
    """
    records = lambda_event.get("Records") or []
    if not records:
        raise ValueError("the event has no Records: is this function mapped to a Kinesis stream?")
    shard_id = _shard_of(records[0])
    of_shard = f"{shard_id}:"
    entries: list[Entry] = []
    for record in records:
        if not record["eventID"].startswith(of_shard):
            raise ValueError(f"one batch holds records of {shard_id} and of {_shard_of(record)}")
        kinesis = record["kinesis"]
        sequence_number = str(kinesis["sequenceNumber"])
        arrived = float(kinesis.get("approximateArrivalTimestamp") or 0)
        data = kinesis["data"]
        try:
            raw = pybase64.b64decode(data, validate=True)
        except ValueError as error:  # binascii.Error, or a letter that is not ASCII
            payload = data.encode() if isinstance(data, str) else data
            where = position(sequence_number, 0)
            entries.append(Poison(where, sequence_number, int(arrived), "not_base64", str(error), payload))
        else:
            entries.extend(read_record(raw, sequence_number, int(arrived)))
    first = str(records[0]["kinesis"]["sequenceNumber"])
    return Batch(shard_id, first, len(records), entries, sequence_number, round(arrived * 1000))


def _shard_of(record: Mapping[str, Any]) -> str:
    shard_id, _, _ = str(record["eventID"]).partition(":")
    return shard_id


def read_record(raw: bytes, sequence_number: str, arrived: int) -> list[Entry]:
    """What one record of the stream holds, in order. ``arrived``: when it came into the stream, in s. Never raises."""
    match decode_record(raw):
        case Aggregate() as aggregate:
            place = of_record(sequence_number)
            found: list[Entry] = []
            for index, payload in enumerate(aggregate.payloads):
                event = decode(payload)
                found.append(
                    Arrived(place, index, event, payload)
                    if isinstance(event, Event)
                    else _other(payload, event, sequence_number, index, arrived)
                )
            return found
        case Plain(payload):
            return [read_payload(payload, sequence_number, 0, arrived)]
        case Malformed(reason, detail):
            return [Poison(position(sequence_number, 0), sequence_number, arrived, reason, detail, raw)]


def read_payload(payload: bytes, sequence_number: str, index: int, arrived: int) -> Entry:
    """What the ``index``-th payload of a record is. ``arrived`` as for :func:`read_record`. Never raises."""
    event = decode(payload)
    if isinstance(event, Event):
        return Arrived(of_record(sequence_number), index, event, payload)
    return _other(payload, event, sequence_number, index, arrived)


def _other(payload: bytes, refused: Rejected, sequence_number: str, index: int, arrived: int) -> Entry:
    """What a payload is that was ``refused`` as an event."""
    where = position(sequence_number, index)
    if found := erasure.decode(payload):
        return ErasureArrived(where, sequence_number, found)
    return Poison(where, sequence_number, arrived, refused.reason, refused.detail, payload)
