"""Figures over time, by label and of a range, through the front door."""

from datetime import datetime

import pytest

from query_api.definitions import DIMENSIONS, METRICS
from stream_consumer.rollup import MINUTE_MS
from tests.query_api.test_routes import HOUR, NOON, NOW, a_site, iso, visit

DAY = 24 * HOUR
BOUGHT = {"conversion_type": "order", "conversion_value": 12.5, "conversion_currency": "EUR"}


def ms(text) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def series(site, query, status=200):
    return site.get(f"/api/statistics/timeseries/?site=blog&{query}", status)


def breakdown(site, query, status=200):
    return site.get(f"/api/statistics/breakdown/?site=blog&{query}", status)


def spring():
    """A click every half hour on three days in Berlin, on the second of which clocks go forward."""
    start, end = ms("2023-03-25T00:00+01:00"), ms("2023-03-28T00:00+02:00")
    clicks = [visit(f"s{at}", at, "click", user_id=f"u{at % 7}") for at in range(start, end, 30 * MINUTE_MS)]
    return a_site(*clicks)


def test_days_are_local_days() -> None:
    site = spring()
    asked = "from=2023-03-25&to=2023-03-28&tz=Europe/Berlin&interval=day&metrics=events,visitors"
    found = series(site, asked)
    assert (found["from"], found["to"]) == ("2023-03-24T23:00:00.000Z", "2023-03-27T22:00:00.000Z")
    assert found["points"] == [
        {"at": "2023-03-25T00:00:00.000+01:00", "events": 48, "visitors": 7},
        {"at": "2023-03-26T00:00:00.000+01:00", "events": 46, "visitors": 7},
        {"at": "2023-03-27T00:00:00.000+02:00", "events": 48, "visitors": 7},
    ]
    assert found["totals"] == {"events": 142, "visitors": 7}
    assert (found["tz"], found["interval"], found["metrics"]) == ("Europe/Berlin", "day", ["events", "visitors"])
    assert (found["visitors_exact"], found["visitors_error"]) == (True, 0.0)
    assert (found["dimension"], found["label"], found["previous"]) == (None, None, None)


def test_hours_of_a_day_with_23_and_of_the_day_before() -> None:
    site = spring()
    found = series(site, "from=2023-03-26&to=2023-03-27&tz=Europe/Berlin&interval=hour&compare=previous")
    assert len(found["points"]) == len(found["previous"]["points"]) == 23
    assert [point["at"][11:16] for point in found["points"][:3]] == ["00:00", "01:00", "03:00"]
    # The hour from 2 to 3, that this day lacks, is with the hour before it.
    assert [point["events"] for point in found["previous"]["points"][:4]] == [2, 4, 2, 2]
    assert found["previous"]["totals"]["events"] == 48
    assert found["previous"]["from"] == "2023-03-24T23:00:00.000Z"
    after = series(site, "from=2023-03-27&to=2023-03-28&tz=Europe/Berlin&interval=hour&compare=previous")
    assert [point["events"] for point in after["previous"]["points"][:4]] == [2, 2, 0, 2]


def test_points_are_in_the_order_that_is_asked_for_and_every_interval_adds_up() -> None:
    site = a_site(
        visit("a", NOON, "page_view", "page_view"),
        visit("b", NOON + 20 * MINUTE_MS, "page_view", "conversion", **BOUGHT),
    )
    span = f"from={NOON}&to={NOON + HOUR}"
    for interval, count in {"minute": 60, "5m": 12, "15m": 4, "hour": 2, "day": 1}.items():
        found = series(site, f"{span}&interval={interval}&metrics=page_views,events")
        assert len(found["points"]) == count
        assert list(found["points"][0]) == ["at", "page_views", "events"]
        assert sum(point["page_views"] for point in found["points"]) == found["totals"]["page_views"] == 3
    every = series(site, f"{span}&interval=15m&metrics={','.join(METRICS)}")
    assert list(every["points"][0]) == ["at", *METRICS]
    assert every["points"][1]["conversion_values"] == {"EUR": 12.5}
    assert every["totals"]["conversion_rate"] == 0.5
    assert series(site, span)["interval"] == "5m"
    assert series(site, span)["metrics"] == ["events", "page_views", "sessions", "conversions"]


