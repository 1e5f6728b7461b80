"""The archive through the fold: the tables are those of the stream, to the byte, whatever happens on the way."""

from __future__ import annotations

import gzip
import random
from typing import Any

import msgspec
import pytest

from stream_consumer.archive import refold as subject
from stream_consumer.archive.reader import Archive, ArchiveError, DamagedObject, hour_prefix
from stream_consumer.archive.refold import LateRecords, Refolded, ShardEnd, refold
from stream_consumer.merged import HOUR_MS
from stream_consumer.table import Unavailable
from tests.archiving import (
    OTHER,
    PARENT,
    START,
    StreamRecord,
    a_stream,
    archive,
    figures,
    live,
    malformed,
    put,
)
from tests.builders import an_aggregate, an_event
from tests.fake_dynamodb import Crash, FakeDynamo, MemoryTables
from tests.fake_s3 import FakeS3


def archived(records: list[StreamRecord], seed: int = 0, *, repeat: float = 0.0) -> FakeS3:
    s3 = FakeS3()
    archive(s3, records, random.Random(seed), repeat=repeat)
    return s3


def run(s3: FakeS3, tables: MemoryTables, since: int = 0, until: int | None = None, **more: Any) -> Refolded:
    return refold(Archive(s3, "bucket"), tables, since=since, until=until, **({"pause": lambda _: None} | more))


def views(*numbers: int, arrived: int, shard: str = PARENT) -> list[StreamRecord]:
    """A page view a record, of sequence numbers ``numbers``."""
    return [
        StreamRecord(shard, n, an_aggregate([an_event(n, session_id=f"s{n}", timestamp=arrived)]), arrived)
        for n in numbers
    ]


