"""The Kinesis Producer Library's aggregated record, both ways and strictly.

A frame is a magic number, an AggregatedRecord (protobuf), and the MD5 of that. The format is described in
github.com/awslabs/amazon-kinesis-producer, ``aggregation-format.md``. A frame is read whole or not at all:
a reader that gives up half-way through one would lose events without anyone noticing.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any

from aws_kinesis_agg import MAGIC, config_pb2
from google.protobuf.message import DecodeError
from msgspec import Struct


def _message_type() -> Any:
    """The AggregatedRecord message. Its module imports ``config_pb2`` as if that lay on sys.path."""
    lent = "config_pb2" not in sys.modules
    sys.modules.setdefault("config_pb2", config_pb2)
    try:
        from aws_kinesis_agg import messages_pb2
    finally:
        if lent:
            del sys.modules["config_pb2"]
    return messages_pb2.AggregatedRecord


_AggregatedRecord = _message_type()
_DIGEST_BYTES = 16
_data = attrgetter("data")
_key_index = attrgetter("partition_key_index")
_hash_key_index = attrgetter("explicit_hash_key_index")


class KplReason(StrEnum):
    """Why a frame with a right checksum was refused. The names are metric dimensions: stable, one for each cause."""

    NOT_PROTOBUF = "aggregate_not_protobuf"
    MISSING_FIELD = "aggregate_missing_field"
    UNKNOWN_FIELD = "aggregate_unknown_field"
    NOT_CANONICAL = "aggregate_not_canonical"
    KEY_NOT_UTF8 = "aggregate_key_not_utf8"
    INDEX_OUT_OF_RANGE = "aggregate_index_out_of_range"


class SubRecord(Struct, frozen=True, gc=False):
    """One user record of an aggregate. ``explicit_hash_key`` is None where it has none of its own."""

    data: bytes
    partition_key: str
    explicit_hash_key: str | None


class Aggregate:
    """A sound frame. ``payloads``: the data of every user record, in its order, which is all that a consumer needs."""

    __slots__ = ("_message", "payloads")

    def __init__(self, message: Any, payloads: list[bytes]) -> None:
        self._message = message
        self.payloads = payloads

    @property
    def records(self) -> tuple[SubRecord, ...]:
        """Every user record with its keys."""
        keys, hash_keys = self._message.partition_key_table, self._message.explicit_hash_key_table
        return tuple(
            SubRecord(
                record.data,
                keys[record.partition_key_index],
                hash_keys[record.explicit_hash_key_index] if record.HasField("explicit_hash_key_index") else None,
            )
            for record in self._message.records
        )


class Plain(Struct, frozen=True):
    """No frame: the record's data is one payload, as it came."""

    data: bytes


class Malformed(Struct, frozen=True):
    """A frame that no sound producer made: one :class:`KplReason`, and a sentence."""

    reason: str
    detail: str


def frame_size(partition_key: str, explicit_hash_key: str) -> int:
    """Bytes of a frame without entries."""
    return len(MAGIC) + len(_key_tables(partition_key, explicit_hash_key)) + _DIGEST_BYTES


@lru_cache(4096)
def entry_size(payload: int) -> int:
    """Bytes that a payload of ``payload`` bytes adds to a frame."""
    return len(_entry_head(payload)) + payload


def encode_aggregate(entries: Sequence[bytes], partition_key: str, explicit_hash_key: str) -> bytes:
    """The frame of ``entries``, all under one partition key and one explicit hash key (a decimal number)."""
    # By hand, as a message object for each entry takes longer than all the rest of it.
    parts = [_key_tables(partition_key, explicit_hash_key)]
    for data in entries:
        parts += (_entry_head(len(data)), data)
    body = b"".join(parts)
    return b"".join((MAGIC, body, _digest(body)))


