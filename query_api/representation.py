"""Values -> the answers that show them. Pure; see :mod:`query_api.answers` for what each field means.

A text that is unknown is '' in a row of its own, and :data:`UNKNOWN` where it is a label in the lists for charts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from msgspec import UNSET, Raw

from producer.event import Event
from query_api import answers, statistics
from query_api.definitions import DIMENSIONS, INTERVALS, METRICS
from query_api.statistics import Breakdown, Figures
from stream_consumer.acquisition import UTM
from stream_consumer.session import MICROS, Session
from stream_consumer.visitors import RELATIVE_STANDARD_ERROR

#: The label of what roll-ups had no room to hold apart, always the last one.
OTHER = "(other)"
UNKNOWN = "(unknown)"


def moment(at: int) -> str:
    """Milliseconds since 1970 as ISO 8601 in UTC."""
    seconds, milliseconds = divmod(at, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def local_moment(at: int, zone: tzinfo) -> str:
    """Milliseconds since 1970 as ISO 8601 with the zone's offset at that time."""
    return datetime.fromtimestamp(at / 1000, zone).isoformat(timespec="milliseconds")


def arrival(received: int) -> str | None:
    """The latest arrival (ms) as ISO 8601, None for 0: nothing has come."""
    return moment(received) if received > 0 else None


def values(figures: Figures, metrics: Iterable[str]) -> dict[str, Any]:
    """The metrics by name, in their order."""
    return {name: METRICS[name].value(figures) for name in metrics}


def points(
    borders: Sequence[int], figures: Iterable[Figures], metrics: Sequence[str], zone: tzinfo
) -> list[answers.Point]:
    """One for each slot between two borders."""
    return [
        answers.Point(local_moment(at, zone), **values(one, metrics))
        for at, one in zip(borders[:-1], figures, strict=True)
    ]


def visitors_error(figures: Figures) -> float:
    """The relative standard error of the number of visitors."""
    return 0.0 if figures.visitors.exact else RELATIVE_STANDARD_ERROR


def ranked(found: Breakdown, metrics: Sequence[str]) -> list[tuple[str, Figures]]:
    """The labels that have any of the metrics, the greatest of the first one first, ties in the labels' order."""
    first = METRICS[metrics[0]].value
    rows = [(label, one) for label, one in found.rows.items() if any(values(one, metrics).values())]
    return sorted(rows, key=lambda row: (-_number(first(row[1])), row[0]))


def rows(
    some: Iterable[tuple[str, Figures]], metrics: Sequence[str], before: Breakdown | None = None
) -> list[answers.Row]:
    """Labels with their metrics, and with those of the period ``before``."""

    def earlier(label: str) -> Any:
        if before is None:
            return UNSET
        then = before.rows.get(label)
        if then is None and before.other is not None:
            return UNSET  # it may be among them
        return answers.Values(**values(then or Figures(), metrics))

    return [answers.Row(label, previous=earlier(label), **values(one, metrics)) for label, one in some]


def summary_figures(figures: Figures) -> dict[str, Any]:
    """The fields of :class:`answers.SummaryFigures`."""
    found = values(figures, METRICS)
    return {
        "total_sessions": found.pop("sessions"),
        "total_events": found.pop("events"),
        "visitors_exact": figures.visitors.exact,
        "visitors_error": visitors_error(figures),
        **found,
    }


def steps(borders: Sequence[int], figures: Iterable[Figures]) -> list[answers.Step]:
    """Steps of five minutes."""
    return [
        answers.Step(moment(at), one.events, one.page_views, one.sessions, one.conversions)
        for at, one in zip(borders[:-1], figures, strict=True)
    ]


def minutes(borders: Sequence[int], figures: Iterable[Figures]) -> list[answers.Minute]:
    """Minutes of an hour."""
    return [
        answers.Minute(moment(at), one.events, one.page_views, one.sessions, one.conversions)
        for at, one in zip(borders[:-1], figures, strict=True)
    ]


