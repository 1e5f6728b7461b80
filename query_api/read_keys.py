"""Read keys: who may read which site.

A key is ``li_<id>_<secret>``. It is shown once, when it is made; the table holds the SHA-256 of its secret. A secret
is random and long, so that nothing is won by hashing it slowly or with salt. A site may have many keys; each has a
name, so that one can be revoked without the others.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from producer.event import SiteId
from stream_consumer.items import Item
from stream_consumer.table import TableNames, Unavailable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: Partition of the roll-up table that holds the keys; the sort key is a key's id.
KEYS = "keys"
MAX_NAME = 64
#: How long (ms) a known key is not looked up again, so also how long a revoked one may still read ...
KNOWN_MS = 60_000
#: ... how long one that there is not, or that could not be looked up ...
UNKNOWN_MS = 5_000
#: ... and how long a known key does while the table cannot be read.
KNOWN_UNREAD_MS = 3_600_000
#: Unknown ids that are remembered: guessing may not fill the memory.
_UNKNOWN_IDS = 1024
_ID_BYTES = 8
_SECRET_BYTES = 24
_KEY = re.compile(rf"li_([0-9a-f]{{{2 * _ID_BYTES}}})_([0-9a-f]{{{2 * _SECRET_BYTES}}})")
#: No secret has it.
_NO_HASH = bytes(32)


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """Who asks may not read: the HTTP status, its registered reason, and a sentence for the client."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class NoSuchKey(LookupError):  # noqa: N818 - an answer, not a fault
    """There is no key of this id."""


@dataclass(frozen=True)
class ReadKey:
    """What is shown of a key. ``created``: ms since 1970."""

    key_id: str
    site_id: str
    name: str
    created: int


class _Stored(NamedTuple):
    site_id: str
    hash: bytes


class _Known(NamedTuple):
    """A key as it was read (at ``read``, ms since 1970), and until when it is not read again."""

    stored: _Stored
    read: int
    until: int