def decode_record(data: bytes) -> Aggregate | Plain | Malformed:
    """What one Kinesis record holds. Never raises, and never returns a part of an aggregate.

    Without the magic number, without a body or with a wrong checksum, the record is a plain one: any
    payload may begin with the same four bytes.
    """
    if len(data) <= len(MAGIC) + _DIGEST_BYTES or not data.startswith(MAGIC):
        return Plain(data)
    body = data[len(MAGIC) : -_DIGEST_BYTES]
    if _digest(body) != data[-_DIGEST_BYTES:]:
        return Plain(data)
    message = _AggregatedRecord()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        return Malformed(KplReason.NOT_PROTOBUF, str(error))
    if not message.IsInitialized():
        missing = message.FindInitializationErrors()
        return Malformed(KplReason.MISSING_FIELD, f"{len(missing)} fields are missing, first {missing[0]}")
    # Of a sound frame nothing is unknown, and its size is the one that its content needs.
    message.DiscardUnknownFields()
    if message.ByteSize() != len(body):
        return _oversized(body)
    return _whole(message)


def _oversized(body: bytes) -> Malformed:
    """Which of two reasons a body has to be longer than what it says."""
    message = _AggregatedRecord()
    message.ParseFromString(body)
    if message.ByteSize() == len(body):
        return Malformed(KplReason.UNKNOWN_FIELD, "the format has no such field, or it is of another type")
    return Malformed(KplReason.NOT_CANONICAL, "a field is there twice, or a number is longer than need be")


def _whole(message: Any) -> Aggregate | Malformed:
    keys = list(message.partition_key_table)
    hash_keys = list(message.explicit_hash_key_table)
    if not all(isinstance(key, str) for key in keys + hash_keys):
        return Malformed(KplReason.KEY_NOT_UTF8, "a partition key or an explicit hash key is not UTF-8")
    records = list(message.records)
    if (
        max(map(_key_index, records), default=-1) >= len(keys)
        or max(map(_hash_key_index, records), default=-1) >= len(hash_keys)
    ) and (broken := _first_beyond(records, len(keys), len(hash_keys))) is not None:
        return Malformed(
            KplReason.INDEX_OUT_OF_RANGE,
            f"user record {broken} names a key outside of {len(keys)} partition and {len(hash_keys)} hash keys",
        )
    return Aggregate(message, list(map(_data, records)))


def _first_beyond(records: Sequence[Any], keys: int, hash_keys: int) -> int | None:
    """The first user record with a key that is in no table."""
    for number, record in enumerate(records):
        # An index that is absent reads as 0, which is another record's key.
        has_hash_key = record.HasField("explicit_hash_key_index")
        if record.partition_key_index >= keys or (has_hash_key and record.explicit_hash_key_index >= hash_keys):
            return number
    return None


def _digest(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


#: Tags of protobuf: a field's number, and that its bytes and their length follow (2) or a varint (0).
_KEY_TABLE, _HASH_KEY_TABLE, _RECORDS = (field << 3 | 2 for field in (1, 2, 3))
_KEY_INDEX, _HASH_KEY_INDEX, _DATA = 1 << 3, 2 << 3, 3 << 3 | 2


@lru_cache(4096)
def _key_tables(partition_key: str, explicit_hash_key: str) -> bytes:
    """What a frame's entries refer to: one partition key, and one explicit hash key."""
    key, hash_key = partition_key.encode(), explicit_hash_key.encode()
    return b"%c%b%b%c%b%b" % (_KEY_TABLE, _varint(len(key)), key, _HASH_KEY_TABLE, _varint(len(hash_key)), hash_key)


@lru_cache(4096)
def _entry_head(payload: int) -> bytes:
    """What precedes a payload of ``payload`` bytes in a frame: it has the first key and the first hash key."""
    indices_and_length = b"%c\0%c\0%c%b" % (_KEY_INDEX, _HASH_KEY_INDEX, _DATA, _varint(payload))
    return b"%c%b%b" % (_RECORDS, _varint(len(indices_and_length) + payload), indices_and_length)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)
