"""A user is erased: nothing of the user is left in any generation, whatever comes between, and the rest is as it was."""

import itertools
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress

import boto3
import pytest

from producer.batching import lane_of, partition_key_of
from producer.erasure import decode as decode_erasure
from producer.event import encode
from stream_consumer import __main__ as cli
from stream_consumer import erasure
from stream_consumer.compaction import Compaction
from stream_consumer.consume import consume
from stream_consumer.erasure import Erasures, NotConsumed
from stream_consumer.generations import FIRST, Generation, Generations, State, prefix_of, scoped
from stream_consumer.items import ERASURES, read_rollup
from stream_consumer.kinesis_batch import corrected, position, read
from stream_consumer.merged import HOUR_MS
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS
from stream_consumer.table import Conflict, Tables, Unavailable
from stream_consumer.visitors import Visitors
from tests.builders import NOON, a_lambda_event, a_long_event, an_event
from tests.fake_dynamodb import FAULTS, NAMES, Crash, FakeDynamo, MemoryTables
from tests.query_api import stored
from tests.simulation.fold import compacted_differences, sums
from tests.simulation.world import AFTER_ALL

LANES = 4
HOUR = NOON - NOON % HOUR_MS
#: Of two visitors: one who tells her name in the middle of a session and comes again a day later, and one who does not.
OTHERS = [an_event(n, session_id="other", event_type="click", timestamp=NOON + n) for n in range(1, 4)]
HERS = [
    a_long_event(11, session_id="a", title="secret", timestamp=NOON + 5),
    an_event(12, session_id="a", user_id="mia", timestamp=NOON + QUARTER_MS, event_type="conversion"),
    an_event(13, session_id="b", user_id="mia", timestamp=NOON + 24 * HOUR_MS, received_at=NOON + 24 * HOUR_MS),
]
HOURS = [HOUR, HOUR + 24 * HOUR_MS]


class Deployment:
    """A stream of one shard, the tables, and a consumer for each generation, which works while others sleep."""

    def __init__(self, *generations: str) -> None:
        self.dynamo = FakeDynamo()
        self.stream: list[bytes] = []
        self.read: dict[str, int] = {}
        self.now = NOON + 48 * HOUR_MS
        self.stopped = False
        self.consuming = False
        self.lanes: list[str] = []
        for generation in (FIRST, *generations):
            self.start(generation)
        self.erasures = Erasures(
            self.dynamo,  # type: ignore[arg-type]
            NAMES,
            self,  # type: ignore[arg-type]
            "events",
            LANES,
            writers=1,
            now=lambda: self.now,
            sleep=self.sleep,
        )

    def start(self, generation: str) -> None:
        """A generation, to be consumed from the stream's first record on."""
        if generation != FIRST:
            Generations(self.dynamo, NAMES).add(Generation(generation))  # type: ignore[arg-type]
        self.read[generation] = 0

    def put_record(self, *, StreamName: str, Data: bytes, PartitionKey: str, ExplicitHashKey: str) -> dict:
        self.stream.append(Data)
        self.lanes.append(PartitionKey)
        return {"SequenceNumber": str(len(self.stream))}

    def send(self, events) -> None:
        self.stream += [encode(event) for event in events]
        self.consume()

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1000)
        if not self.stopped:
            self.consume()

    def consume(self) -> None:
        self.consuming = True
        for generation, done in self.read.items():
            if done < len(self.stream):
                batch = read(a_lambda_event(self.stream[done:], first=done + 1))
                if consume(batch, self.tables(generation)).failed_from is None:
                    self.read[generation] = len(self.stream)
        self.consuming = False

    def tables(self, generation: str) -> Tables:
        return Tables(scoped(self.dynamo, NAMES, generation), NAMES, writers=1)  # type: ignore[arg-type]

    def erase(self, timeout: float = 60):
        return self.erasures.erase("blog", "mia", timeout)

    def rollups(self, generation: str = FIRST) -> list[dict]:
        prefix = f"{prefix_of(generation)}blog#0"
        return [item for key, item in self.dynamo.tables[NAMES.rollups].items() if key[0].startswith(prefix)]

    def visitors(self, generation: str = FIRST) -> dict[int, bytes]:
        """Who was there in each quarter, over all shards."""
        found: dict[int, Visitors] = {}
        for item in self.rollups(generation):
            rollup = read_rollup(item).rollup
            found.setdefault(rollup.quarter, Visitors()).merge_bytes(rollup.visitors)
        return {quarter: one.to_bytes() for quarter, one in found.items() if one.estimate()}

    def figures(self, generation: str = FIRST):
        return sums(self.rollups(generation)), self.visitors(generation)


