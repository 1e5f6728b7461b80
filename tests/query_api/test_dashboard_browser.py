"""The dashboard in a real Chromium, in front of a stand-in for the query API whose answers the test decides."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
ASSETS = Path(__file__).parents[2] / "query_api" / "dashboard"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STEP = timedelta(minutes=5)


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def from_iso(text: str) -> datetime:
    return datetime.fromisoformat(text)


def session(name: str, site: str = "shop", **changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "session_id": name,
        "user_id": f"visitor-{name}",
        "site_id": site,
        "started_at": iso(now - timedelta(minutes=4)),
        "last_activity": iso(now - timedelta(seconds=9)),
        "current_page": "https://shop.example/lamps/oak",
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


def event(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
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


@dataclass
class Site:
    """What the stand-in says of one site."""

    visitors_now: int = 17
    active: list[dict[str, Any]] = field(default_factory=lambda: [session("s1"), session("s2", current_title="Cart")])
    pages: list[tuple[str, int]] = field(default_factory=lambda: [("/", 812), ("/lamps", 430), ("/cart", 96)])
    referrers: list[tuple[str, int]] = field(default_factory=lambda: [("Direct", 240), ("google.com", 180)])
    sources: list[tuple[str, int]] = field(default_factory=lambda: [("Direct", 240), ("Google", 180), ("Bing", 12)])
    devices: list[tuple[str, int]] = field(default_factory=lambda: [("mobile", 301), ("desktop", 191)])
    reading: list[tuple[str, int]] = field(default_factory=lambda: [("/", 9), ("/lamps", 5)])
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    each_step: int = 40
    totals: dict[str, Any] = field(
        default_factory=lambda: {
            "total_sessions": 1234,
            "total_events": 9876,
            "page_views": 4321,
            "visitors": 1100,
            "visitors_exact": False,
            "visitors_error": 0.02,
            "avg_session_time": 125.4,
            "bounce_rate": 0.412,
            "pages_per_session": 3.5,
            "conversions": 42,
            "conversion_rate": 0.034,
            "conversion_values": {"EUR": 1999.5},
            "active_now": 23,
        }
    )


def empty_site() -> Site:
    nothing = Site().totals | dict.fromkeys(
        ["total_sessions", "total_events", "page_views", "visitors", "avg_session_time", "bounce_rate"], 0
    )
    nothing |= {"visitors_exact": True, "visitors_error": 0, "conversions": 0, "conversion_rate": 0}
    nothing |= {"conversion_values": {}, "pages_per_session": 0, "active_now": 0}
    return Site(0, [], [], [], [], [], [], {}, 0, nothing)


class StandIn:
    """The API's answers (`sites`), how it fails (`broken`: part of a path -> status and body), what it was asked.

    `held`: answers for a site wait for its event.
    """

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {"shop": Site(), "blog": Site(visitors_now=3, active=[session("b1", "blog")])}
        self.broken: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.held: dict[str, threading.Event] = {}

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, str]:
        self.asked.append((path, query))
        if gate := self.held.get(query.get("site", "")):
            gate.wait(10)
        for part, failure in self.broken.items():
            if part in path:
                return failure
        found = self._find([unquote(part) for part in path.strip("/").split("/")[1:]], query)
        return (404, '{"error": "There is no such thing."}') if found is None else (200, json.dumps(found))

    def _find(self, path: list[str], query: dict[str, str]) -> Any:
        site = self.sites.get(query.get("site", "default"), empty_site())
        match path:
            case ["sites"]:
                return {"sites": sorted(name for name, kept in self.sites.items() if kept.totals["total_events"])}
            case ["realtime"]:
                return self._realtime(site, query)
            case ["sessions", "active"]:
                return site.active[: int(query.get("limit", "100"))]
            case ["sessions", name]:
                found = [one for one in site.active if one["session_id"] == name]
                details = {
                    "exit_page": "/",
                    "landing_url": "https://shop.example/?utm_source=mail",
                    "utm": {"source": "mail"},
                }
                details |= {"interactions": 2, "scroll_depth": 75, "conversion_values": {}}
                return found[0] | details if found else None
            case ["sessions", name, "events"]:
                return site.events.get(name)
            case ["statistics", figure]:
                return self._statistics(site, figure, query)
        return None

    def _realtime(self, site: Site, query: dict[str, str]) -> Any:
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        return {
            "site": query.get("site", "default"),
            "as_of": iso(datetime.now(UTC)),
            "visitors_now": site.visitors_now,
            "active_sessions": len(site.active),
            "minutes": [
                {
                    "minute": iso(minute - timedelta(minutes=ago)),
                    "events": site.each_step // 5 * (ago * 7 % 11),
                    "page_views": site.each_step // 5 * (ago * 7 % 11) // 2,
                }
                for ago in reversed(range(30))
            ],
            "top_pages": [{"page": page, "visitors": visitors} for page, visitors in site.reading],
        }

    def _statistics(self, site: Site, figure: str, query: dict[str, str]) -> Any:
        start, end = from_iso(query["from"]), from_iso(query["to"])
        if figure == "summary":
            as_of = iso(datetime.now(UTC)) if site.totals["total_events"] else None
            return {"site": query["site"], "from": iso(start), "to": iso(end), "as_of": as_of} | site.totals
        if figure == "hourly":
            return [
                {
                    "hour": iso(start + number * STEP),
                    "count": site.each_step + number * 37 % 23,
                    "page_views": (site.each_step + number * 37 % 23) // 2,
                    "sessions": (site.each_step + number * 37 % 23) // 7,
                    "conversions": 0,
                }
                for number in range((end - start) // STEP)
            ]
        if figure == "pages":
            return [{"page": page, "views": views} for page, views in site.pages]
        rows = {"referrers": site.referrers, "sources": site.sources, "devices": site.devices}.get(figure)
        return (
            None if rows is None else {"labels": [label for label, _ in rows], "data": [amount for _, amount in rows]}
        )


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = url.path
            file = ASSETS / ("index.html" if path == "/" else path.removeprefix("/dashboard/"))
            if path.startswith("/api/"):
                query = {name: values[-1] for name, values in parse_qs(url.query).items()}
                status, text = stand_in.answer(path, query)
                self.reply(status, "application/json", text.encode())
            elif file.is_file() and file.parent == ASSETS:
                self.reply(200, f"{TYPES[file.suffix]}; charset=utf-8", file.read_bytes())
            else:
                self.reply(404, "text/plain", b"")

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            with suppress(ConnectionError):  # the page may have given the request up
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # A poll that was under way when `later` jumped comes again after 5 s at most.
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def api() -> StandIn:
    return StandIn()


@pytest.fixture
def address(api: StandIn) -> Iterator[str]:
    with serving(api) as url:
        yield url


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
        if not request.url.startswith(self.address):
            self.complaints.append(f"request elsewhere: {request.url}")

    def open(self, path: str = "/?site=shop") -> Page:
        self.page.clock.install()
        self.page.goto(self.address + path)
        return self.page


def later(page: Page, seconds: float) -> None:
    """Let the page's clock jump; what is due by then happens once. In between it runs as ever."""
    page.clock.fast_forward(int(seconds * 1000))


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[..., Visit]]:
    """Opens pages; at the end, none of them may have logged an error, broken the CSP, or asked another host."""
    visits: list[Visit] = []
    contexts: list[BrowserContext] = []

    def begin(**options: Any) -> Visit:
        settings = {
            "viewport": {"width": 1360, "height": 900},
            "locale": "en-GB",
            "timezone_id": "Asia/Seoul",
        } | options
        contexts.append(browser.new_context(**settings))
        contexts[-1].set_default_timeout(8000)
        visits.append(Visit(contexts[-1], address))
        return visits[-1]

    yield begin
    complaints = [complaint for one in visits for complaint in one.complaints]
    for context in contexts:
        context.close()
    # An answer of 503 or 404 is logged by the browser itself; only the test that causes it expects it.
    assert [said for said in complaints if "Failed to load resource" not in said] == []


