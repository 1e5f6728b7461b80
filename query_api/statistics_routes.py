"""Figures of ranges of time: /api/statistics/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from query_api import answers, calendar, export, parameters, ranges, representation, statistics
from query_api.definitions import DIMENSIONS, INTERVALS, METRICS
from query_api.endpoints import CSV, JSON, Asked, Endpoint, Made
from query_api.parameters import Arguments, Span
from query_api.ranges import FROM, TO, TZ, Range
from query_api.representation import moment
from query_api.sources import Sources
from query_api.statistics import Figures

#: The longest range in steps of five minutes.
_STEP_DAYS = INTERVALS["5m"].most_days
#: What is shown over time where no metrics are named: what is kept for every interval.
_BY_DEFAULT = ("events", "page_views", "sessions", "conversions")
_LIMIT = 10

_RANGE = (parameters.SITE, FROM, TO, TZ)
_FAILS = ("bad_parameter", "key_missing", "key_unknown", "other_site", "unavailable")
#: Path -> (dimension, title, what '' is called).
_RANKINGS = {
    "referrers": ("referrer", "Sessions by referrer", parameters.DIRECT),
    "sources": ("source", "Sessions by source", representation.UNKNOWN),
    "channels": ("channel", "Sessions by channel", representation.UNKNOWN),
    "devices": ("device", "Sessions by device", representation.UNKNOWN),
    "browsers": ("browser", "Sessions by browser", representation.UNKNOWN),
    "countries": ("country", "Sessions by country", representation.UNKNOWN),
}

ENDPOINTS = (
    Endpoint(
        path="/api/statistics/summary/",
        name="summary",
        group="Statistics",
        title="Totals of a range",
        description="Every metric of the range as a whole, and how many sessions are active now.",
        answer=answers.Summary,
        parameters=(*_RANGE, parameters.COMPARE),
        errors=_FAILS,
    ),
    Endpoint(
        path="/api/statistics/timeseries/",
        name="timeseries",
        group="Statistics",
        title="Metrics over time",
        description="One point for each slot of the interval, the empty ones too. Hours and days are those of `tz`, so"
        " a day may have 23 or 25 hours; the first and last slot are cut where the range begins and ends in them."
        " Without `metrics`: events, page views, sessions and conversions, or with a label what its dimension has.",
        answer=answers.TimeSeries,
        parameters=(
            *_RANGE,
            ranges.INTERVAL,
            parameters.METRIC_NAMES,
            parameters.COMPARE,
            parameters.ONE_DIMENSION,
            parameters.LABEL,
        ),
        errors=_FAILS,
    ),
    Endpoint(
        path="/api/statistics/breakdown/",
        name="breakdown",
        group="Statistics",
        title="Metrics by label",
        description="The labels of a dimension with their metrics (default: all that the dimension has), the greatest"
        " of the first metric first. As CSV there are all labels unless `limit` says less; text that a spreadsheet"
        " would take for a formula begins with an apostrophe there.",
        answer=answers.Breakdown,
        parameters=(
            *_RANGE,
            parameters.DIMENSION,
            parameters.METRIC_NAMES,
            parameters.limit_of("10, in CSV all"),
            parameters.COMPARE,
            parameters.FORMAT,
        ),
        errors=_FAILS,
        content_types=(JSON, CSV),
    ),
    Endpoint(
        path="/api/statistics/hourly/",
        name="hourly",
        group="Statistics",
        title="Counts in steps of 5 minutes",
        description=f"At most {_STEP_DAYS} days. /api/statistics/timeseries/ has more intervals and metrics.",
        answer=list[answers.Step],
        parameters=_RANGE,
        errors=_FAILS,
    ),
    Endpoint(
        path="/api/statistics/pages/",
        name="pages",
        group="Statistics",
        title="Pages by views",
        description="The most viewed first; what is not held apart comes last, as (other).",
        answer=list[answers.PageViews],
        parameters=(*_RANGE, parameters.limit_of(_LIMIT)),
        errors=_FAILS,
    ),
    *(
        Endpoint(
            path=f"/api/statistics/{name}/",
            name="shares",
            group="Statistics",
            title=title,
            description="The greatest first; what is not held apart comes last, as (other).",
            answer=answers.Shares,
            parameters=(*_RANGE, parameters.limit_of(_LIMIT)),
            errors=_FAILS,
            bound={"dimension": dimension, "unknown": unknown},
        )
        for name, (dimension, title, unknown) in _RANKINGS.items()
    ),
)


class _Ranking(NamedTuple):
    """A dimension's labels as a list for charts: what '' is called there, and what shows the rows."""

    dimension: str
    unknown: str
    represent: Callable[[list[tuple[str, int]]], Any]


