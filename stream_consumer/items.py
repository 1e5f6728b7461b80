"""The stored items: keys, indexes, and each value to and from DynamoDB's wire form.

An item's ``pos`` holds the positions up to which it is folded (``shard=position``, by shard, joined
by ``;``), and is what a conditional write compares. An item is a pure function of what it stores.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from stream_consumer.durations import bucket_of
from stream_consumer.footprint import ErasedUser, Footprint
from stream_consumer.kinesis_batch import Poison
from stream_consumer.merged import Labels, Totals
from stream_consumer.progress import ShardProgress
from stream_consumer.rollup import SESSION_MEASURES, RollUp, Standing, standing
from stream_consumer.session import SESSION_TIMEOUT_MS, Session
from stream_consumer.stored_events import PlacedEvent, chunk_items, read_recent, recent_events

Item = dict[str, Any]

#: The sparse index of active sessions is spread over this many partitions for each site.
ACTIVE_BUCKETS = 8
#: Seconds after their last arrival at which sessions and their events expire. Far longer than any
#: stream's retention in use here must be exceeded: an item forgotten early would count its events again.
SESSION_LIFETIME_S = 400 * 24 * 3600
QUARANTINE_LIFETIME_S = 400 * 24 * 3600
#: Events of one session whose details are kept; all are counted.
MAX_STORED_EVENTS = 10_000
MAX_STORED_PAYLOAD = 256 * 1024
#: Partitions of the roll-up table that list the sites, and how far behind each shard's consumer is.
SITES = "sites"
SHARDS = "shards"
#: Partition of the roll-up table that lists the users who were erased, by a hash of site and user.
ERASURES = "erasures"

_packer = msgspec.msgpack.Encoder(order="deterministic")
_session = msgspec.msgpack.Decoder(Session)
_rollup = msgspec.msgpack.Decoder(RollUp)
_totals = msgspec.msgpack.Decoder(Totals)
_labels = msgspec.msgpack.Decoder(Labels)
_footprint = msgspec.msgpack.Decoder(Footprint)
_erased_user = msgspec.msgpack.Decoder(ErasedUser)

Positions = dict[str, str]


class StoredSession(Struct, frozen=True):
    """A session as the table holds it. ``session`` decodes afresh, so a fold may change what it gets.

    ``counted``: what it was counted as in the roll-ups (SESSION_MEASURES), by the definitions of that time.
    ``events``: those of its events that are in no chunk.
    """

    key: str
    at: str
    body: bytes
    counted: tuple[int, ...]
    recent: bytes = b""

    @property
    def positions(self) -> Positions:
        return split_positions(self.at)

    @property
    def events(self) -> list[PlacedEvent]:
        return read_recent(self.recent, self.key, self.at)

    @property
    def session(self) -> Session:
        return _session.decode(self.body)

    def standing(self, session: Session) -> Standing | None:
        """What ``session``, which is this one, stands for in the roll-ups: as it was counted, if that is known."""
        now = standing(session)
        if now is None or now.amounts == self.counted or len(self.counted) != len(SESSION_MEASURES):
            return now
        duration = self.counted[SESSION_MEASURES.index("duration")]
        return msgspec.structs.replace(now, amounts=self.counted, duration=bucket_of(duration))


class StoredRollUp(Struct, frozen=True):
    """A roll-up as the table holds it, and the position in its shard up to which it is folded."""

    position: str
    body: bytes

    @property
    def rollup(self) -> RollUp:
        return _rollup.decode(zlib.decompress(self.body))


class StoredErasedUser(Struct, frozen=True):
    """What is known of a user's erasure, and the version that its next write compares."""

    version: str
    erased: ErasedUser


def session_key(site_id: str, session_id: str) -> str:
    """The partition key of a session and of its events; unambiguous, as no site id has a '#'."""
    return f"{site_id}#{session_id}"


def session_items(
    session: Session, positions: Positions, stands: Standing | None, events: Sequence[PlacedEvent]
) -> tuple[Item, list[Item]]:
    """The item of a session, and chunks to be put before it. ``events`` are those that are in no chunk yet; they go
    into the session's item or, if they have outgrown it, all into chunks.
    """
    item = session_item(session, positions, stands)
    if not events:
        return item, []
    if recent := recent_events(item, events):
        item["recent"] = {"B": recent}
        return item, []
    return item, chunk_items(item["pk"]["S"], item["expires"]["N"], events)


