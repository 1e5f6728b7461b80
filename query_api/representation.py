"""The JSON of each answer: values -> what ``msgspec.json`` encodes. Pure.

Times are ISO 8601 UTC with milliseconds, durations seconds, rates fractions. A text that is
unknown is '' in a row of its own, and :data:`UNKNOWN` where it is a label beside others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from producer.event import Event
from query_api.parameters import Page, Span
from query_api.statistics import Ranking, Step, Summary
from stream_consumer.acquisition import UTM
from stream_consumer.session import MICROS, Session

#: The label of what roll-ups had no room to hold apart, always the last one.
OTHER = "(other)"
UNKNOWN = "(unknown)"
#: The label of sessions that came from no other site.
DIRECT = "Direct"

Json = dict[str, Any]


def moment(at: int) -> str:
    """Milliseconds since 1970 as ISO 8601."""
    seconds, milliseconds = divmod(at, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def session_row(session: Session, active: bool) -> Json:
    """A session as lists show it."""
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


def session_details(session: Session, active: bool) -> Json:
    """One session in full; ``utm`` holds the campaign parameters that were set, without their prefix."""
    came = session.landing.acquisition
    utm = {name.removeprefix("utm_"): value for name in UTM if (value := getattr(came, name))}
    return session_row(session, active) | {
        "exit_page": session.exit_page,
        "landing_url": session.landing.page_url,
        "utm": utm,
        "interactions": session.interactions,
        "scroll_depth": session.scroll_depth,
        "conversion_values": {currency: micros / MICROS for currency, micros in sorted(session.values.items())},
    }


def event_row(event: Event) -> Json:
    """An event. ``user_id``, ``element``, ``conversion``: only where it has them; ``properties``: as they were sent."""
    row: Json = {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "timestamp": moment(event.timestamp),
        "received_at": moment(event.received_at),
        "page_url": event.page_url,
        "title": event.title,
        "referrer": event.referrer,
    }
    if event.user_id:
        row["user_id"] = event.user_id
    element = {
        "id": event.element_id,
        "tag": event.element_tag,
        "text": event.element_text,
        "href": event.element_href,
    }
    if any(element.values()):
        row["element"] = element
    if event.conversion_type or event.conversion_value:
        row["conversion"] = {
            "type": event.conversion_type,
            "value": event.conversion_value,
            "currency": event.conversion_currency,
        }
    row["properties"] = event.properties
    return row


def summary(site_id: str, span: Span, found: Summary, active_now: int) -> Json:
    """The totals of a range."""
    return {
        "site": site_id,
        "from": moment(span.start),
        "to": moment(span.end),
        "as_of": moment(found.as_of) if found.as_of else None,
        "total_sessions": found.sessions,
        "total_events": found.events,
        "page_views": found.page_views,
        "visitors": found.visitors,
        "visitors_exact": found.visitors_error == 0,
        "visitors_error": found.visitors_error,
        "avg_session_time": found.average_seconds,
        "bounce_rate": found.bounce_rate,
        "pages_per_session": found.pages_per_session,
        "conversions": found.conversions,
        "conversion_rate": found.conversion_rate,
        "conversion_values": found.conversion_values,
        "active_now": active_now,
    }


def steps(found: Iterable[Step]) -> list[Json]:
    """Figures over time; ``hour`` is the start of the step, however short it is."""
    return [
        {
            "hour": moment(step.at),
            "count": step.events,
            "page_views": step.page_views,
            "sessions": step.sessions,
            "conversions": step.conversions,
        }
        for step in found
    ]


def pages(found: Ranking) -> list[Json]:
    """Pages with their views."""
    return [{"page": label, "views": views} for label, views in _labelled(found, UNKNOWN)]


def shares(found: Ranking, unknown: str = UNKNOWN) -> Json:
    """Labels and their amounts, in the two lists that charts take."""
    rows = _labelled(found, unknown)
    return {"labels": [label for label, _ in rows], "data": [amount for _, amount in rows]}


def realtime(
    site_id: str,
    *,
    as_of: int,
    visitors_now: int,
    active_sessions: int,
    minutes: Iterable[Step],
    top_pages: Iterable[tuple[str, int]],
) -> Json:
    """The last half hour; ``as_of`` 0 for nothing counted."""
    return {
        "site": site_id,
        "as_of": moment(as_of) if as_of else None,
        "visitors_now": visitors_now,
        "active_sessions": active_sessions,
        "minutes": [
            {"minute": moment(minute.at), "events": minute.events, "page_views": minute.page_views}
            for minute in minutes
        ],
        "top_pages": [{"page": page, "visitors": visitors} for page, visitors in top_pages],
    }


def paginated(path: str, arguments: Sequence[tuple[str, str]], page: Page, count: int, results: list[Json]) -> Json:
    """One page of a list of ``count`` rows. ``next`` and ``previous`` are paths on this server, null where none is."""

    def link(number: int) -> str:
        return f"{path}?{urlencode([*arguments, ('page', number), ('page_size', page.size)])}"

    pages = -(-count // page.size)
    return {
        "count": count,
        "next": link(page.number + 1) if page.number < pages else None,
        "previous": link(min(page.number - 1, max(pages, 1))) if page.number > 1 else None,
        "results": results,
    }


def _labelled(found: Ranking, unknown: str) -> list[tuple[str, int]]:
    rows = [(label or unknown, amount) for label, amount in found.rows]
    if found.other > 0:
        rows.append((OTHER, found.other))
    return rows
