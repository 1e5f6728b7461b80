import pytest

from query_api.reader import Reader
from stream_consumer import items
from stream_consumer.compaction import Compaction
from stream_consumer.items import rollup_item, session_item
from stream_consumer.merged import HOUR_MS
from stream_consumer.progress import ShardProgress
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS, RollUp
from stream_consumer.session import Session
from stream_consumer.stored_events import chunk_items, read_chunk
from stream_consumer.table import TableNames, Unavailable
from tests.builders import NOON, a_long_event, an_erasure, an_event
from tests.query_api.stored import NAMES, Consumer, tables

DAY = 24 * 3600 * 1000
MIDNIGHT = NOON - NOON % DAY


@pytest.fixture(scope="module")
def client():
    with tables() as client:
        yield client


class World:
    """A reader whose clock the test sets, and the names of the operations that it called."""

    def __init__(self, client, now=NOON + MINUTE_MS) -> None:
        self.now = now
        self.client = client
        self.called: list[str] = []
        self.reader = Reader(client, NAMES, clock=lambda: self.now, readers=4)
        client.meta.events.register("before-call.dynamodb", self._count)

    def _count(self, model, **_) -> None:
        self.called.append(model.name)

    def close(self) -> None:
        self.client.meta.events.unregister("before-call.dynamodb", self._count)
        self.reader.close()


@pytest.fixture
def world(client):
    world = World(client)
    yield world
    world.close()


def put_rollup(client, site, quarter, shard="shardId-000000000000") -> None:
    client.put_item(TableName=NAMES.rollups, Item=rollup_item(RollUp(site, quarter, shard), "0011.0"))


def test_roll_ups_of_a_range_are_those_of_its_quarters_and_one_query_a_day(client, world) -> None:
    for quarter in range(MIDNIGHT - 2 * QUARTER_MS, MIDNIGHT + DAY + 3 * QUARTER_MS, QUARTER_MS):
        put_rollup(client, "borders", quarter)
    put_rollup(client, "borders", MIDNIGHT, "shardId-000000000001")
    put_rollup(client, "other", MIDNIGHT)

    def quarters(start, end) -> list[int]:
        world.called.clear()
        return [rollup.quarter for rollup in world.reader.rollups("borders", range(start, end, QUARTER_MS))]

    assert quarters(MIDNIGHT, MIDNIGHT + QUARTER_MS) == [MIDNIGHT, MIDNIGHT]
    assert world.called == ["Query"]
    assert quarters(MIDNIGHT + QUARTER_MS, MIDNIGHT + 2 * QUARTER_MS) == [MIDNIGHT + QUARTER_MS]
    assert len(quarters(MIDNIGHT, MIDNIGHT + DAY)) == 97
    assert world.called == ["Query"]
    start, end = MIDNIGHT - QUARTER_MS, MIDNIGHT + DAY + QUARTER_MS
    assert sorted(set(quarters(start, end))) == list(range(start, end, QUARTER_MS))
    assert world.called == ["Query"] * 3
    assert quarters(MIDNIGHT - 9 * DAY, MIDNIGHT - 8 * DAY) == []


def test_a_long_range_is_read_in_order_whatever_the_number_of_readers(client, world) -> None:
    days = [NOON - back * DAY for back in range(60, 0, -7)]
    for quarter in days:
        put_rollup(client, "long", quarter)
    world.called.clear()
    found = [rollup.quarter for rollup in world.reader.rollups("long", range(NOON - 61 * DAY, NOON, QUARTER_MS))]
    assert found == days
    assert world.called == ["Query"] * 62
    world.called.clear()
    assert [rollup.quarter for rollup in world.reader.rollups("long", days)] == days
    assert world.called == ["Query"] * len(days)


def test_a_day_of_more_than_one_page_is_read_whole(client, world) -> None:
    body = {"B": b"x" * 300_000}
    for quarter in range(5):
        item = rollup_item(RollUp("pages", NOON + quarter * QUARTER_MS, "shard"), "0011.0")
        client.put_item(TableName=NAMES.rollups, Item=item | {"padding": body})
    assert len(list(world.reader.rollups("pages", range(NOON, NOON + 5 * QUARTER_MS, QUARTER_MS)))) == 5
    assert len(world.called) > 1


def test_marks_and_merged_items_are_read_by_their_keys(client, world) -> None:
    Consumer(client).consume([an_event(1, site_id="merged"), an_event(2, site_id="merged", timestamp=NOON - 9 * DAY)])
    hour = NOON - NOON % HOUR_MS
    assert world.reader.marks("merged", MIDNIGHT, NOON).in_hour(hour)
    assert world.reader.marks("merged", MIDNIGHT, NOON).in_day(MIDNIGHT)
    assert not world.reader.marks("merged", MIDNIGHT - DAY, MIDNIGHT).in_day(MIDNIGHT)
    Compaction(client, NAMES).run(NOON + 2 * DAY)
    assert not world.reader.marks("merged", MIDNIGHT - 10 * DAY, NOON).in_day(MIDNIGHT)
    world.called.clear()
    days = [MIDNIGHT - 9 * DAY, MIDNIGHT - DAY, MIDNIGHT]
    found = list(world.reader.merged_totals("merged", days, [hour]))
    assert [part.start for part in found] == [days[0], days[2], hour]
    assert [part.start for part in world.reader.merged_labels("merged", "page", days, [])] == [days[0], days[2]]
    assert len(world.called) <= 6


