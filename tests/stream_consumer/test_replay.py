"""A replay's life over tables in memory: begun, prepared, compared, promoted, rolled back, dropped."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any
from unittest import mock

import pytest

from producer.event import encode
from stream_consumer import __main__ as cli
from stream_consumer.archive.reader import Archive, hour_prefix
from stream_consumer.consume import consume
from stream_consumer.generations import FIRST, Generation, Generations, Pointer, Refused, State, scoped
from stream_consumer.items import read_rollup
from stream_consumer.merged import HOUR_MS
from stream_consumer.replay import commands
from stream_consumer.replay.base import DONE
from stream_consumer.replay.differences import Comparison
from stream_consumer.replay.operation import CLOCK_SKEW_MS, Replays, prepared
from stream_consumer.session import Session
from stream_consumer.table import Tables
from tests.archiving import StreamRecord, put
from tests.builders import NOON, a_batch, an_event
from tests.fake_dynamodb import NAMES, Crash, FakeDynamo
from tests.fake_s3 import FakeS3
from tests.stream_consumer.replaying import CUT, Consumer, MemoryStream, a_stream, figures, items_of, sums

NOW = CUT + 4 * HOUR_MS


class Deployment:
    """Tables, a stream, and the commands over them. ``now`` is the clock; sleeping moves it."""

    def __init__(self, seed: int = 7, count: int = 60) -> None:
        self.rng = random.Random(seed)
        self.dynamo = FakeDynamo()
        self.stream = a_stream(self.rng, count)
        self.now = NOW
        self.first = Consumer(self.dynamo, self.stream)
        self.generations = Generations(self.dynamo, NAMES)  # type: ignore[arg-type]
        self.replays = self.with_mappings(None)

    def with_mappings(self, mappings: Any) -> Replays:
        return Replays(
            self.dynamo,  # type: ignore[arg-type]
            NAMES,
            self.stream,  # type: ignore[arg-type]
            lambda: self.now,
            mappings=mappings,
            sleep=self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1000)

    def consumer_of(self, generation: Generation) -> Consumer:
        return Consumer(self.dynamo, self.stream, generation.name, generation.read_from)

    def replayed(self, start: int | None = CUT) -> Generation:
        """A second generation that has caught up with the first one."""
        self.first.run(self.rng)
        generation = self.replays.prepare(self.replays.begin(start))
        self.consumer_of(generation).run(self.rng)
        return generation


@pytest.fixture
def world() -> Deployment:
    return Deployment()


def test_a_replay_from_its_begin_to_its_end(world: Deployment) -> None:
    generation = world.replayed(CUT + 1234)
    assert generation == Generation(
        "g2",
        State.CONSUMING,
        base="g1",
        start=CUT,
        read_from=CUT - CLOCK_SKEW_MS,
        created=NOW,
        progress=generation.progress,
    )
    assert prepared(generation).base.phase == DONE
    found = Comparison(world.dynamo, NAMES, "g1", "g2").run()  # type: ignore[arg-type]
    assert found.none
    assert found.sessions == len(items_of(world.dynamo, "g1", NAMES.sessions)) > 5
    assert found.rollups > 10
    assert world.replays.promote("g2", 0) == Pointer("g2", "g1", world.now)
    assert world.replays.promote("g2", 0) == Pointer("g2", "g1", world.now), "given again it changes nothing"
    pointer, behind = world.replays.rollback()
    assert (pointer.serving, pointer.previous, behind) == ("g1", "g2", 0)
    world.replays.promote("g2", 0)
    before = figures(world.dynamo, "g2")
    assert world.replays.drop("g1").state is State.DROPPED
    for table in (NAMES.sessions, NAMES.session_events, NAMES.rollups):
        left = items_of(world.dynamo, "g1", table)
        assert not {key for key in left if key[0] != "generations"}
    assert figures(world.dynamo, "g2") == before
    assert world.replays.drop("g1").state is State.DROPPED, "given again it changes nothing"
    with pytest.raises(Refused, match="g1, which was served before, is dropped"):
        world.replays.rollback()


def test_from_the_streams_oldest_record_nothing_is_copied_if_it_holds_everything(world: Deployment) -> None:
    world.stream.created = NOW - 10 * HOUR_MS
    generation = world.replayed(None)
    assert (generation.start, generation.read_from) == (0, 0)
    assert figures(world.dynamo, "g2") == figures(world.dynamo, "g1")


def test_the_same_stretch_gives_the_same_bytes_whatever_the_batches_and_their_order(world: Deployment) -> None:
    world.stream.created = NOW - 10 * HOUR_MS
    world.first.run(world.rng)
    for name, most in (("g2", 1), ("g3", 3), ("g4", 1000)):
        Consumer(world.dynamo, world.stream, name).run(random.Random(most), most)
        assert figures(world.dynamo, name) == figures(world.dynamo, "g1")


def test_replaying_into_the_serving_generation_changes_nothing_at_all(world: Deployment) -> None:
    world.first.run(world.rng)
    before = {name: dict(rows) for name, rows in world.dynamo.tables.items()}
    again = Consumer(world.dynamo, world.stream)
    again.run(world.rng, most=7)
    for name in (NAMES.sessions, NAMES.quarantine):
        assert world.dynamo.tables[name] == before[name]
    assert figures(world.dynamo, "g1") == {
        key: item
        for key, item in figures(world.dynamo, "g1").items()
        if item in before[NAMES.rollups].values() or not key[1]
    }


def test_on_another_shard_layout_the_figures_are_equal(world: Deployment) -> None:
    """The same events on one shard: sums over shards are what they were."""
    world.first.run(world.rng)
    log = sorted((one for log in world.stream.records.values() for one in log), key=lambda one: one.arrived)
    other = FakeDynamo()
    events = [one.event for one in log]
    consume(a_batch(events), Tables(other, NAMES, writers=1))  # type: ignore[arg-type]

    assert sums(other, FIRST) == sums(world.dynamo, FIRST)


def test_a_replay_that_is_being_prepared_is_gone_on_with_and_no_second_one_is_begun(world: Deployment) -> None:
    world.first.run(world.rng)
    with pytest.raises(Refused, match="no replay is being prepared: say where"):
        world.replays.unfinished()
    begun = world.replays.begin(CUT)
    assert world.replays.begin(CUT + 59 * 60_000) == begun
    assert world.replays.unfinished() == begun
    with pytest.raises(Refused, match=r"g2 is being prepared, from 20.*drop it \(replay drop g2\)"):
        world.replays.begin(CUT + HOUR_MS)
    with pytest.raises(Refused, match="g2 is preparing: nothing consumes into it"):
        world.replays.promote("g2", 0)
    prepared_one = world.replays.prepare(begun)
    assert world.replays.begin(CUT) == prepared_one, "the command whose answer was lost is given again"
    assert world.replays.prepare(prepared_one) == prepared_one
    assert world.replays.begin(CUT + HOUR_MS).name == "g3"
    world.replays.drop("g3")
    assert world.replays.begin(CUT, another=True).name == "g4"
    world.replays.drop("g4")
    world.generations.point(Pointer(), Pointer("g2", "g1", 1))
    assert world.replays.begin(CUT).name == "g5", "one that is served is not what is asked for"


def test_what_the_stream_does_not_hold_any_more_is_refused_and_its_oldest_record_has_a_margin(
    world: Deployment,
) -> None:
    world.first.run(world.rng)
    world.stream.retention = 6 * HOUR_MS
    with pytest.raises(Refused, match=r"the stream holds nothing from before .*--archive"):
        world.replays.begin(NOW - 6 * HOUR_MS)
    with pytest.raises(Refused, match="is not over yet"):
        world.replays.begin(NOW + 1)
    assert world.replays.begin(None).start == NOW - 4 * HOUR_MS


def test_a_source_that_has_not_come_as_far_as_the_start_is_no_base(world: Deployment) -> None:
    world.first.run(world.rng, before=CUT - HOUR_MS)
    with pytest.raises(Refused, match=r"g1, from which what is older is copied, has not come that far: .* of shard-0"):
        world.replays.begin(CUT)


def test_a_generation_that_lags_is_not_promoted(world: Deployment) -> None:
    world.first.run(world.rng)
    generation = world.replays.prepare(world.replays.begin(CUT))
    consumer = world.consumer_of(generation)
    consumer.run(world.rng, before=CUT + HOUR_MS)
    lag = max(one.behind(world.now) for one in world.replays.lags(generation))
    assert 2 * HOUR_MS < lag <= 3 * HOUR_MS + 120_000
    with pytest.raises(Refused, match=r"g2 is .* s behind the stream, and may be 10 s: figures would jump back"):
        world.replays.promote("g2", 10_000)
    assert world.generations.pointer() == Pointer()
    assert world.replays.promote("g2", lag).serving == "g2", "who allows it gets it"


def test_a_generation_is_promoted_once_it_has_what_the_served_one_has_shown(world: Deployment) -> None:
    world.first.run(world.rng)
    generation = world.replays.prepare(world.replays.begin(CUT))
    consumer = world.consumer_of(generation)
    consumer.run(world.rng, before=CUT + HOUR_MS)
    world.now = CUT + HOUR_MS
    with pytest.raises(Refused, match="g2 does not come as far as g1 is, in shard-0, shard-2: is it consumed"):
        world.replays.promote("g2", 10_000)
    world.now = CUT + HOUR_MS
    catching_up = world.with_mappings(None)
    catching_up._sleep = lambda seconds: consumer.run(world.rng)  # type: ignore[method-assign]
    assert catching_up.promote("g2", 10_000).serving == "g2"
    assert figures(world.dynamo, "g2") == figures(world.dynamo, "g1")


def test_the_serving_generation_is_not_dropped_and_an_unknown_one_is_named(world: Deployment) -> None:
    with pytest.raises(Refused, match="g1 is served; promote another one first"):
        world.replays.drop("g1")
    with pytest.raises(Refused, match="there is no generation g7"):
        world.replays.drop("g7")
    with pytest.raises(Refused, match="g1 is served, and none was before"):
        world.replays.rollback()


def test_what_another_one_is_being_prepared_from_is_not_dropped(world: Deployment) -> None:
    world.replayed()
    world.replays.begin(CUT - HOUR_MS)
    world.replays.promote("g2", 0)
    with pytest.raises(Refused, match=r"g3 is being prepared from it: let that end \(replay start\)"):
        world.replays.drop("g1")
    assert figures(world.dynamo, "g1")
    world.replays.drop("g3")
    assert world.replays.drop("g1").state is State.DROPPED


def test_what_a_consumer_writes_while_its_generation_is_dropped_goes_too(world: Deployment) -> None:
    """It is looked through until nothing is found."""
    generation = world.replayed()
    late = [NOON + 5 * HOUR_MS]

    def sleep(seconds: float) -> None:
        if late:
            tables = Tables(scoped(world.dynamo, NAMES, "g2"), NAMES, writers=1)  # type: ignore[arg-type]
            consume(a_batch([an_event(9, session_id="late", timestamp=late.pop())]), tables)

    replays = Replays(world.dynamo, NAMES, world.stream, lambda: NOW, sleep=sleep)  # type: ignore[arg-type]
    real_delete = replays._delete
    with mock.patch.object(replays, "_delete", side_effect=lambda *a: real_delete(*a) + 0) as passes:
        replays.drop(generation.name)
    assert passes.call_count >= 2
    assert not any(
        items_of(world.dynamo, "g2", table) for table in (NAMES.sessions, NAMES.session_events, NAMES.rollups)
    )


def test_a_changed_definition_shows_in_exactly_the_sessions_that_it_changes(
    world: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounce is now a visit of less than ten minutes, whatever was done in it."""
    world.stream.created = NOW - 10 * HOUR_MS
    world.first.run(world.rng)
    before = {key[0]: item["counted"] for key, item in items_of(world.dynamo, "g1", NAMES.sessions).items()}
    generation = world.replays.prepare(world.replays.begin(None))
    monkeypatch.setattr(Session, "bounced", property(lambda session: session.duration < 3 * HOUR_MS))
    world.consumer_of(generation).run(world.rng)
    after = {key[0]: item["counted"] for key, item in items_of(world.dynamo, "g2", NAMES.sessions).items()}
    changed = {key for key in before if before[key] != after[key]}
    assert 0 < len(changed) < len(before)
    found = Comparison(world.dynamo, NAMES, "g1", "g2", examples=100).run()  # type: ignore[arg-type]
    assert {f"{one.site}#{one.session}" for one in found.session_examples} == changed
    assert {tuple(one.fields) for one in found.session_examples} == {("counted bounces",)}
    assert found.fields == {"counted bounces": len(changed)}
    (figure,) = found.figures["blog"]
    assert figure == "bounces"
    one, other = found.figures["blog"]["bounces"]
    assert other - one == sum(
        b.fields["counted bounces"][1] - b.fields["counted bounces"][0] for b in found.session_examples
    )
    assert not found.moving


