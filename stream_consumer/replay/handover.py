"""From the archive to the stream: where the one may end, and whether the other takes over without a gap.

Positions are the same in both, so an overlap counts once, and only a gap is to be feared: records that the archive has
not and that the stream has not any more. Sequence numbers have holes, so that nothing is between two of them cannot
be seen from them. A shard is taken over without a gap if one of these holds:

- nothing of it can have expired: shard or stream are younger than the retention;
- its oldest record in the stream is at or before the archive's last of it;
- those who consumed it live (their progress is in the tables) have not come further than the archive.
"""

from __future__ import annotations

from collections.abc import Mapping

from stream_consumer.archive.reader import ArchiveError, hour_of
from stream_consumer.archive.refold import ShardEnd, hour_text
from stream_consumer.merged import HOUR_MS
from stream_consumer.replay.lag import Stream

#: How much earlier than need be the stream is read: approximate arrivals are not quite in the order of a shard.
_OVERLAP_MS = HOUR_MS


class Gap(ArchiveError):  # noqa: N818 - says what is the case
    """Records may be missing between the archive and the stream."""


def settled(now: int, retention: int) -> int:
    """The time (ms) up to which to fold the archive, so that the stream, which keeps records for ``retention`` (ms),
    takes over from there: the start of the hour that was half the retention ago.

    As late as it is safe, and as early: Firehose has had all that time to write its objects again (it tries for as long
    as the stream holds the records), and the stream's consumers have as long to come that far before they expire.
    """
    return hour_of(now - retention // 2)


def handover(
    ends: Mapping[str, ShardEnd], stream: Stream, *, now: int, consumed: Mapping[str, str] | None = None
) -> int:
    """The arrival (ms) from which the stream is to be read to go on after ``ends``, 0 for its oldest record.

    ``ends`` are those of :class:`stream_consumer.archive.refold.Refolded`. ``consumed``: the last sequence number that
    a live consumer has done, by shard (the ``sequence_number`` of its ``ShardProgress``, '' where that does not say);
    None where nothing is known of live consumers. Raises :class:`Gap` with a sentence on every shard that may have
    one, and ``Unavailable``.
    """
    _, created, retention = stream.described()
    horizon = now - retention
    old = _ids(stream, ShardFilter={"Type": "AT_TRIM_HORIZON"}) if created <= horizon else set()
    starts: list[int] = []
    gaps: list[str] = []
    for shard_id in sorted(_ids(stream)):
        end, first = ends.get(shard_id), stream.oldest(shard_id)
        if shard_id in old and (gap := _gap(shard_id, end, first, consumed, horizon)):
            gaps.append(gap)
        if first is not None:
            starts.append(first[1] if end is None else max(first[1], end.arrived))
    if gaps:
        raise Gap("; ".join(gaps))
    return max(0, min(starts) - _OVERLAP_MS) if starts else 0


def _ids(stream: Stream, **which: object) -> set[str]:
    return {shard["ShardId"] for shard in stream.shards(**which)}


def _gap(
    shard_id: str, end: ShardEnd | None, first: tuple[str, int] | None, consumed: Mapping[str, str] | None, horizon: int
) -> str:
    """Why records of a shard older than the retention may be missing, '' where none can be."""
    if end and first and int(first[0]) <= int(end.sequence_number):
        return ""
    seen = "" if consumed is None else consumed.get(shard_id, "-1")
    if seen and int(seen) <= int(end.sequence_number if end else -1):
        return ""
    archived = f"the archive ends at {hour_text(end.arrived)}" if end else "the archive has none of its records"
    holds = f"its oldest record came at {hour_text(first[1])}" if first else "it holds no record"
    return (
        f"{shard_id}: {archived}, and in the stream, which keeps what came after {hour_text(horizon)}, {holds}: "
        "what came in between may be in neither"
    )