def test_active_sessions_that_are_quiet_are_not_read_again_each_time(client, world) -> None:
    consumer = Consumer(client)
    now = NOON + 20 * MINUTE_MS
    log = [
        an_event(n, site_id="calm", session_id=f"s{n}", timestamp=at, received_at=at)
        for n, at in enumerate([now - 10 * MINUTE_MS, now - 3 * MINUTE_MS, now - 1000])
    ]
    consumer.consume(log)

    def read_at(at: int) -> tuple[list[str], int]:
        world.now = at
        keys: list[int] = []
        counted = lambda params, **_: keys.append(len(params["RequestItems"][NAMES.sessions]["Keys"]))
        client.meta.events.register("provide-client-params.dynamodb.BatchGetItem", counted)
        found = world.reader.active("calm")
        client.meta.events.unregister("provide-client-params.dynamodb.BatchGetItem", counted)
        return found.order, sum(keys)

    assert read_at(now) == (["s2", "s1", "s0"], 3)
    assert read_at(now + 1000) == (["s2", "s1", "s0"], 1), "it may have another event in the same minute"
    back = an_event(9, site_id="calm", session_id="s0", timestamp=now + 1500, received_at=now + 1500)
    consumer.consume([back])
    assert read_at(now + 2000) == (["s0", "s2", "s1"], 2), "it has moved in the index"
    assert world.reader.active("calm").sessions["s0"].events == 2
    late = an_event(10, site_id="calm", session_id="s1", timestamp=now - 4 * MINUTE_MS, received_at=now + 2500)
    consumer.consume([late])
    read_at(now + 3000)
    read_at(now + 31_000)
    assert world.reader.active("calm").sessions["s1"].events == 2, "what came late is told of after a while"


def test_the_lag_is_that_of_the_shard_that_is_furthest_behind(client, world) -> None:
    assert world.reader.lag() is None
    for shard, at, behind in (("a", world.now, 900), ("b", world.now - 60_000, 4_500), ("c", world.now - DAY, 10**7)):
        client.put_item(TableName=NAMES.rollups, Item=items.shard_item(ShardProgress(shard, at, behind)))
    assert world.reader.lag() == 4.5


def test_a_users_sessions_are_found_the_last_begun_first(client, world) -> None:
    at = [NOON, NOON + DAY, NOON - DAY]
    log = [
        an_event(n, site_id="users", session_id=f"s{n}", user_id="ann", timestamp=when, received_at=NOON + DAY)
        for n, when in enumerate(at)
    ]
    Consumer(client).consume([*log, an_event(9, site_id="users", session_id="s9", user_id="bob")])
    assert [session.session_id for session in world.reader.user_sessions("users", "ann")] == ["s1", "s0", "s2"]
    assert world.reader.user_sessions("users", "nobody") == []
    assert world.reader.user_sessions("others", "ann") == []


def test_sites_are_listed_in_order(client, world) -> None:
    Consumer(client).consume([an_event(1, site_id="zoo"), an_event(2, site_id="arc")])
    world.called.clear()
    sites = world.reader.sites()
    assert sites == sorted(sites)
    assert {"zoo", "arc"} <= set(sites)
    assert world.called == ["Query"]


def test_a_session_and_its_events_in_order_of_time(client, world) -> None:
    consumer = Consumer(client)
    log = [
        an_event(number, site_id="one", timestamp=NOON + at, properties={"n": number})
        for number, at in enumerate([5000, 1000, 3000])
    ]
    consumer.consume(log[:2])
    consumer.consume(log[2:])
    session = world.reader.session("one", "s1")
    assert (session.events, session.start, session.end) == (3, NOON + 1000, NOON + 5000)
    assert world.reader.events("one", "s1") == [log[1], log[2], log[0]]
    assert world.reader.session("one", "s2") is None
    assert world.reader.session("two", "s1") is None
    assert world.reader.events("one", "s2") == []


def test_events_of_overlapping_chunks_are_shown_once(client, world) -> None:
    Consumer(client).consume([a_long_event(number, site_id="again") for number in (1, 2)])
    (chunk,) = client.query(
        TableName=NAMES.session_events,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": "again#s1"}},
    )["Items"]
    (shorter,) = chunk_items("again#s1", chunk["expires"]["N"], read_chunk(chunk)[:1])
    client.put_item(TableName=NAMES.session_events, Item=shorter)
    assert [event.event_id for event in world.reader.events("again", "s1")] == ["e1", "e2"]