class ReadKeys:
    """The keys in the table of roll-ups. ``clock`` gives ms since 1970; ``token`` n random bytes, fit for secrets.

    Where the table cannot be read or written, methods raise :class:`Unavailable`; its text is for the client.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        names: TableNames,
        clock: Callable[[], int],
        token: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._client = client
        self._table = names.rollups
        self._clock = clock
        self._token = token
        self._known: dict[str, _Known] = {}
        self._unknown: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        # Who asks for one key looks it up once for all; those of other keys seldom wait for that.
        self._reading = [threading.Lock() for _ in range(32)]

    def check(self, authorization: str | None, site_id: str) -> None:
        """Return if the Authorization header (None: there is none) holds a key of the site. Raises Refused."""
        if self.site_of(authorization) != site_id:
            raise Refused(403, "other_site", f"this read key is not one of site {site_id}")

    def site_of(self, authorization: str | None) -> str:
        """The site whose key the Authorization header holds. Raises Refused."""
        scheme, _, given = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise Refused(401, "key_missing", "this needs a read key: Authorization: Bearer li_...")
        written = _KEY.fullmatch(given.strip())
        stored = self._stored(written[1]) if written else None
        # Compared also where there is nothing to compare with, so that the time taken tells nothing.
        same = hmac.compare_digest(_hash(written[2] if written else ""), stored.hash if stored else _NO_HASH)
        if stored is None or not same:
            raise Refused(401, "key_unknown", "this read key is not known; it may have been revoked")
        return stored.site_id

    def create(self, site_id: str, name: str = "") -> str:
        """Make a key of a site; returns it, which nothing does again. Raises ValueError for a bad site or name."""
        try:
            msgspec.convert(site_id, SiteId)
        except msgspec.ValidationError:
            raise ValueError(f"{site_id!r} is no site: 1 to 64 letters, digits, '.', '_' and '-'") from None
        if len(name) > MAX_NAME or not name.isprintable():
            raise ValueError(f"{name!r} is no name: at most {MAX_NAME} printable characters")
        key_id, secret = self._token(_ID_BYTES).hex(), self._token(_SECRET_BYTES).hex()
        item: Item = {
            **_place(key_id),
            "site_id": {"S": site_id},
            "hash": {"B": _hash(secret)},
            "name": {"S": name},
            "created": {"N": str(self._clock())},
        }
        self._call(
            "write",
            lambda: self._client.put_item(
                TableName=self._table, Item=item, ConditionExpression="attribute_not_exists(pk)"
            ),
        )
        return f"li_{key_id}_{secret}"

    def listing(self, site_id: str | None = None) -> Iterator[ReadKey]:
        """The keys of one site, or of all (None), in order of site and creation."""
        found: list[ReadKey] = []
        query: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :keys",
            "ExpressionAttributeValues": {":keys": {"S": KEYS}},
        }
        while True:
            answer = self._call("read", lambda: self._client.query(**query))
            found += map(_read_key, answer["Items"])
            if not (after := answer.get("LastEvaluatedKey")):
                break
            query["ExclusiveStartKey"] = after
        found.sort(key=lambda key: (key.site_id, key.created, key.key_id))
        return (key for key in found if site_id in {None, key.site_id})

    def revoke(self, key_id: str) -> None:
        """Delete a key, named by its id or by itself. Raises NoSuchKey.

        Servers notice within :data:`KNOWN_MS`, or once they can read the table again.
        """
        key_id = written[1] if (written := _KEY.fullmatch(key_id)) else key_id
        deleted = self._call(
            "write",
            lambda: self._client.delete_item(TableName=self._table, Key=_place(key_id), ReturnValues="ALL_OLD"),
        )
        if not deleted.get("Attributes"):
            raise NoSuchKey(f"there is no read key {key_id!r}")

    def _stored(self, key_id: str) -> _Stored | None:
        now = self._clock()
        known = self._known.get(key_id)
        if known and now < known.until:
            return known.stored
        old = known if known and now - known.read < KNOWN_UNREAD_MS else None
        reading = self._reading[hash(key_id) % len(self._reading)]
        # One looks; with an old entry the others need not wait for it.
        if not reading.acquire(blocking=old is None):
            return old.stored if old else None
        try:
            return self._look_up(key_id)
        finally:
            reading.release()

    def _look_up(self, key_id: str) -> _Stored | None:
        now = self._clock()
        # Whoever had the lock before may have found it.
        known = self._known.get(key_id)
        if known and now < known.until:
            return known.stored
        if now < self._unknown.get(key_id, 0):
            return None
        try:
            stored = self._read(key_id)
        except Unavailable:
            if known is None or now - known.read >= KNOWN_UNREAD_MS:
                raise
            self._known[key_id] = known._replace(until=now + UNKNOWN_MS)
            return known.stored
        with self._lock:
            if stored:
                self._known[key_id] = _Known(stored, now, now + KNOWN_MS)
            else:
                self._known.pop(key_id, None)
                self._unknown[key_id] = now + UNKNOWN_MS
                self._unknown.move_to_end(key_id)
                if len(self._unknown) > _UNKNOWN_IDS:
                    self._unknown.popitem(last=False)
        return stored

    def _read(self, key_id: str) -> _Stored | None:
        # Consistently, so that a key that was just made works at once.
        answer = self._call(
            "read", lambda: self._client.get_item(TableName=self._table, Key=_place(key_id), ConsistentRead=True)
        )
        item = answer.get("Item")
        return _Stored(item["site_id"]["S"], bytes(item["hash"]["B"])) if item else None

    def _call(self, what: str, call: Callable[[], Any]) -> Mapping[str, Any]:
        try:
            answer: Mapping[str, Any] = call()
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"DynamoDB did not let us {what} the read keys; try again in some seconds") from error
        return answer


def _place(key_id: str) -> Item:
    return {"pk": {"S": KEYS}, "sk": {"S": key_id}}


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _read_key(item: Mapping[str, Any]) -> ReadKey:
    return ReadKey(item["sk"]["S"], item["site_id"]["S"], item["name"]["S"], int(item["created"]["N"]))
