import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.event import encode
from stream_consumer.items import (
    MAX_CHUNK_BYTES,
    chunk_items,
    join_positions,
    quarantine_item,
    read_chunk,
    read_rollup,
    read_session,
    rollup_item,
    rollup_key,
    session_item,
    split_positions,
)
from stream_consumer.kinesis_batch import Poison, position
from stream_consumer.rollup import RollUp
from stream_consumer.session import Session
from tests.builders import NOON, an_event


@given(st.lists(st.tuples(st.integers(0, 10**129), st.integers(0, 999_999)), min_size=2, max_size=6))
def test_positions_sort_as_the_shard_does_whatever_their_digits(places) -> None:
    assert [position(str(s), i) for s, i in sorted(places)] == sorted(position(str(s), i) for s, i in places)


@given(
    st.dictionaries(st.from_regex(r"shardId-\d{12}", fullmatch=True), st.from_regex(r"\d{5}\.\d{6}", fullmatch=True))
)
def test_positions_have_one_canonical_form(positions) -> None:
    joined = join_positions(positions)
    assert split_positions(joined) == positions
    assert join_positions(dict(reversed(positions.items()))) == joined


def a_session(**fields) -> Session:
    session = Session("blog", "s1")
    session.apply(an_event(1, **fields))
    return session


def test_a_session_comes_back_as_it_was_stored() -> None:
    session = a_session(user_id="ann")
    item = session_item(session, {"shard": "001.1"})
    stored = read_session(item)
    assert stored.session == session
    assert stored.positions == {"shard": "001.1"}
    assert item["user_key"] == {"S": "blog#ann"}


def test_only_a_session_that_is_recent_at_its_arrival_is_in_the_index_of_active_ones() -> None:
    recent = session_item(a_session(), {})
    imported = session_item(a_session(received_at=NOON + 10**10), {})
    assert recent["active_minute"] == {"N": str((NOON + 1000) // 60_000)}
    assert recent["active_bucket"]["S"].startswith("blog#")
    assert "active_bucket" not in imported
    assert "active_minute" not in imported


def test_a_heartbeat_within_the_minute_changes_no_index_attribute() -> None:
    session = a_session()
    before = session_item(session, {"shard": "1"})
    session.apply(an_event(2, event_type="heartbeat"))
    after = session_item(session, {"shard": "2"})
    indexed = ("active_bucket", "active_minute", "started_at")
    assert [before[name] for name in indexed] == [after[name] for name in indexed]


def test_a_roll_up_comes_back_as_it_was_stored() -> None:
    rollup = RollUp("blog", NOON, "shardId-000000000001")
    rollup.counter("page").add("/a", (3,), 10)
    stored = read_rollup(rollup_item(rollup, "001.1"))
    assert stored.rollup == rollup
    assert stored.position == "001.1"


def test_roll_up_keys_sort_by_time_within_the_day() -> None:
    keys = [rollup_key("blog", NOON + quarter * 900_000, "s") for quarter in range(200)]
    assert keys == sorted(keys)
    assert rollup_key("blog", 0, "s") == ("blog#000000", "00:00#s")


def test_chunks_stay_below_their_bound_and_lose_nothing() -> None:
    events = [(position(str(number), 0), bytes([number]) * 20_000) for number in range(1, 60)]
    items = chunk_items(a_session(), "shard", events)
    assert len(items) > 1
    assert [("shard=" + place, body) for place, body in events] == [pair for item in items for pair in read_chunk(item)]
    assert all(len(item["body"]["B"]) <= MAX_CHUNK_BYTES for item in items)
    assert len({item["sk"]["S"] for item in items}) == len(items)
    assert chunk_items(a_session(), "shard", []) == []


def test_chunks_need_the_dictionary_that_they_were_made_with_and_no_other_was_ever_used() -> None:
    """A golden chunk, of version 0.1: whatever reads it has that dictionary. Before it there was none."""
    event = encode(an_event(1, user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"))
    made = bytes.fromhex(
        "78bb9a8a18cc9b3869299871e42f8a1f530d517c09d289eed36243a2fd6a000286a00c6980e16d989c29480e8b07532b8086"
        "404b950243bcfec351ca181be12b1540b24ab500e7a15160"
    )
    stored = {"pk": {"S": "blog#s1"}, "sk": {"S": "shard=001.1-"}, "body": {"B": made}}
    assert read_chunk(stored) == [("shard=001.1", event)]
    (again,) = chunk_items(a_session(), "shard", [("001.1", event)])
    assert read_chunk(again) == [("shard=001.1", event)]
    assert again["pk"] == stored["pk"]
    assert again["sk"] == stored["sk"]
    assert again["body"]["B"][2:6] == made[2:6], "another dictionary: chunks that are stored cannot be read any more"
    without = stored | {"body": {"B": zlib.compress(msgspec.msgpack.encode([("001.1", event)]))}}
    assert read_chunk(without) == [("shard=001.1", event)]
    assert len(again["body"]["B"]) < 0.5 * len(without["body"]["B"])
    with pytest.raises(zlib.error):
        read_chunk(stored | {"pk": {"S": "blog#s2"}})


_places = st.builds(position, st.integers(0, 10**129).map(str), st.integers(0, 999_999))


@given(st.lists(_places, min_size=3, max_size=3, unique=True).map(sorted))
def test_chunks_of_a_session_have_one_key_only_if_they_begin_and_end_alike(places) -> None:
    first, middle, last = places
    keys = set()
    for begin, end in ((first, first), (first, middle), (first, last), (middle, last), (last, last)):
        held = [(at, b"{}") for at in (begin, end)]
        (item,) = chunk_items(a_session(), "shard", held)
        assert read_chunk(item) == [(f"shard={at}", data) for at, data in held]
        assert item["sk"]["S"].startswith(f"shard={begin}-")
        keys.add(item["sk"]["S"])
    assert len(keys) == 5


def test_quarantined_again_it_is_the_same_item() -> None:
    poison = Poison("001.1", "1", NOON // 1000, "not_json", "byte 3", b"x" * 300_000)
    item = quarantine_item(poison, "shard")
    assert item == quarantine_item(poison, "shard")
    assert item["size"] == {"N": "300000"}
    assert item["reason"] == {"S": "not_json"}


def test_a_session_that_was_stored_before_there_were_erasures_is_read_as_one_that_is_not_erased() -> None:
    session = Session("blog", "s1")
    session.apply(an_event(1))
    item = session_item(session, {})
    *older, erased = msgspec.msgpack.decode(item["body"]["B"])
    assert erased == 0
    assert read_session(item | {"body": {"B": msgspec.msgpack.encode(older)}}).session == session
