import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.event import encode
from stream_consumer.items import read_session, session_item, session_items
from stream_consumer.kinesis_batch import position
from stream_consumer.session import Session
from stream_consumer.stored_events import MAX_CHUNK_BYTES, WRITE_UNIT, chunk_items, item_size, read_chunk
from tests.builders import an_event

_placed = st.lists(
    st.tuples(
        st.sampled_from(["shardId-000000000000", "shardId-000000000003"]),
        st.integers(0, 10**56),
        st.binary(max_size=700),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one[:2],
).map(lambda some: [(f"{shard}={position(str(at), 0)}", data) for shard, at, data in sorted(some)])


@given(_placed, st.text(max_size=600))
def test_events_are_in_the_sessions_item_as_long_as_it_costs_no_more_to_write_else_in_chunks(events, title) -> None:
    session = Session("blog", "s1")
    session.apply(an_event(1, title=title))
    positions = {"shardId-000000000003": "0011.000000"}
    bare = session_item(session, positions)
    item, chunks = session_items(session, positions, None, events)
    recent = read_session(item).events
    assert {name: value for name, value in item.items() if name != "recent"} == bare
    assert write_units(item) == write_units(bare)
    assert not recent or not chunks
    assert dict(recent or [event for chunk in chunks for event in read_chunk(chunk)]) == dict(events)
    if sum(len(place) + len(data) for place, data in events) < 200 and item_size(bare) < WRITE_UNIT - 300:
        assert recent
    for chunk in chunks:
        assert (chunk["pk"], chunk["expires"]) == (item["pk"], item["expires"])


def write_units(item) -> int:
    return -(-item_size(item) // WRITE_UNIT)


def test_an_item_has_the_size_that_dynamodb_bills() -> None:
    item = {"pk": {"S": "blog#é"}, "body": {"B": b"12345"}, "n": {"N": "1700000000"}, "zero": {"N": "0"}}
    assert item_size(item) == (2 + 7) + (4 + 5) + (1 + 2) + (4 + 1)


def test_chunks_stay_below_their_bound_and_lose_nothing() -> None:
    events = [(f"shard={position(str(number), 0)}", bytes([number]) * 20_000) for number in range(1, 60)]
    items = chunk_items("blog#s1", "1", events)
    assert len(items) > 1
    assert events == [pair for item in items for pair in read_chunk(item)]
    assert all(len(item["body"]["B"]) <= MAX_CHUNK_BYTES for item in items)
    assert len({item["sk"]["S"] for item in items}) == len(items)
    assert chunk_items("blog#s1", "1", []) == []


def test_chunks_need_the_dictionary_that_they_were_made_with_and_no_other_was_ever_used() -> None:
    """A golden chunk, of version 0.1: whatever reads it has that dictionary. Before it there was none."""
    event = encode(an_event(1, user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"))
    made = bytes.fromhex(
        "78bb9a8a18cc9b3869299871e42f8a1f530d517c09d289eed36243a2fd6a000286a00c6980e16d989c29480e8b07532b8086"
        "404b950243bcfec351ca181be12b1540b24ab500e7a15160"
    )
    stored = {"pk": {"S": "blog#s1"}, "sk": {"S": "shard=001.1-"}, "body": {"B": made}}
    assert read_chunk(stored) == [("shard=001.1", event)]
    (again,) = chunk_items("blog#s1", "1", [("shard=001.1", event)])
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
        held = [(f"shard={at}", b"{}") for at in (begin, end)]
        (item,) = chunk_items("blog#s1", "1", held)
        assert read_chunk(item) == held
        assert item["sk"]["S"].startswith(f"shard={begin}-")
        keys.add(item["sk"]["S"])
    assert len(keys) == 5
