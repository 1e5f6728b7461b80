"""Pages of a list: by number, and by cursors that hold the place of a row in the list's order. Pure.

A cursor says after (or before) which row to go on, not how many rows came before it. So a client that follows
``next`` sees every row whose place does not change exactly once, whatever comes into the list meanwhile.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from query_api.parameters import MAX_CURSOR, Page, ParameterError

_VERSION = 1
_BAD = "cursor: the one from next or previous of this very list; begin again without it"

#: A row's place: lists ascend by it.
Place = tuple[int, str]


class Cursor(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where to go on in a ``listing``: after ``place``, or ``backwards`` from it."""

    version: int
    listing: str
    backwards: bool
    place: Place


class Listing(NamedTuple):
    """A list: its kind, its path and its site."""

    name: str
    path: str
    site: str


class Wanted(NamedTuple):
    """A page of a listing: by its number, from 1, unless there is a ``cursor``; ``size`` rows at most."""

    listing: Listing
    number: int
    size: int
    cursor: Cursor | None


class Window(NamedTuple):
    """The rows of a page: from ``start`` to before ``stop``."""

    start: int
    stop: int


_decoder = msgspec.msgpack.Decoder(Cursor)


def encode(listing: str, backwards: bool, place: Place) -> str:
    """A cursor's text."""
    packed = msgspec.msgpack.encode(Cursor(_VERSION, listing, backwards, place))
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode(text: str, listing: str) -> Cursor:
    """The cursor that :func:`encode` made for this listing; else a :class:`ParameterError`."""
    try:
        if len(text) > MAX_CURSOR:
            raise ValueError
        packed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = _decoder.decode(packed)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise ParameterError(_BAD) from None
    if (cursor.version, cursor.listing) != (_VERSION, listing):
        raise ParameterError(_BAD)
    return cursor


def wanted(listing: Listing, page: Page) -> Wanted:
    """What is asked of a listing. Raises :class:`ParameterError` for a cursor that is none of its own."""
    return Wanted(listing, page.number, page.size, decode(page.cursor, listing.name) if page.cursor else None)


def window(places: Sequence[Place], asked: Wanted) -> Window:
    """Which of the rows, whose ascending ``places`` these are, the page shows; its cursor goes before its number."""
    cursor, count = asked.cursor, len(places)
    if cursor is None:
        offset = (asked.number - 1) * asked.size
        return Window(min(offset, count), min(offset + asked.size, count))
    if cursor.backwards:
        stop = bisect_left(places, cursor.place)
        return Window(max(0, stop - asked.size), stop)
    start = bisect_right(places, cursor.place)
    return Window(start, min(start + asked.size, count))


def links(places: Sequence[Place], asked: Wanted, shown: Window) -> tuple[str | None, str | None]:
    """``next`` and ``previous``: paths on this server, None where there are no rows."""
    name, path, site = asked.listing

    def link(number: int, backwards: bool, place: Place | None) -> str:
        query = {"site": site, "page": str(number), "page_size": str(asked.size)}
        if place is not None:
            query["cursor"] = encode(name, backwards, place)
        return f"{path}?{urlencode(query)}"

    after = before = None
    if shown.stop < len(places):
        after = link(asked.number + 1, False, places[shown.stop - 1]) if shown.stop else link(1, False, None)
    if shown.start > 0:
        pages = -(-len(places) // asked.size)
        first = places[shown.start] if shown.start < len(places) else None
        before = link(max(1, min(asked.number - 1, pages)), True, first)
    return after, before
