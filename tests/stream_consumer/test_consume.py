"""The protocol, case by case; `tests/simulation/` runs it through every schedule of failures."""

import os
import random
from itertools import pairwise

import pytest
from botocore.exceptions import ClientError

from producer.event import decode
from stream_consumer.consume import MAX_ATTEMPTS, consume
from stream_consumer.footprint import Footprint
from stream_consumer.items import (
    MAX_STORED_EVENTS,
    SESSION_LIFETIME_S,
    read_footprint,
    read_rollup,
    read_session,
    session_key,
)
from stream_consumer.kinesis_batch import Poison, position
from stream_consumer.merged import HOUR_MS
from stream_consumer.rollup import QUARTER_MS
from stream_consumer.stored_events import WRITE_UNIT, item_size
from stream_consumer.visitors import Visitors
from tests.builders import NOON, a_batch, a_long_event, an_erasure, an_event
from tests.fake_dynamodb import NAMES, MemoryTables
from tests.simulation.fold import sums

SHARD = "shardId-000000000000"


def a_log(rng: random.Random, size: int) -> list:
    """Events of a few sessions, some of them sent twice, some poison."""
    log: list = []
    for number in range(1, size + 1):
        if log and rng.random() < 0.15:
            log.append(rng.choice(log))
            if isinstance(log[-1], Poison):
                log.pop()
        if rng.random() < 0.1:
            log.append(Poison(position(str(len(log) + 1), 0), str(len(log) + 1), 0, "not_json", "", b"{"))
            continue
        session = rng.randint(1, 3)
        log.append(
            an_event(
                number,
                session_id=f"s{session}",
                timestamp=NOON + rng.randint(-QUARTER_MS, QUARTER_MS),
                event_type=rng.choice(["page_view", "page_view", "click", "conversion"]),
                page_url=f"/p{rng.randint(1, 3)}",
                **({"seq": number, "source": f"tab{session}"} if rng.random() < 0.5 else {}),
            )
        )
    return log


def settled(log: list) -> MemoryTables:
    """The tables after the whole log came in one batch and nothing failed."""
    store = MemoryTables()
    assert consume(a_batch(log), store).failed_from is None
    return store


def same_tables(one: MemoryTables, other: MemoryTables) -> None:
    assert one.bare_sessions() == other.bare_sessions()
    assert one.rollups == other.rollups
    assert one.quarantine == other.quarantine
    assert one.sites == other.sites
    assert one.stored_events() == other.stored_events()


def test_the_ledger_adds_up_and_each_event_is_applied_once() -> None:
    log = a_log(random.Random(3), 30)
    outcome = consume(a_batch(log), store := MemoryTables())
    assert outcome.received == len(log)
    assert outcome.applied == len(store.stored_events())
    assert outcome.quarantined.total() == len(store.quarantine) > 0
    assert outcome.duplicate > 0
    again = consume(a_batch(log), store)
    assert (again.applied, again.duplicate) == (0, outcome.applied + outcome.duplicate)
    assert again.sessions == again.rollups == 0


def test_a_table_that_refuses_sessions_gives_back_the_first_record_not_done() -> None:
    log = [an_event(1, session_id="a"), an_event(2, session_id="b"), an_event(3, session_id="a")]
    tables = MemoryTables()
    # The writes are: the list of sites, the roll-up, the events, session a, session b.
    tables.dynamo.choose = lambda write: "refused" if write == 5 else ""
    outcome = consume(a_batch(log), tables)
    assert outcome.failed_from == "2"
    assert outcome.applied == 2
    assert set(tables.sessions) == {"blog#a"}
    assert consume(a_batch(log[1:], first=2), tables).failed_from is None
    same_tables(tables, settled(log))


def test_somebody_elses_write_in_between_is_met_by_computing_again() -> None:
    log = [an_event(number) for number in range(1, 5)]
    tables = MemoryTables()
    consume(a_batch(log[:2]), tables)

    def zombie() -> None:
        tables.dynamo.between = lambda: None
        consume(a_batch(log[2:3], first=3), tables)

    tables.dynamo.between = zombie
    outcome = consume(a_batch(log[2:], first=3), tables)
    assert outcome.conflicts == 1
    same_tables(tables, settled(log))


