"""``python -m infra cost``: what an amount of traffic costs a month, by service, beside the ordinary design."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from infra.usage import (
    Assumed,
    Front,
    Traffic,
    Usage,
    before_the_stream,
    busy,
    flow,
    least_shards,
    liveinsight,
    ordinary,
)

UNITS = Path(__file__).with_name("units.json")
PRICES = Path(__file__).with_name("prices.json")
_STORAGE = frozenset({"storage", "point-in-time recovery"})

_ABOUT = """\
The monthly bill by service: measured units (infra/units.json, from `make bench-units`) times list prices
(infra/prices.json, which says where each is from, and of when). Beside it stands the ordinary design: one call of the
function, three writes of 1 KB and one PutMetricData for every event. What is before the stream (edge, firewall,
collectors, query API) and the alarms would be the same for both; it is not measured, and stands apart.

  python -m infra cost --events-per-day 1000000
  python -m infra cost --events-per-day 1e9 --shards auto --batching-window 10 --json

Not in it: the archive, the shared cache, dashboards, what the query API reads and sends, KMS, free tiers, discounts,
and batches that come again.
"""


@dataclass(frozen=True)
class Bill:
    """What a month costs: lines of (service, what, quantity, unit, USD)."""

    lines: Sequence[tuple[str, str, float, str, float]]

    @property
    def total(self) -> float:
        return sum(line[4] for line in self.lines)

    def by_service(self) -> dict[str, float]:
        """USD of each service, in the order in which they appear."""
        found: dict[str, float] = {}
        for service, _, _, _, usd in self.lines:
            found[service] = found.get(service, 0.0) + usd
        return found

    def for_events(self) -> float:
        """Without what was stored before: what the month's events themselves cost."""
        return sum(usd for _, what, _, _, usd in self.lines if what not in _STORAGE)


def bill(usage: Usage, prices: Mapping[str, Any]) -> Bill:
    """Price a usage."""
    known = prices["prices"]
    return Bill(
        [
            (service, what, quantity, known[price]["unit"], quantity * known[price]["usd"])
            for (service, what), (quantity, price) in usage.items()
        ]
    )


def report(
    traffic: Traffic, units: Mapping[str, Any], prices: Mapping[str, Any], assumed: Assumed | None = None
) -> dict[str, Any]:
    """Both bills, what they were made from, and how they compare."""
    assumed = assumed or Assumed()
    moving = flow(traffic, units, assumed)
    ours, theirs = bill(liveinsight(traffic, units, assumed), prices), bill(ordinary(traffic, units, assumed), prices)
    before = bill(before_the_stream(traffic, units, assumed), prices)
    calls = sum(line[4] for line in theirs.lines if line[1] == "PutMetricData")
    millions = traffic.events_per_day * 365 / 12 / 1e6
    return {
        "region": prices["region"],
        "prices_of": prices["date"],
        "units_of": units["measured"],
        "traffic": asdict(traffic),
        "assumed": asdict(assumed) | asdict(Front()),
        "flow": asdict(moving),
        "busy": dict(zip(("average", "peak"), busy(traffic, units, assumed), strict=True)),
        "least_shards": least_shards(traffic, units, assumed),
        "liveinsight": _as_json(ours, millions),
        "ordinary": _as_json(theirs, millions),
        "before_the_stream": _as_json(before, millions),
        "usd_a_month": before.total + ours.total,
        "times_cheaper": theirs.total / ours.total,
        "times_cheaper_for_events": theirs.for_events() / ours.for_events(),
        "times_cheaper_for_events_without_metric_calls": (theirs.for_events() - calls) / ours.for_events(),
        "sources": prices["sources"],
        "prices": prices["prices"],
    }


