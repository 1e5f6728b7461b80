"""The dashboard keeps up by itself: through the stream, by polling, when it is hidden, and when things fail."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.query_api.dashboard_stand_in import StandIn, Visits, error, event, later, session, settle

pytest_plugins = ["tests.query_api.dashboard_stand_in"]
pytestmark = pytest.mark.browser
REALTIME, STREAM = "/api/realtime/", "/api/realtime/stream"
SUMMARY, SERIES, BREAKDOWN = "/api/statistics/summary/", "/api/statistics/timeseries/", "/api/statistics/breakdown/"
DOWN = (503, error(503, "unavailable", "The tables cannot be <b>read</b>."))
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def value(page: Page, metric: str):
    return page.locator(f"[data-metric={metric}] .value")


def asked(api: StandIn, path: str, since: int = 0) -> int:
    return sum(one == path for one, _ in api.asked[since:])


@pytest.mark.parametrize("streams", [True, False])
def test_shows_an_event_within_two_seconds(api: StandIn, visit: Visits, streams: bool) -> None:
    """The page's own clock tells when it was shown, so that a busy machine's test process does not count."""
    api.streams = streams
    page = visit().open()
    expect(page.locator("#freshness")).to_have_attribute("data-state", "live" if streams else "polling")
    expect(value(page, "page_views")).to_have_text("4,321")
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)
    page.evaluate(
        """() => {
          window.shown = {};
          const look = () => {
            for (const [name, query] of [["views", "[data-metric=page_views] .value"], ["now", "#visitors-now"]]) {
              const text = document.querySelector(query).textContent;
              shown[name + text] ??= Date.now();
            }
          };
          new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
        }"""
    )
    shop = api.sites["shop"]
    for views in ("4,322", "4,323"):
        shop.visitors_now += 1
        shop.view_page()
        readable = page.evaluate("Date.now()")
        expect(page.locator("#visitors-now")).to_have_text(str(shop.visitors_now))
        expect(value(page, "page_views")).to_have_text(views)
        shown = page.evaluate("shown")
        for what in (f"views{views}", f"now{shop.visitors_now}"):
            assert shown[what] - readable < (2_000 if streams else 2_500), what
    assert asked(api, STREAM) == 1
    if streams:
        assert asked(api, REALTIME) == 0
    else:  # polls are answered 304 while nothing is new
        with page.expect_response(lambda answer: answer.url.endswith("/api/realtime/?site=shop")):
            pass
        assert (REALTIME, 304) in api.statuses


def test_a_stream_that_a_proxy_holds_up_is_given_up_for_polling_and_tried_again(api: StandIn, visit: Visits) -> None:
    api.mute = True
    page = visit().open()
    expect(value(page, "page_views")).to_have_text("4,321")
    later(page, 6)
    expect(page.locator("#freshness")).to_have_attribute("data-state", "polling")
    expect(page.locator("#visitors-now")).to_have_text("17")
    api.mute = False
    later(page, 61)
    expect(page.locator("#freshness")).to_have_attribute("data-state", "live")
    before = asked(api, REALTIME)
    later(page, 10)
    expect(page.locator("#freshness")).to_have_attribute("data-state", "live")
    assert asked(api, REALTIME) == before


def test_asks_for_little(api: StandIn, visit: Visits) -> None:
    """A busy site for 40 s, whose first events are shown at once; then nothing happens any more."""
    page = visit().open()
    shop = api.sites["shop"]
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)
    before = len(api.asked)
    for second in range(40):
        shop.view_page()
        expect(page.locator("#latest")).not_to_have_text("")
        page.wait_for_function(
            "views => document.querySelector('[data-metric=page_views] .value').textContent === views",
            arg=f"{4322 + second:,}",
        )
        later(page, 1)
    assert 6 <= asked(api, SUMMARY, before) <= 16
    assert 3 <= asked(api, SERIES, before) <= 6
    assert asked(api, BREAKDOWN, before) <= 4 * 4
    assert asked(api, REALTIME) == 0
    assert asked(api, STREAM) == 1
    assert all("compare" not in query for _, query in api.asked[before:])
    # Nothing happens any more: what was under way and what was put off is answered, and then nothing is asked.
    before, end = len(api.asked), api.last(SUMMARY)["to"]

    def asked_of_the_range(since: int, tens_of_seconds: int) -> list[str]:
        for _ in range(tens_of_seconds):
            later(page, 10)
            expect(page.locator("#freshness")).to_have_attribute("data-state", re.compile("live|polling"))
            settle(api, page)
        return [path for path, query in api.asked[since:] if query.get("to") == end]

    late = asked_of_the_range(before, 6)
    assert late.count(SUMMARY) <= 2
    assert late.count(SERIES) <= 2
    assert late.count(BREAKDOWN) <= 2 * 4
    assert asked_of_the_range(len(api.asked), 3) == []


def test_leaves_focus_scroll_and_nodes_in_place(api: StandIn, visit: Visits) -> None:
    page = visit().open()
    expect(page.locator("#active tr")).to_have_count(2)
    expect(page.locator("#panel-pages-rows li")).to_have_count(10)
    page.locator("#panel-pages-rows button").nth(1).focus()
    page.evaluate(
        "() => { document.querySelector('#panel-pages-rows li').mark = document.querySelector('#active tr').mark = window.mark = 'kept' }"
    )
    scrolled = page.evaluate("() => { scrollTo(0, 300); return scrollY }")
    assert scrolled > 0
    shop = api.sites["shop"]
    shop.breakdowns["page"] = [("/lamps", 900), ("/new", 500), ("/", 431)]
    shop.active = [session("s3", current_title="Newcomer"), *reversed(shop.active)]
    shop.view_page()
    expect(page.locator("#active .title")).to_have_text(["Newcomer", "Cart", "Oak lamp"])
    later(page, 16)
    expect(page.locator("#panel-pages-rows .label")).to_have_text(["/lamps", "/new", "/"])
    kept = "() => [document.querySelector('#panel-pages-rows li:last-child').mark, document.querySelector('#active tr:last-child').mark, window.mark]"
    assert page.evaluate(kept) == ["kept"] * 3
    assert page.evaluate("() => document.activeElement.querySelector('.label').textContent") == "/lamps"
    assert page.evaluate("() => scrollY") == scrolled


def test_rests_while_the_tab_is_hidden(api: StandIn, visit: Visits) -> None:
    page = visit().open()
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)
    page.evaluate(HIDE, True)
    before = len(api.asked)
    api.sites["shop"].view_page()
    later(page, 120)
    assert len(api.asked) == before
    page.evaluate(HIDE, False)
    expect(value(page, "page_views")).to_have_text("4,322")


def test_figures_of_an_old_answer_are_marked_once_for_all(api: StandIn, visit: Visits) -> None:
    api.stale = 200
    page = visit().open()
    expect(page.locator("#stale-text")).to_contain_text("the database does not answer")
    expect(page.locator("#freshness")).to_have_attribute("data-state", "stale")
    expect(page.locator(".panel-problem:visible")).to_have_count(0)
    expect(page.locator("#outage")).to_be_hidden()
    api.stale = 0
    api.sites["shop"].view_page()
    page.reload()
    expect(page.locator("#freshness")).to_have_attribute("data-state", "live")
    expect(page.locator("#stale")).to_be_hidden()


def test_an_outage_is_told_with_its_cause_and_ends_by_itself(api: StandIn, visit: Visits) -> None:
    page = visit().open()
    expect(page.locator("#visitors-now")).to_have_text("17")
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)
    api.broken["/api/"] = DOWN
    api.streams = False
    later(page, 3)
    expect(page.locator("#outage-cause")).to_have_text("The tables cannot be <b>read</b>.")
    expect(page.locator("#outage-consequence")).to_contain_text("What you see is from")
    expect(page.locator("#freshness")).to_have_attribute("data-state", "failing")
    expect(page.locator("#visitors-now")).to_have_text("17")
    # Another site: nothing of the old one stays. And of many failing questions only a few are asked again.
    page.locator("#site").select_option("blog")
    expect(page.locator("#visitors-now")).to_have_text("–")
    expect(value(page, "sessions")).to_have_text("–")
    expect(page.locator("#active tr, .bars li")).to_have_count(0)
    expect(page.locator("#outage-consequence")).to_contain_text("no figures to show yet")
    before = len(api.asked)
    for _ in range(30):
        later(page, 1)
        page.evaluate("0")
    assert len(api.asked) - before <= 20

    api.broken.clear()
    api.streams = True
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#visitors-now")).to_have_text("3")
    expect(value(page, "sessions")).to_have_text("1,234")
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)
    expect(page.locator("#outage")).to_be_hidden()
    expect(page.locator(".panel-problem:visible")).to_have_count(0)


def test_one_failing_panel_leaves_the_others(api: StandIn, visit: Visits) -> None:
    api.broken[SERIES] = (500, "<html>not json</html>")
    api.broken[SUMMARY] = (200, '{"unexpected": true}')
    visitor = visit()
    page = visitor.open()
    expect(page.locator("#chart-problem")).to_have_text("Not up to date. The query API answered with status 500.")
    expect(page.locator("#summary-problem")).to_contain_text("Not up to date")
    expect(page.locator("#panel-sources-rows li")).to_have_count(3)
    expect(page.locator("#outage")).to_be_hidden()
    api.broken.clear()
    for _ in range(2):  # what failed while the clock jumped has to wait once more
        later(page, 12)
        expect(page.locator("#freshness")).to_have_attribute("data-state", re.compile("live|polling"))
    expect(page.locator("#chart-problem, #summary-problem").filter(visible=True)).to_have_count(0)
    expect(value(page, "sessions")).to_have_text("1,234")
    visitor.complaints.clear()


def test_active_sessions_are_followed_further_and_hold_still_under_the_pointer(api: StandIn, visit: Visits) -> None:
    shop = api.sites["shop"]
    shop.active = [session(f"s{number}", current_title=f"Page {number}") for number in range(120)]
    page = visit().open()
    expect(page.locator("#active tr")).to_have_count(50)
    expect(page.locator("#active-count")).to_have_text("50 of 120")
    page.locator("#active-more").click()
    expect(page.locator("#active tr")).to_have_count(100)
    page.locator("#active-more").click()
    expect(page.locator("#active tr")).to_have_count(120)
    expect(page.locator("#active-more")).to_be_hidden()
    assert api.last("/api/sessions/active/")["cursor"] == "100"

    page.locator("#active tr").first.hover()
    shop.active.insert(0, session("new", current_title="Newcomer"))
    shop.view_page()
    expect(page.locator("#active .title", has_text="Newcomer")).to_have_count(1)
    expect(page.locator("#active .title").first).to_have_text("Page 0")
    page.mouse.move(5, 5)
    shop.view_page()
    expect(page.locator("#active .title").first).to_have_text("Newcomer")


def test_a_session_opens_with_its_events_and_follows_them(api: StandIn, visit: Visits) -> None:
    shop = api.sites["shop"]
    beats = [event(f"beat{number}", "heartbeat") for number in range(4)]
    lamps = {"page_url": "https://shop.example/lamps?x=1", "title": "Lamps", "referrer": "https://google.com/"}
    buy = {"id": "buy", "tag": "button", "text": "Buy now", "href": "https://shop.example/cart"}
    shop.events["s1"] = [
        event("e1", "page_view", **lamps),
        *beats,
        event("e2", "click", element=buy),
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
    for place, text in enumerate(["4 times", "“Buy now”", "order · €49.90", "depth: 75", "wishlist"], start=1):
        expect(items.nth(place)).to_contain_text(text)
    expect(drawer).to_contain_text("visitor-s1")
    expect(drawer).to_contain_text("Active · 3m 51s · 3 page views")
    shop.events["s1"].append(event("e6", "page_exit"))
    later(page, 3)
    shop.view_page()
    expect(items).to_have_count(7)
    page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()

    page.locator("#active .title", has_text="Cart").click()
    expect(page.locator("#session-problem")).to_have_text("This session is no longer kept.")
