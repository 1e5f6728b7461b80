"""The browser tracker, driven in a real headless Chromium.

Pages come from one origin and the collector is another, so that whatever a browser forbids across
origins is forbidden here too. What arrives is read by the collector's own validator.
"""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from producer.event import DEFAULT_SITE, MAX_TEXT, MAX_URL, Event, Received, Rejected, parse_request

TRACKER = Path(__file__).parents[2] / "producer" / "tracker" / "liveinsight.js"
MAX_BEACON = 60_000
#: What a page's clock shows at first (s since 1970): years behind, which the collector must correct.
START = 1_500_000_000.0

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><title>Home</title>
<body style="margin:0">
<a id="docs" href="/docs?from=home#start">  Read
   the docs </a>
<button id="buy"><b>Buy <i>now</i></b></button>
<input id="send" type="submit" value="secret label">
<input id="name" value="secret name"> <p id="plain">text</p>
<a id="editor" href="#" contenteditable>secret draft</a>
<svg><a id="vector" href="/svg"><text y="20">drawn</text></a></svg>
<div id="host"></div>
%s"""
#: A page whose timers never fire.
FROZEN = "window.setTimeout = window.setInterval = () => 1"
TALL = '<div style="height:4000px"></div>'


@dataclass
class Answer:
    """What the collector does with a request: a status, or None to hang up without a word; ``after`` delays it."""

    status: int | None = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: threading.Event | None = None


class Collector(ThreadingHTTPServer):
    """Records what browsers post, and answers as told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _CollectorHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answer = Answer()
        self.bodies: list[bytes] = []  # of the requests answered with 200
        self.attempts: list[tuple[float, dict[str, str], bytes]] = []
        self.methods: set[str] = set()

    def events(self, kind: str | None = None) -> list[Event]:
        """Every event so far, in the order of arrival; none may be refused."""
        ids = map(str, itertools.count())
        received = Received(at=int(time.time() * 1000), fresh_id=lambda: next(ids))
        found = []
        for body in list(self.bodies):
            parsed = parse_request(body, received)
            assert not isinstance(parsed, Rejected), parsed
            for event in parsed:
                assert isinstance(event, Event), event
                found.append(event)
        return [event for event in found if kind in (None, event.event_type)]

    def wait(self, condition: Callable[[], Any], page: Any = None) -> Any:
        """Return ``condition()`` as soon as it is truthy, moving the clock of ``page`` on meanwhile."""
        deadline = time.monotonic() + 5
        while not (result := condition()):
            assert time.monotonic() < deadline, f"waited in vain; requests: {[body for *_, body in self.attempts]}"
            if page:
                page.clock.run_for(300)
            time.sleep(0.01)
        return result

    def wait_for(self, kind: str, count: int = 1, page: Any = None) -> list[Event]:
        """The events of ``kind``, once there are ``count`` of them."""
        return self.wait(lambda: len(found := self.events(kind)) >= count and found, page)


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _CollectorHandler(_Quiet):
    server: Collector

    def do_GET(self) -> None:
        self.reply(200, {"Content-Type": "text/javascript", "Cache-Control": "no-store"}, TRACKER.read_bytes())

    def do_OPTIONS(self) -> None:
        self.server.methods.add("OPTIONS")
        self.reply(204, {}, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.answer
        self.server.methods.add("POST")
        headers = {name.lower(): value for name, value in self.headers.items()} | {"path": self.path}
        if answer.status == 200:
            self.server.bodies.append(body)
        self.server.attempts.append((time.monotonic(), headers, body))
        if answer.after:
            answer.after.wait(10)
        if answer.status is None:
            self.close_connection = True
            return
        cors = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Retry-After"}
        self.reply(answer.status, cors | dict(answer.headers), b"{}")


class Site(ThreadingHTTPServer):
    """The site's own pages: the HTML told for a path, else one page that has everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SiteHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pages: dict[str, str] = {}
        self.snippet = ""


class _SiteHandler(_Quiet):
    server: Site

    def do_GET(self) -> None:
        html = self.server.pages.get(self.path.split("?")[0], PAGE % self.server.snippet)
        self.reply(200, {"Content-Type": "text/html; charset=utf-8"}, html.encode())


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
    assert server.methods <= {"POST"}, "a preflight request costs a round trip for each batch"
    for _, headers, body in server.attempts:
        assert headers["path"] in ("/events", "/in/events")
        assert headers["content-type"].startswith("text/plain")
        assert len(body) < MAX_BEACON


@pytest.fixture
def site(collector: Collector) -> Iterator[Site]:
    with Site() as server:
        server.snippet = f'<script async src="{collector.url}/liveinsight.js" data-site="shop"></script>'
        server.pages["/tall"] = PAGE % (TALL + server.snippet)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    """A fresh visitor. Any uncaught error in a page fails the test."""
    context = chromium.new_context(locale="de-DE")
    errors: list[str] = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield context
    context.close()
    assert errors == []


def open_page(context: Any, url: str, *, clock: bool = True, script: str = "") -> Any:
    """A tab on ``url`` with the tracker at work; with ``clock`` its time stands still until told."""
    page = context.new_page()
    if clock:
        page.clock.install(time=START)
        page.clock.pause_at(START + 1)
    if script:
        page.add_init_script(script)
    page.goto(url)
    page.wait_for_function("Boolean(window.LiveInsight && LiveInsight.init)")
    return page


def hide(page: Any, hidden: bool = True) -> None:
    """Hide the tab, or show it again: a headless browser's tabs are always visible."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            Object.defineProperty(document, "visibilityState", {value: hidden ? "hidden" : "visible", configurable: true});
            document.dispatchEvent(new Event("visibilitychange", {bubbles: true}));
        }""",
        hidden,
    )


def stored(page: Any) -> dict[str, str]:
    return page.evaluate("Object.fromEntries(Object.entries(localStorage))")


def stored_events(page: Any) -> list[dict[str, Any]]:
    """The unsent events that localStorage holds, of all tabs."""
    queues = [value for value in stored(page).values() if value.startswith("[")]
    return [event for queue in queues for event in json.loads(queue)[1:]]


def properties(event: Event) -> dict[str, Any]:
    return json.loads(bytes(event.properties))


def names(events: list[Event]) -> list[str]:
    """Their types in the page's order: two requests may overtake each other."""
    return [event.event_type for event in sorted(events, key=lambda event: event.seq)]


