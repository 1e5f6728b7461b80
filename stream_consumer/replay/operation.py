"""The life of a replay: begun, caught up, promoted, rolled back, dropped. Each step may be interrupted and repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from stream_consumer.archive.reader import Archive, ArchiveError, DamagedObject
from stream_consumer.archive.refold import LOOKAHEAD_MS, Progress, Refolded, refold
from stream_consumer.generations import FIRST, Generation, Generations, Pointer, Refused, State, scoped
from stream_consumer.items import SITES, Item, footprint_key
from stream_consumer.merged import HOUR_MS
from stream_consumer.replay.base import DONE, Base, Copied
from stream_consumer.replay.handover import handover, settled
from stream_consumer.replay.lag import ShardLag, Stream, lags, longest, told
from stream_consumer.replay.mapping import Mappings
from stream_consumer.replay.scanning import scan, size
from stream_consumer.table import TableNames, Tables, delete_items, query_items

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: A replay reads the stream from this long (ms) before its start: collectors' clocks may be ahead of the stream's.
CLOCK_SKEW_MS = 5 * 60 * 1000
#: A replay from the oldest record that a stream holds begins this long (ms) after it: records expire meanwhile.
TRIM_MARGIN_MS = HOUR_MS
#: A generation that is being promoted has this long (ms) to come as far as the served one.
_CATCH_UP_MS = 10_000
#: Seconds in which every consumer has seen that a generation is being dropped.
_CONSUMERS_STOP = 4.0


class Prepared(msgspec.Struct, frozen=True):
    """What is done of preparing a generation: its ``progress``."""

    base: Copied = msgspec.field(default_factory=Copied)
    archive: Refolded = Refolded()


class Reading(msgspec.Struct, frozen=True):
    """How an archive is read: ``bad`` takes lines that cannot be read (None: they stop it), ``accept_failed`` goes on
    without what could not be archived, ``lookahead`` (ms) is how late an object may be.
    """

    bad: Callable[[DamagedObject], None] | None = None
    accept_failed: bool = False
    lookahead: int = LOOKAHEAD_MS


def prepared(generation: Generation) -> Prepared:
    """What is done of preparing a generation."""
    return msgspec.convert(generation.progress, Prepared)


_AS_IT_IS = Reading()

#: Told of work on the way: (what, how much more, of about how much).
Seen = Callable[[str, int, int], None]


def _unseen(what: str, count: int, of: int) -> None:
    pass


class Replays:
    """Replays of one deployment. ``mappings`` is None where something else follows the list of generations and drives
    their consumers, as `make run` does. ``clock`` gives ms since 1970.

    Methods raise ``Unavailable``, and :class:`Refused` with what is in the way.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        names: TableNames,
        stream: Stream,
        clock: Callable[[], int],
        *,
        mappings: Mappings | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.generations = Generations(client, names)
        self._client = client
        self._names = names
        self._stream = stream
        self._clock = clock
        self._mappings = mappings
        self._sleep = sleep

    def begin(self, asked: int | None, archive: Archive | None = None, *, another: bool = False) -> Generation:
        """A new generation that begins at ``asked`` (ms; rounded down to the hour), or with all that there is: that the
        stream holds, or with ``archive`` that one from its first full hour on.

        Where one begins there that is being prepared, or that is consumed and was never served, it is that one, unless
        it is to be ``another``: a command whose answer was lost is given again.
        """
        start, read_from = self._archive_cut(archive, asked) if archive else self._cut(asked)
        known, pointer = self.generations.all(), self.generations.pointer()
        for one in known:
            same = (one.start, one.archive) == (start, archive.bucket if archive else "")
            unserved = one.name not in (FIRST, pointer.serving, pointer.previous)
            if same and (one.state is State.PREPARING or (one.consumes and unserved and not another)):
                return one
            if one.state is State.PREPARING:
                raise Refused(
                    f"{one.name} is being prepared, from {moment(one.start)}: go on with it (replay start, without "
                    f"--from), or drop it (replay drop {one.name})"
                )
        source = pointer.serving
        self._check_source(source, read_from, start)
        new = Generation(
            f"g{int(known[-1].name[1:]) + 1}",
            State.PREPARING,
            base=source,
            start=start,
            read_from=read_from,
            archive=archive.bucket if archive else "",
            created=self._clock(),
        )
        if not self.generations.add(new):
            raise Refused("another replay was begun at the same time; look at `status`")
        return new

    def unfinished(self) -> Generation:
        """The generation that is being prepared."""
        for one in self.generations.all():
            if one.state is State.PREPARING:
                return one
        raise Refused("no replay is being prepared: say where one is to begin, as in --from 24h or --from TRIM_HORIZON")

    def prepare(
        self,
        generation: Generation,
        seen: Seen = _unseen,
        *,
        archive: Archive | None = None,
        reading: Reading = _AS_IT_IS,
        version: str = "",
        fan_out: bool = False,
    ) -> Generation:
        """Copy what a generation begins with, fold the ``archive`` if it has one, and let it be consumed from then on.

        Goes on where it was interrupted.
        """
        if generation.consumes:
            return generation
        if generation.start and prepared(generation).base.phase != DONE:
            generation = self._copy(generation, seen)
        if generation.archive:
            if archive is None or archive.bucket != generation.archive:
                raise Refused(f"{generation.name} is folded from the archive in {generation.archive}: name that one")
            try:
                generation = self._fold(generation, archive, reading, seen)
            except ArchiveError as error:
                raise Refused(str(error)) from error
        mapping = ""
        if self._mappings:
            arn, _, _ = self._stream.described()
            mapping = self._mappings.ensure(generation, arn, version=version, fan_out=fan_out)
        return self.generations.change(generation, replace(generation, state=State.CONSUMING, mapping=mapping))

    def _copy(self, generation: Generation, seen: Seen) -> Generation:
        so_far = prepared(generation)

        def save(copied: Copied) -> None:
            nonlocal generation
            generation = self._save(generation, replace(so_far, base=copied))

        base = Base(self._client, self._names, generation.base, generation.name, generation.start)
        base.copy(so_far.base, save, seen)
        return generation

    def _fold(self, generation: Generation, archive: Archive, reading: Reading, seen: Seen) -> Generation:
        """Fold the archive up to where the stream surely takes over, and see to it that it does."""
        tables = Tables(scoped(self._client, self._names, generation.name), self._names)
        so_far = prepared(generation)
        done, hours = so_far.archive, 0

        def save(folded: Refolded) -> None:
            nonlocal generation
            generation = self._save(generation, replace(so_far, archive=folded))

        def progress(at: Progress) -> None:
            nonlocal hours
            seen("hours", at.hours_done - hours, at.hours)
            hours = at.hours_done

        _, _, retention = self._stream.described()
        while done.until < (until := settled(self._clock(), retention)):
            hours = 0
            done = refold(
                archive,
                tables,
                since=generation.start - CLOCK_SKEW_MS,
                until=until,
                done=done,
                save=save,
                progress=progress,
                bad=reading.bad,
                accept_failed=reading.accept_failed,
                lookahead=reading.lookahead,
            )
        live = told(self._client, self._names, self.generations.pointer().serving)
        consumed = {shard: one.sequence_number for shard, one in live.items()}
        read_from = handover(done.ends, self._stream, now=self._clock(), consumed=consumed)
        return self.generations.change(generation, replace(generation, read_from=read_from))

    def _save(self, generation: Generation, so_far: Prepared) -> Generation:
        return self.generations.change(generation, replace(generation, progress=msgspec.to_builtins(so_far)))

    def lags(self, generation: Generation) -> list[ShardLag]:
        """Where the consumers of a generation stand."""
        return lags(self._stream, generation, told(self._client, self._names, generation.name))

    def promote(self, name: str, most_behind: int) -> Pointer:
        """Serve a generation, if it is at most ``most_behind`` (ms) behind the stream. Answers the new pointer.

        It waits until the generation has all that the one served now has shown, so that figures do not go back; unless
        ``most_behind`` allows more than such a wait should take.
        """
        pointer = self.generations.pointer()
        if pointer.serving == name:
            return pointer
        generation = self._known(name)
        if not generation.consumes:
            raise Refused(f"{name} is {generation.state}: nothing consumes into it")
        behind = longest(self.lags(generation), self._clock())
        if behind > most_behind:
            raise Refused(
                f"{name} is {behind / 1000:,.0f} s behind the stream, and may be {most_behind / 1000:g} s: figures "
                "would jump back. Wait (replay status --watch), or allow more with --max-lag"
            )
        if most_behind <= _CATCH_UP_MS:
            self._let_catch_up(generation, pointer.serving)
        return self._point(pointer, name)

    def unswept(self, name: str) -> list[str]:
        """The sites in whose visitor sets of a generation there are still visitors who were erased."""
        client, table = scoped(self._client, self._names, name), self._names.rollups
        sites = [item["sk"]["S"] for item in query_items(client, table, SITES)]
        return [site_id for site_id in sites if query_items(client, table, footprint_key(site_id, "")[0])]

    def rollback(self) -> tuple[Pointer, int]:
        """Serve again what was served before; the new pointer, and how far (ms) that is behind the stream.

        It is done however far that is: who rolls back is in a hurry.
        """
        pointer = self.generations.pointer()
        if not pointer.previous:
            raise Refused(f"{pointer.serving} is served, and none was before")
        generation = self._known(pointer.previous)
        if not generation.consumes:
            raise Refused(f"{generation.name}, which was served before, is {generation.state}")
        return self._point(pointer, generation.name), longest(self.lags(generation), self._clock())

    def drop(self, name: str, seen: Seen = _unseen, *, items_per_second: float = 0) -> Generation:
        """Delete all of a generation, in batches, at most so many items a second (0: as fast as it goes).

        Its consumers are stopped first. What one of them had in flight is deleted with the rest: it is looked through
        until nothing is found.
        """
        generation = self._known(name)
        if self.generations.pointer().serving == name:
            raise Refused(f"{name} is served; promote another one first, or roll back")
        if generation.state is State.DROPPED:
            return generation
        for one in self.generations.all():
            if one.state is State.PREPARING and one.base == name:
                raise Refused(f"{one.name} is being prepared from it: let that end (replay start), or drop that first")
        generation = self.generations.change(generation, replace(generation, state=State.DROPPING))
        if self._mappings:
            arn, _, _ = self._stream.described()
            self._mappings.remove(generation, arn)
        self._sleep(_CONSUMERS_STOP)
        while self._delete(name, seen, items_per_second):
            self._sleep(1)
        return self.generations.change(generation, replace(generation, state=State.DROPPED, progress={}))

    def _delete(self, name: str, seen: Seen, items_per_second: float) -> int:
        deleted = 0
        for table, keys in (
            (self._names.rollups, ("pk", "sk")),
            (self._names.session_events, ("pk", "sk")),
            (self._names.sessions, ("pk",)),
        ):
            of = size(self._client, table)
            client = scoped(self._client, self._names, name)

            def delete(items: list[Item], table: str = table, keys: tuple[str, ...] = keys) -> None:
                nonlocal deleted
                began = time.monotonic()
                delete_items(client, table, ({key: item[key] for key in keys} for item in items))  # noqa: B023
                deleted += len(items)
                if items_per_second:
                    self._sleep(max(0.0, len(items) / items_per_second - (time.monotonic() - began)))

            def more(count: int, table: str = table, of: int = of) -> None:
                seen(table, count, of)

            scan(self._client, table, name, delete, seen=more, attributes=", ".join(keys))
        return deleted

    def _let_catch_up(self, generation: Generation, served: str) -> None:
        shown = told(self._client, self._names, served)
        deadline = self._clock() + _CATCH_UP_MS
        while True:
            has = told(self._client, self._names, generation.name)
            behind = [
                shard
                for shard, one in shown.items()
                if one.arrived >= generation.read_from
                and (shard not in has or int(has[shard].sequence_number or 0) < int(one.sequence_number or 0))
            ]
            if not behind:
                return
            if self._clock() > deadline:
                raise Refused(
                    f"{generation.name} does not come as far as {served} is, in {', '.join(behind)}: is it consumed? "
                    "Look at replay status --watch"
                )
            self._sleep(0.1)

    def _point(self, old: Pointer, name: str) -> Pointer:
        new = Pointer(name, old.serving, self._clock())
        self.generations.point(old, new)
        return new

    def _known(self, name: str) -> Generation:
        generation = self.generations.get(name)
        if generation is None:
            raise Refused(f"there is no generation {name}; `status` lists those that there are")
        return generation

    def _cut(self, asked: int | None) -> tuple[int, int]:
        """(the start of the new generation, from when on it reads the stream), both 0 for everything there ever was."""
        _, created, retention = self._stream.described()
        now = self._clock()
        holds_all = created > now - retention + TRIM_MARGIN_MS
        oldest = created if holds_all else now - retention + TRIM_MARGIN_MS
        if asked is None:
            start = 0 if holds_all else oldest + CLOCK_SKEW_MS + -(oldest + CLOCK_SKEW_MS) % HOUR_MS
        elif asked > now:
            raise Refused(f"{moment(asked)} is not over yet")
        else:
            start = asked - asked % HOUR_MS
            if start - CLOCK_SKEW_MS < oldest:
                if not holds_all:
                    raise Refused(
                        f"the stream holds nothing from before {moment(oldest)}: begin later, with what it holds "
                        "(--from TRIM_HORIZON), or with the archive (--archive)"
                    )
                start = 0
        return start, max(0, start - CLOCK_SKEW_MS)

    def _archive_cut(self, archive: Archive, asked: int | None) -> tuple[int, int]:
        first = archive.first_hour()
        if first is None:
            raise Refused(f"nothing is archived in {archive.bucket} yet")
        # Its first hour may be a part of one.
        first += HOUR_MS
        start = first if asked is None else asked - asked % HOUR_MS
        _, _, retention = self._stream.described()
        if start < first:
            raise Refused(f"the archive has full hours from {moment(first)} on: begin there, or later")
        if start >= settled(self._clock(), retention):
            raise Refused(f"the stream itself holds what came from {moment(start)} on: leave out --archive")
        return start, start - CLOCK_SKEW_MS

    def _check_source(self, source: str, read_from: int, start: int) -> None:
        """What arrived before ``read_from`` must be in the source already: the replay does not read it."""
        generation = self._known(source)
        if not start:
            return
        for lag in self.lags(generation):
            if 0 < lag.next_arrived < read_from:
                raise Refused(
                    f"{source}, from which what is older is copied, has not come that far: its consumer of "
                    f"{lag.shard_id} is at {moment(lag.next_arrived)}. Wait until it has, or begin earlier"
                )


def moment(at: int) -> str:
    """A time (ms since 1970) as operators read and write it; 0 is the beginning."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at / 1000)) if at else "the beginning"
