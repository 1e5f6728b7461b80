"""What memory a function needs for the largest batch that Lambda hands over, 6 MB of JSON.

Each batch is consumed by a fresh process, whole: its imports, its client, the batch's JSON, and all that is made of it.
(The collector's memory under overload is in bench_collector, as its server is.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from producer.event import Event
from tests.benchmarks import peak_memory
from tests.benchmarks.api_data import Plan, events_of
from tests.benchmarks.measuring import Ratio, Row, Spread
from tests.builders import NOON, a_lambda_event, an_aggregate

_END = 1_772_323_200_000
_MOST_BYTES = 6 * 1024 * 1024
#: What the function may use: as much as Lambda gives a function of this size.
BOUND_MB = 256.0


def visits(count: int) -> list[Event]:
    """About so many events as sites have them."""
    return events_of(Plan(count, _END, active=0, shards=1), 0)


def smallest(count: int) -> list[Event]:
    """So many events that say nothing, each a session of its own: the most objects that bytes can make."""
    return [
        Event(event_id=f"{n:x}", site_id="s", session_id=f"{n:x}", event_type="e", timestamp=NOON, received_at=NOON)
        for n in range(count)
    ]


def batch_of(events: Sequence[Event], in_record: int, most: int) -> dict[str, Any]:
    """As many of the events, ``in_record`` to an aggregate, as fit into ``most`` bytes of what Lambda hands over."""
    return a_lambda_event(list(_fitting(events, in_record, most)))


def _fitting(events: Sequence[Event], in_record: int, most: int) -> Iterator[bytes]:
    room = most - 32
    for at in range(0, len(events), in_record):
        data = an_aggregate(events[at : at + in_record])
        room -= len(json.dumps(a_lambda_event([data])))
        if room < 0:
            return
        yield data


def rows(quick: bool) -> list[Row]:
    """MB at the peak."""
    most = _MOST_BYTES // 20 if quick else _MOST_BYTES
    batches = {
        "visits, 10 events in a record": batch_of(visits(most // 350), 10, most),
        "visits, 100 events in a record": batch_of(visits(most // 350), 100, most),
        "smallest events, each a session": batch_of(smallest(most // 110), 1000, most),
    }
    found = {
        name: Spread.of([peak_memory.of_batch(batch).whole / 1e6 for _ in range(1 if quick else 3)])
        # Each takes a process, and its second of imports.
        for name, batch in list(batches.items())[:: 2 if quick else 1]
    }
    worst = max(found, key=lambda name: found[name].median)
    share = found[worst]
    return [
        Row(
            "consumer's memory, a batch of 6 MB",
            "MB",
            worst,
            found,
            [
                Ratio(
                    f"{BOUND_MB:.0f} MB",
                    Spread(share.median / BOUND_MB, share.low / BOUND_MB, share.high / BOUND_MB),
                    1,
                    at_most=True,
                )
            ],
            "The whole process at its peak, of the worst of three batches of as many bytes.",
        )
    ]
