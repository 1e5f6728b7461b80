"""A replay from the middle of the log ends as the serving generation did, byte for byte, whatever went on meanwhile."""

from __future__ import annotations

import random
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_consumer import folding
from stream_consumer.compaction import Compaction
from stream_consumer.consume import consume
from stream_consumer.items import MAX_STORED_EVENTS, read_labels, read_session
from stream_consumer.merged import DAY_MS, TOTALS
from stream_consumer.replay.base import DONE, Base, Copied
from tests.builders import a_batch, an_event
from tests.fake_dynamodb import NAMES, Crash, FakeDynamo
from tests.stream_consumer.replaying import CUT, Consumer, a_stream, events_of, figures, items_of, sums


class Meanwhile(FakeDynamo):
    """A DynamoDB at whose every read of a page something else may happen first: one thing at a time."""

    happens: Any = None

    def __init__(self) -> None:
        super().__init__()
        self._one = threading.Lock()

    def scan(self, **query: Any) -> dict[str, Any]:
        with self._one:
            if self.happens:
                self.happens()
            return super().scan(**query)


@settings(max_examples=40)
@given(st.integers(0, 2**63))
def test_a_replay_on_a_base_ends_as_its_source(seed: int) -> None:
    """The source goes on while it is copied, merges go on too, and copying is interrupted now and then."""
    rng = random.Random(seed)
    dynamo = Meanwhile()
    stream = a_stream(rng, rng.randint(20, 80))
    source = Consumer(dynamo, stream)
    read_from = CUT - 300_000
    source.run(rng, before=read_from)
    for _ in range(rng.randint(0, 12)):
        source.step(rng)
    tokens = (str(n) for n in range(10**9))
    compaction = Compaction(dynamo, NAMES, lambda: next(tokens))  # type: ignore[arg-type]
    after_all = CUT + 3 * DAY_MS
    if rng.random() < 0.7:
        compaction.run(after_all)

    def happens() -> None:
        if rng.random() < 0.5:
            source.step(rng)
        if rng.random() < 0.1:
            compaction.run(after_all)

    dynamo.happens = happens
    copied = Copied()
    while copied.phase != DONE:
        saves = iter(range(rng.randint(1, 6)))

        def save(so_far: Copied, saves: Any = saves) -> None:
            nonlocal copied
            copied = msgspec.convert(msgspec.to_builtins(so_far), Copied)
            if next(saves, None) is None:
                raise Crash

        try:
            copied = Base(dynamo, NAMES, "g1", "g2", CUT).copy(copied, save)  # type: ignore[arg-type]
        except Crash:
            continue
    dynamo.happens = None
    before = figures(dynamo, "g1")
    replay = Consumer(dynamo, stream, "g2", read_from)
    while source.step(rng) | replay.step(rng, most=9):
        pass
    assert without_positions(figures(dynamo, "g2")) == without_positions(figures(dynamo, "g1"))
    assert before.keys() <= figures(dynamo, "g1").keys()
    assert events_of(dynamo, "g2") == events_of(dynamo, "g1")
    assert copied.inexact == []
    for one in (compaction, Compaction(replay.client, NAMES, lambda: next(tokens))):
        one.run(after_all)
    assert merged(dynamo, "g2") == merged(dynamo, "g1")


@settings(max_examples=40)
@given(st.integers(0, 2**63))
def test_who_is_erased_before_or_while_the_base_is_copied_or_after_it_is_in_neither(seed: int) -> None:
    """Sums are equal. (Of a session that was erased before it was copied, nothing came and was taken back.)"""
    rng = random.Random(seed)
    dynamo = Meanwhile()
    stream = a_stream(rng, rng.randint(20, 60), erasures=4)
    source = Consumer(dynamo, stream)
    source.run(rng, before=CUT - 300_000)
    for _ in range(rng.randint(0, 12)):
        source.step(rng)
    dynamo.happens = lambda: rng.random() < 0.6 and source.step(rng)
    Base(dynamo, NAMES, "g1", "g2", CUT).copy(Copied(), lambda copied: None)  # type: ignore[arg-type]
    dynamo.happens = None
    replay = Consumer(dynamo, stream, "g2", CUT - 300_000)
    while source.step(rng) | replay.step(rng, most=9):
        pass
    assert sums(dynamo, "g2") == sums(dynamo, "g1")
    told = [
        {key[0]: read_session(item).session for key, item in items_of(dynamo, name, NAMES.sessions).items()}
        for name in ("g1", "g2")
    ]
    assert told[0] == told[1]
    assert sum(bool(session.erased) for session in told[0].values()) == 4
    assert events_of(dynamo, "g2") == events_of(dynamo, "g1")