def never(*generations: str) -> Deployment:
    """As if she had never come."""
    deployment = Deployment(*generations)
    deployment.send(OTHERS)
    return deployment


def visited(*generations: str) -> Deployment:
    deployment = Deployment(*generations)
    deployment.send([*OTHERS, *HERS])
    return deployment


def left_of_her(deployment: Deployment) -> list:
    """The items that hold her name or what she saw, and footprints, which are still to be worked on."""
    return [
        key
        for rows in deployment.dynamo.tables.values()
        for key, item in rows.items()
        if key[0].endswith("#erased") or any(sign in _readable(item) for sign in (b"mia", b"secret"))
    ]


def _readable(item: dict) -> bytes:
    body = item.get("body", {}).get("B", b"")
    with suppress(zlib.error):
        body = zlib.decompress(body)
    return repr({name: value for name, value in item.items() if name != "body"}).encode() + body


@pytest.mark.parametrize("generations", [(), ("g2",), ("g2", "g3")])
def test_nothing_is_left_of_an_erased_user_and_the_figures_are_as_if_there_had_been_none(generations) -> None:
    deployment = visited(*generations)
    assert left_of_her(deployment)
    done = deployment.erase()
    assert (done.sessions, done.generations) == (["a", "b"], [FIRST, *generations])
    assert done.arrivals == HOURS
    assert done.rollups == 3 * (1 + len(generations))
    assert left_of_her(deployment) == []
    for generation in (FIRST, *generations):
        assert deployment.figures(generation) == never().figures()
        assert set(deployment.tables(generation).load_sessions([("blog", "other")])) == {("blog", "other")}
    assert deployment.lanes == [partition_key_of(lane_of(session_id, LANES)) for session_id in ("a", "b")]


def test_a_second_time_there_is_nothing_to_do_but_to_say_where_the_archive_has_her() -> None:
    deployment = visited()
    first = deployment.erase()
    tables = {name: dict(rows) for name, rows in deployment.dynamo.tables.items()}
    deployment.now += 1000
    again = deployment.erase()
    assert (again.sessions, again.rollups) == ([], 0)
    assert (again.arrivals, again.erased_at) == (first.arrivals, first.erased_at)
    assert len(deployment.lanes) == 2
    assert deployment.dynamo.tables == tables


def test_who_is_not_known_needs_no_erasure() -> None:
    deployment = never()
    done = deployment.erase()
    assert (done.sessions, done.arrivals, done.erased_at) == ([], [], 0)
    assert not [key for key in deployment.dynamo.tables[NAMES.rollups] if key[0] == ERASURES]


def test_what_is_found_is_what_goes() -> None:
    deployment = visited("g2")
    writes = deployment.dynamo.writes
    found = deployment.erasures.find("blog", "mia")
    assert (found.sessions, found.events, found.arrivals) == (["a", "b"], 3, HOURS)
    assert deployment.dynamo.writes == writes
    assert deployment.stream[-1] == encode(HERS[-1])


def test_what_the_consumers_have_not_come_to_is_told_and_gone_on_with() -> None:
    deployment = visited("g2")
    deployment.stopped = True
    with pytest.raises(NotConsumed, match="2 by g1, 2 by g2"):
        deployment.erase()
    deployment.stopped = False
    assert deployment.erase().sessions == ["a", "b"]
    assert left_of_her(deployment) == []
    assert deployment.figures() == deployment.figures("g2") == never().figures()


def test_generations_that_nobody_writes_any_more_are_not_waited_for() -> None:
    deployment = visited()
    for name, state in (("g2", State.DROPPED), ("g3", State.DROPPING)):
        Generations(deployment.dynamo, NAMES).add(Generation(name, state))  # type: ignore[arg-type]
    assert deployment.erase().generations == [FIRST]


@pytest.mark.parametrize("fault", FAULTS)
def test_interrupted_anywhere_it_goes_on_where_it_was(fault: str) -> None:
    wanted = never().figures()
    for write in itertools.count(1):
        deployment = visited("g2")
        at = deployment.dynamo.writes + write
        deployment.dynamo.choose = lambda number: fault if number == at else ""
        with suppress(Crash, Conflict, Unavailable):
            deployment.erase()
        if not deployment.dynamo.faults:
            break
        deployment.now += 60_000
        done = deployment.erase()
        deployment.dynamo.land_all()
        assert done.arrivals == HOURS, f"{fault} at write {write}"
        assert left_of_her(deployment) == [], f"{fault} at write {write}"
        assert deployment.figures() == deployment.figures("g2") == wanted, f"{fault} at write {write}"
        assert compacted_differences(MemoryTables(deployment.dynamo)) == []
    assert write > 15