@pytest.mark.parametrize("seed", range(12))
def test_the_tables_are_those_of_the_stream_whatever_the_objects_are(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(subject, "BATCH_PAYLOADS", rng.choice([1, 7, 5_000]))
    records = a_stream(seed)
    s3 = archived(records, seed, repeat=0.3)
    put(s3, [one for one in records if one.shard_id == OTHER][5:40])  # a repeat of another cut, over two hours
    tables = MemoryTables()
    done = run(s3, tables)
    wanted = live(records)
    assert figures(tables) == figures(wanted)
    assert tables.quarantine
    counts = done.counts
    kinds = ("applied", "duplicate", "late", "erased", "quarantined")
    assert counts["received"] == sum(counts[kind] for kind in kinds)
    assert counts["erased"] > 0
    assert counts["quarantined"] == len(wanted.quarantine)
    assert counts["duplicate"] == 0
    for shard, end in done.ends.items():
        assert end.sequence_number == str(max(one.number for one in records if one.shard_id == shard))


def test_records_before_the_start_are_passed_over_and_those_from_the_end_on_are_left_for_the_stream() -> None:
    records = a_stream(1)
    since, until = START + HOUR_MS + 123_456, START + 2 * HOUR_MS + 654_321
    tables = MemoryTables()
    done = run(archived(records), tables, since, until)
    # Up to the first of its shard that arrived later: approximate arrivals are not quite in order.
    taken = []
    for shard in {one.shard_id for one in records}:
        mine = [one for one in records if one.shard_id == shard]
        end = next((at for at, one in enumerate(mine) if one.arrived >= until), len(mine))
        taken += mine[:end]
    kept = [one for one in taken if one.arrived >= since]
    assert figures(tables) == figures(live(sorted(kept, key=lambda one: one.number)))
    assert done.until == until
    assert done.counts["passed_over"] > 0
    assert int(done.ends[OTHER].sequence_number) == max(one.number for one in taken if one.shard_id == OTHER)


@pytest.mark.parametrize("seed", range(3))
def test_the_stream_takes_over_with_an_overlap_and_nothing_counts_twice(seed: int) -> None:
    records = a_stream(seed)
    s3 = archived(records, seed)
    tables = MemoryTables()
    run(s3, tables, until=START + 2 * HOUR_MS)
    live([one for one in records if one.arrived >= START + HOUR_MS], 5, tables)
    assert figures(tables) == figures(live(records))


def test_a_fold_in_several_goes_is_that_in_one() -> None:
    records = a_stream(4)
    s3 = archived(records, repeat=0.3)
    tables = MemoryTables()
    done = None
    for until in (START - 5, START + HOUR_MS // 2, START + HOUR_MS, START + 2 * HOUR_MS + 77, None, None):
        done = run(s3, tables, until=until, done=done)
        assert done.counts.get("duplicate", 0) == 0
    assert figures(tables) == figures(live(records))


def test_what_comes_into_the_archive_later_is_folded_by_the_next_go() -> None:
    """As when a fold takes so long that the stream does not reach back to its end any more."""
    records = a_stream(5)
    early = [one for one in records if one.arrived < START + HOUR_MS * 2]
    s3 = archived(early)
    tables = MemoryTables()
    done = run(s3, tables, until=START + HOUR_MS)
    archive(s3, [one for one in records if one not in early], random.Random(5))
    run(s3, tables, done=done)
    assert figures(tables) == figures(live(records))


@pytest.mark.parametrize("fault", ["crash before", "crash after", "late"])
def test_a_fold_that_is_killed_at_any_write_goes_on_to_the_same_tables(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "BATCH_PAYLOADS", 6)
    records = a_stream(2, count=40)
    s3 = archived(records, repeat=0.3)
    wanted = figures(live(records))
    counting = MemoryTables()
    run(s3, counting)
    killed = 0
    for kill in range(1, counting.writes + 1, 5):
        dynamo = FakeDynamo(lambda n, kill=kill: fault if n == kill else "")
        tables = MemoryTables(dynamo)
        saved: list[bytes] = []
        try:
            run(s3, tables, save=lambda done, saved=saved: saved.append(msgspec.json.encode(done)))
        except Crash:
            killed += 1
            done = msgspec.json.decode(saved[-1], type=Refolded) if saved else None
            run(s3, tables, done=done)
        dynamo.land_all()
        assert figures(tables) == wanted
    assert killed > 20


def test_a_fold_that_is_killed_between_two_hours_goes_on_to_the_same_tables() -> None:
    records = a_stream(3)
    s3 = archived(records)
    wanted = figures(live(records))
    saves: list[Refolded] = []
    run(s3, MemoryTables(), save=saves.append)
    assert len(saves) >= 4
    assert [one.until for one in saves] == sorted(one.until for one in saves)
    for stop in range(len(saves)):
        tables = MemoryTables()
        saved: list[Refolded] = []

        def save(done: Refolded, saved: list[Refolded] = saved, stop: int = stop) -> None:
            if len(saved) == stop:
                raise Crash  # the hour is folded, and that is not saved
            saved.append(done)

        with pytest.raises(Crash):
            run(s3, tables, save=save)
        run(s3, tables, done=saved[-1] if saved else None)
        assert figures(tables) == wanted


@pytest.mark.parametrize("refused", range(1, 120, 7))
def test_what_cannot_be_written_is_tried_again_and_each_event_is_in_the_counts_once(refused: int) -> None:
    records = a_stream(6)
    tables = MemoryTables(FakeDynamo(lambda n: "refused" if n in (refused, refused + 3) else ""))
    pauses: list[float] = []
    done = run(archived(records), tables, pause=pauses.append)
    assert figures(tables) == figures(live(records))
    assert pauses
    undisturbed = run(archived(records), MemoryTables())
    assert done.counts == undisturbed.counts
    assert done.counts["duplicate"] == 0


def test_a_table_that_stays_away_is_an_error_after_some_minutes_and_the_next_run_goes_on() -> None:
    records = a_stream(6)
    broken = [True]
    tables = MemoryTables(FakeDynamo(lambda n: "refused" if broken[0] and n > 100 else ""))
    pauses: list[float] = []
    saved: list[Refolded] = []
    with pytest.raises(Unavailable, match=r"8 tries of a batch of shardId-\d+ failed"):
        run(archived(records), tables, pause=pauses.append, save=saved.append)
    assert 60 < sum(pauses) < 300
    broken[0] = False
    run(archived(records), tables, done=saved[-1] if saved else None)
    assert figures(tables) == figures(live(records))


def test_s3_that_cannot_be_read_is_an_error_of_its_own() -> None:
    s3 = archived(a_stream(0))
    s3.refused = 1
    with pytest.raises(Unavailable, match="ListObjectsV2 s3://bucket/errors/"):
        run(s3, MemoryTables())


def put_late(s3: FakeS3, records: list[StreamRecord], hours: int) -> None:
    """Put records in an object of so many hours after theirs, as Firehose names none."""
    for key in put(s3, records):
        s3.objects[hour_prefix(START + hours * HOUR_MS) + key.rpartition("/")[2]] = s3.objects.pop(key)


def test_a_record_in_an_object_of_the_hour_after_its_own_is_in_time() -> None:
    records = [*views(1, arrived=START + 10), *views(2, 3, arrived=START + 20), *views(9, arrived=START + 3 * HOUR_MS)]
    s3 = FakeS3()
    put_late(s3, records[:1], 1)
    put(s3, records[1:3])
    put(s3, records[3:])
    tables = MemoryTables()
    assert run(s3, tables).counts["applied"] == 4
    assert figures(tables) == figures(live(records))


def test_a_record_that_comes_too_late_stops_the_fold_and_a_repeat_does_not() -> None:
    s3 = FakeS3()
    on_time = views(1, 3, arrived=START + 10)
    put(s3, on_time)
    put(s3, views(4, arrived=START + 2 * HOUR_MS))
    put(s3, views(5, arrived=START + 4 * HOUR_MS))
    put_late(s3, on_time, 2)
    assert run(s3, MemoryTables()).counts["applied"] == 4
    put_late(s3, views(2, arrived=START + 10), 2)
    with pytest.raises(LateRecords, match=r"events/2023/11/15/00/.*folded already.*Start the fold anew"):
        run(s3, MemoryTables())
    tables = MemoryTables()
    assert run(s3, tables, lookahead=2 * HOUR_MS).counts["applied"] == 5
    early = views(1, 2, 3, arrived=START + 10)
    rest = [*views(4, arrived=START + 2 * HOUR_MS), *views(5, arrived=START + 4 * HOUR_MS)]
    assert figures(tables) == figures(live([*early, *rest]))
    # One from before the start is nobody's loss.
    assert run(s3, MemoryTables(), since=START + HOUR_MS).counts["applied"] == 2


def test_a_fold_that_goes_on_knows_the_repeats_that_one_in_one_go_knows() -> None:
    s3 = FakeS3()
    for hours in range(6):
        put(s3, views(hours + 1, arrived=START + hours * HOUR_MS))
    put_late(s3, views(1, arrived=START), 3)
    assert run(s3, MemoryTables()).counts["applied"] == 6
    tables = MemoryTables()
    done = run(s3, tables, until=START + HOUR_MS)
    assert run(s3, tables, done=done).counts["applied"] == 6


def test_a_repeat_that_nobody_remembers_stops_the_fold_rather_than_be_guessed() -> None:
    s3 = FakeS3()
    for hours in range(7):
        put(s3, views(hours + 1, arrived=START + hours * HOUR_MS))
    put_late(s3, views(1, arrived=START), 6)
    with pytest.raises(LateRecords):
        run(s3, MemoryTables())


def test_a_damaged_line_stops_the_fold_or_is_told_and_counted() -> None:
    s3 = FakeS3()
    (key,) = put(s3, views(1, 2, 3, arrived=START))
    (cut,) = put(s3, views(4, 5, arrived=START))
    (no_gzip,) = put(s3, views(6, arrived=START))
    lines = gzip.decompress(s3.objects[key]).splitlines(keepends=True)
    s3.objects[key] = gzip.compress(lines[0] + b"{\n" + lines[2])
    s3.objects[cut] = s3.objects[cut][:-12]
    s3.objects[no_gzip] = b"x"
    with pytest.raises(DamagedObject, match=r"s3://bucket/events/2023/11/14/\d\d/.*, line \d: "):
        run(s3, MemoryTables())
    told: list[DamagedObject] = []
    done = run(s3, MemoryTables(), bad=told.append)
    assert {(one.key, one.line) for one in told} == {(key, 2), (cut, 0), (no_gzip, 0)}
    assert {name: done.counts[name] for name in ("not_json", "cut_short", "not_gzip")} == dict.fromkeys(
        ("not_json", "cut_short", "not_gzip"), 1
    )
    assert done.counts["applied"] >= 2


def test_what_firehose_could_not_archive_stops_a_fold_of_that_time_unless_that_is_accepted() -> None:
    s3 = FakeS3()
    put(s3, views(1, arrived=START))
    s3.objects["errors/2023/11/14/23/processing-failed/x.gz"] = b""
    with pytest.raises(ArchiveError, match=r"records of 1 hours, from 2023-11-14 23:00 UTC .*could not be archived"):
        run(s3, MemoryTables())
    assert run(s3, MemoryTables(), accept_failed=True).counts["applied"] == 1
    assert run(s3, MemoryTables(), until=START + 1).counts["applied"] == 1


def test_a_frame_that_is_malformed_is_quarantined_as_live() -> None:
    records = [StreamRecord(PARENT, 1, malformed([an_event(1)]), START), *views(2, arrived=START + 1)]
    s3 = FakeS3()
    put(s3, records)
    tables = MemoryTables()
    run(s3, tables)
    assert tables.quarantine == live(records).quarantine
    assert len(tables.quarantine) == 1


def test_progress_is_told_and_done_needs_little_room() -> None:
    told: list[tuple[int, int, int]] = []
    done = run(
        archived(a_stream(7)),
        MemoryTables(),
        progress=lambda at: told.append((at.hours_done, at.hours, at.counts.get("received", 0))),
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert told[-1][2] == done.counts["received"]
    assert msgspec.convert(msgspec.to_builtins(done), Refolded) == done
    assert len(msgspec.json.encode(done)) < 1000
    assert isinstance(done.ends[OTHER], ShardEnd)


def test_an_archive_with_nothing_in_it_is_folded_at_once() -> None:
    assert run(FakeS3(), MemoryTables(), 5, 10) == Refolded(until=10)