def test_a_batch_that_never_wins_is_given_back_whole() -> None:
    from stream_consumer.table import Conflict

    store = MemoryTables()
    tries = []

    def save_session(item, base) -> None:
        tries.append(item)
        raise Conflict("always")

    store.save_session = save_session  # type: ignore[method-assign]
    outcome = consume(a_batch([an_event(1)], first=5), store)
    assert outcome.failed_from == "5"
    assert len(tries) == MAX_ATTEMPTS
    assert "compare-and-set" in outcome.failure


def test_a_session_that_moves_to_a_child_shard_goes_on_there() -> None:
    store = MemoryTables()
    consume(a_batch([an_event(1), an_event(2)], first=900), store)
    child = a_batch([an_event(3), an_event(2)], first=5, shard_id="shardId-000000000002")
    outcome = consume(child, store)
    assert (outcome.applied, outcome.duplicate) == (1, 1)
    stored = read_session(store.sessions[session_key("blog", "s1")])
    assert stored.session.events == 3
    assert set(stored.positions) == {SHARD, "shardId-000000000002"}
    assert sum(b[0] for item in store.rollups.values() for b in read_rollup(item).rollup.began) == 1
    visitors = Visitors()
    for item in store.rollups.values():
        visitors.merge(Visitors.from_bytes(read_rollup(item).rollup.visitors))
    assert visitors.estimate() == 1


@pytest.mark.sized
@pytest.mark.parametrize("numbered", [True, False])
def test_a_bot_with_many_events_keeps_a_bounded_item_and_right_totals(numbered: bool) -> None:
    """20,000 events of one session; with LIVEINSIGHT_LONG=1 a million."""
    store = MemoryTables()
    total = 1_000_000 if os.environ.get("LIVEINSIGHT_LONG") else 20_000
    for first in range(0, total, 5000):
        numbers = range(first, first + 5000)
        events = [an_event(n, page_url="/x", **({"seq": n + 1, "source": "tab"} if numbered else {})) for n in numbers]
        assert consume(a_batch(events, first=first + 1), store).applied == 5000
    item = store.sessions[session_key("blog", "s1")]
    assert read_session(item).session.page_views == total
    assert len(item["body"]["B"]) < 10_000
    assert len(store.stored_events()) == 10_000
    assert sum(began[4] for item in store.rollups.values() for began in read_rollup(item).rollup.began) == total
    assert max(len(item["body"]["B"]) for item in store.rollups.values()) < 10_000


def test_the_fullest_session_fits_into_an_item_many_times() -> None:
    """Sources, gaps, ids, currencies and texts all at their bounds."""
    long_url = "https://example.com/" + "x" * 2000
    events = [
        an_event(
            source * 100 + gap,
            source=f"{source:0128d}",
            seq=gap * 2 + 1,
            page_url=long_url,
            referrer=long_url,
            title="ü" * 512,
            conversion_currency=f"{source:0128d}",
            event_type="conversion" if gap else "page_view",
            conversion_value=1.0,
        )
        for source in range(80)
        for gap in range(12)
    ]
    events += [an_event(100_000 + n, event_id=f"{n:0128d}") for n in range(400)]
    store = MemoryTables()
    assert consume(a_batch(events), store).failed_from is None
    assert len(store.sessions[session_key("blog", "s1")]["body"]["B"]) < 40_000


def test_events_stay_in_their_session_until_they_outgrow_it() -> None:
    store = MemoryTables()
    held = []
    for number in range(1, 60):
        event = an_event(number, event_id=random.Random(number).randbytes(16).hex(), source="tab", seq=number)
        consume(a_batch([event], first=number), store)
        item = store.sessions["blog#s1"]
        assert item_size(item) <= WRITE_UNIT
        held.append(len(read_session(item).events))
        assert len(store.stored_events()) == number
    # They fill up, all go to a chunk, and it begins anew.
    assert held[:3] == [1, 2, 3]
    assert held.count(0) == len(store.events) > 2
    assert all(later in (0, earlier + 1) for earlier, later in pairwise(held))
    # The session itself is written with each of them, so this is most of what its events cost.
    assert len(store.events) < 59 / 4


