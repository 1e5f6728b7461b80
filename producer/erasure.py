"""The Erasure: a session that is to be forgotten, and its bytes on the stream.

It is a record of the stream like any event, and lies in its session's lane. So it has a position there: what it does
takes effect once, after all that came before it, and in every later reading of the stream at the same place again.
Only an operator puts one there: collectors and the SDK encode events, and no event's bytes are those of an erasure.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from producer.event import Id, SiteId


class Erasure(Struct, frozen=True):
    """One session to erase; ``erased_at`` is when that was asked for, in ms since 1970 UTC."""

    site_id: SiteId
    session_id: Id
    erased_at: Annotated[int, Meta(ge=1, le=253_402_300_799_999)]


class _Record(Struct, frozen=True, forbid_unknown_fields=True):
    erase: Erasure


_record = msgspec.json.Decoder(_Record)
_encoder = msgspec.json.Encoder(order="deterministic")


def encode(erasure: Erasure) -> bytes:
    """The erasure's bytes on the stream: compact JSON, a pure function of the erasure."""
    return _encoder.encode(_Record(erasure))


def decode(data: bytes) -> Erasure | None:
    """The inverse of :func:`encode`; None for whatever is not the bytes of an erasure, and nothing besides."""
    try:
        return _record.decode(data).erase
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