def assert_numbered_from_one(events: list[Event]) -> None:
    """No number is given twice to different events, and none is missing."""
    ids: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for event in events:
        numbers = ids[event.session_id, event.source]
        assert numbers.setdefault(event.seq, event.event_id) == event.event_id
    for numbers in ids.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


def assert_one_visit(events: list[Event], kinds: list[str]) -> None:
    """Exactly these events, of one known visitor in one session."""
    assert names(events) == kinds
    assert len({(event.session_id, event.user_id) for event in events}) == 1
    assert events[0].user_id
    assert_numbered_from_one(events)


def by_beacon(collector: Collector) -> list[bytes]:
    return [body for _, headers, body in collector.attempts if headers.get("sec-fetch-mode") == "no-cors"]


# What is tracked


def test_the_one_line_installation_sends_a_page_view(context: Any, site: Site, collector: Collector) -> None:
    started = time.time() * 1000
    open_page(context, site.url + "/?utm_source=mail#token", clock=False)
    [event] = collector.wait_for("page_view")
    assert event.page_url == site.url + "/?utm_source=mail"  # a fragment may hold a secret
    assert (event.site_id, event.title, event.referrer, event.language) == ("shop", "Home", "", "de-DE")
    assert started - 1000 <= event.timestamp <= time.time() * 1000
    assert event.session_id
    assert event.user_id
    assert event.source
    assert (event.seq, bytes(event.properties)) == (1, b"{}")