def test_merged_hours_are_merged_anew() -> None:
    deployment = visited()
    compaction = Compaction(deployment.dynamo, NAMES)  # type: ignore[arg-type]
    compaction.run(AFTER_ALL)
    deployment.erase()
    assert compaction.run(AFTER_ALL).hours == 2
    assert compacted_differences(MemoryTables(deployment.dynamo)) == []


def before_each_write_in_turn(act, prepare=lambda deployment: None) -> Iterator[tuple[Deployment, bool]]:
    """Deployments, each prepared, in which she was erased, and ``act(deployment)`` done just before the first, second, ... write of that
    which is not a consumer's; and whether there was such a write.
    """
    for write in itertools.count(1):
        deployment = visited()
        prepare(deployment)
        seen = 0

        def between(deployment=deployment, write=write) -> None:
            nonlocal seen
            if not deployment.consuming:
                seen += 1
                if seen == write:
                    act(deployment)

        deployment.dynamo.between = between
        deployment.erase()
        yield deployment, seen >= write
        if seen < write:
            return


def test_a_consumer_that_writes_during_the_sweep_is_not_written_over() -> None:
    come = [an_event(50, session_id="late", timestamp=NOON + 9)]
    with_one_more = never()
    with_one_more.send(come)
    runs = list(before_each_write_in_turn(lambda deployment: deployment.send(come)))
    assert len(runs) > 8
    for deployment, came in runs:
        assert deployment.figures() == (with_one_more if came else never()).figures()


def test_two_who_share_roll_ups_can_be_erased_at_once() -> None:
    """Both have been consumed, and both sweep: each of them may be the other's write in between."""

    def begin(deployment: Deployment) -> None:
        deployment.send([an_event(21, session_id="h", user_id="tom", timestamp=NOON + 7)])
        deployment.stopped = True
        with pytest.raises(NotConsumed):
            deployment.erasures.erase("blog", "tom", 60)
        deployment.stopped = False
        deployment.consume()

    def act(deployment: Deployment) -> None:
        deployment.dynamo.between = lambda: None
        assert deployment.erasures.erase("blog", "tom", 60).sessions == ["h"]

    runs = list(before_each_write_in_turn(act, begin))
    assert len(runs) > 8
    for deployment, came in runs:
        if not came:
            act(deployment)
        assert deployment.figures() == never().figures()


def test_who_comes_back_before_it_is_done_is_erased_together_with_what_was_pending() -> None:
    deployment = visited()
    deployment.stopped = True
    with pytest.raises(NotConsumed):
        deployment.erase()
    deployment.stopped = False
    deployment.send([an_event(31, session_id="c", user_id="mia")])
    assert deployment.erase().sessions == ["a", "b", "c"]
    assert deployment.figures() == never().figures()


def test_events_that_land_after_the_tombstone_are_deleted() -> None:
    """A write of a function that has ended may still be on its way."""
    deployment = visited()
    chunks = dict(deployment.dynamo.tables[NAMES.session_events])
    assert chunks
    deployment.stopped = True
    with pytest.raises(NotConsumed):
        deployment.erase()
    deployment.consume()
    deployment.dynamo.tables[NAMES.session_events] |= chunks
    deployment.erase()
    assert left_of_her(deployment) == []


def test_who_comes_back_is_there_again_and_stays() -> None:
    deployment = visited()
    back = an_event(31, session_id="c", user_id="mia", timestamp=NOON + QUARTER_MS + MINUTE_MS)
    consumed = deployment.consume

    def consume_and_come_back() -> None:
        consumed()
        if any(decode_erasure(data) for data in deployment.stream) and encode(back) not in deployment.stream:
            deployment.send([back])

    deployment.consume = consume_and_come_back  # type: ignore[method-assign]
    assert deployment.erase().sessions == ["a", "b"]
    wanted = never()
    wanted.send([back])
    assert deployment.figures() == wanted.figures()
    deployment.now += 1000
    assert deployment.erase().sessions == ["c"]
    assert deployment.figures() == never().figures()


def test_a_replay_of_the_whole_stream_does_not_bring_her_back() -> None:
    deployment = visited()
    deployment.erase()
    deployment.start("g2")
    deployment.consume()
    assert sums(deployment.rollups("g2")) == sums(never().rollups())
    erased = deployment.tables("g2").load_sessions([("blog", "a"), ("blog", "b")])
    assert all(one.session.erased for one in erased.values())
    assert len(erased) == 2
    assert deployment.erase().rollups == 3, "the replay has counted the visitor again"
    assert deployment.figures("g2") == deployment.figures() == never().figures()
    assert left_of_her(deployment) == []


