"""The archive through the consumer's fold: what events older than the stream's retention are replayed from.

It goes hour by hour. All objects up to the hour after are read before an hour is folded; within it, shards go one
after the other in the order of their ids (a child's is greater than its parent's), each in the order of its positions
and in batches like a mapping's. As positions are the stream's own, what is in the tables already is not counted again:
a fold that was interrupted anywhere goes on from the last hour that it saved, and the stream may overlap its end.

The bounds that this rests on:

- A record is in an object of its hour of arrival or of one within the lookahead (an hour) after it. (Firehose names an
  object by the arrival of its oldest record, so it should be none after it.) What comes later than that, behind records
  of its shard that are folded, would be skipped as a redelivery: it stops the fold (:class:`LateRecords`) instead.
- A record is in an object at most REACH_MS before its hour: what an object spans that Firehose made when it was behind.
- Repeats are known for twice the lookahead. An older one stops the fold as well: nothing tells it from a late record.
- An object that comes into an hour after that was read is not seen. So leave out the latest hours, as
  :func:`stream_consumer.replay.handover.settled` says, and take them from the stream.

In memory are the records of two hours of arrival, compressed (60 to 100 bytes of an event), 8 bytes for each of the two
hours before, and one object's lines; with a longer lookahead accordingly more.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from stream_consumer.archive.lines import ArchivedRecord, entries_of
from stream_consumer.archive.reader import Archive, ArchiveError, DamagedObject, hour_of
from stream_consumer.archive.window import LateRecord, Window
from stream_consumer.consume import Store, consume
from stream_consumer.kinesis_batch import Batch, Entry, position
from stream_consumer.merged import HOUR_MS
from stream_consumer.table import Unavailable

LOOKAHEAD_MS = HOUR_MS
REACH_MS = 24 * HOUR_MS
#: What one batch holds at most: payloads, and bytes of them (one more may take it over).
BATCH_PAYLOADS = 5_000
BATCH_BYTES = 4 * 1024 * 1024
#: Tries of a batch whose table cannot be reached, some minutes in all.
TRIES = 8
_LONGEST_PAUSE_S = 60.0


class LateRecords(ArchiveError):  # noqa: N818 - says what is the case
    """Records turned up behind others of their shard that are folded already."""


class ShardEnd(Struct, frozen=True):
    """The last record of a shard that is folded or was passed over. ``arrived`` in ms since 1970."""

    sequence_number: str
    index: int
    arrived: int


class Refolded(Struct, frozen=True):
    """How far a fold of the archive has come, which is what the next run needs to go on (``msgspec.to_builtins``).

    ``until``: what had arrived before (ms) is folded, 0 if nothing is. ``read``: objects of hours before this were
    read. ``ends`` is by shard. ``counts``: ``received`` payloads, of which ``applied``, ``duplicate``, ``late``,
    ``erased`` and ``quarantined`` (as :class:`stream_consumer.consume.Outcome` has them); ``passed_over``, records from
    before the fold's start; and lines that could not be read, by their reason.
    """

    until: int = 0
    read: int = 0
    ends: dict[str, ShardEnd] = {}
    counts: dict[str, int] = {}


class Progress(Struct, frozen=True):
    """Where a fold is: ``hours_done`` of ``hours`` to fold are done; ``counts`` are those of :class:`Refolded`."""

    hours_done: int
    hours: int
    counts: Mapping[str, int]


def refold(
    archive: Archive,
    tables: Store,
    *,
    since: int,
    until: int | None,
    done: Refolded | None = None,
    save: Callable[[Refolded], None] = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    bad: Callable[[DamagedObject], None] | None = None,
    accept_failed: bool = False,
    lookahead: int = LOOKAHEAD_MS,
    pause: Callable[[float], None] = time.sleep,
) -> Refolded:
    """Fold what arrived in the stream from ``since`` on and before ``until`` (ms; None: all there is) into ``tables``.

    ``done`` is what an earlier run saved last with the same ``since`` (and an ``until`` that was not later); its
    result is again one. ``save`` is called after each hour, ``progress`` after each batch. ``lookahead`` is in ms.

    Raises :class:`Unavailable` where S3 or a table cannot be reached, a table after some tries;
    :class:`DamagedObject` for a line that cannot be read, unless ``bad`` takes it, then it is counted and passed over;
    :class:`LateRecords`; and :class:`ArchiveError` if Firehose failed to archive records of the time asked for,
    unless ``accept_failed``. After any of them, and after a crash, the same call goes on from the last ``save``.
    """
    done = done or Refolded()
    # An object of the hour before may hold some of this.
    if not accept_failed and (failed := archive.failed_hours(max(0, since - LOOKAHEAD_MS), until)):
        raise ArchiveError(
            f"records of {len(failed)} hours, from {hour_text(failed[0])} to {hour_text(failed[-1])}, could not be "
            f"archived and are in s3://{archive.bucket} under the error prefix, without their positions: the fold "
            "would be without them. See why, and say so if it shall go on without them"
        )
    fold = _Fold(archive, tables, since, done, lookahead=lookahead, bad=bad, pause=pause)
    start = max(0, hour_of(max(since, done.until)) - REACH_MS)
    end = None if until is None else hour_of(until - 1) + HOUR_MS + lookahead
    hours = archive.hours(start, end)
    cuts = [hour + HOUR_MS for hour in hours if hour + HOUR_MS > done.until]
    cuts = [cut for cut in cuts if until is None or cut < until]
    # The last may have what no object of its own hour is there for.
    for at, cut in enumerate([*cuts, until if until is not None else _NEVER], 1):
        while hours and hours[0] < cut + lookahead:
            fold.take(hours.pop(0))
        for counts in fold.fold(cut):
            progress(Progress(at - 1, len(cuts) + 1, counts))
        done = fold.result(max([done.until, *cuts] if cut == _NEVER else [done.until, cut]))
        save(done)
        progress(Progress(at, len(cuts) + 1, done.counts))
    return done


#: Later than any arrival.
_NEVER = 1 << 60


class _Fold:
    """One run of :func:`refold`."""

    def __init__(
        self,
        archive: Archive,
        tables: Store,
        since: int,
        done: Refolded,
        *,
        lookahead: int,
        bad: Callable[[DamagedObject], None] | None,
        pause: Callable[[float], None],
    ) -> None:
        self._archive = archive
        self._tables = tables
        self._since = since
        self._done = done
        self._lookahead = lookahead
        self._bad = bad
        self._pause = pause
        self._read = done.read
        self._counts = Counter(done.counts)
        self._ends = dict(done.ends)
        ends = {shard: position(end.sequence_number, end.index) for shard, end in done.ends.items()}
        self._window = Window(ends, since)

    def result(self, until: int) -> Refolded:
        """What is done when what arrived before ``until`` is folded."""
        return Refolded(until, max(self._done.read, self._read), dict(self._ends), dict(self._counts))

    def take(self, hour: int) -> None:
        """Read all objects of an hour."""
        self._read = hour + HOUR_MS
        again = hour < self._done.read
        for key in self._archive.objects(hour):
            records = self._archive.records(key, None if self._bad is None else self._pass_over(again))
            if again:
                self._window.add_again(records, self._done.until - 2 * self._lookahead, self._done.until)
                continue
            try:
                self._window.add(records)
            except LateRecord as late:
                raise LateRecords(
                    f"s3://{self._archive.bucket}/{key} has {late}, which is folded already: the object came more than "
                    f"{self._lookahead / HOUR_MS:g} h late, or repeats what is much older. Start the fold anew, into "
                    "tables that are empty, with a longer lookahead"
                ) from late

    def fold(self, before: int) -> Iterator[Mapping[str, int]]:
        """Fold what arrived before ``before`` (ms); the counts so far, after each batch."""
        for shard_id, records in self._window.take(before):
            for batch in self._batches(shard_id, records):
                self._consume(batch)
                yield self._counts
        self._window.forget(before - 2 * self._lookahead)

    def _batches(self, shard_id: str, records: Iterator[ArchivedRecord]) -> Iterator[Batch]:
        entries: list[Entry] = []
        size, last = 0, None
        for record in records:
            self._ends[shard_id] = ShardEnd(record.sequence_number, record.index or 0, record.arrived)
            if record.arrived < self._since:
                self._counts["passed_over"] += 1
                continue
            entries += entries_of(record)
            size += len(record.payload)
            last = record
            if len(entries) >= BATCH_PAYLOADS or size >= BATCH_BYTES:
                yield _batch(shard_id, entries, last)
                entries, size = [], 0
        if entries and last:
            yield _batch(shard_id, entries, last)

    def _consume(self, batch: Batch) -> None:
        done: Counter[str] = Counter()
        for tries in range(TRIES):
            outcome = consume(batch, self._tables)
            done.update(applied=outcome.applied, late=outcome.late, erased=outcome.erased)
            if outcome.failed_from is None:
                done["quarantined"] = outcome.quarantined.total()
                # Not the duplicates of the last try, to which what an earlier one did is a repeat.
                done["duplicate"] = len(batch.entries) - done.total()
                self._counts.update(done, received=len(batch.entries))
                return
            self._pause(min(_LONGEST_PAUSE_S, 2**tries) * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret
        raise Unavailable(f"{TRIES} tries of a batch of {batch.shard_id} failed, the last: {outcome.failure}")

    def _pass_over(self, again: bool) -> Callable[[DamagedObject], None]:
        def take(damage: DamagedObject) -> None:
            assert self._bad is not None
            if not again:
                self._counts[damage.reason] += 1
                self._bad(damage)

        return take


def _batch(shard_id: str, entries: list[Entry], last: ArchivedRecord) -> Batch:
    numbers = {entry.sequence_number for entry in entries}
    return Batch(shard_id, entries[0].sequence_number, len(numbers), entries, last.sequence_number, last.arrived)


def hour_text(at: int) -> str:
    """A time (ms) as a person reads it."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at / 1000))
