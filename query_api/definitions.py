"""What each figure means, and which figures there are of what: served at ``/api/metrics/``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from query_api.statistics import Figures
from stream_consumer import durations
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS
from stream_consumer.session import MICROS, SESSION_TIMEOUT_MS
from stream_consumer.visitors import EXACT, RELATIVE_STANDARD_ERROR

HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

Value = int | float | dict[str, float]


@dataclass(frozen=True)
class Interval:
    """A step of time. ``length`` in ms, of a day and an hour as a rule: clocks are changed. ``most_days``: the longest
    range that it may be asked of.
    """

    name: str
    length: int
    most_days: int


INTERVALS = {
    interval.name: interval
    for interval in (
        Interval("minute", MINUTE_MS, 1),
        Interval("5m", 5 * MINUTE_MS, 7),
        Interval("15m", QUARTER_MS, 31),
        Interval("hour", HOUR_MS, 31),
        Interval("day", DAY_MS, 366),
    )
}


@dataclass(frozen=True)
class Metric:
    """A figure: ``value`` reads it from sums. ``by_quarter``: kept by the quarter of an hour, not by the minute."""

    name: str
    title: str
    unit: str
    definition: str
    value: Callable[[Figures], Value]
    by_quarter: bool = False

    @property
    def intervals(self) -> list[str]:
        """The steps of time for which there is this figure."""
        return [name for name, step in INTERVALS.items() if not self.by_quarter or step.length >= QUARTER_MS]


def _per(amount: int, count: int) -> float:
    return amount / count if count > 0 else 0.0


_TIMEOUT = f"{SESSION_TIMEOUT_MS // MINUTE_MS} minutes"

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "visitors",
            "Visitors",
            "visitors",
            "Distinct visitors with an event in the range: by user id where an event has one, else by session. Exact up"
            f" to {EXACT}; beyond, an estimate with a standard error of {RELATIVE_STANDARD_ERROR:.1%}.",
            lambda figures: figures.visitors.estimate(),
            by_quarter=True,
        ),
        Metric(
            "sessions",
            "Sessions",
            "sessions",
            "Sessions that began in the range. A session is all events that carry its id; the tracker begins a new one"
            f" after {_TIMEOUT} without an event. It counts, with all that it did, where its earliest event is.",
            lambda figures: figures.sessions,
        ),
        Metric(
            "page_views", "Page views", "page views", "Page views in the range.", lambda figures: figures.page_views
        ),
        Metric(
            "events",
            "Events",
            "events",
            "Events of every kind in the range, page views too.",
            lambda figures: figures.events,
        ),
        Metric(
            "bounce_rate",
            "Bounce rate",
            "fraction",
            "The share of the sessions with one page view at most and no click, conversion or custom event.",
            lambda figures: _per(figures.began.bounces, figures.sessions),
        ),
        Metric(
            "avg_session_time",
            "Average session time",
            "seconds",
            "The mean time from a session's first event to its last.",
            lambda figures: _per(figures.began.duration, figures.sessions) / 1000,
        ),
        Metric(
            "median_session_time",
            "Median session time",
            "seconds",
            "The middle session's time from its first event to its last, of an even number the lower of the two; read"
            f" from a histogram, so up to half a second or {durations.RELATIVE_ERROR:.1%} off.",
            lambda figures: durations.median(figures.durations),
            by_quarter=True,
        ),
        Metric(
            "pages_per_session",
            "Pages per session",
            "page views per session",
            "Page views of the sessions that began in the range, for each of these sessions.",
            lambda figures: _per(figures.began.page_views, figures.sessions),
        ),
        Metric(
            "conversions",
            "Conversions",
            "conversions",
            "Conversions in the range.",
            lambda figures: figures.conversions,
        ),
        Metric(
            "conversion_rate",
            "Conversion rate",
            "fraction",
            "The share of the sessions with at least one conversion.",
            lambda figures: _per(figures.began.converted, figures.sessions),
        ),
        Metric(
            "conversion_values",
            "Conversion value",
            "amount by currency",
            "The sum of the values of the conversions in the range, for each currency.",
            lambda figures: {name: micros / MICROS for name, micros in sorted(figures.values.items()) if micros},
            by_quarter=True,
        ),
    )
}


@dataclass(frozen=True)
class Dimension:
    """What figures are broken down by. ``stored``: the roll-ups' counter; ``metrics``: what there is of each label."""

    name: str
    title: str
    definition: str
    metrics: tuple[str, ...]
    stored: str


_OF_SESSIONS = (
    "sessions",
    "page_views",
    "events",
    "bounce_rate",
    "avg_session_time",
    "pages_per_session",
    "conversions",
    "conversion_rate",
)
_WHOLE = "Counts sessions, each with all that it did, where it began."


def _sessions(name: str, title: str, definition: str) -> Dimension:
    return Dimension(name, title, f"{definition} {_WHOLE}", _OF_SESSIONS, name)


DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        Dimension("page", "Page", "The path of the page viewed, without query and fragment.", ("page_views",), "page"),
        _sessions("entry_page", "Entry page", "The page of a session's first page view."),
        _sessions("exit_page", "Exit page", "The page of a session's last page view."),
        _sessions("referrer", "Referrer", "The host of the page that a session came from; '' for none."),
        _sessions("source", "Source", "Who sent the session: utm_source, else the referring site's name, else Direct."),
        _sessions(
            "channel", "Channel", "How it came: direct, search, social, referral, email, paid or ai (an AI assistant)."
        ),
        *(
            _sessions(f"utm_{part}", f"Campaign {part}", f"utm_{part} of the landing page's URL; only where it is set.")
            for part in ("source", "medium", "campaign", "term", "content")
        ),
        _sessions("country", "Country", "ISO 3166 code of the country that the collector was told; '' for unknown."),
        _sessions("language", "Language", "The browser's language; '' for unknown."),
        _sessions("device", "Device", "desktop, mobile or tablet, by the user agent; '' for unknown."),
        _sessions("browser", "Browser", "By the user agent, without its version; '' for unknown."),
        _sessions("os", "Operating system", "By the user agent, without its version; '' for unknown."),
        Dimension(
            "event_type", "Event type", "What the tracker or the site calls the event.", ("events",), "event_type"
        ),
        Dimension(
            "conversion_type",
            "Conversion type",
            "What the site calls the conversion.",
            ("conversions", "conversion_values"),
            "conversion",
        ),
        Dimension(
            "currency", "Currency", "The currency of conversions.", ("conversions", "conversion_values"), "conversion"
        ),
    )
}