def test_a_chunk_that_cannot_be_put_keeps_its_sessions_and_those_behind_from_being_written(monkeypatch) -> None:
    monkeypatch.setattr("stream_consumer.consume.SESSIONS_AT_A_TIME", 2)
    log = [a_long_event(number, session_id=f"s{number}") for number in range(1, 7)]
    chunks = 0

    def second_call(requests) -> bool:
        nonlocal chunks
        chunks += NAMES.session_events in requests
        return chunks == 2

    store = MemoryTables()
    whole = store.dynamo.batch_write_item

    def batch_write_item(*, RequestItems) -> dict:
        if second_call(RequestItems):
            raise ClientError({"Error": {"Code": "ProvisionedThroughputExceededException"}}, "BatchWriteItem")
        return whole(RequestItems=RequestItems)

    monkeypatch.setattr(store.dynamo, "batch_write_item", batch_write_item)
    outcome = consume(a_batch(log), store)
    assert (outcome.applied, outcome.sessions, outcome.failed_from) == (2, 2, "3")
    assert "ProvisionedThroughputExceeded" in outcome.failure
    assert sorted(store.sessions) == ["blog#s1", "blog#s2"]
    again = consume(a_batch(log[2:], first=3), store)
    assert (again.applied, again.failed_from) == (4, None)
    same_tables(store, settled(log))


def test_stored_events_come_back_as_they_were() -> None:
    events = [an_event(number, properties={"n": number}) for number in range(4)]
    stored = [decode(body) for body in settled(events).stored_events().values()]
    assert stored == events


def test_an_erased_session_gives_up_the_events_in_its_item() -> None:
    store = MemoryTables()
    consume(a_batch([an_event(1), an_event(2), an_event(3, session_id="other")]), store)
    assert len(store.stored_events()) == 3
    assert store.events == {}
    consume(a_batch([an_erasure("s1")], first=4), store)
    assert [decode(data) for data in store.stored_events().values()] == [an_event(3, session_id="other")]
    assert sums(store.rollups.values()) == sums(settled([an_event(3, session_id="other")]).rollups.values())


def test_an_erased_session_is_a_tombstone_and_the_sums_are_as_if_it_had_never_been() -> None:
    others = [a_long_event(n, session_id="other", event_type="click") for n in (1, 2)]
    visit = [
        a_long_event(11, user_id="mia", title="secret"),
        an_event(12, user_id="mia", timestamp=NOON + QUARTER_MS, event_type="conversion", conversion_value=9.5),
        an_event(13, user_id="mia", timestamp=NOON - QUARTER_MS, received_at=NOON + HOUR_MS),
    ]
    store = MemoryTables()
    consume(a_batch([*others, *visit]), store)
    outcome = consume(a_batch([an_erasure("s1")], first=6), store)
    assert (outcome.received, outcome.erased, outcome.applied) == (1, 1, 0)
    assert sums(store.rollups.values()) == sums(settled(others).rollups.values())
    item = store.sessions[session_key("blog", "s1")]
    assert item.keys() == {"pk", "pos", "body", "expires", "started_at"}
    assert b"mia" not in item["body"]["B"]
    assert b"secret" not in item["body"]["B"]
    assert int(item["expires"]["N"]) == an_erasure().erased_at // 1000 + SESSION_LIFETIME_S
    assert read_session(item).session.erased == an_erasure().erased_at
    assert {key[0] for key in store.events} == {"blog#other"}
    (found,) = store.footprints.values()
    hour = NOON - NOON % HOUR_MS
    assert read_footprint(found) == Footprint([NOON - QUARTER_MS, NOON, NOON + QUARTER_MS], [hour, hour + HOUR_MS])


