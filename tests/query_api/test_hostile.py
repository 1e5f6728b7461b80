"""What strangers send reaches the dashboard as text, and the API as a question that it answers or refuses."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from werkzeug.serving import make_server

from producer.event import Event, Received, parse
from query_api.app import create_app
from query_api.reader import Reader
from query_api.routes import ENDPOINTS
from query_api.settings import ApiSettings
from tests.query_api.hostile import VECTORS, events
from tests.query_api.stored import NAMES, Consumer, tables

_AT_ONCE = 100


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    """The real application over tables that hold what strangers have sent, a moment ago."""
    now = time.time_ns() // 1_000_000
    parsed = [
        parse(json.dumps(event).encode("utf-8", "surrogatepass"), Received(now, fresh_id=lambda: "made"))
        for event in events(now)
    ]
    kept = [event for event in parsed if isinstance(event, Event)]
    assert len(kept) >= 300, "hostile or not, it is an event"
    with tables() as client:
        consumer = Consumer(client)
        for first in range(0, len(kept), _AT_ONCE):
            consumer.consume(kept[first : first + _AT_ONCE])
        reader = Reader(client, NAMES, clock=lambda: time.time_ns() // 1_000_000, readers=1)
        made = create_app(reader, ApiSettings(NAMES))
        yield made
        reader.close()
        for closed in made.extensions["liveinsight"]:
            closed.close()


def test_no_question_makes_the_api_fail(app: Any) -> None:
    http = app.test_client()
    asked = 0
    for endpoint in ENDPOINTS:
        if "text/event-stream" in endpoint.content_types:
            continue
        names = sorted(endpoint.known) or ["anything"]
        for number, vector in enumerate(VECTORS):
            text = quote(vector, safe="", errors="surrogatepass")
            path = endpoint.path
            for part in ("<session_id>", "<user_id>", "{session_id}", "{user_id}"):
                path = path.replace(part, text)
            name = names[number % len(names)]
            answer = http.get(f"{path}?site=hostile&{name}={text}")
            asked += 1
            assert answer.status_code < 500, (path, name, vector, answer.data)
            if answer.status_code >= 400:
                assert answer.json["error"]["status"] == answer.status_code
    assert asked >= 300


def test_exported_tables_hold_no_formula(app: Any) -> None:
    http = app.test_client()
    for dimension in (
        "page",
        "referrer",
        "source",
        "utm_campaign",
        "event_type",
        "conversion_type",
        "currency",
        "browser",
    ):
        answer = http.get(f"/api/statistics/breakdown/?site=hostile&dimension={dimension}&format=csv")
        assert answer.status_code == 200
        for label, *_ in csv.reader(io.StringIO(answer.data.decode("utf-8-sig"), newline="")):
            assert not label.lstrip().startswith(("=", "+", "-", "@", "\uff1d")), label


@pytest.mark.browser
def test_nothing_that_strangers_sent_runs_in_the_dashboard(app: Any, chromium: Any) -> None:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    here = f"http://127.0.0.1:{server.port}"
    elsewhere: list[str] = []
    failed: list[str] = []

    def requested(one: Any) -> None:
        if not one.url.startswith((here, "blob:", "data:image")):
            elsewhere.append(one.url)

    page = chromium.new_page()
    page.add_init_script("window.ran = 0; for (const f of ['alert', 'confirm', 'prompt']) window[f] = () => ran++;")
    page.on("request", requested)
    page.on("response", lambda one: failed.append(one.url) if one.status >= 500 else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    try:
        _walk(page, here)
        assert page.evaluate("window.ran") == 0
        assert set(page.eval_on_selector_all("a[href]", "all => all.map(a => a.protocol)")) <= {"http:", "https:"}
        assert page.evaluate("location.origin") == here
    finally:
        page.close()
        server.shutdown()
        thread.join(10)
    assert elsewhere == []
    assert failed == []


def _walk(page: Any, here: str) -> None:
    """See everything that the dashboard shows of the site: each tab, and some sessions with their events."""
    from playwright.sync_api import expect

    page.goto(f"{here}/?site=hostile&range=1h")
    expect(page.locator("#active tr").first).to_be_visible(timeout=30_000)
    tabs = page.get_by_role("tab")
    for number in range(tabs.count()):
        tabs.nth(number).click()
        panel = page.locator(f"#{tabs.nth(number).get_attribute('aria-controls')}")
        expect(panel.locator("li").first).to_be_visible(timeout=30_000)
    for number in range(0, 40, 4):
        page.locator("#active tr").nth(number).locator("button").first.click()
        expect(page.locator("#session-events li").first).to_be_visible(timeout=30_000)
        page.keyboard.press("Escape")