def _as_json(one: Bill, millions: float) -> dict[str, Any]:
    return {
        "usd_a_month": one.total,
        "usd_for_events": one.for_events(),
        "usd_a_million_events": one.for_events() / millions,
        "services": one.by_service(),
        "lines": [
            {"service": service, "what": what, "quantity": quantity, "unit": unit, "usd": usd}
            for service, what, quantity, unit, usd in one.lines
        ],
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """A report as lines of text."""
    traffic, moving = found["traffic"], found["flow"]
    mode = f"{moving['shards']} provisioned" if traffic["shards"] else f"about {moving['shards']} on-demand"
    lines = [
        f"{traffic['events_per_day']:,.0f} events a day, {traffic['events_per_session']:g} in a session, "
        f"{moving['batch_events'] / moving['batch_sessions']:.2f} of a session in one batch; {mode} shards, "
        f"{moving['batches']:.1f} batches/s of {moving['batch_events']:,.1f} events",
        f"USD a month in {found['region']}, prices read {found['prices_of']}, units measured "
        f"{found['units_of']['date']}, {traffic['months']:g} months stored",
        "",
        f"{'':42} {'LiveInsight':>16} {'ordinary':>16}",
    ]
    ours, theirs = found["liveinsight"], found["ordinary"]
    of = [{(line["service"], line["what"]): line["usd"] for line in one["lines"]} for one in (ours, theirs)]
    services = list(dict.fromkeys([*ours["services"], *theirs["services"]]))
    for service in services:
        lines.append(_row(service, ours["services"].get(service), theirs["services"].get(service)))
        for _, what in (key for key in dict.fromkeys([*of[0], *of[1]]) if key[0] == service):
            lines.append(_row(f"  {what}", of[0].get((service, what)), of[1].get((service, what))))
    lines += [
        _row("all", ours["usd_a_month"], theirs["usd_a_month"]),
        _row("a million events, without storage", ours["usd_a_million_events"], theirs["usd_a_million_events"], 4),
        "",
        f"Before the stream, and alarms, for either: {found['before_the_stream']['usd_a_month']:,.2f}: "
        + ", ".join(f"{name} {usd:,.2f}" for name, usd in found["before_the_stream"]["services"].items()),
        f"LiveInsight in all: {found['usd_a_month']:,.2f} USD a month",
        "",
        f"The ordinary design costs {found['times_cheaper']:.1f} times as much; "
        f"{found['times_cheaper_for_events']:.1f} times without storage, and "
        f"{found['times_cheaper_for_events_without_metric_calls']:.1f} times if its metrics cost no calls either.",
        f"A provisioned stream needs {found['least_shards']} shards at the peak. A shard's consumer works "
        f"{found['busy']['average']:.0%} of the time, at the peak {found['busy']['peak']:.0%}.",
        "Where the prices are from, and what is assumed: --json",
    ]
    return lines


def _row(name: str, ours: float | None, theirs: float | None, digits: int = 2) -> str:
    cells = ("" if usd is None else f"{usd:,.{digits}f}" for usd in (ours, theirs))
    return f"{name:42} " + " ".join(f"{cell:>16}" for cell in cells)


_OPTIONS = {
    "events_per_day": "events a day, on average",
    "events_per_session": "events of a session",
    "together": "events of a session that come in one batch; 0: what follows from --event-gap and the window",
    "event_gap": "seconds between a session's events",
    "peak_factor": "the busiest second, as a multiple of the average one",
    "retention_hours": "how long the stream keeps records (data.yaml's RetentionHours)",
    "batching_window": "seconds (consumer.yaml's MaximumBatchingWindowInSeconds)",
    "batch_size": "records (consumer.yaml's BatchSize)",
    "sites": "sites that share the traffic equally",
    "months": "how many months of data are stored",
    "known_users": "share of the sessions whose user is known",
    "lanes": "of the stream",
    "linger": "seconds that an event waits for others at a collector",
    "events_per_request": "events that a tracker posts at a time",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``cost`` takes."""
    defaults = {field.name: field.default for field in fields(Traffic)}
    for name, about in _OPTIONS.items():
        kind = int if isinstance(defaults[name], int) and name in {"batch_size", "sites", "lanes"} else float
        flag = f"--{name.replace('_', '-')}"
        if name == "events_per_day":
            parser.add_argument(flag, type=kind, required=True, metavar="N", help=about)
        else:
            parser.add_argument(
                flag, type=kind, default=defaults[name], metavar="N", help=f"{about} (default: %(default)s)"
            )
    parser.add_argument(
        "--shards",
        default="on-demand",
        metavar="N|auto|on-demand",
        help="shards of a provisioned stream, as many as the peak needs, or an on-demand stream (the default)",
    )
    parser.add_argument(
        "--memory-mb",
        type=float,
        default=Assumed.memory_mb,
        metavar="N",
        help="of the function, from 128 to 10240 (consumer.yaml's MemorySize; default: %(default)s)",
    )
    parser.add_argument("--units", type=Path, default=UNITS, metavar="FILE", help="measured units (default: ours)")
    parser.add_argument("--prices", type=Path, default=PRICES, metavar="FILE", help="prices (default: ours)")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object, with the prices' sources")
    parser.set_defaults(run=run)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``cost`` to the operator's commands."""
    arguments(
        commands.add_parser(
            "cost",
            help="what an amount of traffic costs a month",
            description=_ABOUT,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def run(given: argparse.Namespace) -> int:
    """Print the bill; exit status 2 for what cannot be."""
    try:
        units, prices = _load(given.units), _load(given.prices)
        traffic = _traffic(given, units)
        if not 128 <= given.memory_mb <= 10_240:
            raise ValueError(f"memory_mb is {given.memory_mb:g}; it must be 128 to 10240")
        found = report(traffic, units, prices, Assumed(memory_mb=given.memory_mb))
    except (OSError, ValueError, KeyError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        print(f"cost: {why}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if given.json else "\n".join(table(found)))
    return 0


def _traffic(given: argparse.Namespace, units: Mapping[str, Any]) -> Traffic:
    values = {name: getattr(given, name) for name in _OPTIONS}
    if given.shards == "on-demand":
        return Traffic(**values)
    if given.shards == "auto":
        return Traffic(**values, shards=least_shards(Traffic(**values), units, Assumed()))
    if not given.shards.isdecimal() or int(given.shards) < 1:
        raise ValueError(f"shards is {given.shards!r}; it must be a number from 1 on, auto, or on-demand")
    return Traffic(**values, shards=int(given.shards))


def _load(path: Path) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", json.loads(path.read_text(encoding="utf-8")))