def expect_rows(page: Page, name: str, wanted: list[list[str]]) -> None:
    """A bar list comes to show these labels and amounts; each panel is filled when its own answer is there."""
    items = page.locator(f"#{name} li")
    expect(items.locator(".label")).to_have_text([label for label, _ in wanted], use_inner_text=True)
    expect(items.locator(".amount")).to_have_text([amount for _, amount in wanted])


def test_shows_the_figures_of_the_site(visit: Callable[..., Visit]) -> None:
    page = visit().open()

    expect(page.locator("#visitors-now")).to_have_text("17")
    expect(page.locator("#visitors-announced")).to_have_text("17 visitors now")
    expect(page.locator("#visitors")).to_have_text("1,100")
    expect(page.locator("#visitors-note")).to_have_text("± 22 (2%)")
    expect(page.locator("#sessions")).to_have_text("1,234")
    expect(page.locator("#page-views")).to_have_text("4,321")
    expect(page.locator("#events")).to_have_text("9,876")
    expect(page.locator("#bounce-rate")).to_have_text("41.2%")
    expect(page.locator("#average-time")).to_have_text("2 m 05 s")
    expect(page.locator("#conversions")).to_have_text("42")
    expect(page.locator("#conversions-note")).to_have_text("€1,999.50")
    expect(page.locator("#conversion-rate")).to_have_text("3.4%")
    expect_rows(page, "pages", [["/", "812"], ["/lamps", "430"], ["/cart", "96"]])
    expect_rows(page, "referrers", [["Direct", "240"], ["google.com", "180"]])
    expect_rows(page, "sources", [["Direct", "240"], ["Google", "180"], ["Bing", "12"]])
    expect_rows(page, "devices", [["Mobile", "301"], ["Desktop", "191"]])
    expect_rows(page, "pages-now", [["/", "9"], ["/lamps", "5"]])
    first = page.locator("#active tr").first
    expect(first).to_contain_text("Oak lamp")
    expect(first).to_contain_text("/lamps/oak")
    expect(first).to_contain_text("South Korea")
    expect(first).to_contain_text("3 m 51 s")
    expect(page.locator("#minutes svg rect.accent")).to_have_count(30)
    expect(page.locator("#chart path.line.accent").first).to_have_attribute("d", re.compile("^M[0-9.]+,[0-9.]+L"))
    expect(page.locator("#timezone")).to_contain_text("Asia/Seoul (UTC+09:00)")
    expect(page.locator("#updated")).to_contain_text("Updated")
    assert page.title() == "17 now · shop · LiveInsight"


