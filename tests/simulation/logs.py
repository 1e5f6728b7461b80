"""Logs to simulate: what producers put on a stream, also while its shards split and merge."""

from __future__ import annotations

import random
from collections.abc import Sequence

from producer import erasure
from producer.erasure import Erasure
from producer.event import Event, encode
from producer.kpl import encode_aggregate
from tests.builders import NOON, an_erasure, an_event
from tests.simulation.world import Shard

#: Eras of a stream: each era's shards, as (name, parents, the quarter of the lanes that are theirs).
TOPOLOGIES: dict[str, list[list[tuple[str, tuple[str, ...], range]]]] = {
    "one shard": [[("shard-0", (), range(4))]],
    "two shards": [[("shard-0", (), range(2)), ("shard-1", (), range(2, 4))]],
    "split": [
        [("shard-0", (), range(4))],
        [("shard-1", ("shard-0",), range(2)), ("shard-2", ("shard-0",), range(2, 4))],
    ],
    "merge": [
        [("shard-0", (), range(2)), ("shard-1", (), range(2, 4))],
        [("shard-2", ("shard-0", "shard-1"), range(4))],
    ],
    "split, then merge": [
        [("shard-0", (), range(4))],
        [("shard-1", ("shard-0",), range(2)), ("shard-2", ("shard-0",), range(2, 4))],
        [("shard-3", ("shard-1", "shard-2"), range(4))],
    ],
}
KINDS = ("page_view", "page_view", "click", "conversion", "heartbeat")


def event_of(number: int, session: int, rng: random.Random, numbered: bool) -> Event:
    """One event of session ``session``, whose lane is its number."""
    return an_event(
        number,
        session_id=f"s{session}",
        timestamp=NOON + rng.choice((-1000, 0, 1000, 899_000, 900_000)) + number,
        event_type=rng.choice(KINDS),
        page_url=rng.choice(("/a", "/b", "/c")),
        **({"seq": number, "source": f"tab{session}"} if numbered else {}),
    )


def random_shards(rng: random.Random, size: int, topology: str, *, straddling: bool = False) -> list[Shard]:
    """About ``size`` events of up to four sessions over the eras of ``topology``; some twice, some poison; in some
    logs, some sessions are erased, and go on all the same.

    ``straddling`` plants a fault: an aggregate may hold events of lanes that later go to different shards.
    """
    sent: list[Event] = []
    shards = []
    erasing = rng.choice((0.0, 0.0, 0.15))
    for era in TOPOLOGIES[topology]:
        records: dict[str, list[bytes]] = {name: [] for name, _, _ in era}
        for _ in range(max(1, size // len(TOPOLOGIES[topology]))):
            lane = rng.randrange(4)
            name = next(name for name, _, lanes in era if lane in lanes)
            aggregate = []
            for _ in range(rng.randint(1, 3)):
                if straddling and rng.random() < 0.5:
                    lane = rng.randrange(4)
                again = [event for event in sent if event.session_id == f"s{lane}"]
                if again and rng.random() < 0.2:
                    aggregate.append(rng.choice(again))
                else:
                    aggregate.append(event_of(len(sent) + 1, lane, rng, numbered=lane % 2 == 0))
                    sent.append(aggregate[-1])
            payloads = [encode(event) for event in aggregate]
            if rng.random() < 0.1:
                payloads.insert(rng.randint(0, len(payloads)), b"{")
            if rng.random() < erasing:
                payloads.insert(rng.randint(0, len(payloads)), erasure.encode(an_erasure(f"s{lane}")))
            plain = len(payloads) == 1 and rng.random() < 0.5
            records[name].append(payloads[0] if plain else encode_aggregate(payloads, f"lane-{lane}", str(lane)))
        # Sequence numbers grow by a digit on the way, and a child's may be smaller than its parent's.
        shards += [Shard(name, tuple(records[name]), rng.choice((1, 8, 97)), parents) for name, parents, _ in era]
    return shards


#: A bound of the events in a session's item (``MAX_RECENT_BYTES``) that any of these keeps, and no two of them do.
ROOM_FOR_ONE = 300


def small_events() -> Sequence[Event | bytes]:
    """The alphabet of the exhaustive logs: two sessions, an event twice, one that comes late, poison."""
    return (
        an_event(1, session_id="a", timestamp=NOON + 5),
        an_event(2, session_id="a", timestamp=NOON - 5, event_type="click"),
        an_event(3, session_id="b", timestamp=NOON + 7, seq=1, source="tab"),
        an_event(4, session_id="b", timestamp=NOON + 901_000, event_type="conversion", seq=2, source="tab"),
        b"{",
    )


def erasing_events() -> Sequence[Event | Erasure]:
    """The alphabet of the exhaustive logs with an erasure: of a session that began earlier than its first event said."""
    return (
        an_event(1, session_id="a", timestamp=NOON + 5),
        an_event(2, session_id="a", timestamp=NOON - 5, event_type="conversion", seq=1, source="tab"),
        an_event(3, session_id="b", timestamp=NOON + 7),
        an_erasure("a"),
    )
