"""The shape of each answer, from which the API's description is made.

Times are ISO 8601 with milliseconds, in UTC where nothing else is said; durations seconds; rates fractions from 0 to 1.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from query_api.definitions import METRICS

AsOf = Annotated[
    str | None, Meta(description="The arrival of the newest event that is counted here (ISO 8601), null for none.")
]
Lag = Annotated[
    float | None, Meta(description="Seconds that the consumer is behind the stream, null where that is not known.")
]
Partial = Annotated[bool, Meta(description="Whether the range is not over yet.")]
Exact = Annotated[bool, Meta(description="Whether `visitors` is exact, not an estimate.")]
VisitorsError = Annotated[
    float, Meta(description="The standard error of `visitors`, as a fraction of it; 0 where it is exact.")
]
Moment = Annotated[str, Meta(description="ISO 8601 UTC.", extra_json_schema={"format": "date-time"})]
Label = Annotated[str, Meta(description="'' for none: direct for referrer, unknown elsewhere.")]


def _of(name: str) -> Meta:
    return Meta(description=METRICS[name].definition)


_Visitors = Annotated[int, _of("visitors")]
_Sessions = Annotated[int, _of("sessions")]
_PageViews = Annotated[int, _of("page_views")]
_Events = Annotated[int, _of("events")]
_BounceRate = Annotated[float, _of("bounce_rate")]
_AverageTime = Annotated[float, _of("avg_session_time")]
_MedianTime = Annotated[float, _of("median_session_time")]
_PagesPerSession = Annotated[float, _of("pages_per_session")]
_Conversions = Annotated[int, _of("conversions")]
_ConversionRate = Annotated[float, _of("conversion_rate")]
_ConversionValues = Annotated[dict[str, float], _of("conversion_values")]


class Values(Struct, kw_only=True):
    """Metrics: those that were asked for."""

    visitors: _Visitors | UnsetType = UNSET
    sessions: _Sessions | UnsetType = UNSET
    page_views: _PageViews | UnsetType = UNSET
    events: _Events | UnsetType = UNSET
    bounce_rate: _BounceRate | UnsetType = UNSET
    avg_session_time: _AverageTime | UnsetType = UNSET
    median_session_time: _MedianTime | UnsetType = UNSET
    pages_per_session: _PagesPerSession | UnsetType = UNSET
    conversions: _Conversions | UnsetType = UNSET
    conversion_rate: _ConversionRate | UnsetType = UNSET
    conversion_values: _ConversionValues | UnsetType = UNSET


class Point(Values):
    """One slot of time."""

    at: Annotated[
        str,
        Meta(
            description="The slot's start (ISO 8601), with the offset of the asked zone.",
            extra_json_schema={"format": "date-time"},
        ),
    ]


class PreviousSeries(Struct, kw_only=True):
    """The period before, of as many points as the period."""

    start: Moment = field(name="from")
    end: Moment = field(name="to")
    points: list[Point]
    totals: Values


class TimeSeries(Struct, kw_only=True):
    """Metrics over time: one point for each slot, the empty ones too."""

    site: str
    start: Moment = field(name="from")
    end: Moment = field(name="to")
    tz: str
    interval: str
    metrics: list[str]
    as_of: AsOf
    lag: Lag
    partial: Partial
    visitors_exact: Exact
    visitors_error: VisitorsError
    points: list[Point]
    totals: Values
    previous: PreviousSeries | None
    dimension: str | None
    label: str | None


class _Compared(Values, kw_only=True):
    previous: Values | UnsetType = UNSET


class Row(_Compared):
    """One label. ``previous``: its metrics in the period before; absent where they are not known or not asked for."""

    label: Label


class Breakdown(Struct, kw_only=True):
    """Metrics of each label of a dimension, the greatest of the first metric first."""

    site: str
    start: Moment = field(name="from")
    end: Moment = field(name="to")
    tz: str
    dimension: str
    metrics: list[str]
    as_of: AsOf
    lag: Lag
    partial: Partial
    results: list[Row]
    more: Annotated[int, Meta(description="How many further labels there are.")]
    other: Annotated[Values | None, Meta(description="What storage does not hold apart by label; null if nothing.")]
    totals: Values


class SummaryFigures(Struct, kw_only=True):
    """The totals of a range."""

    total_sessions: _Sessions
    total_events: _Events
    page_views: _PageViews
    visitors: _Visitors
    visitors_exact: Exact
    visitors_error: VisitorsError
    avg_session_time: _AverageTime
    median_session_time: _MedianTime
    bounce_rate: _BounceRate
    pages_per_session: _PagesPerSession
    conversions: _Conversions
    conversion_rate: _ConversionRate
    conversion_values: _ConversionValues


class PreviousSummary(SummaryFigures):
    """The totals of the period before."""

    start: Moment = field(name="from")
    end: Moment = field(name="to")


class Summary(SummaryFigures):
    """The totals of a range, and who is here now."""

    site: str
    start: Moment = field(name="from")
    end: Moment = field(name="to")
    tz: str
    as_of: AsOf
    lag: Lag
    partial: Partial
    active_now: Annotated[int, Meta(description="Sessions with an event in the last 30 minutes.")]
    previous: PreviousSummary | None


class Step(Struct):
    """Five minutes."""

    hour: Annotated[Moment, Meta(description="The step's start, ISO 8601 UTC.")]
    count: Annotated[int, Meta(description="Events.")]
    page_views: _PageViews
    sessions: _Sessions
    conversions: _Conversions


class PageViews(Struct):
    """A page and how often it was viewed."""

    page: str
    views: int


class Shares(Struct):
    """Labels and their sessions, in the two lists that charts take; the greatest first, what is not held apart last."""

    labels: list[str]
    data: list[int]


class Minute(Struct):
    """What happened in one minute."""

    at: Moment
    events: int
    page_views: int
    sessions: int
    conversions: int


class LabelSessions(Struct):
    """A label and its sessions."""

    label: Label
    sessions: int


class LabelEvents(Struct):
    """A label and its events."""

    label: Label
    events: int


class HourDetails(Struct, kw_only=True):
    """One local hour, minute by minute."""

    site: str
    hour: Moment
    as_of: AsOf
    lag: Lag
    partial: Partial
    totals: Values
    minutes: list[Minute]
    top_pages: list[PageViews]
    referrers: list[LabelSessions]
    sources: list[LabelSessions]
    event_types: list[LabelEvents]


class HourViews(Struct):
    """An hour's views of the page."""

    hour: Moment
    views: int