def test_a_deployed_change_of_a_definition_leaves_no_remainder_in_the_roll_ups(
    world: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was counted by the old definition is taken back by the old one, and counted by the new one."""
    monkeypatch.setattr(Session, "bounced", property(lambda session: True))
    events = [an_event(n, session_id=f"s{n % 3}") for n in range(1, 7)]
    consume(a_batch(events[:3]), world.first.tables)
    monkeypatch.setattr(Session, "bounced", property(lambda session: False))
    consume(a_batch(events[3:], first=4), world.first.tables)
    stored = items_of(world.dynamo, "g1", NAMES.sessions).values()
    assert {item["counted"]["S"].split()[1] for item in stored} == {"0"}
    (rollup,) = [read_rollup(item).rollup for key, item in figures(world.dynamo, "g1").items() if key[1]]
    assert sum(minute[1] for minute in rollup.began) == 0


def test_what_differs_is_told_with_its_amount_and_what_moves_is_not_taken_for_a_difference(world: Deployment) -> None:
    world.replayed()
    extra = [an_event(500, session_id="only-in-g2", site_id="other")]
    consume(a_batch(extra), Tables(scoped(world.dynamo, NAMES, "g2"), NAMES, writers=1))  # type: ignore[arg-type]
    consume(a_batch([an_event(501, session_id="s0")], first=10_000, shard_id="shard-0"), world.first.tables)
    found = Comparison(world.dynamo, NAMES, "g1", "g2", sleep=lambda s: None).run()  # type: ignore[arg-type]
    assert not found.none
    assert found.moving >= 1, "session s0 is further in g1"
    assert found.fields == {"present": 1}
    assert found.session_examples[0].session == "only-in-g2"
    assert found.session_examples[0].fields == {"present": (False, True)}
    assert found.figures["other"]["sessions"] == (0, 1)
    assert found.figures["other"]["visitors"] == (0, 1)
    assert found.labels["other"]["page_views of page /p500"] == (0, 1)
    one_site = Comparison(world.dynamo, NAMES, "g1", "g2", site="other", sleep=lambda s: None).run()  # type: ignore[arg-type]
    assert (one_site.sessions, one_site.sessions_differ, one_site.moving) == (1, 1, 0)


def archived(stream: MemoryStream) -> Archive:
    """An archive of all that is in the stream, an object for each hour."""
    s3 = FakeS3()
    records = [
        StreamRecord(shard, one.sequence_number, encode(one.event), one.arrived)  # type: ignore[arg-type]
        for shard, log in stream.records.items()
        for one in log
    ]
    for hour in {one.arrived // HOUR_MS for one in records}:
        put(s3, [one for one in records if one.arrived // HOUR_MS == hour])
    return Archive(s3, "archive")


@pytest.mark.parametrize("seed", range(6))
def test_what_the_stream_holds_no_more_comes_from_the_archive_and_the_stream_takes_over(seed: int) -> None:
    """Whatever interrupts it; and the overlap counts once."""
    world = Deployment(seed, 120)
    archive = archived(world.stream)
    world.first.run(world.rng)
    world.stream.retention = 4 * HOUR_MS
    world.stream.expire(NOW - world.stream.retention)
    generation = world.replays.begin(CUT - HOUR_MS, archive)
    assert (generation.start, generation.archive) == (CUT - HOUR_MS, "archive")
    change = world.replays.generations.change

    def unlucky(old: Generation, new: Generation) -> Generation:
        if world.rng.random() < 0.4:
            raise Crash
        return change(old, new)

    with mock.patch.object(world.replays.generations, "change", unlucky):
        while generation.state is State.PREPARING:
            with suppress(Crash):
                generation = world.replays.prepare(world.replays.unfinished(), archive=archive)
    assert NOW - world.stream.retention <= generation.read_from + HOUR_MS <= CUT + 2 * HOUR_MS
    world.consumer_of(generation).run(world.rng)
    found, wanted = figures(world.dynamo, "g2"), figures(world.dynamo, "g1")
    assert {key: item for key, item in found.items() if key[1]} == {key: item for key, item in wanted.items() if key[1]}
    assert {key: item["body"] for key, item in found.items()} == {key: item["body"] for key, item in wanted.items()}
    assert Comparison(world.dynamo, NAMES, "g1", "g2").run().none  # type: ignore[arg-type]


def test_an_archive_is_read_only_where_it_has_full_hours_that_the_stream_has_not(world: Deployment) -> None:
    world.first.run(world.rng)
    archive = archived(world.stream)
    with pytest.raises(Refused, match="the archive has full hours from 2023-11-14T21:00:00Z on"):
        world.replays.begin(CUT - 2 * HOUR_MS, archive)
    with pytest.raises(Refused, match=r"the stream itself holds what came from .* leave out --archive"):
        world.replays.begin(CUT, archive)
    with pytest.raises(Refused, match="nothing is archived in archive yet"):
        world.replays.begin(None, Archive(FakeS3(), "archive"))
    world.stream.retention = 4 * HOUR_MS
    generation = world.replays.begin(None, archive)
    assert generation.start == CUT - HOUR_MS
    with pytest.raises(Refused, match="g2 is folded from the archive in archive: name that one"):
        world.replays.prepare(generation)


def test_between_archive_and_stream_nothing_may_be_missing(world: Deployment) -> None:
    archive = archived(world.stream)
    world.first.run(world.rng)
    world.stream.retention = 4 * HOUR_MS
    world.stream.expire(NOW)
    s3: Any = archive._s3
    for key in [key for key in s3.objects if hour_prefix(CUT + HOUR_MS) in key]:
        del s3.objects[key]
    with pytest.raises(Refused, match=r"shard-0: the archive ends at .* what came in between may be in neither"):
        world.replays.prepare(world.replays.begin(CUT - HOUR_MS, archive), archive=archive)


@pytest.fixture
def command(world: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command line; (exit status, stdout, stderr)."""
    monkeypatch.setattr(commands, "_tables", lambda: (world.dynamo, NAMES))
    monkeypatch.setattr(commands, "_stream", lambda: world.stream)
    monkeypatch.setattr(commands, "now_ms", lambda: world.now)
    monkeypatch.setattr("stream_consumer.replay.operation._CONSUMERS_STOP", 0)
    monkeypatch.delenv("LIVEINSIGHT_CONSUMER_FUNCTION", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(["replay", *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_the_commands_say_what_they_did(world: Deployment, command) -> None:
    world.first.run(world.rng)
    status, out, err = command("start", "--from", "4h")
    assert (status, out) == (0, "g2\n")
    assert "g2: from 2023-11-14T22:00:00Z, based on g1" in err
    assert "it is consumed from now on: see `replay status g2 --watch`" in err
    status, out, _ = command("status", "g2")
    assert status == 0
    assert out.splitlines()[0] == "g2: consuming, from 2023-11-14T22:00:00Z on g1"
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["shard-0", "shard-1", "shard-2"]
    status, _, err = command("promote", "g2")
    assert status == 1
    assert "s behind the stream, and may be 10 s" in err
    world.consumer_of(world.generations.get("g2")).run(world.rng)
    status, out, _ = command("status", "--json")
    facts = json.loads(out)
    assert (facts["serving"], [one["generation"] for one in facts["generations"]]) == ("g1", ["g1", "g2"])
    assert {shard["left"] for one in facts["generations"] for shard in one["shards"]} == {0.0}
    status, out, _ = command("diff", "g2")
    assert status == 0
    assert out.startswith("0 of ")
    status, out, _ = command("promote", "g2")
    assert (status, out) == (0, "g2 is served; `replay rollback` serves g1\n")
    assert command("rollback")[:2] == (0, "g1 is served\n")
    assert command("drop", "g2")[:2] == (0, "g2 is dropped\n")
    status, out, _ = command("status")
    assert "g2: dropped, served before" in out


def test_promoting_says_where_an_erased_visitor_is_to_be_swept(world: Deployment, command) -> None:
    world.stream = a_stream(world.rng, 60, erasures=2)
    world.first = Consumer(world.dynamo, world.stream)
    world.replays = world.with_mappings(None)
    world.replayed(CUT - HOUR_MS)
    status, out, err = command("promote", "g2")
    assert (status, out) == (0, "g2 is served; `replay rollback` serves g1\n")
    assert "visitors of blog who were erased are in its visitor sets (nowhere else): erase them again" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("start", "--from", "yesterday"), "--from 'yesterday': 24h, 90m or 7d, a time like"),
        (("start",), "no replay is being prepared"),
        (("promote", "g9"), "there is no generation g9"),
        (("diff", "g9"), "g9 cannot be compared: it is no generation"),
        (("diff", "g1"), "g1 is served: name another one to compare with it"),
        (("drop", "g1"), "g1 is served"),
        (("status", "g9"), "there is no generation g9"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_with_the_remedy(command, arguments: tuple[str, ...], says: str) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith(f"replay: {says}")


def test_a_name_that_is_none_is_a_wrong_command_line(command) -> None:
    with pytest.raises(SystemExit) as ended:
        command("drop", "shop")
    assert ended.value.code == 2


def test_an_unavailable_table_is_said_and_nothing_is_begun(world: Deployment, command) -> None:
    world.first.run(world.rng)
    world.dynamo.read = lambda: "refused"
    status, _, err = command("start", "--from", "4h")
    assert status == 1
    assert "Is `make run` running" in err


def test_a_stream_with_no_records_is_at_its_tip() -> None:
    world = Deployment()
    world.stream = MemoryStream({"shard-0": []}, created=NOW - HOUR_MS)
    replays = world.with_mappings(None)
    generation = replays.prepare(replays.begin(None))
    assert replays.promote(generation.name, 0).serving == "g2"