def test_events_that_come_while_the_erasure_is_on_its_way_are_erased_too() -> None:
    deployment = visited()
    more = an_event(14, session_id="b", user_id="mia", timestamp=NOON + 30 * HOUR_MS, received_at=NOON + 30 * HOUR_MS)
    put = deployment.put_record

    def after_one_more(**record) -> dict:
        if encode(more) not in deployment.stream:
            deployment.stream.append(encode(more))
        return put(**record)

    deployment.put_record = after_one_more  # type: ignore[method-assign]
    assert deployment.erase().arrivals == [*HOURS, HOUR + 30 * HOUR_MS]
    assert deployment.figures() == never().figures()


def test_many_sessions_go_some_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(erasure, "AT_ONCE", 3)
    deployment = never()
    deployment.send([an_event(n, session_id=f"m{n}", user_id="mia") for n in range(10, 20)])
    told = []
    deployment.erasures.erase("blog", "mia", 60, lambda done, of: told.append((done, of)))
    assert told[-1] == (10, 10)
    assert told == sorted(told)
    assert deployment.figures() == never().figures()


def test_a_corrected_position_is_after_its_own_and_before_all_later_ones() -> None:
    at = position("99", 0)
    once, twice = corrected(at), corrected(corrected(at))
    assert len({at, once, twice}) == 3
    for later in (position("99", 1), position("99", 10), position("100", 0)):
        assert at < once < later
        assert at < twice < later


@pytest.fixture
def aws(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for table in ("sessions", "session_events", "rollups", "quarantine"):
        monkeypatch.setenv(f"LIVEINSIGHT_{table.upper()}_TABLE", getattr(stored.NAMES, table))
    monkeypatch.setenv("LIVEINSIGHT_STREAM", "events")
    monkeypatch.setattr(erasure, "PAUSE", 0)
    with stored.tables() as dynamodb:
        kinesis = boto3.client("kinesis", region_name="us-east-1")
        kinesis.create_stream(StreamName="events", ShardCount=1)
        stored.Consumer(dynamodb).consume([*OTHERS, *HERS])
        yield dynamodb, kinesis


def consume_stream(dynamodb, kinesis) -> None:
    """What a consumer does with the erasures, which come after all events."""
    iterator = kinesis.get_shard_iterator(
        StreamName="events", ShardId="shardId-000000000000", ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    datas = [record["Data"] for record in kinesis.get_records(ShardIterator=iterator)["Records"]]
    outcome = consume(read(a_lambda_event(datas, first=1000)), Tables(dynamodb, stored.NAMES, writers=1))
    assert outcome.failed_from is None


def test_the_command_shows_erases_waits_and_goes_on(aws, capsys) -> None:
    dynamodb, kinesis = aws
    hours = ["2023/11/14/22/", "2023/11/15/22/"]
    erase = ["erase", "--site", "blog", "--user", "mia"]
    assert cli.main([*erase, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out.split() == hours
    assert "would erase 2 sessions with 3 events" in shown.err
    assert cli.main([*erase, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sessions": ["a", "b"], "events": 3, "archive": hours}

    assert cli.main([*erase, "--timeout", "0"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "2 by g1 are left" in said.err
    assert "Run it again" in said.err

    consume_stream(dynamodb, kinesis)
    assert cli.main(erase) == 0
    done = capsys.readouterr()
    assert done.out.split() == hours
    assert "erased 2 sessions, and their visitor from 3 roll-ups, in g1" in done.err

    assert cli.main([*erase, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["sessions"], again["rollups"], again["archive"]) == ([], 0, hours)
    assert again["erased_at"] is not None


def test_the_command_finds_nobody_and_says_so(aws, capsys) -> None:
    assert cli.main(["erase", "--site", "blog", "--user", "nobody"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "no sessions" in said.err
    assert cli.main(["erase", "--site", "blog", "--user", "nobody", "--dry-run"]) == 0
    assert "no sessions" in capsys.readouterr().err


@pytest.mark.parametrize(("site", "user", "named"), [("a#b", "mia", "--site"), ("blog", "", "--user")])
def test_a_site_or_user_that_cannot_be_is_named(site: str, user: str, named: str, capsys) -> None:
    assert cli.main(["erase", "--site", site, "--user", user]) == 2
    assert named in capsys.readouterr().err
