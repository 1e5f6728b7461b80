"""What the figures must be: computed from the raw events of a site, event by event, with nothing of the product's
sums. Only what a word means (a page's path, where a referrer leads, a bucket of durations) is the product's own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from producer.event import Event
from stream_consumer.acquisition import acquire, page_of
from stream_consumer.durations import bucket_of, seconds_of
from stream_consumer.user_agent import recognise


@dataclass(frozen=True)
class Visit:
    """One session, as its events tell it."""

    events: Sequence[Event]

    @property
    def start(self) -> int:
        return min(event.timestamp for event in self.events)

    @property
    def seconds(self) -> float:
        return (max(event.timestamp for event in self.events) - self.start) / 1000

    @property
    def views(self) -> list[Event]:
        return sorted(
            (event for event in self.events if event.event_type == "page_view"), key=lambda e: (e.timestamp, e.event_id)
        )

    @property
    def conversions(self) -> int:
        return sum(event.event_type == "conversion" for event in self.events)

    @property
    def bounced(self) -> bool:
        active = {event.event_type for event in self.events} - {"page_view", "heartbeat", "scroll", "page_exit"}
        return len(self.views) <= 1 and not active

    def label(self, dimension: str) -> str:
        first = (self.views or sorted(self.events, key=lambda e: (e.timestamp, e.event_id)))[0]
        match dimension:
            case "entry_page":
                return page_of(self.views[0].page_url) if self.views else ""
            case "exit_page":
                return page_of(self.views[-1].page_url) if self.views else ""
            case "country" | "language":
                return str(getattr(first, dimension))
            case "device" | "browser" | "os":
                return str(getattr(recognise(first.user_agent), dimension))
        return str(getattr(acquire(first.page_url, first.referrer), dimension))


def visits(events: Iterable[Event]) -> list[Visit]:
    """The sessions of a site's events."""
    by_id: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_id[event.session_id].append(event)
    return [Visit(its_events) for its_events in by_id.values()]


def of_visits(some: Sequence[Visit]) -> dict[str, Any]:
    """What is told of sessions alone."""
    count = len(some)
    return {
        "sessions": count,
        "bounce_rate": sum(visit.bounced for visit in some) / count if count else 0,
        "avg_session_time": sum(visit.seconds for visit in some) / count if count else 0,
        "pages_per_session": sum(len(visit.views) for visit in some) / count if count else 0,
        "conversion_rate": sum(visit.conversions > 0 for visit in some) / count if count else 0,
    }


def figures(events: Sequence[Event], start: int, end: int) -> dict[str, Any]:
    """Every metric of a site from ``start`` to before ``end`` (ms)."""
    inside = [event for event in events if start <= event.timestamp < end]
    began = [visit for visit in visits(events) if start <= visit.start < end]
    conversions = [event for event in inside if event.event_type == "conversion"]
    seconds = sorted(visit.seconds for visit in began)
    return of_visits(began) | {
        "visitors": len({event.user_id or ("", event.session_id) for event in inside}),
        "events": len(inside),
        "page_views": sum(event.event_type == "page_view" for event in inside),
        "conversions": len(conversions),
        "conversion_values": _values(conversions),
        "median_session_time": seconds_of(bucket_of(round(seconds[(len(seconds) - 1) // 2] * 1000))) if seconds else 0,
    }


def breakdown(events: Sequence[Event], start: int, end: int, dimension: str) -> dict[str, dict[str, Any]]:
    """Every metric of each label of a dimension from ``start`` to before ``end`` (ms)."""
    inside = [event for event in events if start <= event.timestamp < end]
    conversions = [event for event in inside if event.event_type == "conversion"]
    match dimension:
        case "page":
            views = [page_of(event.page_url) for event in inside if event.event_type == "page_view"]
            return {label: {"page_views": count} for label, count in Counter(views).items()}
        case "event_type":
            return {label: {"events": count} for label, count in Counter(e.event_type for e in inside).items()}
        case "conversion_type" | "currency":
            field = "conversion_type" if dimension == "conversion_type" else "conversion_currency"
            by_label = defaultdict(list)
            for event in conversions:
                by_label[getattr(event, field)].append(event)
            return {
                label: {"conversions": len(some), "conversion_values": _values(some)}
                for label, some in by_label.items()
            }
    by_label = defaultdict(list)
    for visit in visits(events):
        label = visit.label(dimension)
        if start <= visit.start < end and (label or not dimension.startswith("utm_")):
            by_label[label].append(visit)
    return {
        label: of_visits(some)
        | {
            "events": sum(len(visit.events) for visit in some),
            "page_views": sum(len(visit.views) for visit in some),
            "conversions": sum(visit.conversions for visit in some),
        }
        for label, some in by_label.items()
    }


def _values(conversions: Iterable[Event]) -> dict[str, float]:
    values: Counter[str] = Counter()
    for event in conversions:
        values[event.conversion_currency] += round(event.conversion_value * 1_000_000)
    return {currency: micros / 1_000_000 for currency, micros in values.items() if micros}
