"""The events of sessions as they are stored: the latest in the session's own item, the others in chunks.

A session's item is written with every batch that has something of it, and a write is billed by the kilobyte: so events
stay in it as long as they fit into the kilobyte that it takes anyway. Then all that are there go to one chunk. An event
may be in two places, as batches are tried again with other borders; whoever reads drops repeats by position.

Events are small, and much of them is the same in all: names of fields, and what browsers say of themselves. So zlib
compresses them with a preset dictionary, behind which the item's own key is put. One event takes half as much room so,
ten take four fifths, and no more time. Browsers will have other versions; that does not matter, as zlib finds pieces.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

import msgspec

#: An event's place in the stream, ``shard=position``, and its bytes there.
PlacedEvent: TypeAlias = tuple[str, bytes]

#: A chunk holds at most this many bytes of events, below DynamoDB's 400 KB for an item.
MAX_CHUNK_BYTES = 256 * 1024
#: More bytes of events than this are not tried to be fitted into a session's item.
MAX_RECENT_BYTES = 4 * 1024
#: What one write unit is for, in bytes of an item.
WRITE_UNIT = 1024

_packer = msgspec.msgpack.Encoder(order="deterministic")
_events = msgspec.msgpack.Decoder(list[tuple[str, bytes]])

#: It is a part of the stored form for ever: what is compressed has its checksum, and cannot be read with another one.
#: (Without a dictionary it can.) What is used most stands last, where zlib refers to it at the least cost.
DICTIONARY = (
    b'"conversion_currency":"USD"}"conversion_currency":"EUR"}"conversion_type":"order","conversion_value":'
    b'"properties":{"value":"name":"category":"label":"id":"currency":"items":[{"price":"quantity":1,"path":"depth":100}'
    b'"element_id":"","element_tag":"button","element_tag":"a","element_text":"","element_href":"https://www.'
    b'"event_type":"page_exit","event_type":"conversion","event_type":"heartbeat","event_type":"scroll",'
    b'"event_type":"click","title":"","user_id":"'
    b"?utm_source=newsletter&utm_medium=email&utm_campaign=&utm_content=&utm_term=&utm_medium=cpc&gclid=fbclid="
    b'"referrer":"https://www.facebook.com/","referrer":"https://www.bing.com/","referrer":"https://t.co/",'
    b'"referrer":"https://duckduckgo.com/","referrer":"https://www.google.com/",'
    b"Mozilla/5.0 (X11; Linux x86_64; rv:121.0) Gecko/20100101 Firefox/121.0"
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:121.0) Gecko/20100101 Firefox/121.0"
    b"Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/23.0"
    b" Chrome/115.0.0.0 Mobile Safari/537.36 Edg/120.0.0.0"
    b"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.2"
    b" Safari/605.1.15"
    b"Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.2"
    b" Mobile/15E148 Safari/604.1"
    b"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"
    b'","country":"US","language":"en-US","conversion_value":0.0}'
    b'{"event_id":"","site_id":"","session_id":"","event_type":"page_view","timestamp":17,"received_at":17,'
    b'"user_id":"","source":"","seq":1,"page_url":"https://www.","title":"","user_agent":"Mozilla/5.0 ('
)


def recent_events(item: dict[str, Any], events: Sequence[PlacedEvent]) -> bytes | None:
    """What ``events`` are as the ``recent`` of a session's ``item``, which has none yet; None if that is not to hold
    them, as it would take another write unit.
    """
    if sum([len(place) + len(data) for place, data in events]) > MAX_RECENT_BYTES:
        return None
    packed = _pack(events, item["pk"]["S"], item["pos"]["S"])
    room = -(item_size(item) + len("recent")) % WRITE_UNIT
    return packed if len(packed) <= room else None


def read_recent(packed: bytes, pk: str, pos: str) -> list[PlacedEvent]:
    """The inverse of :func:`recent_events`, with the item's ``pk`` and ``pos``."""
    return _unpack(packed, pk, pos) if packed else []


def chunk_items(pk: str, expires: str, events: Iterable[PlacedEvent]) -> list[dict[str, Any]]:
    """Events of the session whose key is ``pk``, those of each shard in order, as items.

    An item is put without a condition, and its key names its first and last event: a late write
    of an earlier attempt can then only repeat events, never hide some.
    """
    items: list[dict[str, Any]] = []
    for shard_id, some in groupby(events, key=lambda event: event[0].partition("=")[0]):
        for part in _parts([(place[len(shard_id) + 1 :], data) for place, data in some]):
            sk = f"{shard_id}={part[0][0]}-{_beyond(part[0][0], part[-1][0])}"
            body = _pack(part, pk, sk)
            items.append({"pk": {"S": pk}, "sk": {"S": sk}, "body": {"B": body}, "expires": {"N": expires}})
    return items


def read_chunk(item: Mapping[str, Any]) -> list[PlacedEvent]:
    """The events of one chunk, which is under its own key as :func:`chunk_items` made it."""
    pk, sk = item["pk"]["S"], item["sk"]["S"]
    shard_id = sk.partition("=")[0]
    return [(f"{shard_id}={position}", data) for position, data in _unpack(item["body"]["B"], pk, sk)]


def item_size(item: dict[str, Any]) -> int:
    """Bytes of an item as DynamoDB counts them: names and values; a number has a byte for two digits, and one more."""
    return sum([len(name) + _value_size(value) for name, value in item.items()])


def _value_size(value: dict[str, Any]) -> int:
    if "S" in value:
        text = value["S"]
        return len(text) if text.isascii() else len(text.encode())
    if "B" in value:
        return len(value["B"])
    return (len(value["N"].strip("0").replace(".", "").replace("-", "")) + 1) // 2 + 1


def _pack(events: Sequence[tuple[str, bytes]], *key: str) -> bytes:
    compressor = zlib.compressobj(zdict=_dictionary(key))
    return compressor.compress(_packer.encode(events)) + compressor.flush()


def _unpack(packed: bytes, *key: str) -> list[tuple[str, bytes]]:
    return _events.decode(zlib.decompressobj(zdict=_dictionary(key)).decompress(packed))


def _dictionary(key: tuple[str, ...]) -> bytes:
    """What events repeat of all events, and of the item's key: their session's ids, and a position in the shard."""
    return DICTIONARY + "#".join(key).encode()


def _beyond(first: str, last: str) -> str:
    """What of ``last`` is not as in ``first``, which comes before it: together they tell the one from any other."""
    if first == last:
        return ""
    if len(first) != len(last):
        return last
    return last[next(at for at, (one, other) in enumerate(zip(first, last, strict=True)) if one != other) :]


def _parts(events: list[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    if sum([len(position) + len(data) for position, data in events]) <= MAX_CHUNK_BYTES:
        return [events] if events else []
    parts: list[list[tuple[str, bytes]]] = []
    room = 0
    for event in events:
        size = len(event[0]) + len(event[1])
        if size > room or not parts:
            parts.append([])
            room = MAX_CHUNK_BYTES
        parts[-1].append(event)
        room -= size
    return parts
