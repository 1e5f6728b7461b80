"""The footprint of an erased session: where its events had been, which an erasure must know once they are gone."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from producer.event import Event
from stream_consumer.merged import HOUR_MS
from stream_consumer.rollup import quarter_of
from stream_consumer.session import Session

#: An event comes into the stream at most this long (ms) after it arrived at a collector: longer than producers try.
ON_THE_WAY_MS = 5 * 60 * 1000


class Footprint(Struct, frozen=True, array_like=True):
    """``quarters``: the quarters of an hour that its events were in. ``arrivals``: the hours, UTC, in which they may
    have come into the stream. Both as their starts in ms since 1970, ascending.
    """

    quarters: list[int]
    arrivals: list[int]


def footprint(session: Session, events: Sequence[Event]) -> Footprint:
    """The footprint of a session of which ``events`` are stored. Where it had more, they may have come in any hour
    from the first of the stored ones to the session's last.
    """
    received = [session.received, *(event.received_at for event in events)]
    arrivals = {hour_of(at + late) for at in received for late in (0, ON_THE_WAY_MS)}
    if session.events > len(events):
        arrivals.update(range(min(arrivals), max(arrivals), HOUR_MS))
    return Footprint(sorted({quarter_of(event.timestamp) for event in events}), sorted(arrivals))


def hour_of(at: int) -> int:
    """The start (ms) of the UTC hour in which ``at`` (ms) lies."""
    return at - at % HOUR_MS


class ErasedUser(Struct, frozen=True, array_like=True):
    """What is known of a user who was erased: nothing that names the user.

    ``erased_at`` is when that was last asked for, in ms since 1970. ``sessions``: the ids of all that were erased;
    ``pending``: of those that this has not been finished for. ``arrivals`` is that of all their footprints.
    """

    erased_at: int
    sessions: list[str] = []
    pending: list[str] = []
    arrivals: list[int] = []