def test_what_has_expired_is_not_there_though_it_is_not_yet_deleted(client, world) -> None:
    Consumer(client).consume([an_event(1, site_id="old")])
    world.now = NOON + items.SESSION_LIFETIME_S * 1000
    assert world.reader.session("old", "s1")
    assert world.reader.sessions("old", ["s1"])
    assert world.reader.events("old", "s1")
    world.now += 2000
    assert world.reader.session("old", "s1") is None
    assert world.reader.sessions("old", ["s1"]) == {}
    assert world.reader.events("old", "s1") == []


def test_active_sessions_are_found_in_all_buckets_and_read_in_one_call(client, world) -> None:
    consumer = Consumer(client)
    world.now = NOON + 60 * MINUTE_MS
    ends = {f"v{number}": world.now - number * MINUTE_MS for number in range(40)}
    consumer.consume(
        [
            an_event(number, site_id="busy", session_id=name, timestamp=end, received_at=world.now)
            for number, (name, end) in enumerate(ends.items())
        ]
    )
    consumer.consume([an_event(1, site_id="quiet", timestamp=world.now, received_at=world.now)])
    world.called.clear()
    active = world.reader.active("busy")
    assert active.order == [f"v{number}" for number in range(30)]
    assert {name: session.end for name, session in active.sessions.items()} == {
        name: ends[name] for name in active.order
    }
    assert active.recent == 5
    assert sorted(world.called) == ["BatchGetItem"] + ["Query"] * 8
    assert world.reader.active("nobody").order == []


def test_a_collector_whose_clock_is_far_ahead_makes_no_session_active_for_ever(client, world) -> None:
    for name, ahead in (("little", 2), ("much", 3 * 60)):
        at = NOON + ahead * MINUTE_MS
        Consumer(client).consume([an_event(1, site_id="ahead", session_id=name, timestamp=at, received_at=at)])
    world.now = NOON
    assert world.reader.active("ahead").order == ["little"]


def test_more_active_sessions_than_one_call_gets(client, world) -> None:
    for number in range(120):
        session = Session("many", f"s{number:03}")
        session.apply(an_event(1, session_id=session.session_id, timestamp=NOON, received_at=NOON))
        client.put_item(TableName=NAMES.sessions, Item=session_item(session, {"shard": "0011.0"}))
    assert world.reader.active("many").order == [f"s{number:03}" for number in range(120)]
    assert world.called.count("BatchGetItem") == 2


def test_nothing_is_ever_scanned(client, world) -> None:
    Consumer(client).consume([an_event(1, site_id="never")])
    world.called.clear()
    world.reader.check()
    world.reader.sites()
    assert world.reader.active("never").order == ["s1"]
    assert world.reader.session("never", "s1")
    assert world.reader.events("never", "s1")
    assert list(world.reader.rollups("never", range(NOON, NOON + DAY, QUARTER_MS)))
    assert set(world.called) == {"GetItem", "BatchGetItem", "Query"}


def test_keys_that_a_busy_table_leaves_are_asked_for_again(client, world, monkeypatch) -> None:
    Consumer(client).consume([an_event(number, site_id="slow", session_id=f"s{number}") for number in (1, 2)])
    whole = client.batch_get_item

    def partly(RequestItems):
        keys = RequestItems[NAMES.sessions]["Keys"]
        answer = whole(RequestItems={NAMES.sessions: {"Keys": keys[:1]}})
        return answer | {"UnprocessedKeys": {NAMES.sessions: {"Keys": keys[1:]}} if keys[1:] else {}}

    monkeypatch.setattr(client, "batch_get_item", partly)
    assert set(world.reader.sessions("slow", ["s1", "s2"])) == {"s1", "s2"}
    monkeypatch.setattr(
        client, "batch_get_item", lambda RequestItems: {"Responses": {}, "UnprocessedKeys": RequestItems}
    )
    monkeypatch.setattr("query_api.reader.time.sleep", lambda seconds: None)
    with pytest.raises(Unavailable, match="limits our reads"):
        world.reader.sessions("slow", ["s1"])


def test_a_missing_table_is_told_in_a_sentence(client) -> None:
    reader = Reader(client, TableNames("none", "none", "none", "none"), clock=lambda: NOON)
    for read in (
        reader.check,
        reader.sites,
        lambda: reader.active("blog"),
        lambda: reader.session("blog", "s1"),
        lambda: reader.sessions("blog", ["s1"]),
        lambda: reader.events("blog", "s1"),
        lambda: list(reader.rollups("blog", [NOON])),
    ):
        with pytest.raises(Unavailable, match=r"^a table is not there: .*; try again in some seconds$"):
            read()
    reader.close()


def test_an_erased_session_is_none_any_more(client, world) -> None:
    consumer = Consumer(client)
    visits = [an_event(n, site_id="gone", session_id=f"s{n}", user_id="mia") for n in range(2)]
    consumer.consume([*visits, an_erasure("s0", site_id="gone")])
    assert world.reader.session("gone", "s0") is None
    assert set(world.reader.sessions("gone", ["s0", "s1"])) == {"s1"}
    assert [session.session_id for session in world.reader.user_sessions("gone", "mia")] == ["s1"]
    assert world.reader.active("gone").order == ["s1"]
    assert world.reader.events("gone", "s0") == []
