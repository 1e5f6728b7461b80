import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stream_consumer.items import (
    join_positions,
    quarantine_item,
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