def test_the_figures_of_one_label_over_time() -> None:
    site = a_site(
        visit("a", NOON, "page_view", page="/x"),
        visit("b", NOON + 20 * MINUTE_MS, "page_view", "page_view", page="/x"),
        visit("c", NOON, "page_view", page="/y"),
    )
    span = f"from={NOON}&to={NOON + 30 * MINUTE_MS}"
    page = series(site, f"{span}&interval=15m&dimension=page&label=/x")
    assert (page["dimension"], page["label"], page["metrics"]) == ("page", "/x", ["page_views"])
    assert [point["page_views"] for point in page["points"]] == [1, 2]
    entry = series(site, f"{span}&interval=15m&dimension=entry_page&label=/x&metrics=sessions,bounce_rate")
    assert [(point["sessions"], point["bounce_rate"]) for point in entry["points"]] == [(1, 1.0), (1, 0.0)]
    assert entry["totals"] == {"sessions": 2, "bounce_rate": 0.5}
    direct = series(site, f"{span}&dimension=referrer&label=")
    assert (direct["label"], direct["totals"]["sessions"], direct["interval"]) == ("", 3, "hour")
    assert series(site, f"{span}&dimension=page&label=/none")["totals"] == {"page_views": 0}
    earlier = series(
        site, f"from={NOON + 15 * MINUTE_MS}&to={NOON + 30 * MINUTE_MS}&dimension=page&label=/x&compare=previous"
    )
    assert (earlier["totals"], earlier["previous"]["totals"]) == ({"page_views": 2}, {"page_views": 1})


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("metrics=sessions&dimension=page&label=/", "metrics: by page there is no sessions, only page_views"),
        ("metrics=visitors&interval=minute", "metrics: visitors are kept by 15m"),
        ("interval=5m&dimension=page&label=/", "interval: figures of one label are kept by 15m"),
        ("from=2023-01-01&to=2023-06-01&interval=day&metrics=visitors&tz=Asia/Seoul", "at most 92 days"),
        ("from=2023-01-01&to=2023-06-01&interval=hour", "at most 31 days with interval=hour; use interval=day"),
        ("compare=next", "compare: one of previous"),
        ("tz=Nowhere", "tz: a time zone's IANA name"),
        (
            "from=1970-01-01&to=1970-02-01&interval=day&compare=previous",
            "compare: the period before begins before 1970",
        ),
    ],
)
def test_a_series_that_there_is_not_is_refused_with_its_remedy(query, sentence) -> None:
    assert sentence in series(a_site(), query, 400)["error"]["message"]


def test_a_breakdown_has_every_label_with_its_metrics() -> None:
    site = a_site(
        visit("a", NOON, "page_view", "page_view", country="KR"),
        visit("b", NOON, "page_view", "conversion", country="KR", **BOUGHT),
        visit("c", NOON, "page_view"),
        visit("d", NOON - DAY, "page_view", country="DE"),
        visit("e", NOON - DAY, "page_view", country="KR"),
    )
    asked = f"from={NOON}&to={NOON + 1}&dimension=country&metrics=sessions,bounce_rate,conversions"
    found = breakdown(site, asked)
    assert found["results"] == [
        {"label": "KR", "sessions": 2, "bounce_rate": 0.0, "conversions": 1},
        {"label": "", "sessions": 1, "bounce_rate": 1.0, "conversions": 0},
    ]
    assert found["totals"] == {"sessions": 3, "bounce_rate": pytest.approx(1 / 3), "conversions": 1}
    assert (found["other"], found["more"], found["partial"]) == (None, 0, False)
    assert (found["dimension"], found["metrics"][0], found["tz"]) == ("country", "sessions", "UTC")
    cut = breakdown(site, f"{asked}&limit=1")
    assert ([row["label"] for row in cut["results"]], cut["more"], cut["totals"]) == (["KR"], 1, found["totals"])
    day = f"from={NOON}&to={NOON + DAY}&dimension=country&metrics=sessions&compare=previous"
    assert breakdown(site, day)["results"] == [
        {"label": "KR", "sessions": 2, "previous": {"sessions": 1}},
        {"label": "", "sessions": 1, "previous": {"sessions": 0}},
    ]
    currencies = breakdown(site, f"from={NOON}&to={NOON + 1}&dimension=currency")
    assert currencies["results"] == [{"label": "EUR", "conversions": 1, "conversion_values": {"EUR": 12.5}}]