def amounts(found: Breakdown, metric: str, limit: int, unknown: str = UNKNOWN) -> list[tuple[str, int]]:
    """The ``limit`` greatest labels with their amounts, ``unknown`` for '', and OTHER last."""
    value = METRICS[metric].value
    shown = [(label or unknown, int(_number(value(one)))) for label, one in ranked(found, [metric])[:limit]]
    if found.other is not None and (rest := int(_number(value(found.other)))) > 0:
        shown.append((OTHER, rest))
    return shown


def session_row(session: Session, active: bool) -> answers.SessionRow:
    """A session as lists show it."""
    return answers.SessionRow(**_row(session, active))


def session_details(session: Session, active: bool) -> answers.SessionDetails:
    """One session in full."""
    came = session.landing.acquisition
    return answers.SessionDetails(
        **_row(session, active),
        exit_page=session.exit_page,
        landing_url=session.landing.page_url,
        utm={name.removeprefix("utm_"): value for name in UTM if (value := getattr(came, name))},
        interactions=session.interactions,
        scroll_depth=session.scroll_depth,
        conversion_values={currency: micros / MICROS for currency, micros in sorted(session.values.items())},
    )


def event_row(event: Event) -> answers.EventRow:
    """An event."""
    element = answers.Element(event.element_id, event.element_tag, event.element_text, event.element_href)
    conversion = answers.Conversion(event.conversion_type, event.conversion_value, event.conversion_currency)
    return answers.EventRow(
        event_id=event.event_id,
        event_type=event.event_type,
        timestamp=moment(event.timestamp),
        received_at=moment(event.received_at),
        page_url=event.page_url,
        title=event.title,
        referrer=event.referrer,
        user_id=event.user_id or UNSET,
        element=element if element.id or element.tag or element.text or element.href else UNSET,
        conversion=conversion if conversion.type or conversion.value else UNSET,
        properties=Raw(event.properties),
    )


def current_pages(sessions: Iterable[Session], limit: int) -> list[answers.PageVisitors]:
    """The pages that most of the sessions are on."""
    return [answers.PageVisitors(page, count) for page, count in statistics.current_pages(sessions, limit)]


def live_minutes(figures: Mapping[int, Figures]) -> list[answers.LiveMinute]:
    """Figures by the minute's start (ms)."""
    return [answers.LiveMinute(moment(at), one.events, one.page_views) for at, one in figures.items()]


def definitions() -> answers.Definitions:
    """What every metric and dimension means."""
    return answers.Definitions(
        metrics=[
            answers.MetricDefinition(
                metric.name,
                metric.title,
                metric.definition,
                metric.unit,
                metric.intervals,
                [dimension.name for dimension in DIMENSIONS.values() if metric.name in dimension.metrics],
            )
            for metric in METRICS.values()
        ],
        dimensions=[
            answers.DimensionDefinition(one.name, one.title, one.definition, list(one.metrics))
            for one in DIMENSIONS.values()
        ],
        intervals=list(INTERVALS),
        visitors_error=RELATIVE_STANDARD_ERROR,
    )


def _row(session: Session, active: bool) -> dict[str, Any]:
    came, agent = session.landing.acquisition, session.landing.agent
    return {
        "session_id": session.session_id,
        "user_id": session.user_id,
        "site_id": session.site_id,
        "started_at": moment(session.start),
        "last_activity": moment(session.end),
        "current_page": session.exit_page,
        "current_title": session.exit.title,
        "entry_page": session.entry_page,
        "duration": session.duration / 1000,
        "page_views": session.page_views,
        "events": session.events,
        "conversions": session.conversions,
        "referrer": came.referrer,
        "source": came.source,
        "channel": came.channel,
        "country": session.landing.country,
        "language": session.landing.language,
        "device": agent.device,
        "browser": agent.browser,
        "os": agent.os,
        "bounced": session.bounced,
        "active": active,
    }


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0.0
