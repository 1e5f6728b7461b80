"""One hour, one page, one referrer in full."""

import pytest

from query_api.definitions import DIMENSIONS, METRICS
from stream_consumer.rollup import MINUTE_MS
from tests.builders import an_event
from tests.query_api.test_routes import HOUR, NOON, NOW, a_site, iso, visit

HOUR_START = NOON - NOON % HOUR


def test_an_hour_minute_by_minute() -> None:
    site = a_site(
        visit("a", HOUR_START + 5 * MINUTE_MS, "page_view", "page_view", referrer="https://www.google.com/search"),
        visit("b", HOUR_START + 59 * MINUTE_MS, "page_view", page="/b"),
        visit("c", HOUR_START - MINUTE_MS, "click"),
        visit("d", HOUR_START + HOUR, "click"),
    )
    found = site.get(f"/api/dashboard/hourly-details/?site=blog&hour={HOUR_START + 17 * MINUTE_MS}")
    assert (found["hour"], found["site"]) == (iso(HOUR_START), "blog")
    assert list(found["totals"]) == list(METRICS)
    assert (found["totals"]["page_views"], found["totals"]["visitors"], found["totals"]["sessions"]) == (3, 2, 2)
    assert [minute["at"] for minute in found["minutes"]] == [iso(HOUR_START + at * MINUTE_MS) for at in range(60)]
    assert found["minutes"][5] == {
        "at": iso(HOUR_START + 5 * MINUTE_MS),
        "events": 1,
        "page_views": 1,
        "sessions": 1,
        "conversions": 0,
    }
    assert sum(minute["events"] for minute in found["minutes"]) == 3
    assert found["top_pages"] == [{"page": "/a", "views": 2}, {"page": "/b", "views": 1}]
    assert found["referrers"] == [{"label": "", "sessions": 1}, {"label": "google.com", "sessions": 1}]
    assert [row["label"] for row in found["sources"]] == ["Direct", "Google"]
    assert found["event_types"] == [{"label": "page_view", "events": 3}]
    assert found["as_of"] == iso(HOUR_START + 59 * MINUTE_MS + 200)


def test_the_hour_is_the_local_one() -> None:
    site = a_site(visit("a", NOON, "page_view"))
    found = site.get("/api/dashboard/hourly-details/?hour=2023-11-14T12:10&tz=Asia/Kolkata")
    assert (found["hour"], len(found["minutes"]), found["partial"]) == ("2023-11-14T06:30:00.000Z", 60, False)
    site.now = NOON
    assert site.get(f"/api/dashboard/hourly-details/?hour={NOON}")["partial"] is True
    for wrong in ("", "?hour=", "?hour=noon", "?hour=-1"):
        error = site.get(f"/api/dashboard/hourly-details/{wrong}", 400)["error"]
        assert error["message"].startswith("hour: ")


def test_a_page_in_full() -> None:
    site = a_site(
        [an_event(session_id="reads", event_type="came", timestamp=NOW - 6 * MINUTE_MS, page_url="/elsewhere")],
        visit("reads", NOW - 5 * MINUTE_MS, "page_view", "click", "scroll", page="/a"),
        visit("left", NOW - 8 * MINUTE_MS, "page_view", page="/a"),
        [an_event(session_id="left", timestamp=NOW - 7 * MINUTE_MS, page_url="/b")],
        visit("gone", NOW - 2 * HOUR, "page_view", "page_view", page="/a"),
    )
    found = site.get("/api/dashboard/page-details/?site=blog&page=https://blog.example/a%3Fx=1")
    assert (found["page_url"], found["total_views"]) == ("/a", 4)
    assert sum(hour["views"] for hour in found["hourly_distribution"]) == 4
    assert len(found["hourly_distribution"]) == 25
    assert [(row["event_type"], row["page_url"]) for row in found["recent_events"]] == [
        (kind, "https://blog.example/a") for kind in ("scroll", "click", "page_view")
    ]
    assert list(found["entries"]) == list(DIMENSIONS["entry_page"].metrics)
    assert (found["entries"]["sessions"], found["exits"]["sessions"]) == (3, 2)
    none = site.get("/api/dashboard/page-details/?site=blog&page=/none")
    assert (none["total_views"], none["recent_events"], none["entries"]["sessions"]) == (0, [], 0)


def test_a_page_has_the_newest_events_of_its_newest_sessions() -> None:
    visits = [visit(f"s{number}", NOW - (20 - number) * MINUTE_MS, "page_view", "click") for number in range(15)]
    found = a_site(*visits).get("/api/dashboard/page-details/?site=blog&page=/a")
    times = [row["timestamp"] for row in found["recent_events"]]
    assert len(times) == 20
    assert times == sorted(times, reverse=True)
    assert times[0] == iso(NOW - 5 * MINUTE_MS)


def test_a_referrer_in_full() -> None:
    site = a_site(
        visit("a", NOW - 5 * MINUTE_MS, "page_view", referrer="https://news.ycombinator.com/item"),
        visit("b", NOW - 3 * HOUR, "page_view", "page_view", referrer="https://news.ycombinator.com/"),
        visit("c", NOW - MINUTE_MS, "page_view"),
    )
    found = site.get("/api/dashboard/referrer-details/?site=blog&referrer=News.ycombinator.com")
    assert found["referrer"] == "news.ycombinator.com"
    assert (found["totals"]["sessions"], found["totals"]["bounce_rate"], found["totals"]["page_views"]) == (2, 0.5, 3)
    assert sum(hour["sessions"] for hour in found["hourly_distribution"]) == 2
    assert [row["session_id"] for row in found["recent_sessions"]] == ["a"]
    for none in ("", "Direct"):
        direct = site.get(f"/api/dashboard/referrer-details/?site=blog&referrer={none}")
        assert (direct["referrer"], [row["session_id"] for row in direct["recent_sessions"]]) == ("", ["c"])


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("page-details/", "page: which page"),
        ("page-details/?page=", "page: which page"),
        ("referrer-details/", "referrer: which host"),
        ("page-details/?page=/&from=2023-01-01&to=2023-03-01", "from, to: at most 31 days"),
    ],
)
def test_what_is_missing_is_named(path, sentence) -> None:
    assert a_site().get(f"/api/dashboard/{path}", 400)["error"]["message"].startswith(sentence)