def without_positions(items: dict) -> dict:
    """Sessions without them: a repeat that was the last of a closed shard leaves its position, and no event behind."""
    return {key: item if key[1] else {**item, "pos": ""} for key, item in items.items()}


def merged(dynamo: FakeDynamo, generation: str) -> dict:
    """What is merged, but for counters that once had a label and have none."""
    return {
        key: item
        for key, item in items_of(dynamo, generation, NAMES.rollups).items()
        if (
            ("#hour#" in key[0] or "#day#" in key[0])
            and (key[0].endswith(f"#{TOTALS}") or read_labels(item).counter.rows)
        )
        or key[0] == "sites"
        or key[0].endswith("#marks")
    }


def test_before_it_is_merged_anew_nothing_merged_of_the_base_is_stale() -> None:
    """The day of the cut is marked: its hours before the cut are copied, the others come, and the day has neither yet."""
    dynamo = FakeDynamo()
    rng = random.Random(1)
    source = Consumer(dynamo, a_stream(rng, 40))
    source.run(rng)
    tokens = (str(n) for n in range(10**9))
    Compaction(dynamo, NAMES, lambda: next(tokens)).run(CUT + 3 * DAY_MS)  # type: ignore[arg-type]
    Base(dynamo, NAMES, "g1", "g2", CUT).copy(Copied(), lambda copied: None)  # type: ignore[arg-type]
    day = f"{CUT // DAY_MS:06d}"
    marks = {key[1] for key in items_of(dynamo, "g2", NAMES.rollups) if key[0].endswith("#marks")}
    assert marks == {day}
    hours = {key[1] for key in merged(dynamo, "g2") if "#hour#totals" in key[0]}
    assert hours
    assert all(hour < f"{day}:{CUT % DAY_MS // 3_600_000:02d}" for hour in hours)
    assert not any("#day#" in key[0] and key[1] == day for key in merged(dynamo, "g2"))


def test_a_session_that_was_under_way_is_what_it_was_at_the_cut() -> None:
    dynamo = FakeDynamo()
    source = Consumer(dynamo, a_stream(random.Random(0), 0))
    at = CUT - 10_000
    events = [
        an_event(n, session_id=name, timestamp=at + n * 1000, received_at=received)
        for name, start, received_at in (("over", 0, CUT - 1), ("under-way", 0, None), ("begun-later", 20, None))
        for n in range(start + 1, start + 21)
        for received in [received_at or at + n * 1000 + 400]
    ]
    consume(a_batch(events), source.tables)
    Base(dynamo, NAMES, "g1", "g2", CUT).copy(Copied(), lambda copied: None)  # type: ignore[arg-type]
    found = {key[0]: read_session(item) for key, item in items_of(dynamo, "g2", NAMES.sessions).items()}
    assert {key: stored.session.events for key, stored in found.items()} == {"blog#over": 20, "blog#under-way": 9}
    assert found["blog#under-way"].session.received == CUT - 600
    assert found["blog#under-way"].positions == {"shardId-000000000000": "00229.000000"}
    assert found["blog#over"] == read_session(items_of(dynamo, "g1", NAMES.sessions)["blog#over", ""])


def test_a_session_that_cannot_be_told_from_its_stored_events_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MAX_STORED_EVENTS", 3)
    assert MAX_STORED_EVENTS > 3
    dynamo = FakeDynamo()
    source = Consumer(dynamo, a_stream(random.Random(0), 0))
    long_before = [
        an_event(n, session_id="bot", timestamp=CUT - 60_000 + n, received_at=CUT - 60_000 + n) for n in range(1, 7)
    ]
    and_on = [an_event(7, session_id="bot", timestamp=CUT + 5, received_at=CUT + 5)]
    known = [an_event(n, session_id="known", timestamp=CUT - 2 + n, received_at=CUT - 2 + n) for n in range(1, 7)]
    ahead = [an_event(1, session_id="ahead", timestamp=CUT + 5, received_at=CUT - 5)]
    consume(a_batch([*long_before, *and_on, *known, *ahead]), source.tables)
    copied = Base(dynamo, NAMES, "g1", "g2", CUT).copy(Copied(), lambda copied: None)  # type: ignore[arg-type]
    assert sorted(copied.inexact) == ["blog#ahead", "blog#bot"]
    assert copied.counts["inexact"] == 2
    sessions = {key[0]: read_session(item).session for key, item in items_of(dynamo, "g2", NAMES.sessions).items()}
    assert sessions["blog#bot"].events == 7
    assert sessions["blog#known"].events == 1, "the events that are not stored came behind the cut"


def test_the_cut_is_a_full_hour() -> None:
    with pytest.raises(ValueError, match="no whole hour"):
        Base(FakeDynamo(), NAMES, "g1", "g2", CUT + 1)  # type: ignore[arg-type]