class HourSessions(Struct):
    """An hour's sessions from the referrer."""

    hour: Moment
    sessions: int


class Element(Struct):
    """What was clicked."""

    id: str
    tag: str
    text: str
    href: str


class Conversion(Struct):
    """What was reached, and what it is worth."""

    type: str
    value: float
    currency: str


class EventRow(Struct, kw_only=True):
    """An event. ``user_id``, ``element``, ``conversion``: only where it has them; ``properties``: as they were sent."""

    event_id: str
    event_type: str
    timestamp: Moment
    received_at: Moment
    page_url: str
    title: str
    referrer: str
    user_id: str | UnsetType = UNSET
    element: Element | UnsetType = UNSET
    conversion: Conversion | UnsetType = UNSET
    properties: Annotated[Raw, Meta(extra_json_schema={"type": "object"})]


class SessionRow(Struct, kw_only=True):
    """A session as lists show it. Text that is unknown is ''."""

    session_id: str
    user_id: str
    site_id: str
    started_at: Moment
    last_activity: Moment
    current_page: str
    current_title: str
    entry_page: str
    duration: Annotated[float, Meta(description="Seconds from the first event to the last.")]
    page_views: int
    events: int
    conversions: int
    referrer: str
    source: str
    channel: str
    country: str
    language: str
    device: str
    browser: str
    os: str
    bounced: bool
    active: bool


class SessionDetails(SessionRow, kw_only=True):
    """One session in full; ``utm`` holds the campaign parameters that were set, without their prefix."""

    exit_page: str
    landing_url: str
    utm: dict[str, str]
    interactions: int
    scroll_depth: Annotated[int, Meta(description="Per cent of the page.")]
    conversion_values: dict[str, float]


class PageDetails(Struct, kw_only=True):
    """One page."""

    site: str
    start: Moment = field(name="from")
    end: Moment = field(name="to")
    as_of: AsOf
    lag: Lag
    partial: Partial
    page_url: str
    total_views: int
    recent_events: Annotated[
        list[EventRow], Meta(description="Of the newest active sessions that are on the page now, the newest first.")
    ]
    hourly_distribution: list[HourViews]
    entries: Annotated[Values, Meta(description="Of the sessions that began on the page.")]
    exits: Annotated[Values, Meta(description="Of the sessions whose last page view it was.")]


class ReferrerDetails(Struct, kw_only=True):
    """One referring host."""

    site: str
    start: Moment = field(name="from")
    end: Moment = field(name="to")
    as_of: AsOf
    lag: Lag
    partial: Partial
    referrer: str
    totals: Values
    hourly_distribution: list[HourSessions]
    recent_sessions: Annotated[list[SessionRow], Meta(description="Active ones that came from it, the newest first.")]


_Link = Annotated[str | None, Meta(description="A path on this server; null where there is no such page.")]


class SessionPage(Struct, kw_only=True):
    """One page of a list of sessions."""

    count: int
    next: _Link
    previous: _Link
    results: list[SessionRow]


class EventPage(Struct, kw_only=True):
    """One page of a list of events."""

    count: int
    next: _Link
    previous: _Link
    results: list[EventRow]


class LiveMinute(Struct):
    """What happened in one minute."""

    minute: Moment
    events: int
    page_views: int


class PageVisitors(Struct):
    """A page and how many sessions are on it."""

    page: str
    visitors: int


class Realtime(Struct, kw_only=True):
    """Who is here, and the last half hour."""

    site: str
    as_of: AsOf
    lag: Lag
    visitors_now: Annotated[int, Meta(description="Sessions with an event in the last 5 minutes.")]
    active_sessions: Annotated[int, Meta(description="Sessions with an event in the last 30 minutes.")]
    minutes: list[LiveMinute]
    top_pages: list[PageVisitors]
    sessions: Annotated[list[SessionRow], Meta(description="The newest.")]


class Sites(Struct):
    """The sites of which there are figures."""

    sites: list[str]


class MetricDefinition(Struct):
    """What a metric means, and for what there is it."""

    name: str
    title: str
    definition: str
    unit: str
    intervals: list[str]
    dimensions: list[str]


class DimensionDefinition(Struct):
    """What a dimension is, and which metrics there are of each of its labels."""

    name: str
    title: str
    definition: str
    metrics: list[str]


class Definitions(Struct):
    """What every figure means. ``visitors_error``: the standard error of estimated visitors, as a fraction."""

    metrics: list[MetricDefinition]
    dimensions: list[DimensionDefinition]
    intervals: list[str]
    visitors_error: float


class Health(Struct):
    """That the tables can be read."""

    status: str
