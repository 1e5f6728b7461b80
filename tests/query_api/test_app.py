import pytest

from query_api import app as application
from query_api.app import create_app
from query_api.settings import ApiSettings
from stream_consumer.table import TableNames

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
    answer = http().get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == content_type
    assert answer.headers["Cache-Control"] == "no-cache"
    again = http().get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    for file in dashboard.iterdir():
        file.write_text("new")
    assert http().get(path, headers={"If-None-Match": answer.headers["ETag"]}).data == b"new"


@pytest.mark.parametrize(
    "name", ["none.js", "secret.py", "..%2fapp.py", "%2e%2e/app.py", ".html", "index.html%00.js", "sub/index.html"]
)
def test_nothing_else_is_served(dashboard, name) -> None:
    answer = http().get(f"/dashboard/{name}")
    assert answer.status_code == 404
    assert list(answer.json) == ["error"]


def test_a_dashboard_that_is_not_installed_is_404(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(application, "DASHBOARD", tmp_path / "none")
    assert http().get("/").json == {"error": "the dashboard has no file 'index.html'"}


@pytest.mark.parametrize("path", ["/", "/api/sites/", "/api/none/"])
def test_no_page_of_ours_runs_or_leaks_anything_foreign(dashboard, path) -> None:
    headers = http().get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy


def test_every_error_has_one_shape(dashboard) -> None:
    class Broken:
        def sites(self):
            raise KeyError("secret detail")

    for answer, status in [
        (http().get("/none"), 404),
        (http().get("/api//sites/"), 404),
        (http().get("/api/none/"), 404),
        (http().post("/api/sites/"), 405),
        (http().delete("/"), 405),
        (http().get("/api/statistics/pages/?limit=x"), 400),
        (http(Broken()).get("/api/sites/"), 500),
    ]:
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert list(answer.json) == ["error"]
        assert answer.json["error"]
        assert "secret" not in answer.json["error"]
    for path in ("/api/sites", "/api/sites/", "/"):
        assert "GET" in http().post(path).headers["Allow"]


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
    assert answer.headers["Access-Control-Allow-Headers"] == "If-None-Match"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "ETag" in http().get("/api/sites/").headers["Access-Control-Expose-Headers"]
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
            "LIVEINSIGHT_API_LIVE_SECONDS": "1",
            "LIVEINSIGHT_API_RECENT_SECONDS": "0.5",
            "LIVEINSIGHT_API_CLOSED_SECONDS": " 3600 ",
            "LIVEINSIGHT_API_READERS": "4",
            "AWS_REGION": "ap-northeast-2",
        }
    )
    origins = ("https://a.example", "http://b.example:8080")
    assert given == ApiSettings(TableNames("s", "e", "r", "q"), origins, 1, 0.5, 3600, 4, "ap-northeast-2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIVEINSIGHT_API_ALLOWED_ORIGINS", "a.example"),
        ("LIVEINSIGHT_API_LIVE_SECONDS", "31"),
        ("LIVEINSIGHT_API_RECENT_SECONDS", "-1"),
        ("LIVEINSIGHT_API_CLOSED_SECONDS", "nan"),
        ("LIVEINSIGHT_API_READERS", "many"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, value) -> None:
    with pytest.raises(ValueError, match=f"^{name}: '{value}' "):
        ApiSettings.from_environ({name: value})