def test_visitors_that_are_counted_exactly_have_no_error(api: StandIn, visit: Callable[..., Visit]) -> None:
    api.sites["shop"].totals |= {"visitors_exact": True, "visitors_error": 0}
    expect(visit().open().locator("#visitors-note")).to_have_text("exact")


def test_follows_the_site_without_a_reload_and_leaves_focus_scroll_and_nodes_in_place(
    api: StandIn, visit: Callable[..., Visit]
) -> None:
    page = visit().open()
    expect(page.locator("#active tr")).to_have_count(2)
    expect(page.locator("#pages li")).to_have_count(3)
    page.locator("#active .title", has_text="Cart").focus()
    page.evaluate(
        "() => { document.querySelector('#pages li').mark = document.querySelector('#active tr').mark = window.mark = 'kept' }"
    )
    scrolled = page.evaluate("() => { scrollTo(0, 200); return scrollY }")
    assert scrolled > 0

    shop = api.sites["shop"]
    shop.visitors_now = 18
    shop.totals["page_views"] = 4400
    shop.pages = [("/", 900), ("/new", 500), ("/lamps", 431)]
    shop.active = [session("s3", current_title="Newcomer"), *reversed(shop.active)]
    later(page, 5)

    expect(page.locator("#visitors-now")).to_have_text("18")
    expect(page.locator("#active tr .title")).to_have_text(["Newcomer", "Cart", "Oak lamp"])
    expect(page.locator("#page-views")).to_have_text("4,400")
    expect_rows(page, "pages", [["/", "900"], ["/new", "500"], ["/lamps", "431"]])
    assert page.evaluate(
        "() => [document.querySelector('#pages li').mark, document.querySelector('#active tr:last-child').mark]"
    ) == ["kept", "kept"]
    assert page.evaluate("() => document.activeElement.textContent") == "Cart"
    assert page.evaluate("() => scrollY") == scrolled
    assert page.evaluate("() => window.mark") == "kept"


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "</title><script>alert(4)</script>",
    "javascript:alert(5)",
    "data:text/html,<script>alert(6)</script>",
    "\u202egpj.exe \u0000 \ufeff",
    "{{constructor.constructor('alert(7)')()}}",
    "__proto__",
    '=HYPERLINK("http://evil.example")',
    "x" * 10_000,
]


