"""The API through its front door, over tables that the consumer itself has filled."""

from collections import Counter
from urllib.parse import parse_qs, urlsplit

import pytest

from query_api.answering import MAX_CACHED_BYTES
from query_api.app import create_app
from query_api.reader import Reader
from query_api.settings import ApiSettings
from stream_consumer.rollup import MINUTE_MS, QUARTER_MS
from stream_consumer.table import Unavailable
from tests.builders import NOON, an_event
from tests.query_api.fake_reader import FakeReader
from tests.query_api.stored import NAMES, Consumer, tables

NOW = NOON + 40 * MINUTE_MS
HOUR = 60 * MINUTE_MS
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0"


def iso(at) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(at / 1000, datetime.UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def visit(name, at, *kinds, site="blog", page="/a", **fields):
    """One session's events, a minute apart."""
    return [
        an_event(
            site_id=site,
            session_id=name,
            event_id=f"{name}-{number}",
            event_type=kind,
            timestamp=at + number * MINUTE_MS,
            received_at=at + number * MINUTE_MS + 200,
            page_url=f"https://blog.example{page}",
            **fields,
        )
        for number, kind in enumerate(kinds)
    ]


@pytest.fixture(scope="module")
def stored():
    with tables() as client:
        consumer = Consumer(client)
        landing = "https://blog.example/hello?utm_source=letter&utm_medium=email"
        ann = an_event(
            session_id="ann",
            event_id="a1",
            timestamp=NOW - 10 * MINUTE_MS,
            received_at=NOW - 10 * MINUTE_MS + 500,
            page_url=landing,
            referrer="https://www.google.com/search",
            title="Hello",
            user_id="u-ann",
            user_agent=FIREFOX,
            country="KR",
            language="ko",
        )
        click = an_event(
            session_id="ann",
            event_id="a2",
            event_type="click",
            timestamp=NOW - 9 * MINUTE_MS,
            received_at=NOW - 9 * MINUTE_MS,
            element_tag="a",
            element_text="Buy",
            properties={"deep": {"k": [1, "é"]}},
        )
        bought = an_event(
            session_id="ann",
            event_id="a3",
            event_type="conversion",
            timestamp=NOW - 2 * MINUTE_MS,
            received_at=NOW - 2 * MINUTE_MS,
            conversion_type="order",
            conversion_value=12.5,
            conversion_currency="EUR",
        )
        consumer.consume([ann, click, bought])
        consumer.consume(
            visit("bob", NOW - 20 * MINUTE_MS, "page_view", "page_view", page="/b"), "shardId-000000000001"
        )
        consumer.consume(visit("eve", NOW - 45 * MINUTE_MS, "page_view", page="/b"), "shardId-000000000001")
        consumer.consume(visit("default-site", NOW - MINUTE_MS, "page_view", site="default"))
        starts = {f"v{number:02}": NOW - 5 * MINUTE_MS + number * 1000 for number in range(60)}
        consumer.consume([visit(name, at, "page_view", site="busy")[0] for name, at in starts.items()])
        yield client


class Site:
    """The application over the tables, and a clock to move."""

    def __init__(self, client, **settings) -> None:
        self.now = NOW
        self.reader = Reader(client, NAMES, clock=lambda: self.now, readers=4)
        self.start(**settings)

    def start(self, read_keys=None, **settings) -> None:
        self.reads: Counter[str] = Counter()
        app = create_app(
            self.reader,
            ApiSettings(NAMES, **settings),
            lambda: self.now,
            read_keys,
            jitter=lambda: 0.0,
            ahead=0.0,
            patience=60.0,  # on a busy machine too
        )
        self.http = app.test_client()
        for name in ("active", "marks", "rollups", "session", "events", "sites", "check"):
            self._count(name)

    def _count(self, name) -> None:
        whole = getattr(self.reader, name)

        def counted(*arguments):
            self.reads[name] += 1
            return whole(*arguments)

        setattr(self.reader, name, counted)

    def get(self, path, status=200, **headers):
        answer = self.http.get(path, headers=headers)
        assert answer.status_code == status, answer.data
        return answer.json if status != 304 else answer


def a_site(*visits, **settings):
    """The application over these events, and a clock to move."""
    site = object.__new__(Site)
    site.now = NOW
    site.reader = FakeReader(lambda: site.now, [event for one in visits for event in one])
    site.start(**settings)
    return site


@pytest.fixture
def site(stored):
    site = Site(stored)
    yield site
    site.reader.close()


def test_sites(site) -> None:
    assert site.get("/api/sites/") == {"sites": ["blog", "busy", "default"]}


def test_active_sessions_are_listed_newest_first(site) -> None:
    ann, bob = site.get("/api/sessions/active/?site=blog")
    assert ann == {
        "session_id": "ann",
        "user_id": "u-ann",
        "site_id": "blog",
        "started_at": iso(NOW - 10 * MINUTE_MS),
        "last_activity": iso(NOW - 2 * MINUTE_MS),
        "current_page": "/hello",
        "current_title": "Hello",
        "entry_page": "/hello",
        "duration": 480.0,
        "page_views": 1,
        "events": 3,
        "conversions": 1,
        "referrer": "google.com",
        "source": "letter",
        "channel": "email",
        "country": "KR",
        "language": "ko",
        "device": "desktop",
        "browser": "Firefox",
        "os": "Linux",
        "bounced": False,
        "active": True,
    }
    assert (bob["session_id"], bob["user_id"], bob["current_page"], bob["page_views"]) == ("bob", "", "/b", 2)
    assert [row["session_id"] for row in site.get("/api/sessions/active/")] == ["default-site"]
    assert [row["session_id"] for row in site.get("/api/sessions/active/?site=busy&limit=3")] == ["v59", "v58", "v57"]


def test_a_session_is_active_until_half_an_hour_after_its_last_event(site) -> None:
    def here():
        return [row["session_id"] for row in site.get("/api/sessions/active/?site=blog")]

    site.now = NOW - 19 * MINUTE_MS + 30 * MINUTE_MS - 1
    assert here() == ["ann", "bob"]
    assert site.get("/api/sessions/bob/?site=blog")["active"] is True
    site.now += 1
    site.now += 2000  # what was answered a moment ago is still given out
    assert here() == ["ann"]
    assert site.get("/api/sessions/bob/?site=blog")["active"] is False


def test_active_sessions_by_pages_are_all_of_them_once(site) -> None:
    path, seen, pages = "/api/sessions/active/?site=busy&page=1", [], []
    while path:
        page = site.get(path)
        assert page["count"] == 60
        seen += [row["session_id"] for row in page["results"]]
        pages.append(page)
        path = page["next"]
    assert seen == [f"v{number:02}" for number in range(59, -1, -1)]
    assert [len(page["results"]) for page in pages] == [25, 25, 10]
    assert pages[0]["previous"] is None
    previous = parse_qs(urlsplit(pages[2]["previous"]).query)
    assert list(previous) == ["site", "page", "page_size", "cursor"]
    assert (previous["site"], previous["page"], previous["page_size"]) == (["busy"], ["2"], ["25"])
    assert site.get(pages[2]["previous"])["results"] == pages[1]["results"]
    beyond = site.get("/api/sessions/active/?site=busy&page=9&page_size=50")
    assert (beyond["results"], beyond["next"]) == ([], None)
    assert site.get(beyond["previous"])["results"][-1]["session_id"] == "v00"
    assert site.get("/api/sessions/active/?site=nobody&page=1") == {
        "count": 0,
        "next": None,
        "previous": None,
        "results": [],
    }


def test_pages_beyond_the_sessions_that_were_read_are_read_then(site, monkeypatch) -> None:
    monkeypatch.setattr("query_api.statistics.MAX_ACTIVE_READ", 10)
    site.now = NOON + 42 * MINUTE_MS
    first = site.get("/api/sessions/active/?site=busy&page=1&page_size=10")
    second = site.get("/api/sessions/active/?site=busy&page=2&page_size=50")
    assert first["count"] == second["count"] == 60
    assert len({row["session_id"] for row in first["results"] + second["results"]}) == 20


def test_one_session_in_full(site) -> None:
    ann = site.get("/api/sessions/ann/?site=blog")
    (row, _) = site.get("/api/sessions/active/?site=blog")
    assert ann == row | {
        "exit_page": "/hello",
        "landing_url": "https://blog.example/hello?utm_source=letter&utm_medium=email",
        "utm": {"source": "letter", "medium": "email"},
        "interactions": 2,
        "scroll_depth": 0,
        "conversion_values": {"EUR": 12.5},
    }


def test_the_events_of_a_session(site) -> None:
    view, click, bought = site.get("/api/sessions/ann/events/?site=blog")
    assert view == {
        "event_id": "a1",
        "event_type": "page_view",
        "timestamp": iso(NOW - 10 * MINUTE_MS),
        "received_at": iso(NOW - 10 * MINUTE_MS + 500),
        "page_url": "https://blog.example/hello?utm_source=letter&utm_medium=email",
        "title": "Hello",
        "referrer": "https://www.google.com/search",
        "user_id": "u-ann",
        "properties": {},
    }
    assert click["element"] == {"id": "", "tag": "a", "text": "Buy", "href": ""}
    assert click["properties"] == {"deep": {"k": [1, "é"]}}
    assert "user_id" not in click
    assert "conversion" not in click
    assert bought["conversion"] == {"type": "order", "value": 12.5, "currency": "EUR"}
    page = site.get("/api/sessions/ann/events/?site=blog&page=2&page_size=2")
    assert (page["count"], page["results"], page["next"]) == (3, [bought], None)
    assert site.get(page["previous"])["results"] == [view, click]


@pytest.mark.parametrize("name", ["none", "a b", "%00", "x" * 200, "..%5c", "<script>"])
@pytest.mark.parametrize("of", ["", "events/"])
def test_a_session_that_is_not_there_is_404(site, name, of) -> None:
    error = site.get(f"/api/sessions/{name}/{of}", status=404)["error"]
    assert error["reason"] == "no_such_session"
    assert "no session" in error["message"]


def test_the_summary_of_a_range(site) -> None:
    summary = site.get(f"/api/statistics/summary/?site=blog&from={NOON + 1}&to={NOON + 31 * MINUTE_MS}")
    assert summary == {
        "site": "blog",
        "from": iso(NOON),
        "to": iso(NOON + 45 * MINUTE_MS),
        "tz": "UTC",
        "as_of": iso(NOW - 2 * MINUTE_MS),
        "lag": None,
        "partial": True,
        "previous": None,
        "total_sessions": 2,
        "total_events": 5,
        "page_views": 3,
        "visitors": 3,  # ann's first event names a user, her others only the session
        "visitors_exact": True,
        "visitors_error": 0.0,
        "avg_session_time": 270.0,
        "median_session_time": 60.5,
        "bounce_rate": 0.0,
        "pages_per_session": 1.5,
        "conversions": 1,
        "conversion_rate": 0.5,
        "conversion_values": {"EUR": 12.5},
        "active_now": 2,
    }
    day = site.get("/api/statistics/summary/?site=blog")
    assert (day["total_sessions"], day["bounce_rate"]) == (3, pytest.approx(1 / 3))
    assert (day["from"], day["to"]) == (iso(NOON - 24 * HOUR + 30 * MINUTE_MS), iso(NOON + 45 * MINUTE_MS))
    empty = site.get("/api/statistics/summary/?site=nobody")
    assert (empty["total_sessions"], empty["as_of"], empty["bounce_rate"]) == (0, None, 0.0)


def test_figures_over_time_have_every_step(site) -> None:
    steps = site.get(f"/api/statistics/hourly/?site=blog&from={NOON}&to={NOON + HOUR}")
    assert [step["hour"] for step in steps] == [iso(NOON + at * 5 * MINUTE_MS) for at in range(12)]
    assert [step["count"] for step in steps] == [0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0]
    assert steps[6] == {
        "hour": iso(NOON + 30 * MINUTE_MS),
        "count": 2,
        "page_views": 1,
        "sessions": 1,
        "conversions": 0,
    }
    assert steps[7]["conversions"] == 1
    week = f"from={NOW - 7 * 24 * HOUR}&to={NOW}"
    assert len(site.get(f"/api/statistics/hourly/?{week}")) > 7 * 24 * 12
    refused = site.get(f"/api/statistics/hourly/?from={NOW - 7 * 24 * HOUR - 1}", status=400)
    assert "at most 7 days" in refused["error"]["message"]


def test_rankings(site) -> None:
    def shares(name):
        answer = site.get(f"/api/statistics/{name}/?site=blog")
        assert list(answer) == ["labels", "data"]
        return list(zip(answer["labels"], answer["data"], strict=True))

    assert site.get("/api/statistics/pages/?site=blog") == [{"page": "/b", "views": 3}, {"page": "/hello", "views": 1}]
    assert site.get("/api/statistics/pages/?site=blog&limit=1") == [{"page": "/b", "views": 3}]
    assert shares("referrers") == [("Direct", 2), ("google.com", 1)]
    assert shares("sources") == [("Direct", 2), ("letter", 1)]
    assert shares("channels") == [("direct", 2), ("email", 1)]
    assert shares("devices") == [("(unknown)", 2), ("desktop", 1)]
    assert shares("browsers") == [("(unknown)", 2), ("Firefox", 1)]
    assert shares("countries") == [("(unknown)", 2), ("KR", 1)]


def test_what_has_no_room_of_its_own_comes_last(stored) -> None:
    consumer = Consumer(stored)
    at = NOON - 10 * 24 * HOUR
    consumer.consume(
        [
            an_event(number, site_id="wide", timestamp=at, page_url=f"/{number - 1}", source="tab", seq=number)
            for number in range(1, 411)
        ]
    )
    site = Site(stored)
    pages = site.get(f"/api/statistics/pages/?site=wide&from={at}&to={at + 1}&limit=2")
    assert pages == [{"page": "/0", "views": 1}, {"page": "/1", "views": 1}, {"page": "(other)", "views": 10}]
    assert (
        sum(page["views"] for page in site.get(f"/api/statistics/pages/?site=wide&from={at}&to={at + 1}&limit=1000"))
        == 410
    )


def test_realtime(site) -> None:
    now = site.get("/api/realtime/?site=blog")
    assert now["visitors_now"] == 1
    assert now["active_sessions"] == 2
    assert now["as_of"] == iso(NOW - 2 * MINUTE_MS)
    assert [minute["minute"] for minute in now["minutes"]] == [
        iso(NOW - back * MINUTE_MS) for back in range(29, -1, -1)
    ]
    counts = {minute["minute"]: (minute["events"], minute["page_views"]) for minute in now["minutes"]}
    busy = {iso(NOW - 20 * MINUTE_MS): (1, 1), iso(NOW - 2 * MINUTE_MS): (1, 0), iso(NOW - 9 * MINUTE_MS): (1, 0)}
    assert busy.items() <= counts.items()
    assert sum(events for events, _ in counts.values()) == 5
    assert now["top_pages"] == [{"page": "/b", "visitors": 1}, {"page": "/hello", "visitors": 1}]
    nobody = site.get("/api/realtime/?site=nobody")
    assert (nobody["as_of"], nobody["visitors_now"], nobody["top_pages"], len(nobody["minutes"])) == (None, 0, [], 30)


def test_health(site) -> None:
    assert site.get("/health/") == site.get("/health") == {"status": "ok"}


@pytest.mark.parametrize(
    "path",
    [
        "sites",
        "realtime",
        "sessions/active",
        "sessions/default-site",
        "sessions/default-site/events",
        *(f"statistics/{name}" for name in ("summary", "hourly", "pages", "referrers", "sources")),
    ],
)
def test_a_slash_at_the_end_makes_no_difference(site, path) -> None:
    assert site.get(f"/api/{path}") == site.get(f"/api/{path}/")


@pytest.mark.parametrize(
    "query", ["site=a%20b", "site=%ff", "from=x", "to=x", "limit=0", "limit=1001", "from=2020-01-01&to=2023-01-01"]
)
def test_a_wrong_parameter_is_named(site, query) -> None:
    for path in ("pages", "referrers", "sources"):
        answer = site.get(f"/api/statistics/{path}/?{query}", status=400)
        assert answer["error"]["reason"] == "bad_parameter"
        assert answer["error"]["message"].startswith(query.partition("=")[0])


def test_an_answer_is_cached_for_its_time(site) -> None:
    def read(path, later=0):
        site.now += later
        site.reads.clear()
        site.get(path)
        return dict(site.reads)

    assert read("/api/sessions/active/?site=blog") == {"active": 1}
    assert read("/api/sessions/active/?site=blog&unknown=1") == {}
    assert read("/api/sessions/active/?site=blog", later=1999) == {}
    assert read("/api/sessions/active/?site=blog", later=1) == {"active": 1}
    assert read("/api/sessions/ann/?site=blog") == {"session": 1}
    assert read("/api/sessions/ann/?site=blog", later=1999) == {}
    assert read("/api/statistics/pages/?site=blog") == {"marks": 2, "rollups": 2}, "what is over, and what goes on"
    assert read("/api/statistics/pages/?site=blog", later=1999) == {}
    assert read("/api/statistics/pages/?site=blog", later=1) == {"marks": 1, "rollups": 1}, "what goes on"
    assert read("/api/statistics/pages/?site=blog", later=10_000) == {"marks": 2, "rollups": 2}


def test_figures_of_closed_hours_are_cached_longer_once_nothing_more_comes(site) -> None:
    path = f"/api/statistics/pages/?site=blog&from={NOON - HOUR}&to={NOON + HOUR}"

    def reads_at(now):
        site.now = now
        site.reads.clear()
        site.get(path)
        return site.reads["rollups"]

    site.now = NOON + HOUR - 1
    assert reads_at(NOON + HOUR - 1) == 2, "of hours that are over, and of this one"
    later = NOON + 2 * HOUR
    assert reads_at(later) == 1
    assert reads_at(later + 59_999) == 0
    assert reads_at(later + 60_000) == 1, "for a day something may still come"
    later = NOON + 26 * HOUR
    assert reads_at(later) == 1
    assert reads_at(later + 24 * HOUR - 1) == 0
    assert reads_at(later + 24 * HOUR) == 1
    path = path.replace("blog", "nobody")
    assert reads_at(later) == 1
    assert reads_at(later + 2000) == 1


def test_figures_that_have_just_come_are_not_held_for_long_however_old_their_range(stored) -> None:
    site = Site(stored)
    imported = an_event(1, site_id="import", timestamp=NOON - 999 * HOUR, received_at=NOW)
    Consumer(stored).consume([imported])
    path = f"/api/statistics/summary/?site=import&from={NOON - 1000 * HOUR}&to={NOON - 998 * HOUR}"
    site.now = NOW + 100
    assert site.get(path)["total_events"] == 1
    Consumer(stored).consume(
        [an_event(2, site_id="import", session_id="s2", timestamp=NOON - 998 * HOUR - 1, received_at=NOW)]
    )
    site.now += 2000
    assert site.get(path)["total_events"] == 2


def test_the_panels_of_a_dashboard_cost_one_read_and_agree(site) -> None:
    for name in ("summary", "hourly", "pages", "referrers", "sources", "channels", "devices"):
        site.get(f"/api/statistics/{name}/?site=blog")
    site.get("/api/sessions/active/?site=blog")
    site.get("/api/sessions/active/?site=blog&page=1")
    assert site.reads == {"marks": 2, "rollups": 2, "active": 1}, "of hours that are over, and of this one"
    site.get("/api/realtime/?site=blog")
    assert site.reads["active"] == 2, "what is live is read for itself"


def test_sites_and_ranges_do_not_share_answers(site) -> None:
    answers = [
        site.http.get(f"/api/statistics/summary/?{query}").json
        for query in ("site=blog", "site=busy", f"site=blog&to={NOON}", f"site=blog&from={NOON}")
    ]
    assert len({(answer["site"], answer["from"], answer["to"]) for answer in answers}) == 4


def test_an_answer_that_is_the_same_is_not_sent_again(site) -> None:
    path = "/api/statistics/summary/?site=blog"
    first = site.http.get(path)
    etag = first.headers["ETag"]
    assert not etag.startswith("W/")
    assert first.headers["Cache-Control"] == "public, max-age=2"
    again = site.get(path, 304, **{"If-None-Match": f'"other", {etag}'})
    assert again.data == b""
    assert again.headers["ETag"] == etag
    site.now += 5000
    assert site.get(path, 304, **{"If-None-Match": etag}).data == b""
    site.get(path, 200, **{"If-None-Match": '"other"'})
    site.now += HOUR
    assert site.http.get(path, headers={"If-None-Match": etag}).headers["ETag"] != etag


def test_lifetimes_are_settings(stored) -> None:
    site = Site(stored, live_lifetime=0, recent_lifetime=10)
    for _ in range(2):
        site.get("/api/sessions/active/?site=blog")
    assert site.reads["active"] == 2
    site.get("/api/statistics/pages/?site=blog")
    reads = site.reads["marks"]
    site.now += 9999
    answer = site.http.get("/api/statistics/pages/?site=blog")
    assert site.reads["marks"] == reads
    assert answer.headers["Cache-Control"] == "public, max-age=0"


def test_a_very_long_answer_takes_no_room_in_the_cache(stored) -> None:
    site = Site(stored)
    long = [
        an_event(number, site_id="long", properties={"text": "x" * 4000})
        for number in range(MAX_CACHED_BYTES // 4000 + 1)
    ]
    Consumer(stored).consume(long)
    for expected in (1, 2):
        assert len(site.get("/api/sessions/s1/events/?site=long")) == len(long)
        assert site.reads["events"] == expected


def test_tables_that_cannot_be_read_are_503_with_a_sentence(site, monkeypatch) -> None:
    def fail(*_):
        raise Unavailable("DynamoDB cannot be reached; try again in some seconds")

    for name in ("active", "marks", "session", "sites", "check"):
        monkeypatch.setattr(site.reader, name, fail)
    for path in ("sites", "realtime", "sessions/active", "sessions/ann", "sessions/ann/events", "statistics/summary"):
        answer = site.http.get(f"/api/{path}/")
        assert answer.status_code == 503
        message = "DynamoDB cannot be reached; try again in some seconds"
        assert answer.json == {"error": {"status": 503, "reason": "unavailable", "message": message}}
        assert answer.headers["Retry-After"] == "5"
        assert answer.headers["Cache-Control"] == "no-store"
    assert site.get("/health/", status=503)["error"]["reason"] == "unavailable"


def test_a_quarter_is_the_least_that_can_be_asked_for(site) -> None:
    summary = site.get(f"/api/statistics/summary/?from={NOON + 1}&to={NOON + 2}")
    assert (summary["from"], summary["to"]) == (iso(NOON), iso(NOON + QUARTER_MS))


SUMMARY = "/api/statistics/summary/?site=blog"


def test_every_answer_tells_of_what_and_when_it_is() -> None:
    site = a_site(visit("a", NOW - 5 * MINUTE_MS, "page_view"))
    site.reader.behind = 12.4
    newest = iso(NOW - 5 * MINUTE_MS + 200)
    for path in ("realtime/", "sessions/active/", "sessions/a/", "sessions/a/events/", "users/u/sessions/",
                 "statistics/summary/", "statistics/hourly/", "statistics/pages/", "statistics/sources/",
                 "statistics/timeseries/", "dashboard/page-details/?page=/a"):  # fmt: skip
        answer = site.http.get(f"/api/{path}{'&' if '?' in path else '?'}site=blog")
        assert answer.headers["LiveInsight-Lag"] == "12"
        assert answer.headers.get("LiveInsight-As-Of") == (None if "users" in path else newest), path
        assert "LiveInsight-Stale" not in answer.headers
        if isinstance(answer.json, dict) and "as_of" in answer.json:
            assert (answer.json["as_of"], answer.json["lag"]) == (newest, 12)
    again = site.http.get(SUMMARY, headers={"If-None-Match": site.http.get(SUMMARY).headers["ETag"]})
    assert again.status_code == 304
    of_the_body = {"Content-Length", "Content-Type"}
    assert dict(again.headers) == {
        name: value for name, value in site.http.get(SUMMARY).headers.items() if name not in of_the_body
    }


def test_a_list_that_is_cut_says_so() -> None:
    site = a_site(*(visit(f"s{number}", NOW - MINUTE_MS, "page_view", page=f"/{number}") for number in range(3)))

    def partial(path) -> bool:
        return site.http.get(path).headers.get("LiveInsight-Partial") == "true"

    assert partial("/api/sessions/active/?site=blog&limit=2")
    assert not partial("/api/sessions/active/?site=blog&limit=3")
    over = f"site=blog&from={NOW - HOUR}&to={NOON + 30 * MINUTE_MS}"
    site.now = NOW + HOUR
    early = visit("early", NOON, "page_view", "page_view", page="/x") + visit("earlier", NOON, "page_view", page="/y")
    site.reader.add(*early)
    assert partial(f"/api/statistics/pages/?{over}&limit=1")
    assert not partial(f"/api/statistics/pages/?{over}&limit=2")


def test_an_old_answer_stands_in_while_the_tables_cannot_be_read() -> None:
    site = a_site(visit("a", NOW - 5 * MINUTE_MS, "page_view"))
    fresh = site.http.get(SUMMARY)
    site.reader.fails = True
    site.now += 2000 + 61_500
    old = site.http.get(SUMMARY)
    assert (old.status_code, old.data) == (200, fresh.data)
    assert old.headers["LiveInsight-Stale"] == "62"
    assert old.headers["Cache-Control"] == "no-store"
    assert site.http.get(SUMMARY, headers={"If-None-Match": fresh.headers["ETag"]}).status_code == 304
    assert site.get("/api/statistics/hourly/?site=blog", 503)["error"]["reason"] == "unavailable"
    site.now += 3600 * 1000
    assert site.get(SUMMARY, 503)["error"]["reason"] == "unavailable"


@pytest.mark.parametrize(
    "path",
    [
        "statistics/summary/?compare=previous",
        f"statistics/timeseries/?from={NOON}",
        "statistics/breakdown/?dimension=page&tz=Asia/Seoul",
        "statistics/hourly/?",
        "statistics/pages/?",
        "statistics/sources/?",
        "dashboard/page-details/?page=/a",
        "dashboard/referrer-details/?referrer=",
    ],
)
def test_an_old_answer_stands_in_also_when_another_quarter_begins(path) -> None:
    """A range up to now is longer or another one from then on, which nobody has ever had an answer about."""
    site = a_site(visit("a", NOON, "page_view"))
    url = f"/api/{path}&site=blog"
    fresh = site.http.get(url)
    site.reader.fails = True
    site.now += QUARTER_MS
    old = site.http.get(url)
    assert (old.status_code, old.data) == (200, fresh.data)
    assert int(old.headers["LiveInsight-Stale"]) >= 600
    site.reader.fails = False
    site.now += 10_000
    new = site.http.get(url)
    assert "LiveInsight-Stale" not in new.headers
    assert new.headers["Cache-Control"] != "no-store"
    # What has an end of its own is another question.
    site.reader.fails = True
    site.get(f"{url}&to={NOW - QUARTER_MS}", 503)


@pytest.mark.parametrize(
    "path",
    [
        "statistics/summary/?",
        f"statistics/summary/?to={NOON + 45 * MINUTE_MS}",
        f"dashboard/hourly-details/?hour={NOON}",
    ],
)
def test_an_answer_of_what_is_not_over_is_good_to_its_end_at_most(path) -> None:
    site = a_site(visit("a", NOON, "page_view"), live_lifetime=60.0, recent_lifetime=60.0)
    assert (NOON + 45 * MINUTE_MS) % HOUR == 0
    site.now = NOON + 45 * MINUTE_MS - 5_000
    found = site.http.get(f"/api/{path}&site=blog")
    assert found.headers["LiveInsight-Partial"] == "true"
    assert found.headers["Cache-Control"] == "public, max-age=5"
    site.now += 5_000
    found = site.http.get(f"/api/{path}&site=blog")
    assert "LiveInsight-Stale" not in found.headers
    assert found.headers.get("LiveInsight-Partial") == ("true" if path.endswith("summary/?") else None)


def test_health_is_never_an_old_one() -> None:
    site = a_site()
    assert site.get("/health/") == {"status": "ok"}
    site.reader.fails = True
    site.now += 2000
    assert site.get("/health/", 503)["error"]["reason"] == "unavailable"


def test_a_lag_that_cannot_be_read_is_unknown() -> None:
    site = a_site(visit("a", NOW - 5 * MINUTE_MS, "page_view"))

    def fail() -> None:
        raise Unavailable("no")

    site.reader.lag = fail
    answer = site.http.get(SUMMARY)
    assert (answer.status_code, answer.json["lag"]) == (200, None)
    assert "LiveInsight-Lag" not in answer.headers


@pytest.mark.parametrize("known", ["*", " * ", 'W/"{0}"', '"x", "{0}"', '"{0}"'])
def test_what_the_client_has_is_not_sent(known) -> None:
    site = a_site(visit("a", NOW - 5 * MINUTE_MS, "page_view"))
    etag = site.http.get(SUMMARY).headers["ETag"].strip('"')
    assert site.http.get(SUMMARY, headers={"If-None-Match": known.format(etag)}).status_code == 304
    assert site.http.get(SUMMARY, headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize(
    "text", ["%00", "%ED%A0%80", "%e2%80%ae", "x" * 10_000, "%", "%zz", "%ff%fe", "a&{0}=b", "..%2f..%2f", "NaN"]
)
@pytest.mark.parametrize(
    "name", ["site", "from", "tz", "metrics", "label", "cursor", "page", "page_size", "hour", "limit", "referrer"]
)
def test_no_parameter_is_a_fault_of_ours(hardened, name, text) -> None:
    for path in ("statistics/timeseries/?dimension=page", "dashboard/page-details/?x=1", "dashboard/referrer-details/?x=1",
                 "dashboard/hourly-details/?x=1", "sessions/active/?x=1"):  # fmt: skip
        answer = hardened.http.get(f"/api/{path}&{name}={text.format(name)}")
        assert answer.status_code in {200, 400}, answer.data
        if answer.status_code == 400:
            assert answer.json["error"]["reason"] == "bad_parameter"
            assert len(answer.json["error"]["message"]) < 500


@pytest.fixture(scope="module")
def hardened():
    return a_site(visit("a", NOON, "page_view"))


def test_all_ways_to_ask_agree_over_the_same_tables(site) -> None:
    summary = site.get(SUMMARY)
    series = site.get("/api/statistics/timeseries/?site=blog&interval=hour&metrics=events,visitors,conversion_values")
    assert series["totals"] == {
        "events": summary["total_events"],
        "visitors": summary["visitors"],
        "conversion_values": summary["conversion_values"],
    }
    assert sum(point["events"] for point in series["points"]) == summary["total_events"]
    channels = site.get("/api/statistics/breakdown/?site=blog&dimension=channel")
    assert channels["totals"]["sessions"] == summary["total_sessions"]
    assert {row["label"]: row["sessions"] for row in channels["results"]} == {"direct": 2, "email": 1}
    email = site.get("/api/statistics/timeseries/?site=blog&dimension=channel&label=email&metrics=conversions")
    assert email["totals"] == {"conversions": 1}
    page = site.get("/api/dashboard/page-details/?site=blog&page=/b")
    assert (page["total_views"], len(page["recent_events"])) == (3, 2)
    referrer = site.get("/api/dashboard/referrer-details/?site=blog&referrer=google.com")
    assert [row["session_id"] for row in referrer["recent_sessions"]] == ["ann"]
    hour = site.get(f"/api/dashboard/hourly-details/?site=blog&hour={NOW}")
    assert hour["totals"]["conversion_values"] == {"EUR": 12.5}
    users = site.get("/api/users/u-ann/sessions/?site=blog")
    assert ([row["session_id"] for row in users["results"]], users["count"]) == (["ann"], 1)
