"""The footprint of an erased session: where its events had been, which an erasure must know once they are gone."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from producer.event import Event
from stream_consumer.merged import HOUR_MS
from stream_consumer.rollup import quarter_of
from stream_consumer.session import Session


class Footprint(Struct, frozen=True, array_like=True):
    """``quarters``: the quarters of an hour that its events were in. ``arrivals``: the hours in which they arrived at
    the collectors, UTC. Both as their starts in ms since 1970, ascending.
    """

    quarters: list[int]
    arrivals: list[int]


def footprint(session: Session, events: Sequence[Event]) -> Footprint:
    """The footprint of a session of which ``events`` are stored. Where it had more, they may have arrived in any hour
    from the first of the stored ones to the session's last.
    """
    arrivals = {hour_of(session.received), *(hour_of(event.received_at) for event in events)}
    if session.events > len(events):
        arrivals.update(range(min(arrivals), max(arrivals), HOUR_MS))
    return Footprint(sorted({quarter_of(event.timestamp) for event in events}), sorted(arrivals))


def hour_of(at: int) -> int:
    """The start (ms) of the UTC hour in which ``at`` (ms) lies."""
    return at - at % HOUR_MS
