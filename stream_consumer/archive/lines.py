"""One line of the archive: a record of the stream, or one payload of an aggregate, with its position.

An object of the archive is gzip of such lines, each a JSON object and a newline. A payload that is an event is in it
as it is, so that the archive can be queried; any other is in it as base64. Either way it comes back byte for byte.
"""

from __future__ import annotations

import base64
import binascii
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from producer.event import Event, decode
from stream_consumer.kinesis_batch import Entry, position, read_payload, read_record


class ArchivedRecord(Struct, frozen=True, gc=False):
    """A record where the stream held it. ``arrived``: when it came into the stream, in ms since 1970.

    ``index`` is the payload's place in its aggregate, from which it was taken already. None: the record is whole.
    """

    shard_id: str
    sequence_number: str
    index: int | None
    arrived: int
    payload: bytes

    @property
    def position(self) -> str:
        """Where it stands in its shard, by which records are ordered; a whole one where its first payload does."""
        return position(self.sequence_number, self.index or 0)


class BadReason(StrEnum):
    """Why a line, or all of an object, cannot be read. One name for each cause, to be counted by."""

    NOT_GZIP = "not_gzip"
    CUT_SHORT = "cut_short"
    NOT_JSON = "not_json"
    WRONG_FIELDS = "wrong_fields"
    NOT_BASE64 = "not_base64"


class BadLine(Exception):  # noqa: N818 - says what is the case
    """A line of the archive cannot be read."""

    def __init__(self, reason: BadReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class _Line(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    shard_id: Annotated[str, Meta(min_length=1, max_length=128)]
    sequence_number: Annotated[str, Meta(pattern=r"^[0-9]{1,129}$")]
    arrived: Annotated[int, Meta(ge=0)]
    index: Annotated[int, Meta(ge=0, le=999_999)] | None = None
    event: Raw = Raw(b"")
    base64: str | None = None


class _EventLine(Struct, omit_defaults=True, gc=False):
    shard_id: str
    sequence_number: str
    arrived: int
    event: Raw
    index: int | None = None


_lines = msgspec.json.Decoder(_Line)
_encoder = msgspec.json.Encoder()


def write_line(record: ArchivedRecord) -> bytes:
    """The record's line, its newline included."""
    where = (record.shard_id, record.sequence_number, record.arrived)
    line: _EventLine | _Line
    if _is_event(record.payload):
        line = _EventLine(*where, Raw(record.payload), record.index)
    else:
        line = _Line(*where, record.index, base64=base64.b64encode(record.payload).decode())
    return _encoder.encode(line) + b"\n"


def read_line(line: bytes) -> ArchivedRecord:
    """The inverse of :func:`write_line`, with or without the newline. Raises :class:`BadLine`."""
    try:
        found = _lines.decode(line)
    except msgspec.ValidationError as error:
        raise BadLine(BadReason.WRONG_FIELDS, str(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadLine(BadReason.NOT_JSON, str(error)) from None
    payload = bytes(found.event)
    if bool(payload) == (found.base64 is not None):
        raise BadLine(BadReason.WRONG_FIELDS, "it must have either `event` or `base64`")
    if found.base64 is not None:
        try:
            payload = binascii.a2b_base64(found.base64, strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise BadLine(BadReason.NOT_BASE64, str(error)) from None
    return ArchivedRecord(found.shard_id, found.sequence_number, found.index, found.arrived, payload)


def entries_of(record: ArchivedRecord) -> list[Entry]:
    """What the consumer reads in this record, had it come from the stream: the same positions, the same poison."""
    arrived = record.arrived // 1000
    # Firehose says 0 of a record that is no aggregate as well, and gives a frame that it cannot open as it is.
    if not record.index:
        return read_record(record.payload, record.sequence_number, arrived)
    return [read_payload(record.payload, record.sequence_number, record.index, arrived)]


def _is_event(payload: bytes) -> bool:
    """Whether the payload can stand in a line as it is. Lines end at a carriage return, too, where Athena reads."""
    if not (payload.startswith(b"{") and payload.endswith(b"}")) or b"\n" in payload or b"\r" in payload:
        return False
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return isinstance(decode(payload), Event)