def test_shows_hostile_data_as_text(api: StandIn, visit: Callable[..., Visit]) -> None:
    shop = api.sites["shop"]
    counted = [(text, 90 - place) for place, text in enumerate(HOSTILE)]
    shop.pages = shop.referrers = shop.sources = shop.devices = shop.reading = counted
    fields = [
        "current_page",
        "current_title",
        "source",
        "country",
        "device",
        "browser",
        "os",
        "referrer",
        "user_id",
        "channel",
        "language",
    ]
    shop.active = [
        session(f"h{place}/../{text[:40]}", **dict.fromkeys(fields, text)) for place, text in enumerate(HOSTILE)
    ]
    shop.totals["conversion_values"] = {HOSTILE[0]: 5.0}
    shop.events[shop.active[0]["session_id"]] = [
        told
        for place, text in enumerate(HOSTILE)
        for told in [
            event(f"view{place}", "page_view", page_url=text, title=text, referrer=text),
            event(f"click{place}", "click", element={"id": text, "tag": text, "text": text, "href": text}),
            event(f"sale{place}", "conversion", conversion={"type": text, "value": 1.5, "currency": text}),
            event(f"own{place}", text[:64], properties={text: text, "nested": {"x": [text]}}),
        ]
    ]
    page = visit().open()
    expect(page.locator("#pages li")).to_have_count(len(HOSTILE))
    expect(page.locator("#active tr")).to_have_count(len(HOSTILE))
    page.locator("#active .title").first.click()
    expect(page.locator("#session-events li")).to_have_count(4 * len(HOSTILE))

    shown = page.locator("#referrers .label").evaluate_all("labels => labels.map((label) => label.textContent)")
    assert shown == [text if len(text) < 400 else text[:400] + "…" for text in HOSTILE]
    titles = page.locator("#active .title").evaluate_all("titles => titles.map((title) => title.textContent)")
    assert titles == shown
    kinds = page.locator("#session-events li b").evaluate_all("names => names.map((name) => name.textContent)")
    assert kinds[3::4] == [text[:64] for text in HOSTILE]
    assert links_elsewhere(page) == []
    assert page.locator("img, iframe, object, embed, base, script:not([src='/dashboard/dashboard.js'])").count() == 0
    assert page.locator("[onerror], [onload]").count() == 0


def links_elsewhere(page: Page) -> list[str]:
    """Links that are neither http(s) with the right rel, nor within the page."""
    return page.eval_on_selector_all(
        "a:not(.skip)",
        "links => links.filter((a) => !/^https?:$/.test(a.protocol) || a.rel !== 'noopener noreferrer').map((a) => a.outerHTML)",
    )


def test_only_web_addresses_become_links(api: StandIn, visit: Callable[..., Visit]) -> None:
    api.sites["shop"].pages = [
        ("https://shop.example/a?b=1", 3),
        ("JavaScript:alert(1)", 2),
        (" javascript:alert(2)", 1),
        ("/plain", 1),
    ]
    page = visit().open()
    expect(page.locator("#pages li")).to_have_count(4)
    links = page.locator("#pages a")
    expect(links).to_have_count(1)
    expect(links).to_have_text("/a?b=1")
    expect(links).to_have_attribute("href", "https://shop.example/a?b=1")
    expect(links).to_have_attribute("rel", "noopener noreferrer")


def test_a_site_without_data_tells_how_to_install_the_tracker(visit: Callable[..., Visit]) -> None:
    page = visit().open('/?site=new"site')
    expect(page.locator("#empty-title")).to_have_text('No data from new"site yet')
    expect(page.locator("#install-line")).to_have_text(
        '<script async src="https://YOUR-COLLECTOR/liveinsight.js" data-site="new&quot;site"></script>'
    )
    expect(page.locator("#visitors-now")).to_have_text("0")
    expect(page.locator("#bounce-rate")).to_have_text("–")
    expect(page.locator("#active-nothing")).to_be_visible()