def test_nothing_comes_back_to_an_erased_session() -> None:
    visit = [an_event(n) for n in range(1, 4)]
    store = MemoryTables()
    consume(a_batch([*visit, an_erasure()]), store)
    rollups = dict(store.rollups)
    again = consume(a_batch([*visit, an_erasure()]), store)
    assert (again.duplicate, again.erased, again.rollups, again.sessions) == (4, 0, 0, 0)
    late = consume(a_batch([an_event(9), *visit, an_erasure()], first=9), store)
    assert (late.received, late.erased) == (5, 5)
    assert store.rollups == rollups
    assert store.events == {}
    assert len(store.sessions) == 1


def test_the_erasure_of_a_session_that_is_not_there_keeps_it_from_coming() -> None:
    store = MemoryTables()
    assert consume(a_batch([an_erasure(), an_event(1)]), store).erased == 2
    assert store.rollups == store.events == store.footprints == {}
    assert read_session(store.sessions["blog#s1"]).session.erased


def test_what_was_counted_in_the_parent_shard_is_taken_back_in_the_child() -> None:
    store = MemoryTables()
    consume(a_batch([an_event(1), an_event(2)], first=900), store)
    consume(a_batch([an_event(3), an_erasure()], first=5, shard_id="shardId-000000000002"), store)
    assert sums(store.rollups.values()) == {}
    assert len(store.rollups) == 2


def test_events_that_are_not_stored_cannot_be_taken_back_but_their_session_can() -> None:
    store = MemoryTables()
    total = MAX_STORED_EVENTS + 3
    for first in range(0, total, 5000):
        numbers = range(first, min(first + 5000, total))
        visit = [an_event(n, page_url="/x", timestamp=NOON, seq=n + 1, source="tab") for n in numbers]
        consume(a_batch(visit, first=first + 1), store)
    consume(a_batch([an_erasure()], first=total + 1), store)
    left = {figure[2:]: amount for figure, amount in sums(store.rollups.values()).items()}
    assert left == {
        ("minute", 0, 0): 3,
        ("minute", 0, 1): 3,
        ("event_type", "page_view", 0): 3,
        ("page", "/x", 0): 3,
    }


def test_an_erasure_gives_the_same_bytes_whatever_the_batches() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        log = a_log(rng, 30)
        for session in rng.sample(range(1, 4), 2):
            log.insert(rng.randrange(len(log)), an_erasure(f"s{session}"))
        log = [one for one in log if not isinstance(one, Poison)]
        whole, cut = settled(log), MemoryTables()
        at = 0
        while at < len(log):
            size = rng.randint(1, 6)
            assert consume(a_batch(log[at : at + size], first=at + 1), cut).failed_from is None
            at += size
        same_tables(cut, whole)
        assert cut.footprints == whole.footprints


def test_an_erasure_gives_the_same_bytes_where_the_roll_ups_are_full_too() -> None:
    log: list = [an_event(n, session_id=f"s{n}", timestamp=NOON + n % 60, page_url=f"/p{n}") for n in range(450)]
    for session in (3, 200, 420):
        log.insert(session + 5, an_erasure(f"s{session}"))
        log.append(an_event(1000 + session, session_id=f"t{session}", timestamp=NOON, page_url=f"/p{session}"))
    log += [an_erasure("s7"), an_erasure("s430")]
    whole = settled(log)
    for size in (1, 100, 405):
        cut = MemoryTables()
        for at in range(0, len(log), size):
            consume(a_batch(log[at : at + size], first=at + 1), cut)
        same_tables(cut, whole)


def test_the_footprint_is_that_of_whoever_still_saw_the_events() -> None:
    """An attempt that began before the tombstone was there finds the events gone; it must not say there were none."""
    store = MemoryTables()
    consume(a_batch([an_event(1)]), store)
    erasing = a_batch([an_erasure()], first=2)
    load = store.load_sessions

    def and_another_attempt_is_faster(names):
        found = load(names)
        store.load_sessions = load  # type: ignore[method-assign]
        consume(erasing, store)
        return found

    store.load_sessions = and_another_attempt_is_faster  # type: ignore[method-assign]
    assert consume(erasing, store).failed_from is None
    (found,) = store.footprints.values()
    assert read_footprint(found).quarters == [NOON]
    assert sums(store.rollups.values()) == {}
