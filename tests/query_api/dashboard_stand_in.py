"""A stand-in for the query API in front of the dashboard's files, whose answers the test decides, and a Chromium.

A pytest plugin for the test_dashboard_*.py: its fixtures are ``api``, the stand-in, and ``visit``, which opens pages.
(The tests import it before pytest does, so its own asserts are as they are: PYTEST_DONT_REWRITE.)
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

SCREENSHOTS = Path(__file__).parents[2] / ".liveinsight" / "screenshots"
ASSETS = Path(__file__).parents[2] / "query_api" / "dashboard"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STEPS = {"minute": 1, "5m": 5, "15m": 15, "hour": 60}
SESSION_METRICS = {
    "sessions": 120,
    "page_views": 300,
    "events": 700,
    "bounce_rate": 0.25,
    "avg_session_time": 63.0,
    "pages_per_session": 2.5,
    "conversions": 6,
    "conversion_rate": 0.05,
}


class _Clock:
    """The time of the stand-in and its pages: from here on, at real pace. So no test meets the end of a quarter, an
    hour or a day, where a dashboard asks for another range.
    """

    START = datetime(2026, 3, 10, 3, 47, 20, tzinfo=UTC)

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.began = time.monotonic()

    def now(self) -> datetime:
        return self.START + timedelta(seconds=time.monotonic() - self.began)


_clock = _Clock()


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def from_iso(text: str) -> datetime:
    return datetime.fromisoformat(text)


def session(name: str, site: str = "shop", **changes: Any) -> dict[str, Any]:
    now = _clock.now()
    return {
        "session_id": name,
        "user_id": f"visitor-{name}",
        "site_id": site,
        "started_at": iso(now - timedelta(minutes=4)),
        "last_activity": iso(now - timedelta(seconds=9)),
        "current_page": "/lamps/oak",
        "current_title": "Oak lamp",
        "entry_page": "/",
        "duration": 231.0,
        "page_views": 3,
        "events": 7,
        "conversions": 0,
        "referrer": "google.com",
        "source": "Google",
        "channel": "search",
        "country": "KR",
        "language": "ko",
        "device": "desktop",
        "browser": "Firefox",
        "os": "Linux",
        "bounced": False,
        "active": True,
    } | changes


def this_minute() -> datetime:
    return _clock.now().replace(second=0, microsecond=0)


def event(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    now = _clock.now()
    return {
        "event_id": name,
        "event_type": kind,
        "timestamp": iso(now - timedelta(minutes=2)),
        "received_at": iso(now),
        "page_url": "https://shop.example/",
        "referrer": "",
        "title": "",
        "properties": {},
    } | changes


def _breakdowns() -> dict[str, list[tuple[str, int]]]:
    return {
        "page": [
            ("/", 812),
            ("/lamps", 430),
            ("/cart", 96),
            *((f"/lamps/{number}", 40 - number) for number in range(20)),
        ],
        "entry_page": [("/", 600), ("/lamps", 200)],
        "exit_page": [("/cart", 300), ("/", 220)],
        "channel": [("direct", 400), ("search", 180), ("social", 60)],
        "source": [("Direct", 240), ("Google", 180), ("Bing", 12)],
        "referrer": [("", 240), ("google.com", 180)],
        "utm_source": [("mail", 30)],
        "utm_campaign": [("spring", 20)],
        "country": [("KR", 500), ("DE", 90), ("", 12)],
        "language": [("ko", 480), ("en-GB", 33)],
        "device": [("mobile", 301), ("desktop", 191)],
        "browser": [("Chrome", 301), ("Firefox", 191)],
        "os": [("Android", 301), ("Linux", 191)],
        "event_type": [("page_view", 4321), ("click", 900), ("wishlist", 31)],
        "conversion_type": [("order", 40), ("newsletter", 2)],
        "currency": [("EUR", 38), ("KRW", 4)],
    }


def _totals() -> dict[str, Any]:
    return {
        "total_sessions": 1234,
        "total_events": 9876,
        "page_views": 4321,
        "visitors": 1100,
        "visitors_exact": False,
        "visitors_error": 0.02,
        "avg_session_time": 125.4,
        "median_session_time": 61.0,
        "bounce_rate": 0.412,
        "pages_per_session": 3.5,
        "conversions": 42,
        "conversion_rate": 0.034,
        "conversion_values": {"EUR": 1999.5, "KRW": 120000},
        "active_now": 23,
    }


@dataclass
class Site:
    """What the stand-in says of one site."""

    visitors_now: int = 17
    active: list[dict[str, Any]] = field(default_factory=lambda: [session("s1"), session("s2", current_title="Cart")])
    breakdowns: dict[str, list[tuple[str, int]]] = field(default_factory=_breakdowns)
    reading: list[tuple[str, int]] = field(default_factory=lambda: [("/", 9), ("/lamps", 5)])
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    on_page: list[dict[str, Any]] = field(default_factory=list)
    each_step: int = 40
    totals: dict[str, Any] = field(default_factory=_totals)
    as_of: datetime | None = field(default_factory=lambda: _clock.now() - timedelta(seconds=4))
    viewed: Counter[datetime] = field(default_factory=Counter)  # page views by minute, since the test began

    def view_page(self) -> None:
        """One more page view, readable from now on."""
        self.totals["page_views"] += 1
        self.totals["total_events"] += 1
        self.as_of = _clock.now()
        self.viewed[this_minute()] += 1


def empty_site() -> Site:
    nothing = {name: {} if isinstance(value, dict) else 0 for name, value in _totals().items()}
    return Site(0, [], {}, [], {}, [], 0, nothing | {"visitors_exact": True}, None)


class StandIn:
    """The API's answers (`sites`), how it fails (`broken`: part of a path -> status and body), what it was asked.

    `held`: answers for a site wait for its event. `streams`: whether there is a stream; `mute`: it says nothing.
    `key`: the read key that is wanted. `stale`: seconds that answers are old.
    """

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {"shop": Site(), "blog": Site(visitors_now=3, active=[session("b1", "blog")])}
        self.broken: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.statuses: list[tuple[str, int]] = []
        self.held: dict[str, threading.Event] = {}
        self.streams = True
        self.mute = False
        self.key: str | None = None
        self.stale = 0
        self.closed = threading.Event()
        self.under_way: set[int] = set()  # the threads that are answering
        self.began = this_minute()

    def last(self, path: str, **wanted: str) -> dict[str, str]:
        """The query of the last question at a path with these parameters."""
        found = [query for asked, query in self.asked if asked == path and wanted.items() <= query.items()]
        assert found, f"{path} was not asked with {wanted}"
        return found[-1]

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, str]:
        self.asked.append((path, query))
        if gate := self.held.get(query.get("site", "")):
            gate.wait(10)
        for part, failure in self.broken.items():
            if part in path:
                return failure
        found = self._find([unquote(part) for part in path.strip("/").split("/")[1:]], query)
        if isinstance(found, str):
            return 200, found
        return (
            (404, error(404, "no_such_path", "There is no such thing.")) if found is None else (200, json.dumps(found))
        )

    def realtime(self, name: str) -> dict[str, Any]:
        site = self.sites.get(name) or empty_site()

        def of(ago: int) -> dict[str, Any]:
            minute = this_minute() - timedelta(minutes=ago)
            # What was before the test began does not change; after it there is only what the test lets happen.
            before = minute <= self.began
            events = site.each_step // 5 * (minute.minute * 7 % 11) if before else 0
            views = site.viewed[minute]
            return {"minute": iso(minute), "events": events + views, "page_views": events // 2 + views}

        return {
            "site": name,
            "as_of": iso(site.as_of) if site.as_of else None,
            "lag": 0.4,
            "visitors_now": site.visitors_now,
            "active_sessions": len(site.active),
            "minutes": [of(ago) for ago in reversed(range(30))],
            "top_pages": [{"page": page, "visitors": visitors} for page, visitors in site.reading],
            "sessions": site.active[:50],
        }

    def _find(self, path: list[str], query: dict[str, str]) -> Any:
        site = self.sites.get(query.get("site", "default")) or empty_site()
        match path:
            case ["sites"]:
                return {"sites": sorted(name for name, kept in self.sites.items() if kept.totals["total_events"])}
            case ["realtime"]:
                return self.realtime(query.get("site", "default"))
            case ["sessions", "active"]:
                return self._active(site, query)
            case ["sessions", name]:
                found = [one for one in site.active if one["session_id"] == name]
                details = {
                    "exit_page": "/",
                    "landing_url": "https://shop.example/?utm_source=mail",
                    "utm": {"source": "mail"},
                    "interactions": 2,
                    "scroll_depth": 75,
                    "conversion_values": {},
                }
                return found[0] | details if found else None
            case ["sessions", name, "events"]:
                return site.events.get(name)
            case ["statistics", "summary"]:
                answer = self._common(site, query) | site.totals | {"previous": None}
                if query.get("compare") == "previous":
                    halves = {
                        name: value * 0.8 for name, value in site.totals.items() if isinstance(value, int | float)
                    }
                    answer["previous"] = halves | {"conversion_values": {}}
                return answer
            case ["statistics", "timeseries"]:
                return self._timeseries(site, query)
            case ["statistics", "breakdown"]:
                return self._breakdown(site, query)
            case ["dashboard", "page-details"]:
                return self._common(site, query) | {
                    "page_url": query["page"],
                    "total_views": 430,
                    "recent_events": site.on_page,
                    "hourly_distribution": [],
                    "entries": SESSION_METRICS,
                    "exits": SESSION_METRICS | {"sessions": 77},
                }
        return None

    def _common(self, site: Site, query: dict[str, str]) -> dict[str, Any]:
        as_of = iso(site.as_of) if site.as_of and site.totals["total_events"] else None
        both = {"from": query["from"], "to": query["to"], "tz": query.get("tz", "UTC")}
        return {"site": query["site"], **both, "as_of": as_of, "lag": 0.4, "partial": True}

    def _active(self, site: Site, query: dict[str, str]) -> Any:
        start = int(query.get("cursor", "0"))
        size = int(query["page_size"])
        more = f"/api/sessions/active/?site={query['site']}&cursor={start + size}&page_size={size}"
        return {
            "count": len(site.active),
            "next": more if start + size < len(site.active) else None,
            "previous": None,
            "results": site.active[start : start + size],
        }

    def _timeseries(self, site: Site, query: dict[str, str]) -> Any:
        zone = ZoneInfo(query.get("tz", "UTC"))
        start, end = from_iso(query["from"]).astimezone(zone), from_iso(query["to"]).astimezone(zone)
        ats = []
        at = start
        while at < end:
            ats.append(at)
            if query["interval"] == "day":
                at = datetime(at.year, at.month, at.day, tzinfo=zone) + timedelta(days=1)
            else:
                at = (at.astimezone(UTC) + timedelta(minutes=STEPS[query["interval"]])).astimezone(zone)
        metrics = query["metrics"].split(",")
        scale = 3 if "label" in query else 1

        def value(name: str, place: int) -> Any:
            raw = (site.each_step + place * 37 % 23) // scale
            match name:
                case "bounce_rate" | "conversion_rate":
                    return raw / 100
                case "conversion_values":
                    return {"EUR": float(raw)}
                case "events":
                    return raw
                case "sessions" | "visitors" | "conversions":
                    return raw // 7
            return raw // 2

        def points(shift: timedelta, offset: int) -> list[dict[str, Any]]:
            return [
                {"at": (at - shift).isoformat(timespec="milliseconds")}
                | {name: value(name, place + offset) for name in metrics}
                for place, at in enumerate(ats)
            ]

        known = {"sessions": site.totals["total_sessions"], "events": site.totals["total_events"]} | site.totals
        totals = {name: SESSION_METRICS.get(name, 0) if "label" in query else known[name] for name in metrics}
        if query.get("dimension") == "page":
            totals["page_views"] = 430
        previous = None
        if query.get("compare") == "previous":
            before = {name: 1 if isinstance(amount, dict) else amount / 2 for name, amount in totals.items()}
            previous = {"points": points(end - start, 5), "totals": before}
        return self._common(site, query) | {
            "interval": query["interval"],
            "metrics": metrics,
            "points": points(timedelta(0), 0),
            "totals": totals,
            "previous": previous,
            "dimension": query.get("dimension"),
            "label": query.get("label"),
        }

    def _breakdown(self, site: Site, query: dict[str, str]) -> Any:
        metrics = query["metrics"].split(",")
        rows = site.breakdowns.get(query["dimension"], [])
        if query.get("format") == "csv":
            return "".join(f"{label},{amount}\r\n" for label, amount in [(query["dimension"], metrics[0]), *rows])
        limit = int(query["limit"])

        def figures(amount: int) -> dict[str, Any]:
            return {name: {"EUR": 49.9 * amount} if name == "conversion_values" else amount for name in metrics}

        return self._common(site, query) | {
            "dimension": query["dimension"],
            "metrics": metrics,
            "results": [{"label": label} | figures(amount) for label, amount in rows[:limit]],
            "more": max(0, len(rows) - limit),
            "other": None,
            "totals": figures(sum(amount for _, amount in rows)),
        }


def error(status: int, reason: str, message: str) -> str:
    return json.dumps({"error": {"status": status, "reason": reason, "message": message}})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """The page may have given the request up."""


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = url.path
            file = ASSETS / ("index.html" if path == "/" else path.removeprefix("/dashboard/"))
            query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            if path.startswith("/api/") and stand_in.key and not self.allowed():
                stand_in.asked.append((path, query))
                reason = "key_unknown" if "Authorization" in self.headers else "key_missing"
                self.reply(401, "application/json", error(401, reason, "This read key is not known.").encode())
            elif path == "/api/realtime/stream":
                self.stream(query)
            elif path.startswith("/api/"):
                stand_in.under_way.add(threading.get_ident())
                try:
                    status, text = stand_in.answer(path, query)
                    kind = "text/csv" if query.get("format") == "csv" else "application/json"
                    self.reply(status, kind, text.encode())
                finally:
                    stand_in.under_way.discard(threading.get_ident())
            elif file.is_file() and file.parent == ASSETS:
                self.reply(200, f"{TYPES[file.suffix]}; charset=utf-8", file.read_bytes())
            else:
                self.reply(404, "text/plain", b"")

        def allowed(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {stand_in.key}"

        def stream(self, query: dict[str, str]) -> None:
            stand_in.asked.append(("/api/realtime/stream", query))
            for part, (status, text) in stand_in.broken.items():
                if part in "/api/realtime/stream":
                    self.reply(status, "application/json", text.encode())
                    return
            if not stand_in.streams:
                self.reply(429, "application/json", error(429, "too_many_streams", "Too many streams.").encode())
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            before = None
            with suppress(ConnectionError):
                if not stand_in.mute:
                    self.wfile.write(b"retry: 300\n\n")
                while stand_in.streams and not stand_in.closed.is_set():
                    data = json.dumps(stand_in.realtime(query["site"]))
                    if data != before and not stand_in.mute:
                        # In two pieces: a reader must not take a piece for an event.
                        text = f": a comment\nevent: realtime\nid: 1\ndata: {data}\n\n".encode()
                        self.wfile.write(text[:99])
                        self.wfile.flush()
                        self.wfile.write(text[99:])
                        before = data
                    self.wfile.flush()
                    time.sleep(0.05)

        def reply(self, status: int, kind: str, body: bytes) -> None:
            etag = f'"{hashlib.blake2b(body, digest_size=8).hexdigest()}"'
            if status == 200 and self.headers.get("If-None-Match") == etag:
                status, body = 304, b""
            stand_in.statuses.append((urlsplit(self.path).path, status))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-cache")
            self.send_header("ETag", etag)
            if stand_in.stale:
                self.send_header("LiveInsight-Stale", str(stand_in.stale))
            with suppress(ConnectionError):  # the page may have given the request up
                self.end_headers()
                self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(_clock.now().timestamp() if timestamp is None else timestamp)

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stand_in.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Visit:
    """A page in a context of its own, and all that it complained of."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.address = address
        self.complaints: list[str] = []
        self.page.on("console", lambda said: said.type in {"error", "warning"} and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._note_request)

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self.address, f"blob:{self.address}")):
            self.complaints.append(f"request elsewhere: {request.url}")

    def open(self, path: str = "/?site=shop") -> Page:
        """The page, whose time can be let jump with :func:`later`."""
        self.page.clock.install(time=_clock.now())
        self.page.goto(self.address + path)
        return self.page