def _shares(rows: list[tuple[str, int]]) -> answers.Shares:
    return answers.Shares([label for label, _ in rows], [amount for _, amount in rows])


_PAGES = _Ranking(
    "page", representation.UNKNOWN, lambda rows: [answers.PageViews(label, views) for label, views in rows]
)


class StatisticsRoutes:
    """Understands the requests of ENDPOINTS."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._clock: Callable[[], int] = sources.clock

    def summary(self, site: str, arguments: Arguments) -> Asked:
        asked = ranges.span(arguments, self._clock())
        before = asked.previous if parameters.compares(arguments) else None

        def make() -> Made:
            found, active = self._sources.over_time(site, asked.span, visitors=True), self._sources.active(site)
            figures = found.value[0]
            until = min(found.until, active.until)
            previous = None
            if before:
                earlier = self._sources.over_time(site, before, visitors=True)
                until = min(until, earlier.until)
                previous = answers.PreviousSummary(
                    moment(before.start),
                    moment(before.end),
                    **representation.summary_figures(earlier.value[0]),
                )
            head = self._head(asked, figures.received)
            return made(
                answers.Summary(
                    site=site,
                    **head,
                    active_now=len(active.value.order),
                    previous=previous,
                    **representation.summary_figures(figures),
                ),
                asked,
                until,
                figures.received,
                head,
            )

        return Asked(("summary", site, *asked.key, before is not None), make)

    def timeseries(self, site: str, arguments: Arguments) -> Asked:
        asked = ranges.span(arguments, self._clock())
        one = parameters.one_label(arguments)
        metrics = parameters.metrics(arguments, DIMENSIONS[one.dimension].metrics if one else _BY_DEFAULT)
        if one:
            parameters.check_dimension_has(one.dimension, metrics)
        interval = ranges.interval(arguments, asked, metrics, one)
        before = asked.previous if parameters.compares(arguments) else None
        if "visitors" in metrics:
            ranges.check_visitors(asked, interval)

        def read(slots: Sequence[int]) -> tuple[list[Figures], int]:
            if one:
                found = self._sources.over_time_of(site, slots, *one)
            else:
                found = self._sources.over_time(site, slots, visitors="visitors" in metrics)
            return found.value, found.until

        def make() -> Made:
            borders = calendar.borders(*asked.span, interval, asked.zone)
            figures, until = read(borders)
            totals = statistics.total(figures)
            previous = None
            if before:
                earlier = calendar.previous_borders(borders, asked.zone)
                then, good = read(earlier)
                until = min(until, good)
                previous = answers.PreviousSeries(
                    start=moment(earlier[0]),
                    end=moment(earlier[-1]),
                    points=representation.points(earlier, then, metrics, asked.zone),
                    totals=answers.Values(**representation.values(statistics.total(then), metrics)),
                )
            head = self._head(asked, totals.received)
            series = answers.TimeSeries(
                site=site,
                **head,
                interval=interval.name,
                metrics=list(metrics),
                visitors_exact=totals.visitors.exact,
                visitors_error=representation.visitors_error(totals),
                points=representation.points(borders, figures, metrics, asked.zone),
                totals=answers.Values(**representation.values(totals, metrics)),
                previous=previous,
                dimension=one.dimension if one else None,
                label=one.label if one else None,
            )
            return made(series, asked, until, totals.received, head)

        key = ("timeseries", site, *asked.key, interval.name, metrics, before is not None, one)
        return Asked(key, make)

    def breakdown(self, site: str, arguments: Arguments) -> Asked:
        asked = ranges.span(arguments, self._clock())
        dimension = parameters.dimension(arguments)
        metrics = parameters.metrics(arguments, DIMENSIONS[dimension].metrics)
        parameters.check_dimension_has(dimension, metrics)
        parameters.check_sorts(metrics)
        csv = parameters.wants_csv(arguments)
        limit = parameters.limit(arguments, export.MAX_ROWS if csv else _LIMIT)
        before = asked.previous if parameters.compares(arguments) else None

        def make() -> Made:
            found = self._sources.by_label(site, asked.span, dimension)
            earlier = self._sources.by_label(site, before, dimension) if before else None
            ranked = representation.ranked(found.value, metrics)
            held = [figures for _, figures in ranked]
            other = found.value.other
            head = self._head(asked, found.value.received)
            shown = answers.Breakdown(
                site=site,
                **head,
                dimension=dimension,
                metrics=list(metrics),
                results=representation.rows(ranked[:limit], metrics, earlier.value if earlier else None),
                more=max(0, len(ranked) - limit),
                other=answers.Values(**representation.values(other, metrics)) if other else None,
                totals=answers.Values(
                    **representation.values(statistics.total([*held, other] if other else held), metrics)
                ),
            )
            until = min(found.until, earlier.until) if earlier else found.until
            answer = made(shown, asked, until, found.value.received, head)
            if not csv:
                return answer
            name = export.file_name(site, dimension, asked.span)
            return answer._replace(
                value=export.as_csv(shown),
                content_type=CSV,
                headers={"Content-Disposition": f'attachment; filename="{name}"'},
                partial=answer.partial or shown.more > 0,
            )

        key = ("breakdown", site, *asked.key, dimension, metrics, limit, before is not None, csv)
        return Asked(key, make)

    def hourly(self, site: str, arguments: Arguments) -> Asked:
        asked = ranges.span(arguments, self._clock(), _STEP_DAYS)

        def make() -> Made:
            borders = calendar.borders(*asked.span, INTERVALS["5m"], asked.zone)
            found = self._sources.over_time(site, borders, visitors=False)
            received = max(one.received for one in found.value)
            head = self._head(asked, received)
            return made(representation.steps(borders, found.value), asked, found.until, received, head)

        return Asked(("hourly", site, *asked.key), make)

    def pages(self, site: str, arguments: Arguments) -> Asked:
        return self._ranking(site, arguments, _PAGES)

    def shares(self, site: str, arguments: Arguments, dimension: str, unknown: str) -> Asked:
        return self._ranking(site, arguments, _Ranking(dimension, unknown, _shares))

    def _ranking(self, site: str, arguments: Arguments, of: _Ranking) -> Asked:
        asked = ranges.span(arguments, self._clock())
        limit = parameters.limit(arguments, _LIMIT)
        metric = DIMENSIONS[of.dimension].metrics[0]

        def make() -> Made:
            found = self._sources.by_label(site, asked.span, of.dimension)
            rows = representation.amounts(found.value, metric, limit, of.unknown)
            received = found.value.received
            answer = made(of.represent(rows), asked, found.until, received, self._head(asked, received))
            value = METRICS[metric].value
            cut = sum(map(bool, map(value, found.value.rows.values()))) > limit
            return answer._replace(partial=answer.partial or cut)

        return Asked(("ranking", of.dimension, site, *asked.key, limit), make)

    def _head(self, asked: Range, received: int) -> dict[str, Any]:
        """The fields that figures of a range have in common."""
        return {
            "start": moment(asked.span.start),
            "end": moment(asked.span.end),
            "tz": asked.zone.key,
            "as_of": representation.arrival(received),
            "lag": self._sources.lag(),
            "partial": is_partial(asked.span, self._clock()),
        }


def is_partial(span: Span, now: int) -> bool:
    """Whether the range is not over yet."""
    return span.end > now


def made(value: Any, asked: Range, until: int, received: int, head: dict[str, Any]) -> Made:
    """The answer about a range: where that was not over when it was asked for, good no longer than to its end."""
    partial = head["partial"]
    good = min(until, asked.span.end) if partial or asked.up_to_now else until
    return Made(value, good, received, head["lag"], partial)
