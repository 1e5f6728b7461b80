import pytest

from query_api import app as application
from query_api.app import create_app
from query_api.errors import REASONS
from query_api.read_keys import Refused
from query_api.settings import ApiSettings
from stream_consumer.table import TableNames
from tests.builders import NOON, an_event
from tests.query_api.fake_reader import FakeReader

NAMES = TableNames("sessions", "session-events", "rollups", "quarantine")


class NoSites:
    """A reader of empty tables."""

    def sites(self):
        return []


def http(reader=None, **settings):
    return create_app(reader or NoSites(), ApiSettings(NAMES, **settings), lambda: 0).test_client()


@pytest.fixture
def dashboard(tmp_path, monkeypatch):
    monkeypatch.setattr(application, "DASHBOARD", tmp_path)
    (tmp_path / "index.html").write_text("<!doctype html><title>é</title>")
    (tmp_path / "dashboard.js").write_text("'use strict'")
    (tmp_path / "dashboard.css").write_text("p{}")
    (tmp_path / "secret.py").write_text("no")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/dashboard/index.html", "text/html; charset=utf-8"),
        ("/dashboard/dashboard.js", "text/javascript; charset=utf-8"),
        ("/dashboard/dashboard.css", "text/css; charset=utf-8"),
    ],
)
def test_the_dashboard_s_files_are_served_and_revalidated(dashboard, path, content_type) -> None:
    client = http()
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == content_type
    assert answer.headers["Cache-Control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    for file in dashboard.iterdir():
        file.write_text("new")
    assert client.get(path, headers={"If-None-Match": answer.headers["ETag"]}).data == b"new"


@pytest.mark.parametrize(
    "name", ["none.js", "secret.py", "..%2fapp.py", "%2e%2e/app.py", ".html", "index.html%00.js", "sub/index.html"]
)
def test_nothing_else_is_served(dashboard, name) -> None:
    answer = http().get(f"/dashboard/{name}")
    assert answer.status_code == 404
    assert answer.json["error"]["reason"] == "no_such_path"


def test_a_dashboard_that_is_not_installed_is_404(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(application, "DASHBOARD", tmp_path / "none")
    assert http().get("/").json["error"]["message"] == "there is no file 'index.html' here"


@pytest.mark.parametrize("path", ["/", "/api/sites/", "/api/none/"])
def test_no_page_of_ours_runs_or_leaks_anything_foreign(dashboard, path) -> None:
    headers = http().get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy


class Broken:
    def sites(self):
        raise KeyError("secret detail")


class Refusing:
    """Read keys of which one is good: of the site blog."""

    def check(self, authorization, site_id) -> None:
        if self.site_of(authorization) != site_id:
            raise Refused(403, "other_site", "this read key is of another site")

    def site_of(self, authorization) -> str:
        if authorization is None:
            raise Refused(401, "key_missing", "this needs a read key")
        if authorization != "Bearer li_good":
            raise Refused(401, "key_unknown", "this read key is not known")
        return "blog"


def keyed(**settings):
    reader = FakeReader(lambda: NOON, [an_event(1), an_event(2, site_id="other")])
    return create_app(reader, ApiSettings(NAMES, **settings), lambda: NOON, Refusing()).test_client()


SUMMARY = "/api/statistics/summary/"


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (lambda: http().get("/none"), 404, "no_such_path"),
        (lambda: http().get("/api//sites/"), 404, "no_such_path"),
        (lambda: http().get("/api/none/"), 404, "no_such_path"),
        (lambda: http().get("/api/%zz/%ff%00"), 404, "no_such_path"),
        (lambda: http().post("/api/sites/"), 405, "method_not_allowed"),
        (lambda: http().delete("/"), 405, "method_not_allowed"),
        (lambda: http().open("/api/sites", method="TRACE"), 405, "method_not_allowed"),
        (lambda: http().open("/docs/", method="BREW"), 405, "method_not_allowed"),
        (lambda: http().get("/api/statistics/pages/?limit=x"), 400, "bad_parameter"),
        (lambda: http().post("/api/sites/", data=b"x" * 65_537), 413, "too_large"),
        (lambda: http().get("/none", data=b"x" * 65_537), 413, "too_large"),
        (lambda: http(Broken()).get("/api/sites/"), 500, "internal"),
        (lambda: keyed().get(SUMMARY), 401, "key_missing"),
        (lambda: keyed().get(SUMMARY, headers={"Authorization": "Bearer li_bad"}), 401, "key_unknown"),
        (lambda: keyed().get(SUMMARY, headers={"Authorization": "Bearer li_good"}), 403, "other_site"),
        (lambda: keyed().get("/api/sites/"), 401, "key_missing"),
        (lambda: keyed().get("/api/realtime/stream?site=blog"), 401, "key_missing"),
        (lambda: http(FakeReader(lambda: 0), streams=0).get("/api/realtime/stream"), 429, "too_many_streams"),
        (lambda: http(FakeReader(lambda: 0)).get("/api/sessions/x/"), 404, "no_such_session"),
    ],
)
def test_every_error_has_one_shape(dashboard, answer, status, reason) -> None:
    found = answer()
    assert found.status_code == status
    assert found.headers["Content-Type"] == "application/json"
    assert found.headers["Cache-Control"] == "no-store"
    assert list(found.json) == ["error"]
    assert list(found.json["error"]) == ["status", "reason", "message"]
    assert (found.json["error"]["status"], found.json["error"]["reason"]) == (status, reason)
    assert REASONS[reason][0] == status
    assert found.json["error"]["message"]
    assert "secret" not in found.text
    assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_an_error_says_what_to_do_next_in_its_headers() -> None:
    for path in ("/api/sites", "/api/sites/", "/", "/docs/", "/api/sessions/x/"):
        assert set(http().post(path).headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert keyed().get(SUMMARY).headers["WWW-Authenticate"] == "Bearer"
    assert int(http(FakeReader(lambda: 0), streams=0).get("/api/realtime/stream").headers["Retry-After"]) > 0


def test_with_read_keys_each_reads_its_own_site() -> None:
    client, good = keyed(), {"Authorization": "Bearer li_good"}
    answer = client.get(f"{SUMMARY}?site=blog", headers=good)
    assert (answer.status_code, answer.json["total_events"]) == (200, 1)
    # What one key may have, a cache between us may not give to others.
    assert answer.headers["Cache-Control"].startswith("private, ")
    assert client.get(f"{SUMMARY}?site=blog").status_code == 401
    assert client.get("/api/sites/", headers=good).json == {"sites": ["blog"]}
    for free in ("/api/metrics/", "/openapi.json", "/docs/", "/health/"):
        assert client.get(free).status_code == 200
    open_to_all = create_app(FakeReader(lambda: NOON), ApiSettings(NAMES), lambda: NOON).test_client()
    assert open_to_all.get(SUMMARY).headers["Cache-Control"].startswith("public, ")


def test_a_small_body_is_ignored() -> None:
    assert http().get("/api/sites/", data=b"x" * 65_536).status_code == 200


@pytest.mark.parametrize("path", ["/api/sites/", "/", "/openapi.json", "/api/none", "/api/statistics/pages/?limit=x"])
def test_head_is_get_without_the_body(dashboard, path) -> None:
    client = http()
    got, head = client.get(path), client.head(path)
    assert head.data == b""
    assert head.status_code == got.status_code
    assert dict(head.headers) == dict(got.headers)
    assert int(head.headers["Content-Length"]) == len(got.data) > 0


def test_a_stream_begins_with_what_is_there_now() -> None:
    reader = FakeReader(lambda: NOON, [an_event(1)])
    client = create_app(reader, ApiSettings(NAMES), lambda: NOON).test_client()
    polled = client.get("/api/realtime/?site=blog")
    answer = client.get("/api/realtime/stream?site=blog", buffered=False)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    got = b""
    for chunk in answer.response:
        got += chunk
        if got.endswith(b"\n\n") and b"data:" in got:
            break
    answer.close()
    event = f"event: realtime\nid: {polled.headers['ETag'].strip(chr(34))}\ndata: {polled.text}\n\n"
    assert got.decode() == f"retry: 3000\n\n{event}"
    assert client.head("/api/realtime/stream?site=blog").data == b""


def test_any_site_s_pages_may_read_by_default(dashboard) -> None:
    for path in ("/api/sites/", "/api/none/", "/api/statistics/pages/?limit=x"):
        headers = http().get(path, headers={"Origin": "https://a.example"}).headers
        assert headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Origin" not in http().get("/", headers={"Origin": "https://a.example"}).headers


def test_only_listed_origins_may_read_where_there_is_a_list() -> None:
    client = http(allowed_origins=("https://a.example", "http://localhost:3000"))
    for origin, allowed in {"https://a.example": True, "https://A.example": True, "https://b.example": False}.items():
        headers = client.get("/api/sites/", headers={"Origin": origin}).headers
        assert headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert headers["Vary"] == "Origin"


def test_a_page_may_revalidate_across_origins() -> None:
    asked = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "if-none-match",
    }
    answer = http().options("/api/sites/", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Headers"] == "Authorization, If-None-Match"
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    exposed = http().get("/api/sites/").headers["Access-Control-Expose-Headers"].split(", ")
    assert {"ETag", "Retry-After", "LiveInsight-As-Of", "LiveInsight-Lag", "LiveInsight-Stale"} <= set(exposed)
    refused = http(allowed_origins=("https://b.example",)).options("/api/sites/", headers=asked)
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_settings_come_from_the_environment() -> None:
    assert ApiSettings.from_environ({}).tables.rollups == "liveinsight-local-rollups"
    given = ApiSettings.from_environ(
        {
            "LIVEINSIGHT_SESSIONS_TABLE": "s",
            "LIVEINSIGHT_SESSION_EVENTS_TABLE": "e",
            "LIVEINSIGHT_ROLLUPS_TABLE": "r",
            "LIVEINSIGHT_QUARANTINE_TABLE": "q",
            "LIVEINSIGHT_API_ALLOWED_ORIGINS": "https://A.example/, http://b.example:8080",
            "LIVEINSIGHT_API_REALTIME_SECONDS": "0.2",
            "LIVEINSIGHT_API_LIVE_SECONDS": "1",
            "LIVEINSIGHT_API_RECENT_SECONDS": "0.5",
            "LIVEINSIGHT_API_CLOSED_SECONDS": " 3600 ",
            "LIVEINSIGHT_API_SESSION_SECONDS": "3",
            "LIVEINSIGHT_API_STALE_SECONDS": "60",
            "LIVEINSIGHT_API_STREAMS": "0",
            "LIVEINSIGHT_API_READ_KEYS": "On",
            "CACHE_URL": "redis://127.0.0.1:6379/0",
            "LIVEINSIGHT_API_READERS": "4",
            "AWS_REGION": "ap-northeast-2",
        }
    )
    origins = ("https://a.example", "http://b.example:8080")
    assert given == ApiSettings(
        TableNames("s", "e", "r", "q"),
        allowed_origins=origins,
        realtime_lifetime=0.2,
        live_lifetime=1,
        session_lifetime=3,
        recent_lifetime=0.5,
        closed_lifetime=3600,
        stale_lifetime=60,
        readers=4,
        streams=0,
        read_keys=True,
        cache_url="redis://127.0.0.1:6379/0",
        region="ap-northeast-2",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIVEINSIGHT_API_ALLOWED_ORIGINS", "a.example"),
        ("LIVEINSIGHT_API_LIVE_SECONDS", "31"),
        ("LIVEINSIGHT_API_RECENT_SECONDS", "-1"),
        ("LIVEINSIGHT_API_CLOSED_SECONDS", "nan"),
        ("LIVEINSIGHT_API_STALE_SECONDS", "86401"),
        ("LIVEINSIGHT_API_READERS", "many"),
        ("LIVEINSIGHT_API_READ_KEYS", "yes"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, value) -> None:
    with pytest.raises(ValueError, match=f"^{name}: '{value}' "):
        ApiSettings.from_environ({name: value})


def test_a_wrong_cache_url_is_not_shown() -> None:
    with pytest.raises(ValueError, match=r"^CACHE_URL: is not like redis://127.0.0.1:6379/0$"):
        ApiSettings.from_environ({"CACHE_URL": "http://:secret@redis"})