def test_what_is_not_held_apart_is_told_and_makes_earlier_figures_unknown() -> None:
    events = [
        event for number in range(410) for event in visit(f"s{number}", NOON - DAY, "page_view", page=f"/{number}")
    ]
    site = a_site(
        events, visit("x", NOON, "page_view", "page_view", page="/405"), visit("y", NOON, "page_view", page="/7")
    )
    wide = breakdown(site, f"from={NOON - DAY}&to={NOON - DAY + 1}&dimension=page&limit=1000")
    assert (len(wide["results"]), wide["other"], wide["more"]) == (400, {"page_views": 10}, 0)
    assert wide["totals"] == {"page_views": 410}
    compared = breakdown(site, f"from={NOON}&to={NOON + DAY}&dimension=page&compare=previous")
    assert compared["results"] == [
        {"label": "/405", "page_views": 2},  # it may be among the others
        {"label": "/7", "page_views": 1, "previous": {"page_views": 1}},
    ]


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_every_dimension_has_its_metrics(dimension) -> None:
    landing = "https://blog.example/?utm_source=a&utm_medium=b&utm_campaign=c&utm_term=d&utm_content=e"
    events = visit("a", NOON, "page_view", "conversion", **BOUGHT)
    events = [
        type(event)(**{name: getattr(event, name) for name in event.__struct_fields__} | {"page_url": landing})
        for event in events
    ]
    found = breakdown(a_site(events), f"from={NOON}&to={NOON + 1}&dimension={dimension}")
    assert tuple(found["metrics"]) == DIMENSIONS[dimension].metrics
    assert found["results"], found
    assert list(found["results"][0]) == ["label", *DIMENSIONS[dimension].metrics]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "dimension: one of page, "),
        ("dimension=site", "dimension: one of page, "),
        ("dimension=source&metrics=bounce_rate", "metrics: rows are sorted by the first"),
        ("dimension=source&metrics=visitors", "metrics: by source there is no visitors, only sessions"),
        ("dimension=source&format=xml", "format: one of json, csv"),
        ("dimension=source&limit=1001", "limit: a whole number from 1 to 1000"),
    ],
)
def test_a_breakdown_that_there_is_not_is_refused_with_its_remedy(query, sentence) -> None:
    assert breakdown(a_site(), query, 400)["error"]["message"].startswith(sentence)


def test_a_summary_is_compared_with_as_many_local_days() -> None:
    site = spring()
    found = site.get(
        "/api/statistics/summary/?site=blog&from=2023-03-27&to=2023-03-28&tz=Europe/Berlin&compare=previous"
    )
    previous = found["previous"]
    assert (found["total_events"], previous["total_events"]) == (48, 46)
    assert (previous["from"], previous["to"]) == ("2023-03-25T23:00:00.000Z", found["from"])
    assert set(found) - set(previous) == {"site", "tz", "as_of", "lag", "partial", "active_now", "previous"}


def test_metrics_and_dimensions_are_defined() -> None:
    found = a_site().get("/api/metrics/")
    assert [metric["name"] for metric in found["metrics"]] == list(METRICS)
    assert [dimension["name"] for dimension in found["dimensions"]] == list(DIMENSIONS)
    (visitors,) = [metric for metric in found["metrics"] if metric["name"] == "visitors"]
    assert (visitors["intervals"], visitors["dimensions"], visitors["unit"]) == (["15m", "hour", "day"], [], "visitors")
    (source,) = [dimension for dimension in found["dimensions"] if dimension["name"] == "source"]
    assert source["metrics"][0] == "sessions"
    assert found["intervals"] == ["minute", "5m", "15m", "hour", "day"]
    assert found["visitors_error"] == 0.023


def test_a_default_range_is_the_same_for_everybody_in_a_quarter_of_an_hour() -> None:
    site = a_site(visit("a", NOON, "page_view"))
    bodies = set()
    for later in (0, 1, 5 * MINUTE_MS, 15 * MINUTE_MS - 1):
        site.now = NOON + later
        summary = site.get("/api/statistics/summary/?site=blog")
        bodies.add((summary["from"], summary["to"]))
    assert bodies == {(iso(NOON - DAY), iso(NOON + 15 * MINUTE_MS))}
    site.now += 1
    assert site.get("/api/statistics/summary/?site=blog")["to"] == iso(NOON + 30 * MINUTE_MS)


def test_whether_a_range_is_over() -> None:
    site = a_site(visit("a", NOON, "page_view"))
    for query, partial in {f"to={NOW}": True, f"to={NOW - 30 * MINUTE_MS}": False}.items():
        answer = site.http.get(f"/api/statistics/summary/?site=blog&{query}")
        assert answer.json["partial"] is partial
        assert answer.headers.get("LiveInsight-Partial") == ("true" if partial else None)
