"""Batches: a lane's order, its one batch at a time, the bounds of Kinesis, and when what is due."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.batching import (
    ENTRY_OVERHEAD,
    HASH_KEYS,
    MAX_CALL_BYTES,
    MAX_CALL_RECORDS,
    MAX_PAYLOAD_BYTES,
    MAX_RECORD_BYTES,
    Batcher,
    hash_key_of,
    lane_of,
)
from producer.kpl import Aggregate, SubRecord, decode_record


def a_batcher(**settings):
    values = {"lanes": 64, "linger": 0.05, "deadline": 30.0, "max_aggregate_bytes": 1000, "max_aggregate_events": 5}
    return Batcher(**values | settings)


def contents(batches):
    return [(batch.lane, b"".join(batch.payloads)) for batch in batches]


# -- lanes: constants of every stream that exists ---------------------------------------------------


@pytest.mark.parametrize(
    ("session_id", "lanes", "lane"),
    [("123456789", 2**32, 0xCBF43926), ("123456789", 64, 38), ("s1", 64, 48), ("s-1", 7, 3), ("", 64, 0)],
)
def test_the_lane_of_a_session_never_changes(session_id, lanes, lane):
    assert lane_of(session_id, lanes) == lane


@pytest.mark.parametrize(
    ("lane", "lanes", "hash_key"),
    [
        (0, 1, "170141183460469231731687303715884105728"),
        (0, 64, "2658455991569831745807614120560689152"),
        (1, 64, "7975367974709495237422842361682067456"),
        (63, 64, "337623910929368631717566993311207522304"),
        (1, 3, "170141183460469231731687303715884105728"),
    ],
)
def test_the_hash_key_of_a_lane_never_changes(lane, lanes, hash_key):
    assert hash_key_of(lane, lanes) == hash_key


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 64, 4096])
def test_each_hash_key_lies_inside_its_lanes_slice(lanes):
    for lane in range(lanes):
        assert lane * HASH_KEYS < int(hash_key_of(lane, lanes)) * lanes < (lane + 1) * HASH_KEYS


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16, 32, 64])
def test_shards_of_equal_size_get_equally_many_lanes(shards):
    counts = Counter(int(hash_key_of(lane, 64)) * shards // HASH_KEYS for lane in range(64))
    assert set(counts.values()) == {64 // shards}


def test_sessions_spread_over_the_lanes():
    counts = Counter(lane_of(f"session-{number}", 64) for number in range(64_000))
    assert len(counts) == 64
    assert min(counts.values()) > 800
    assert max(counts.values()) < 1200


# -- when ---------------------------------------------------------------------------------------------


def test_nothing_is_never_due():
    batcher = a_batcher()
    assert batcher.due() == math.inf
    assert not batcher
    assert batcher.take(1e9) == []


def test_an_event_is_due_when_it_has_lingered_and_takes_the_other_lanes_along():
    batcher = a_batcher()
    assert batcher.add(b"a", 3, "t", 10.0) == 10.05
    assert batcher.add(b"b", 5, "t", 10.04) == 10.09
    assert batcher.due() == 10.05
    assert contents(batcher.take(10.05)) == [(3, b"a"), (5, b"b")]
    assert batcher.due() == math.inf


def test_hurry_waits_for_no_company():
    batcher = a_batcher()
    batcher.add(b"a", 3, "t", 10.0)
    assert batcher.due(hurry=True) <= 10.0


@pytest.mark.parametrize("settings", [{"max_aggregate_events": 2}, {"max_aggregate_bytes": 200}])
def test_a_full_lane_is_due_at_once(settings):
    batcher = a_batcher(**settings)
    assert batcher.add(b"x" * 100, 3, "t", 10.0) == 10.05
    assert batcher.add(b"x" * 100, 3, "t", 10.0) <= 10.0
    assert batcher.due() <= 10.0


def test_a_lane_whose_batch_is_under_way_gives_no_other_one():
    batcher = a_batcher()
    batcher.add(b"a", 3, "t", 0.0)
    [batch] = batcher.take(0.0)
    assert batcher.add(b"b", 3, "t", 1.0) == math.inf
    assert batcher.due() == math.inf
    assert batcher.take(100.0) == []
    assert batcher.settle(batch)
    assert batcher.due() == 1.05
    assert contents(batcher.take(2.0)) == [(3, b"b")]


def test_what_is_put_back_comes_first_and_not_before_its_time():
    batcher = a_batcher()
    batcher.add(b"a", 3, "t", 0.0)
    [batch] = batcher.take(0.0)
    batcher.add(b"b", 3, "t", 1.0)
    batcher.add(b"c", 4, "t", 1.0)
    batcher.put_back(batch, 7.0)
    assert contents(batcher.take(6.9)) == [(4, b"c")]
    assert batcher.due() == batcher.due(hurry=True) == 7.0
    assert contents(batcher.take(7.0)) == [(3, b"ab")]


def test_an_event_expires_at_its_deadline_and_not_while_it_is_taken():
    batcher = a_batcher()
    batcher.add(b"a", 3, "ta", 0.0)
    batcher.add(b"b", 3, "tb", 1.0)
    [batch] = batcher.take(2.0)
    assert batcher.expire(99.0) == []
    batcher.put_back(batch, 99.0)
    assert batcher.due() == 30.0
    assert batcher.expire(29.9) == []
    [expired] = batcher.expire(30.0)
    assert (expired.lane, expired.tickets) == (3, ("ta",))
    assert batcher.due() == 31.0
    assert list(batcher.tickets()) == ["tb"]
    assert 3 in batcher


def test_what_was_abandoned_is_not_settled_again():
    batcher = a_batcher()
    batcher.add(b"a", 3, "ta", 0.0)
    [batch] = batcher.take(0.0)
    batcher.add(b"b", 3, "tb", 0.0)
    [abandoned] = batcher.abandon()
    assert abandoned.tickets == ("ta", "tb")
    assert not batcher.settle(batch)
    batcher.put_back(batch, 0.0)
    assert not batcher
    assert batcher.buffered == 0


# -- how much -----------------------------------------------------------------------------------------


def test_a_record_is_an_aggregate_of_its_lane_also_when_it_holds_one_event():
    batcher = a_batcher()
    batcher.add(b"a", 3, "t", 0.0)
    [batch] = batcher.take(1.0)
    data = batch.encode()
    aggregate = decode_record(data)
    assert isinstance(aggregate, Aggregate)
    assert aggregate.records == (SubRecord(b"a", "lane-3", hash_key_of(3, 64)),)
    assert (batch.partition_key, batch.explicit_hash_key) == ("lane-3", hash_key_of(3, 64))
    assert batch.size == len(data) + len("lane-3")


def test_an_aggregate_is_bounded_in_size_and_count():
    batcher = a_batcher()
    for _ in range(12):
        batcher.add(b"x" * 10, 1, "t", 0.0)
    for _ in range(12):
        batcher.add(b"x" * 300, 2, "t", 0.0)
    many, large = batcher.take(1.0)
    assert len(many.payloads) == 5
    assert len(large.payloads) == 2
    assert large.size <= 1000


def test_an_event_above_the_bound_goes_alone():
    batcher = a_batcher()
    for data in (b"a", b"x" * 5000, b"b"):
        batcher.add(data, 1, "t", 0.0)
    sizes = []
    while batcher:
        [batch] = batcher.take(1.0)
        sizes.append([len(data) for data in batch.payloads])
        batcher.settle(batch)
    assert sizes == [[1], [5000], [1]]


def test_the_largest_payload_fits_into_a_record():
    batcher = a_batcher(lanes=4096)
    batcher.add(b"x" * MAX_PAYLOAD_BYTES, 4095, "t", 0.0)
    [batch] = batcher.take(1.0)
    assert len(batch.encode()) + len(batch.partition_key) == batch.size <= MAX_RECORD_BYTES


def test_a_call_is_bounded_in_records_and_the_rest_comes_first_next_time():
    batcher = a_batcher(lanes=600)
    for lane in range(600):
        batcher.add(b"x", lane, "t", 0.0)
        batcher.add(b"y", lane, "t", 0.0)
    first = batcher.take(1.0)
    assert [batch.lane for batch in first] == list(range(MAX_CALL_RECORDS))
    for batch in first:
        batcher.settle(batch)
    for lane in range(600):
        batcher.add(b"z", lane, "t", 1.0)
    assert [batch.lane for batch in batcher.take(2.0)] == [*range(MAX_CALL_RECORDS, 600), *range(400)]


def test_a_call_is_bounded_in_bytes():
    batcher = a_batcher(max_aggregate_bytes=MAX_RECORD_BYTES)
    for lane in range(7):
        batcher.add(b"x" * 1_000_000, lane, "t", 0.0)
    first = batcher.take(1.0)
    assert [batch.lane for batch in first] == [0, 1, 2, 3, 4]
    assert sum(len(batch.encode()) + len(batch.partition_key) for batch in first) <= MAX_CALL_BYTES
    assert [batch.lane for batch in batcher.take(1.0)] == [5, 6]


# -- the laws, under any use --------------------------------------------------------------------------

steps = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 400)),
    st.tuples(st.just("take"), st.just(0), st.just(0)),
    st.tuples(st.just("settle"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("put_back"), st.integers(0, 9), st.integers(0, 3)),
    st.tuples(st.just("pass_time"), st.integers(0, 12), st.just(0)),
    st.tuples(st.just("expire"), st.just(0), st.just(0)),
)


@settings(max_examples=300)
@given(st.lists(steps, max_size=60))
def test_each_event_is_settled_or_expired_once_and_in_its_lanes_order(script):
    batcher = a_batcher(lanes=4)
    now, number = 0.0, 0
    waiting = {lane: [] for lane in range(4)}  # what the batcher must hold: (ticket, data, added)
    held = dict.fromkeys(range(4), -math.inf)
    under_way = []
    for step, first, second in script:
        if step == "add":
            number += 1
            data = f"{number}:".encode().ljust(second, b".")
            batcher.add(data, first, number, now)
            waiting[first].append((number, data, now))
        elif step == "take":
            before = {batch.lane for batch in under_way}
            ready = {lane for lane in waiting if waiting[lane] and lane not in before and held[lane] <= now}
            due = batcher.due() <= now
            taken = batcher.take(now)
            if due and not taken:  # then there is something to expire: whoever sleeps until due does not spin
                assert batcher.expire(now)
                return
            assert {batch.lane for batch in taken} == ready
            assert len(taken) == len(ready)
            for batch in taken:
                assert list(zip(batch.tickets, batch.payloads, strict=True)) == [
                    (ticket, data) for ticket, data, _ in waiting[batch.lane][: len(batch.tickets)]
                ]
                assert batch.size == len(batch.encode()) + len(batch.partition_key)
                assert 1 <= len(batch.payloads) <= 5
                assert batch.size - len(batch.partition_key) <= 1000
            under_way += taken
        elif step == "settle" and under_way:
            batch = under_way.pop(first % len(under_way))
            assert batcher.settle(batch)
            assert not batcher.settle(batch)
            del waiting[batch.lane][: len(batch.tickets)]
            held[batch.lane] = -math.inf
        elif step == "put_back" and under_way:
            batch = under_way.pop(first % len(under_way))
            batcher.put_back(batch, now + second)
            held[batch.lane] = now + second
        elif step == "pass_time":
            now += first
        elif step == "expire":
            busy = {batch.lane for batch in under_way}
            late = [
                ticket
                for lane in waiting
                if lane not in busy
                for ticket, _, added in waiting[lane]
                if added + 30.0 <= now
            ]
            assert sorted(ticket for batch in batcher.expire(now) for ticket in batch.tickets) == sorted(late)
            for lane, entries in waiting.items():
                entries[:] = [entry for entry in entries if entry[0] not in late]
                if not entries:
                    held[lane] = -math.inf
        assert sorted(batcher.tickets()) == sorted(ticket for lane in waiting.values() for ticket, _, _ in lane)
        assert batcher.buffered == sum(len(data) + ENTRY_OVERHEAD for lane in waiting.values() for _, data, _ in lane)
        idle = [lane for lane in waiting if waiting[lane] and lane not in {batch.lane for batch in under_way}]
        assert (batcher.due() < math.inf) == bool(idle)