def session_item(session: Session, positions: Positions, stands: Standing | None = None) -> Item:
    """The item of a session folded up to ``positions``. ``stands``: its standing, where that is known already."""
    key = session_key(session.site_id, session.session_id)
    item = {
        "pk": {"S": key},
        "pos": {"S": join_positions(positions)},
        "body": {"B": _packer.encode(session)},
        "expires": {"N": str(session.received // 1000 + SESSION_LIFETIME_S)},
        "started_at": {"N": str(session.start)},
    }
    if stands := stands or standing(session):
        item["counted"] = {"S": " ".join(map(str, stands.amounts))}
    if session.user_id:
        item["user_key"] = {"S": session_key(session.site_id, session.user_id)}
    if session.erased:
        return item
    # Only what is recent at its arrival can be active: an imported log costs no index writes. Whole
    # minutes, so that a heartbeat within the minute costs none either.
    if session.received - session.end < SESSION_TIMEOUT_MS:
        bucket = zlib.crc32(session.session_id.encode()) % ACTIVE_BUCKETS
        item["active_bucket"] = {"S": active_bucket(session.site_id, bucket)}
        item["active_minute"] = {"N": str(session.end // 60_000)}
    return item


def active_bucket(site_id: str, bucket: int) -> str:
    """The partition key of one bucket of the index of active sessions."""
    return f"{site_id}#{bucket}"


def read_session(item: Mapping[str, Any]) -> StoredSession:
    """The inverse of :func:`session_items`."""
    counted = tuple(map(int, item["counted"]["S"].split())) if "counted" in item else ()
    recent = item["recent"]["B"] if "recent" in item else b""
    return StoredSession(item["pk"]["S"], item["pos"]["S"], item["body"]["B"], counted, recent)


def join_positions(positions: Positions) -> str:
    """Positions by shard as one canonical string."""
    return ";".join(f"{shard}={position}" for shard, position in sorted(positions.items()))


def split_positions(joined: str) -> Positions:
    """The inverse of :func:`join_positions`."""
    return dict(part.split("=", 1) for part in joined.split(";")) if joined else {}


def rollup_key(site_id: str, quarter: int, shard_id: str) -> tuple[str, str]:
    """(pk, sk): a site's UTC day, and within it the quarter, then the shard."""
    day, within = divmod(quarter, 86_400_000)
    hours, minutes = divmod(within // 60_000, 60)
    return rollup_day_key(site_id, day), f"{hours:02d}:{minutes:02d}#{shard_id}"


def rollup_day_key(site_id: str, day: int) -> str:
    """The partition of one UTC day (days since 1970) of a site's roll-ups."""
    return f"{site_id}#{day:06d}"


def rollup_item(rollup: RollUp, position: str) -> Item:
    """The item of a roll-up folded up to ``position`` of its shard."""
    pk, sk = rollup_key(rollup.site_id, rollup.quarter, rollup.shard_id)
    return {
        "pk": {"S": pk},
        "sk": {"S": sk},
        "pos": {"S": position},
        "body": {"B": zlib.compress(_packer.encode(rollup), 6)},
    }


def read_rollup(item: Mapping[str, Any]) -> StoredRollUp:
    """The inverse of :func:`rollup_item`."""
    return StoredRollUp(item["pos"]["S"], item["body"]["B"])


def merged_key(site_id: str, part: str, start: int, *, whole_day: bool) -> tuple[str, str]:
    """(pk, sk) of one part of a merged UTC day or hour that starts at ``start`` (ms)."""
    return (f"{site_id}#{'day' if whole_day else 'hour'}#{part}", merged_sk(start, whole_day=whole_day))


def merged_sk(start: int, *, whole_day: bool) -> str:
    """What orders merged days, and hours, in time."""
    day, within = divmod(start, 86_400_000)
    return f"{day:06d}" if whole_day else f"{day:06d}:{within // 3_600_000:02d}"


def merged_item(key: tuple[str, str], made_of: str, part: Totals | Labels) -> Item:
    """The item of a merged part. ``made_of`` names what it was merged from, and is what its next write compares."""
    pk, sk = key
    return {
        "pk": {"S": pk},
        "sk": {"S": sk},
        "pos": {"S": made_of},
        "body": {"B": zlib.compress(_packer.encode(part), 6)},
    }


def read_totals(item: Mapping[str, Any]) -> Totals:
    """The totals of a merged day or hour."""
    return _totals.decode(zlib.decompress(item["body"]["B"]))


def read_labels(item: Mapping[str, Any]) -> Labels:
    """A counter of a merged day or hour."""
    return _labels.decode(zlib.decompress(item["body"]["B"]))


def footprint_key(site_id: str, session_id: str) -> tuple[str, str]:
    """(pk, sk) of the footprint of an erased session."""
    return f"{site_id}#erased", session_id


def footprint_item(site_id: str, session_id: str, footprint: Footprint) -> Item:
    """Says where an erased session had been: its visitor is still in the roll-ups of those quarters.

    It is put before the session's tombstone, so it is there whoever finds that; and only where there is none, as an
    attempt that began before that tombstone may find events deleted that came to it.
    """
    pk, sk = footprint_key(site_id, session_id)
    return {"pk": {"S": pk}, "sk": {"S": sk}, "body": {"B": _packer.encode(footprint)}}


def read_footprint(item: Mapping[str, Any]) -> Footprint:
    """The inverse of :func:`footprint_item`."""
    return _footprint.decode(item["body"]["B"])


def erased_user_key(key: str) -> Item:
    """The key of what is known of a user's erasure; ``key`` is a hash of site and user."""
    return {"pk": {"S": ERASURES}, "sk": {"S": key}}


def erased_user_item(key: str, version: str, erased: ErasedUser) -> Item:
    """The item of a user's erasure; ``version`` is another at each write."""
    body = zlib.compress(_packer.encode(erased), 6)
    return erased_user_key(key) | {"pos": {"S": version}, "body": {"B": body}}


def read_erased_user(item: Mapping[str, Any]) -> StoredErasedUser:
    """The inverse of :func:`erased_user_item`."""
    return StoredErasedUser(item["pos"]["S"], _erased_user.decode(zlib.decompress(item["body"]["B"])))


def marks_key(site_id: str) -> str:
    """The partition of a site's marks: of days (their sk), and of hours (their sk, ``#`` and the shard)."""
    return f"{site_id}#marks"


def hour_mark(site_id: str, hour: int, shard_id: str, position: str) -> Item:
    """Says that a shard changed roll-ups of the hour from ``hour`` (ms) on: what is merged of it is not all.

    It is put after the roll-ups and before the sessions of a batch, which a retry does again. So whoever reads the
    mark first and the roll-ups then has all that it stands for; ``position`` tells it from later ones.
    """
    sk = f"{merged_sk(hour, whole_day=False)}#{shard_id}"
    return {"pk": {"S": marks_key(site_id)}, "sk": {"S": sk}, "pos": {"S": position}}


def day_mark(site_id: str, day: int, made_of: str) -> Item:
    """Says that an hour of the UTC day from ``day`` (ms) on was merged anew, and the day was not."""
    sk = merged_sk(day, whole_day=True)
    return {"pk": {"S": marks_key(site_id)}, "sk": {"S": sk}, "pos": {"S": made_of}}


def shard_item(progress: ShardProgress) -> Item:
    """The item that tells how far a shard's consumer has come."""
    return {
        "pk": {"S": SHARDS},
        "sk": {"S": progress.shard_id},
        "at": {"N": str(progress.at)},
        "behind": {"N": str(progress.behind)},
        "sequence_number": {"S": progress.sequence_number},
        "arrived": {"N": str(progress.arrived)},
        "rate": {"N": f"{progress.rate:.1f}"},
        "speed": {"N": f"{progress.speed:.3f}"},
    }


def read_shard(item: Mapping[str, Any]) -> ShardProgress:
    """The inverse of :func:`shard_item`."""
    return ShardProgress(
        item["sk"]["S"],
        int(item["at"]["N"]),
        int(item["behind"]["N"]),
        item.get("sequence_number", {}).get("S", ""),
        int(item.get("arrived", {}).get("N", 0)),
        float(item.get("rate", {}).get("N", 0)),
        float(item.get("speed", {}).get("N", 0)),
    )


def site_item(site_id: str) -> Item:
    """The entry of a site in the list of sites."""
    return {"pk": {"S": SITES}, "sk": {"S": site_id}}


def quarantine_item(poison: Poison, shard_id: str) -> Item:
    """The item of a rejected payload, keyed by its position: quarantined again it is the same item.

    A payload too long for an item is cut, and ``size`` tells its full length.
    """
    return {
        "pk": {"S": shard_id},
        "sk": {"S": poison.position},
        "sequence_number": {"S": poison.sequence_number},
        "reason": {"S": poison.reason},
        "detail": {"S": poison.detail},
        "payload": {"B": poison.payload[:MAX_STORED_PAYLOAD]},
        "size": {"N": str(len(poison.payload))},
        "arrived": {"N": str(poison.arrived)},
        "expires": {"N": str(poison.arrived + QUARANTINE_LIFETIME_S)},
    }