def test_a_visit_over_pages_is_one_session_with_referrers(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/first")
    collector.wait_for("page_view", 1, page)
    page.goto(site.url + "/second", referer=site.url + "/first")
    first, second = collector.wait_for("page_view", 2, page)
    assert second.referrer == site.url + "/first"
    assert (first.session_id, first.user_id) == (second.session_id, second.user_id)
    assert first.source != second.source
    assert second.seq == 1


def test_history_navigation_is_a_page_view_when_the_address_changes(
    context: Any, site: Site, collector: Collector
) -> None:
    page = open_page(context, site.url + "/")
    collector.wait_for("page_view", 1, page)
    page.evaluate("history.pushState({}, '', '/cart'); document.title = 'Cart'")
    collector.wait_for("page_view", 2, page)
    page.evaluate("history.replaceState({}, '', '/cart?step=2')")
    collector.wait_for("page_view", 3, page)
    page.evaluate("""history.replaceState({state: 1}, ''); location.hash = 'top'; history.pushState({}, '', '#end')""")
    page.evaluate("history.go(-3)")
    views = collector.wait_for("page_view", 4, page)
    page.evaluate("LiveInsight.track('last')")
    collector.wait_for("last", 1, page)
    paths = [event.page_url.removeprefix(site.url) for event in views]
    assert paths == ["/", "/cart", "/cart?step=2", "/"]
    assert views[1].title == "Cart"
    assert [event.referrer.removeprefix(site.url) for event in views[1:]] == paths[:-1]
    assert len(collector.events("page_view")) == 4
    assert_numbered_from_one(collector.events())


def test_two_navigations_in_one_breath_are_two_page_views(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    page.evaluate("history.pushState({}, '', '/a'); history.pushState({}, '', '/b')")
    views = collector.wait_for("page_view", 3, page)
    assert [event.page_url.removeprefix(site.url) for event in views] == ["/", "/a", "/b"]


def test_the_history_functions_stay_the_pages_own(context: Any, site: Site, collector: Collector) -> None:
    script = """
        const original = history.pushState;
        history.pushState = function (...args) { original.apply(this, args); return 42; };
    """
    page = open_page(context, site.url + "/", script=script)
    assert page.evaluate("history.pushState({}, '', '/x')") == 42
    thrown = page.evaluate(
        "(() => { try { history.pushState({}, '', 'https://elsewhere.example/') } catch (e) { return e.name } })()"
    )
    assert thrown == "SecurityError"
    collector.wait_for("page_view", 2, page)
    assert page.evaluate("history.replaceState({}, '', '/y')") is None


def test_clicks_on_links_and_buttons(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    page.evaluate(
        """() => {
            addEventListener("click", event => event.preventDefault(), true);
            document.querySelector("#buy").addEventListener("click", event => event.stopPropagation());
            const inner = document.createElement("button");
            inner.id = "deep";
            inner.textContent = "\\u{1F600}".repeat(80);
            document.querySelector("#host").attachShadow({mode: "open"}).append(inner);
        }"""
    )
    for selector in ("#docs", "#buy i", "#send", "#plain", "#name", "#editor", "#vector text", "#deep"):
        page.click(selector)
    clicks = {event.element_id: event for event in collector.wait_for("click", 6, page)}
    assert list(clicks) == ["docs", "buy", "send", "editor", "vector", "deep"]
    docs, buy = clicks["docs"], clicks["buy"]
    assert (docs.element_tag, docs.element_text) == ("a", "Read the docs")
    assert docs.element_href == site.url + "/docs?from=home#start"
    assert (buy.element_tag, buy.element_text, buy.element_href) == ("button", "Buy now", "")
    assert clicks["vector"].element_text == "drawn"
    assert clicks["deep"].element_text == "\U0001f600" * 50  # 100 UTF-16 units, cut between characters
    assert b"secret" not in b"".join(collector.bodies)


def test_scroll_depths_count_once_for_each_page(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/tall")

    def scroll(position: int) -> None:
        page.evaluate("position => new Promise(done => { onscroll = done; scrollTo(0, position) })", position)
        page.clock.run_for(250)

    page.evaluate("dispatchEvent(new Event('scroll'))")  # nobody has moved yet
    page.clock.run_for(1_000)
    for position in (1300, 0, 2000, 100_000, 0, 100_000):
        scroll(position)
    collector.wait_for("scroll", 4, page)
    page.evaluate("history.pushState({}, '', '/tall?next')")
    scroll(1300)
    scrolls = collector.wait_for("scroll", 5, page)
    assert [properties(event) for event in scrolls] == [{"depth": depth} for depth in (25, 50, 75, 100, 25)]
    assert scrolls[-1].page_url == site.url + "/tall?next"


def test_a_page_that_nobody_scrolled_has_no_depth(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    page.evaluate("dispatchEvent(new Event('scroll'))")
    page.clock.run_for(300)
    page.evaluate("LiveInsight.track('end')")
    collector.wait_for("end", 1, page)
    assert names(collector.events()) == ["page_view", "end"]


def test_a_heartbeat_every_15_seconds_while_visible(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    page.clock.run_for(14_000)
    collector.wait(lambda: collector.events() and not stored_events(page))
    for count in (1, 2):
        page.clock.run_for(15_000)
        collector.wait(lambda: len(collector.events("heartbeat")) == count and not stored_events(page))
    hide(page)
    page.clock.run_for(60_000)
    hide(page, False)
    page.clock.run_for(15_000)
    collector.wait_for("heartbeat", 3)
    assert names(collector.events()) == ["page_view", "heartbeat", "heartbeat", "page_exit", "heartbeat"]


def test_a_page_restored_from_the_back_forward_cache_is_viewed_again(
    context: Any, site: Site, collector: Collector
) -> None:
    page = open_page(context, site.url + "/")
    collector.wait_for("page_view", 1, page)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: false}))")
    page.evaluate("LiveInsight.track('loaded')")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    collector.wait_for("page_view", 2, page)
    assert names(collector.events()) == ["page_view", "loaded", "page_view"]


def test_a_prerendered_page_counts_when_it_is_shown(context: Any, site: Site, collector: Collector) -> None:
    script = "Object.defineProperty(document, 'prerendering', {value: true, writable: true})"
    page = open_page(context, site.url + "/", script=script)
    page.evaluate("LiveInsight.track('early')")
    page.clock.run_for(20_000)
    assert stored(page) == {}
    page.evaluate("document.prerendering = false; document.dispatchEvent(new Event('prerenderingchange'))")
    collector.wait_for("early", 1, page)
    assert names(collector.events()) == ["page_view", "early"]


# Leaving


@pytest.mark.parametrize("leave", ["navigate", "close", "hide"])
def test_an_exit_goes_by_beacon_with_what_is_waiting(
    context: Any, site: Site, collector: Collector, leave: str
) -> None:
    page = open_page(context, site.url + "/")  # its clock stands still: no timer sends anything
    page.evaluate("LiveInsight.track('waiting')")
    if leave == "navigate":
        page.goto("about:blank")
    elif leave == "close":
        page.close(run_before_unload=True)
    else:
        hide(page)
    collector.wait_for("page_exit")
    assert names(collector.events()) == ["page_view", "waiting", "page_exit"]
    assert by_beacon(collector) == collector.bodies


def test_one_exit_until_the_page_is_visible_again(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    hide(page)
    page.evaluate("dispatchEvent(new Event('pagehide'))")
    page.evaluate("LiveInsight.track('hidden')")
    hide(page)
    collector.wait_for("hidden")
    assert names(collector.events()) == ["page_view", "page_exit", "hidden"]
    hide(page, False)
    hide(page)
    collector.wait_for("page_exit", 2)
    assert_numbered_from_one(collector.events())


def test_beacons_stay_under_60_kb_and_nothing_is_lost(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    page.evaluate("for (let n = 0; n < 60; n++) LiveInsight.track('big', {n, text: '\\u20ac'.repeat(1000)})")
    assert len(stored_events(page)) == 61
    page.goto(site.url + "/next")  # 200 KB are more than a browser lends to beacons: the next page sends the rest
    collector.wait(lambda: len({properties(event)["n"] for event in collector.events("big")}) == 60, page)
    assert by_beacon(collector)
    assert len(collector.attempts) >= 4
    assert collector.events("heartbeat") == []  # the rest did not wait for another event
    assert_numbered_from_one(collector.events())


def test_an_exit_does_not_repeat_what_is_under_way(context: Any, site: Site, collector: Collector) -> None:
    collector.answer = Answer(after=threading.Event())
    page = open_page(context, site.url + "/")
    collector.wait_for("page_view", 1, page)
    hide(page)
    collector.wait_for("page_exit")
    collector.answer.after.set()
    assert names(collector.events()) == ["page_view", "page_exit"]


def test_a_refused_beacon_keeps_the_events_for_the_next_page(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/", script="navigator.sendBeacon = () => false")
    page.evaluate("LiveInsight.track('kept', {n: 1})")
    page.goto(site.url + "/next")
    [kept] = collector.wait_for("kept", 1, page)
    first, second = collector.wait_for("page_view", 2, page)
    assert (kept.source, kept.seq, kept.page_url) == (first.source, 2, first.page_url)
    assert second.source != first.source
    assert_numbered_from_one(collector.events())


# Sessions


def test_a_session_ends_after_30_minutes_of_inactivity(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    collector.wait_for("page_view", 1, page)
    page.clock.fast_forward("29:00")
    page.evaluate("LiveInsight.track('same')")
    page.clock.fast_forward("31:00")
    page.evaluate("LiveInsight.track('new'); LiveInsight.track('second')")
    collector.wait_for("second", 1, page)
    events = {event.event_type: event for event in collector.events()}
    assert events["same"].session_id == events["page_view"].session_id
    assert events["new"].session_id == events["second"].session_id != events["same"].session_id
    assert events["new"].user_id == events["same"].user_id
    assert (events["new"].seq, events["second"].seq) == (1, 2)
    assert_numbered_from_one(collector.events())


def test_scrolling_keeps_a_session_alive(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/tall")
    for position in (1, 2, 3):
        page.evaluate("position => new Promise(done => { onscroll = done; scrollTo(0, position) })", position)
        page.clock.run_for(250)
        page.clock.fast_forward("20:00")
    page.evaluate("LiveInsight.track('end')")
    collector.wait_for("end", 1, page)
    assert len({event.session_id for event in collector.events()}) == 1


def test_a_forgotten_page_neither_keeps_nor_begins_a_session(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    for _ in range(35):
        page.clock.fast_forward("01:00")  # one heartbeat each minute
    collector.wait(lambda: collector.events() and not stored_events(page), page)
    hide(page)
    assert stored_events(page) == []
    before = collector.events()
    assert names(before) == ["page_view"] + ["heartbeat"] * 29
    assert len({event.session_id for event in before}) == 1
    hide(page, False)  # somebody is back
    [beat] = collector.wait_for("heartbeat", 30, page)[29:]
    assert beat.session_id != before[0].session_id
    assert beat.seq == 1


def test_tabs_share_the_session_and_number_apart(context: Any, site: Site, collector: Collector) -> None:
    tabs = [open_page(context, f"{site.url}/{n}") for n in range(3)]
    for tab in tabs:
        tab.evaluate("LiveInsight.track('a'); LiveInsight.track('b')")
    for count, tab in enumerate(tabs, 1):
        collector.wait_for("b", count, tab)
    events = collector.events()
    assert len(events) == len({event.event_id for event in events}) == 9
    assert len({event.session_id for event in events}) == 1
    assert len({event.source for event in events}) == 3
    assert_numbered_from_one(events)


def test_a_session_that_comes_back_is_not_numbered_anew(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    collector.wait_for("page_view", 1, page)
    page.evaluate(
        """() => {
            const key = Object.keys(localStorage).find(key => key.endsWith("session"));
            const mine = localStorage[key];
            localStorage[key] = "other " + Date.now();  // two tabs may each begin a session
            LiveInsight.track("elsewhere");
            localStorage[key] = mine;
            LiveInsight.track("back");
        }"""
    )
    collector.wait_for("back", 1, page)
    assert [event.seq for event in collector.events()] == [1, 1, 2]


# Delivery


def test_events_survive_an_outage_and_a_reload(context: Any, site: Site, collector: Collector) -> None:
    collector.answer = Answer(None)
    page = open_page(context, site.url + "/one")
    page.evaluate("LiveInsight.track('held', {n: 1})")
    collector.wait(lambda: len(collector.attempts) >= 2, page)  # it was tried again
    before = stored_events(page)
    assert [event["event_type"] for event in before] == ["page_view", "held"]
    page.goto(site.url + "/two")
    seen = len(collector.attempts)
    collector.wait(lambda: len(collector.attempts) > seen, page)
    collector.answer = Answer()
    page.evaluate("dispatchEvent(new Event('online'))")
    collector.wait(lambda: collector.events() and not stored_events(page), page)
    arrived = {event.event_id: event for event in collector.events()}
    assert sorted(names(list(arrived.values()))) == ["held", "page_exit", "page_view", "page_view"]
    for event in before:
        same = arrived[event["event_id"]]
        assert (same.source, same.seq, same.session_id) == (event["source"], event["seq"], event["session_id"])
    assert_numbered_from_one(collector.events())


def test_retries_back_off_with_jitter_up_to_a_minute(context: Any, site: Site, collector: Collector) -> None:
    collector.answer = Answer(None)
    # Records each delay asked for, and waits none of them. The jitter stands at its upper bound.
    script = """
        Math.random = () => 1;
        const original = window.setTimeout;
        window.delays = [];
        window.setTimeout = (run, ms) => { delays.push(ms); return original(run, 0); };
    """
    page = open_page(context, site.url + "/", clock=False, script=script)
    collector.wait(lambda: len(collector.attempts) >= 9)
    delays = [ms for ms in page.evaluate("delays") if ms >= 1000]
    assert delays[:8] == [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]


def test_coming_online_retries_at_once(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    collector.wait_for("page_view", 1, page)
    context.set_offline(True)
    page.evaluate("LiveInsight.track('offline')")
    page.clock.run_for(600)
    page.wait_for_timeout(100)
    assert collector.events("offline") == []
    context.set_offline(False)  # the clock stands still: no timer can be the cause
    collector.wait_for("offline")


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_collector_is_given_the_time_it_asks_for(
    context: Any, site: Site, collector: Collector, status: int
) -> None:
    collector.answer = Answer(status, {"Retry-After": "20"})
    page = open_page(context, site.url + "/")
    collector.wait(lambda: collector.attempts, page)
    page.wait_for_timeout(50)
    collector.answer = Answer()
    page.evaluate("LiveInsight.track('more')")
    page.clock.run_for(19_000)
    page.wait_for_timeout(50)
    assert len(collector.attempts) == 1
    collector.wait_for("more", 1, page)
    assert names(collector.events())[:2] == ["page_view", "more"]


@pytest.mark.parametrize("status", [408, 500])
def test_a_passing_failure_is_retried(context: Any, site: Site, collector: Collector, status: int) -> None:
    collector.answer = Answer(status)
    page = open_page(context, site.url + "/")
    collector.wait(lambda: collector.attempts, page)
    collector.answer = Answer()
    [event] = collector.wait_for("page_view", 1, page)
    assert event.seq == 1


def test_a_final_refusal_drops_the_batch_and_no_more(context: Any, site: Site, collector: Collector) -> None:
    collector.answer = Answer(400)
    page = open_page(context, site.url + "/")
    collector.wait(lambda: collector.attempts and not stored_events(page), page)
    collector.answer = Answer()
    page.evaluate("LiveInsight.track('next')")
    [event] = collector.wait_for("next", 1, page)
    assert event.seq == 2
    assert names(collector.events()) == ["next"]


def test_the_queue_is_bounded_and_sheds_the_least_first(context: Any, site: Site, collector: Collector) -> None:
    collector.answer = Answer(503, {"Retry-After": "3600"})
    page = open_page(context, site.url + "/")
    page.clock.run_for(61_000)  # a page view and four heartbeats
    page.evaluate("for (let n = 0; n < 197; n++) LiveInsight.track('n' + n)")
    waiting = [event["event_type"] for event in stored_events(page)]
    assert waiting == ["page_view", "heartbeat", "heartbeat", *(f"n{n}" for n in range(197))]
    page.evaluate("for (let n = 197; n < 203; n++) LiveInsight.track('n' + n)")
    waiting = [event["event_type"] for event in stored_events(page)]
    assert waiting == [f"n{n}" for n in range(3, 203)]
    collector.answer = Answer()
    page.evaluate("dispatchEvent(new Event('online'))")
    collector.wait(lambda: {f"n{n}" for n in range(3, 203)} <= set(names(collector.events())), page)


def test_a_tab_leaves_the_events_of_another_living_tab_alone(context: Any, site: Site, collector: Collector) -> None:
    busy = open_page(context, site.url + "/busy", script=FROZEN)
    busy.evaluate("LiveInsight.track('held')")
    other = open_page(context, site.url + "/other")
    collector.wait_for("page_view", 1, other)
    other.clock.run_for(16_000)
    collector.wait_for("heartbeat", 1, other)
    assert {event.page_url for event in collector.events()} == {site.url + "/other"}
    busy.evaluate("dispatchEvent(new Event('online'))")
    collector.wait_for("held")
    assert len(collector.events()) == len({event.event_id for event in collector.events()})


def test_a_living_tab_takes_over_what_a_crashed_one_left(context: Any, site: Site, collector: Collector) -> None:
    crashed = open_page(context, site.url + "/crashed", script=FROZEN)
    crashed.evaluate("LiveInsight.track('left')")
    other = open_page(context, site.url + "/other")
    collector.wait_for("page_view", 1, other)
    other.clock.fast_forward("03:00")
    [event] = collector.wait_for("left", 1, other)
    assert event.page_url == site.url + "/crashed"
    collector.wait(lambda: stored_events(other) == [], other)


def test_an_event_taken_over_twice_is_queued_once(context: Any, site: Site, collector: Collector) -> None:
    collector.answer = Answer(503, {"Retry-After": "3600"})
    page = open_page(context, site.url + "/")
    for _ in range(3):  # a hidden tab that fails to send stores its events again and again
        page.evaluate("""localStorage["liveinsight:shop:other"] = '[0,{"event_type":"theirs","event_id":"e"}]'""")
        page.clock.run_for(15_000)
    waiting = [event["event_type"] for event in stored_events(page)]
    assert sorted(waiting) == ["heartbeat", "heartbeat", "heartbeat", "page_view", "theirs"]


# The functions for pages


def test_track_and_conversions(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    page.evaluate("LiveInsight.track('sign up', {plan: 'pro', seats: 3, nested: {a: [1, null]}})")
    page.evaluate("LiveInsight.trackConversion('purchase', 49.9, 'EUR')")
    page.evaluate("LiveInsight.trackConversion('lead', '7')")
    first, second = collector.wait_for("conversion", 2, page)
    [custom] = collector.events("sign up")
    assert properties(custom) == {"plan": "pro", "seats": 3, "nested": {"a": [1, None]}}
    assert (first.conversion_type, first.conversion_value, first.conversion_currency) == ("purchase", 49.9, "EUR")
    assert (second.conversion_type, second.conversion_value, second.conversion_currency) == ("lead", 7.0, "")


def test_calls_made_before_the_script_has_loaded_are_kept(context: Any, site: Site, collector: Collector) -> None:
    stub = """<script>
        window.LiveInsight = window.LiveInsight || {q: []};
        LiveInsight.q.push(["track", "early", {n: 1}]);
        LiveInsight.q.push(["trackConversion", "lead", 1, "EUR"]);
    </script>"""
    site.pages["/stub"] = PAGE % (stub + site.snippet)
    page = open_page(context, site.url + "/stub")
    page.evaluate("LiveInsight.q.push(['track', 'late'])")
    collector.wait_for("late", 1, page)
    assert names(collector.events()) == ["page_view", "early", "conversion", "late"]
    assert_numbered_from_one(collector.events())


@pytest.mark.parametrize("how", ["init", "attribute", "inline"])
def test_another_collector_than_the_scripts_own(context: Any, site: Site, collector: Collector, how: str) -> None:
    with Collector() as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, args=(0.01,), daemon=True).start()
        source = f"{elsewhere.url}/liveinsight.js"
        init = f"LiveInsight.init({{apiUrl: '{collector.url}/in/', site: 'blog'}})"
        site.pages["/set"] = (
            PAGE
            % {
                "init": f'<script src="{source}"></script><script>{init}</script>',
                "attribute": f'<script async src="{source}" data-site="blog" data-api="{collector.url}/in/"></script>',
                "inline": f"<script>{TRACKER.read_text()}</script><script>{init}</script>",
            }[how]
        )
        page = open_page(context, site.url + "/set")
        [event] = collector.wait_for("page_view", 1, page)
        assert event.site_id == "blog"
        assert [headers["path"] for _, headers, _ in collector.attempts] == ["/in/events"]
        assert elsewhere.attempts == []
        elsewhere.shutdown()


def test_without_a_site_it_is_the_default_one(context: Any, site: Site, collector: Collector) -> None:
    site.pages["/plain"] = PAGE % f'<script async src="{collector.url}/liveinsight.js"></script>'
    page = open_page(context, site.url + "/plain")
    [event] = collector.wait_for("page_view", 1, page)
    assert event.site_id == DEFAULT_SITE


def test_including_the_script_twice_counts_once(context: Any, site: Site, collector: Collector) -> None:
    site.pages["/twice"] = PAGE % (site.snippet * 2)
    page = open_page(context, site.url + "/twice")
    page.wait_for_load_state()
    page.evaluate("LiveInsight.track('end')")
    collector.wait_for("end", 1, page)
    assert names(collector.events()) == ["page_view", "end"]


def test_long_strings_are_cut_to_what_the_collector_takes(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/long?" + "q" * 3000)
    page.evaluate("history.pushState({}, '', '/x'); document.title = 't'.repeat(511) + '\\u{1F600}'")
    page.evaluate("LiveInsight.track('n'.repeat(100))")
    page.evaluate("history.pushState({}, '', '/y'); document.title = 'half \\ud83d of \\u{1F600}'")
    page.evaluate("LiveInsight.trackConversion('c'.repeat(300), Infinity, 'nul \\0' + 'd'.repeat(300))")
    [conversion] = collector.wait_for("conversion", 1, page)
    views = collector.events("page_view")
    assert len(views[0].page_url) == MAX_URL
    assert views[1].referrer == views[0].page_url
    assert views[1].title == "t" * (MAX_TEXT - 1)
    assert views[2].title == "half  of \U0001f600"
    assert len(collector.events("n" * 64)) == 1
    assert conversion.conversion_value == 0
    assert conversion.conversion_type == "c" * 128
    assert conversion.conversion_currency == "nul " + "d" * 123


# Manners


def test_global_privacy_control_silences_everything(context: Any, site: Site, collector: Collector) -> None:
    script = "Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', {get: () => true})"
    page = open_page(context, site.url + "/", script=script)
    page.evaluate(f"LiveInsight.init({{apiUrl: '{collector.url}', site: 'x'}})")
    page.evaluate("LiveInsight.track('a', {}); LiveInsight.trackConversion('b', 1); LiveInsight.q.push(['track', 'c'])")
    page.click("#buy")
    page.evaluate("history.pushState({}, '', '/z')")
    page.clock.run_for(20_000)
    hide(page)
    page.goto(site.url + "/again")
    page.wait_for_timeout(100)
    assert collector.attempts == []
    assert stored(page) == {}
    assert page.evaluate("document.cookie") == ""


def test_blocked_storage_is_replaced_by_memory(context: Any, site: Site, collector: Collector) -> None:
    # In a sandboxed frame every touch of localStorage throws.
    site.pages["/outer"] = '<iframe sandbox="allow-scripts" src="/inner"></iframe>'
    page = context.new_page()
    page.goto(site.url + "/outer")
    frame = page.frames[1]
    frame.wait_for_function("Boolean(window.LiveInsight)")
    assert frame.evaluate("(() => { try { return !localStorage } catch (e) { return e.name } })()") == "SecurityError"
    frame.evaluate("LiveInsight.track('a')")
    collector.wait_for("a")
    frame.evaluate("LiveInsight.track('b')")
    collector.wait_for("b")
    assert_one_visit(collector.events(), ["page_view", "a", "b"])


def test_full_storage_is_replaced_by_memory(context: Any, site: Site, collector: Collector) -> None:
    fill = "for (let size = 2 ** 23; size >= 1; size /= 2) try { localStorage[size] = 'x'.repeat(size) } catch (e) {}"
    page = open_page(context, site.url + "/", script=fill)
    page.evaluate("LiveInsight.track('a')")
    collector.wait_for("a", 1, page)
    assert not [key for key in stored(page) if key.startswith("liveinsight")]
    assert_one_visit(collector.events(), ["page_view", "a"])


def test_broken_storage_is_overcome(context: Any, site: Site, collector: Collector) -> None:
    stale = ["{broken", "[", "null", "7", "{}", "[0]", '{"at":0}', "\ufffd", "", '[0,{"event_type":"a"}]', "[0,null,5]"]
    site.pages["/blank"] = "<p>nothing yet"
    page = context.new_page()
    page.goto(site.url + "/blank")
    page.evaluate("stale => stale.forEach((text, n) => localStorage['liveinsight:shop:' + n] = text)", stale)
    page.evaluate("localStorage['liveinsight:shop:session'] = '{broken'")
    page.close()
    page = open_page(context, site.url + "/")
    page.evaluate("LiveInsight.track('after')")
    collector.wait(lambda: collector.bodies, page)
    [body] = collector.bodies
    sent = json.loads(body)["events"]
    assert sorted(map(str, sent[:3])) == ["5", "None", "{'event_type': 'a'}"]  # for the collector to judge
    assert [(event["event_type"], event["seq"]) for event in sent[3:]] == [("page_view", 1), ("after", 2)]
    assert sent[3]["session_id"] == sent[4]["session_id"] != "{broken"


@pytest.mark.parametrize("missing", ["crypto", "fetch", "Blob", "navigator.sendBeacon", "history.pushState"])
def test_a_browser_that_lacks_something_sees_no_error(
    context: Any, site: Site, collector: Collector, missing: str
) -> None:
    holder, _, name = missing.rpartition(".")
    script = f"Object.defineProperty({holder or 'window'}, '{name}', {{value: undefined, configurable: true}})"
    page = open_page(context, site.url + "/", script=script)
    page.evaluate("LiveInsight.track('a'); LiveInsight.trackConversion('b', 1)")
    page.click("#buy")
    page.clock.run_for(1_000)
    hide(page)
    page.wait_for_timeout(50)  # for a rejected promise to surface, which fails the test
    if missing in ("crypto", "navigator.sendBeacon"):
        collector.wait_for("click", 1, page)
        assert_one_visit(collector.events("page_view") + collector.events("a"), ["page_view", "a"])


def test_misuse_never_throws_and_spends_no_number(context: Any, site: Site, collector: Collector) -> None:
    page = open_page(context, site.url + "/")
    page.evaluate(
        """() => {
            const loop = {};
            loop.loop = loop;
            LiveInsight.track("a", loop);
            LiveInsight.track("a", {get x() { throw new Error("in a getter") }});
            LiveInsight.track("a", {n: 10n});
            LiveInsight.track("a", {text: "x".repeat(100000)});
            LiveInsight.trackConversion("a", Symbol());
            LiveInsight.trackConversion("a", 10n);
            LiveInsight.init();
            LiveInsight.init(null);
            LiveInsight.q.push();
            LiveInsight.q.push(["nonsense"]);
            LiveInsight.track("fine", {ok: true});
        }"""
    )
    collector.wait_for("fine", 1, page)
    assert_one_visit(collector.events(), ["page_view", "fine"])


def test_the_served_file_is_small() -> None:
    assert len(gzip.compress(TRACKER.read_bytes(), 9)) < 3000