class Visits:
    """Opens pages; at the end, none of them may have logged an error, broken the CSP, or asked another host."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address
        self.visits: list[Visit] = []
        self.contexts: list[BrowserContext] = []

    def __call__(self, **options: Any) -> Visit:
        settings = {
            "viewport": {"width": 1280, "height": 900},
            "locale": "en-GB",
            "timezone_id": "Asia/Seoul",
            "reduced_motion": "reduce",
        }
        self.contexts.append(self.browser.new_context(**settings | options))
        self.contexts[-1].set_default_timeout(30_000)
        self.visits.append(Visit(self.contexts[-1], self.address))
        return self.visits[-1]

    def end(self) -> None:
        complaints = [complaint for one in self.visits for complaint in one.complaints]
        for context in self.contexts:
            context.close()
        # A refusal is logged by the browser itself; only the test that causes it expects it.
        assert [said for said in complaints if "Failed to load resource" not in said] == []


def later(page: Page, seconds: float) -> None:
    """Let the page's clock jump; what is due by then happens once. In between it runs as ever."""
    page.clock.fast_forward(int(seconds * 1000))


def settle(api: StandIn, page: Page) -> None:
    """Return when the page has asked all that is due, and has its answers: its clock may jump faster than they come."""
    asked, still = -1, 0
    while still < 3:
        page.wait_for_timeout(50)
        still = still + 1 if len(api.asked) == asked and not api.under_way else 0
        asked = len(api.asked)


def shoot(page: Page, folder: Path, name: str) -> None:
    """Leave a picture of the whole page in the test's folder, and where one looks at it if that is wanted."""
    places = [folder]
    if os.environ.get("LIVEINSIGHT_SCREENSHOTS") == "1":
        places.append(SCREENSHOTS)
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=place / f"dashboard-{name}.png", full_page=True)


@pytest.fixture
def api() -> StandIn:
    _clock.start()
    return StandIn()


@pytest.fixture
def visit(chromium: Browser, api: StandIn) -> Iterator[Visits]:
    with serving(api) as address:
        visits = Visits(chromium, address)
        try:
            yield visits
        finally:
            visits.end()