def test_a_quiet_stretch_of_a_known_site_is_not_called_uninstalled(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open()
    expect(page.locator("#visitors-now")).to_have_text("17")
    kept = api.sites["shop"].totals
    quiet = empty_site()
    api.sites["shop"] = quiet
    api.broken["/api/sites"] = (200, '{"sites": ["blog", "shop"]}')
    later(page, 5)
    expect(page.locator("#empty-title")).to_have_text("Nothing from shop in this stretch of time")
    quiet.totals = kept
    later(page, 5)
    expect(page.locator("#empty")).to_be_hidden()


def test_an_outage_is_told_with_its_cause_and_ends_by_itself(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open()
    expect(page.locator("#visitors-now")).to_have_text("17")
    api.broken["/api/"] = (503, '{"error": "The tables cannot be <b>read</b>."}')
    later(page, 5)
    expect(page.locator("#outage-cause")).to_have_text("The tables cannot be <b>read</b>.")
    expect(page.locator("#outage-consequence")).to_contain_text("What you see is from")
    expect(page.locator("#freshness")).to_have_attribute("data-state", "failing")
    expect(page.locator("#visitors-now")).to_have_text("17")

    api.broken.clear()
    api.sites["shop"].visitors_now = 19
    later(page, 30)
    expect(page.locator("#visitors-now")).to_have_text("19")
    expect(page.locator("#outage")).to_be_hidden()
    expect(page.locator("#freshness")).to_have_attribute("data-state", "live")


def test_an_outage_from_the_start_can_be_retried_by_hand(api: StandIn, visit: Callable[..., Visit]) -> None:
    api.broken["/api/"] = (500, "<html>not json</html>")
    page = visit().open()
    expect(page.locator("#outage-cause")).to_have_text("The query API answered with status 500.")
    expect(page.locator("#outage-consequence")).to_contain_text("There are no figures to show yet")
    expect(page.locator("#sessions")).to_have_text("–")
    api.broken.clear()
    page.locator("#retry").click()
    expect(page.locator("#sessions")).to_have_text("1,234")
    expect(page.locator("#outage")).to_be_hidden()


def test_one_failing_panel_leaves_the_others(api: StandIn, visit: Callable[..., Visit]) -> None:
    api.broken["/referrers"] = (500, '{"error": "Referrers are out."}')
    api.broken["/devices"] = (200, '{"unexpected": true}')
    visitor = visit()
    page = visitor.open()
    expect(page.locator("#referrers-problem")).to_have_text("Not up to date. Referrers are out.")
    expect(page.locator("#devices-problem")).to_contain_text("not as agreed")
    expect(page.locator("#sources li")).to_have_count(3)
    expect(page.locator("#outage")).to_be_hidden()
    assert any("TypeError" in said for said in visitor.complaints)
    visitor.complaints.clear()


def test_asks_less_and_less_often_while_it_fails(api: StandIn, visit: Callable[..., Visit]) -> None:
    """A poller of 2 s asks 10 times in 20 s. One that fails waits at least 1.5 s, then 3, 6, 12: it asks 4 times at most."""
    api.broken["/api/realtime"] = api.broken["/api/sessions"] = (500, '{"error": "No."}')
    page = visit().open()
    expect(page.locator("#outage-cause")).to_have_text("No.")
    before = len(api.asked)
    for _ in range(20):
        later(page, 1)
        page.wait_for_timeout(25)
    assert 2 <= sum(path == "/api/realtime/" for path, _ in api.asked[before:]) <= 4


def test_the_site_is_kept_in_the_address_and_history(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open("/")
    expect(page.locator("#site")).to_have_value("blog")
    page.wait_for_url("**/?site=blog")
    expect(page.locator("#visitors-now")).to_have_text("3")

    page.locator("#site").select_option("shop")
    expect(page.locator("#visitors-now")).to_have_text("17")
    assert "site=shop" in page.url
    page.get_by_role("radio", name="7 days").check()
    expect(page.locator("#summary-title")).to_have_text("Last 7 days")
    expect(page.locator("#chart-step")).to_have_text("by the hour")

    page.go_back()
    expect(page.locator("#summary-title")).to_have_text("Last 24 hours")
    page.go_back()
    expect(page.locator("#site")).to_have_value("blog")
    expect(page.locator("#visitors-now")).to_have_text("3")


def test_without_a_site_in_the_address_a_site_with_visitors_is_chosen(
    api: StandIn, visit: Callable[..., Visit]
) -> None:
    api.sites["blog"].active = []
    expect(visit().open("/").locator("#site")).to_have_value("shop")


def test_without_any_site_the_default_one_is_shown(api: StandIn, visit: Callable[..., Visit]) -> None:
    api.sites.clear()
    page = visit().open("/")
    expect(page.locator("#empty-title")).to_have_text("No data from default yet")


def test_what_the_old_site_answers_late_is_not_shown(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open()
    expect(page.locator("#visitors-now")).to_have_text("17")
    gate = api.held["shop"] = threading.Event()
    before = len(api.asked)
    later(page, 5)
    while len(api.asked) == before:
        page.wait_for_timeout(20)
    page.locator("#site").select_option("blog")
    expect(page.locator("#visitors-now")).to_have_text("3")
    gate.set()
    page.wait_for_timeout(200)
    assert page.locator("#visitors-now").inner_text() == "3"
    assert page.title() == "3 now · blog · LiveInsight"


def test_a_switch_during_an_outage_leaves_nothing_of_the_old_site(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open()
    expect(page.locator("#visitors-now")).to_have_text("17")
    api.broken["/api/"] = (503, '{"error": "Down."}')
    page.locator("#site").select_option("blog")
    expect(page.locator("#outage-cause")).to_have_text("Down.")
    expect(page.locator("#visitors-now")).to_have_text("–")
    expect(page.locator("#sessions")).to_have_text("–")
    assert page.locator("#active tr, #pages li").count() == 0


def test_ranges_ask_for_whole_quarters(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open("/?site=shop&range=1h")
    expect(page.locator("#summary-title")).to_have_text("Last hour")
    expect(page.locator("#pages li")).to_have_count(3)
    query = [query for path, query in api.asked if path == "/api/statistics/hourly/"][-1]
    start, end = from_iso(query["from"]), from_iso(query["to"])
    assert start.timestamp() % 900 == end.timestamp() % 900 == 0
    assert timedelta(hours=1) <= end - start <= timedelta(hours=1, minutes=30)
    assert start <= datetime.now(UTC) - timedelta(hours=1) < start + timedelta(minutes=16)

    page.get_by_role("radio", name="7 days").check()
    expect(page.locator("#chart-step")).to_have_text("by the hour")
    query = [query for path, query in api.asked if path == "/api/statistics/hourly/"][-1]
    assert from_iso(query["to"]) - from_iso(query["from"]) <= timedelta(days=7)


def test_a_range_of_ones_own(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open()
    page.get_by_role("radio", name="Custom").check()
    page.locator("#custom-from").fill("2015-05-17T10:00")
    page.locator("#custom-to").fill("2015-05-17T09:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#custom-problem")).to_contain_text("must be before")
    page.locator("#custom-to").fill("2015-05-20T21:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#summary-title")).to_have_text("Chosen stretch")
    expect(page.locator("#range-text")).to_contain_text("May 17, 2015, 10:00")
    _, query = next((path, query) for path, query in reversed(api.asked) if path == "/api/statistics/summary/")
    assert (query["from"], query["to"]) == ("2015-05-17T01:00:00.000Z", "2015-05-20T12:00:00.000Z")

    page.reload()
    expect(page.locator("#custom-from")).to_have_value("2015-05-17T10:00")
    page.locator("#custom-to").fill("2015-08-20T21:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#chart-note")).to_contain_text("7 days at most")


def test_a_session_opens_with_its_events_and_follows_them(api: StandIn, visit: Callable[..., Visit]) -> None:
    shop = api.sites["shop"]
    beats = [event(f"beat{number}", "heartbeat") for number in range(4)]
    shop.events["s1"] = [
        event(
            "e1", "page_view", page_url="https://shop.example/lamps?x=1", title="Lamps", referrer="https://google.com/"
        ),
        *beats,
        event(
            "e2",
            "click",
            element={"id": "buy", "tag": "button", "text": "Buy now", "href": "https://shop.example/cart"},
        ),
        event("e3", "conversion", conversion={"type": "order", "value": 49.9, "currency": "EUR"}),
        event("e4", "scroll", properties={"depth": 75}),
        event("e5", "wishlist", properties={"item": "oak"}),
    ]
    page = visit().open()
    page.locator("#active .title", has_text="Oak lamp").click()
    drawer = page.get_by_role("dialog")
    items = drawer.locator("#session-events li")
    expect(items).to_have_count(6)
    expect(items.nth(0)).to_contain_text("Lamps")
    expect(items.nth(0).get_by_role("link")).to_have_attribute("href", "https://shop.example/lamps?x=1")
    expect(items.nth(1)).to_contain_text("4 times")
    expect(items.nth(2)).to_contain_text("“Buy now”")
    expect(items.nth(3)).to_contain_text("order · €49.90")
    expect(items.nth(4)).to_contain_text("depth: 75")
    expect(items.nth(5)).to_contain_text("wishlist")
    expect(drawer).to_contain_text("visitor-s1")
    expect(drawer).to_contain_text("Active · 3 m 51 s · 3 page views")

    shop.events["s1"].append(event("e6", "page_exit"))
    later(page, 2)
    expect(items).to_have_count(7)
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()


def test_a_session_that_is_gone_says_so(visit: Callable[..., Visit]) -> None:
    page = visit().open()
    page.locator("#active .title").first.click()
    expect(page.locator("#session-problem")).to_have_text("This session is no longer kept.")


def test_rests_while_the_tab_is_hidden(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open()
    expect(page.locator("#visitors-now")).to_have_text("17")
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    expect(page.locator("#pages li")).to_have_count(3)
    page.evaluate(hide, True)
    page.wait_for_timeout(500)
    before = len(api.asked)
    later(page, 120)
    page.wait_for_timeout(100)
    assert len(api.asked) == before
    api.sites["shop"].visitors_now = 21
    page.evaluate(hide, False)
    expect(page.locator("#visitors-now")).to_have_text("21")


def test_narrow_screens_need_no_sideways_scrolling(api: StandIn, visit: Callable[..., Visit]) -> None:
    long = "https://shop.example/" + "a-very-long-path/" * 20
    shop = api.sites["shop"]
    shop.pages = [(long, 5), ("/ü" * 200, 3)]
    shop.active = [session("s1", current_page=long, current_title="W" * 300, source="s" * 90, country="x" * 50)]
    shop.totals |= {"total_events": 123_456_789, "page_views": 98_765_432}
    shop.visitors_now = 123_456
    shop.events["s1"] = [event("e1", "page_view", page_url=long, title="W" * 300)]
    page = visit(viewport={"width": 390, "height": 800}, has_touch=True).open(
        "/?site=shop&from=2026-01-01&to=2026-01-02"
    )
    expect(page.locator("#visitors-now")).to_have_text("123,456")
    expect(page.locator("#events")).to_have_text("123,456,789")
    for width in (320, 390, 768, 1024):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, width
        page.locator("#active .title").first.tap()
        expect(page.locator("#session-events li")).to_have_count(1)
        assert page.eval_on_selector("#session", "drawer => drawer.scrollWidth - drawer.clientWidth") <= 0, width
        page.get_by_role("button", name="Close").tap()


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(page: Page, selector: str) -> float:
    """The WCAG contrast of an element's text to the nearest background behind it."""
    text, ground = page.eval_on_selector(
        selector,
        """(node) => {
          let behind = node;
          while (behind && /^(transparent|rgba\\(0, 0, 0, 0\\))$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
          return [getComputedStyle(node).color, getComputedStyle(behind ?? document.body).backgroundColor];
        }""",
    )
    light, dark = sorted([luminance(text), luminance(ground)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_dark_and_light_with_a_choice_that_is_remembered(visit: Callable[..., Visit]) -> None:
    page = visit(color_scheme="dark").open()
    expect(page.locator("#pages li")).to_have_count(3)
    ground = "() => getComputedStyle(document.body).backgroundColor"
    assert luminance(page.evaluate(ground)) < 0.05
    texts = [
        "#visitors-now",
        "#active-note",
        "#visitors-note",
        "#pages .label",
        "#pages .share",
        "th",
        "td.page .path",
        "footer",
        "#ranges label span",
    ]
    assert {text: contrast(page, text) for text in texts if contrast(page, text) < 4.5} == {}

    page.get_by_role("button", name="Switch to the light theme").click()
    assert luminance(page.evaluate(ground)) > 0.8
    assert {text: contrast(page, text) for text in texts if contrast(page, text) < 4.5} == {}
    page.reload()
    assert luminance(page.evaluate(ground)) > 0.8
    expect(page.get_by_role("button", name="Switch to the dark theme")).to_be_visible()


def test_works_by_keyboard_alone(api: StandIn, visit: Callable[..., Visit]) -> None:
    api.sites["shop"].events["s1"] = [event("e1", "page_view", title="Lamps")]
    page = visit().open()
    expect(page.locator("#active tr")).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#site")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#summary-title")).to_have_text("Last 6 hours")
    page.keyboard.press("Tab")
    expect(page.locator("#theme")).to_be_focused()

    page.keyboard.press("Tab")
    bars = page.get_by_role("slider", name="Events by minute")
    expect(bars).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    chart = page.get_by_role("slider", name="over time")
    expect(chart).to_be_focused()
    expect(page.locator("#chart .readout")).to_be_visible()
    page.keyboard.press("Home")
    expect(chart).to_have_attribute(
        "aria-valuetext", re.compile(r"^\d\d:\d\d.*, 40 events, 20 page views, 5 sessions$")
    )
    page.keyboard.press("ArrowRight")
    expect(chart).to_have_attribute("aria-valuetext", re.compile("54 events, 27 page views, 7 sessions$"))

    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    row = page.locator("#active .title").first
    expect(row).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator("#session-events li")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(row).to_be_focused()


def test_the_chart_is_read_with_the_pointer_and_its_lines_can_be_hidden(visit: Callable[..., Visit]) -> None:
    page = visit().open("/?site=shop&range=6h")
    expect(page.locator("#chart path.line").first).to_be_attached()
    page.locator("#chart svg").hover(position={"x": 300, "y": 100})
    readout = page.locator("#chart .readout")
    expect(readout).to_contain_text("events")
    expect(readout).to_contain_text("sessions")
    page.get_by_role("button", name="Events").click()
    page.locator("#chart svg").hover(position={"x": 320, "y": 100})
    expect(readout).not_to_contain_text("events")
    expect(page.get_by_role("button", name="Events")).to_have_attribute("aria-pressed", "false")


def test_rows_keep_their_places_under_a_moving_pointer(api: StandIn, visit: Callable[..., Visit]) -> None:
    page = visit().open()
    expect(page.locator("#active tr")).to_have_count(2)
    page.locator("#active tr").first.hover()
    api.sites["shop"].active.insert(0, session("s0", current_title="Newcomer"))
    later(page, 2)
    expect(page.locator("#active .title")).to_have_text(["Oak lamp", "Cart", "Newcomer"])
    page.mouse.move(5, 5)
    later(page, 2)
    expect(page.locator("#active .title")).to_have_text(["Newcomer", "Oak lamp", "Cart"])


def test_names_its_parts_to_assistive_technology(visit: Callable[..., Visit]) -> None:
    page = visit().open()
    expect(page.locator("#active tr")).to_have_count(2)
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("combobox", name="Site")).to_be_visible()
    expect(page.get_by_role("group", name="Time range").get_by_role("radio")).to_have_count(5)
    for name in ["Visitors now", "Top pages", "Referrers", "Sources", "Devices"]:
        expect(page.get_by_role("region", name=name)).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("17 visitors now")
    unnamed = page.eval_on_selector_all(
        "button, input, select",
        "nodes => nodes.filter((n) => !(n.textContent.trim() || n.labels?.length || n.ariaLabel)).map((n) => n.id)",
    )
    assert unnamed == []
