"""What a million events cost beside the ordinary design: reckoned by ``infra.cost``, not timed.

The ordinary design calls a function for every event, which writes three items and sends a metric. Counted are the
stream, the function, the tables' reads and writes, logs, metrics and traces: all that the month's events cost but what
is stored of them, which is beside it: how much that is depends on how long it has been collected. The units are those that `make bench-units` has measured,
the prices those of ``infra/prices.json``.
"""

from __future__ import annotations

import json
from typing import Any

from infra import cost
from infra.usage import Traffic
from tests.benchmarks.measuring import Ratio, Row, Spread

EVENTS_PER_DAY = 1e8
#: Of a session, all in one batch.
TOGETHER = 5
BOUND = 0.1


def rows(quick: bool) -> list[Row]:
    """One row; it takes no time, so ``quick`` changes nothing."""
    found = _reckoned(EVENTS_PER_DAY)
    tenth, alone = _reckoned(EVENTS_PER_DAY / 10), _reckoned(EVENTS_PER_DAY, together=1)
    ours, theirs = (found[design]["usd_a_million_events"] for design in ("liveinsight", "ordinary"))
    note = (
        f"Reckoned from measured units and list prices (python -m infra cost), for {EVENTS_PER_DAY / 1e6:,.0f} million "
        f"events a day, {TOGETHER} of a session in a batch: stream, function, reads and writes of tables, logs, metrics "
        f"and traces; without storage, and what is before the stream. At a tenth of that traffic it is "
        f"{_share(tenth):.2f} of the ordinary design, as stream and metrics have a price of their own; with one event "
        f"of a session in a batch, {_share(alone):.2f}."
    )
    return [
        Row(
            "cost of 1,000,000 events",
            "USD",
            "ours",
            {"ours": _exactly(ours), "one call and three writes for each event": _exactly(theirs)},
            [
                Ratio("one call and three writes for each event", _exactly(_share(found)), BOUND, at_most=True),
                Ratio(
                    "the same, if its metrics cost no calls",
                    _exactly(1 / found["times_cheaper_for_events_without_metric_calls"]),
                ),
                Ratio("the same, with a year's data stored by both", _exactly(1 / found["times_cheaper"])),
            ],
            note,
        )
    ]


def _reckoned(events_per_day: float, together: int = TOGETHER) -> dict[str, Any]:
    units, prices = (json.loads(path.read_text(encoding="utf-8")) for path in (cost.UNITS, cost.PRICES))
    return cost.report(Traffic(events_per_day, events_per_session=TOGETHER, together=together), units, prices)


def _share(found: dict[str, Any]) -> float:
    return 1 / float(found["times_cheaper_for_events"])


def _exactly(figure: float) -> Spread:
    return Spread(figure, figure, figure)
