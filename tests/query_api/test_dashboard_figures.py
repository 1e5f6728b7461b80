"""The dashboard's figures in a real Chromium: tiles, chart, breakdowns, comparison, ranges, zones, and filters."""

from __future__ import annotations

import re
import threading
from datetime import timedelta

import pytest
from playwright.sync_api import Page, expect

from tests.query_api.dashboard_stand_in import StandIn, Visits, empty_site, event, from_iso, session

pytest_plugins = ["tests.query_api.dashboard_stand_in"]
pytestmark = pytest.mark.browser
SUMMARY, SERIES, BREAKDOWN = "/api/statistics/summary/", "/api/statistics/timeseries/", "/api/statistics/breakdown/"


def expect_tile(page: Page, metric: str, value: str, note: str | None = None) -> None:
    tile = page.locator(f"[data-metric={metric}]")
    expect(tile.locator(".value")).to_have_text(value)
    if note is not None:
        expect(tile.locator(".note")).to_have_text(note)


def expect_rows(page: Page, panel: str, wanted: list[tuple[str, str]]) -> None:
    rows = page.locator(f"#panel-{panel}-rows li")
    expect(rows.locator(".label")).to_have_text([label for label, _ in wanted], use_inner_text=True)
    expect(rows.locator(".amount")).to_have_text([amount for _, amount in wanted])


def test_shows_the_figures_of_the_site(api: StandIn, visit: Visits) -> None:
    page = visit().open()

    expect(page.locator("#visitors-now")).to_have_text("17")
    expect(page.locator("#visitors-announced")).to_have_text("17 visitors now")
    expect_tile(page, "visitors", "1,100", "± 22 (2%)")
    expect_tile(page, "sessions", "1,234", "2 active now")
    expect_tile(page, "page_views", "4,321")
    expect_tile(page, "pages_per_session", "3.5")
    expect_tile(page, "events", "9,876")
    expect_tile(page, "bounce_rate", "41.2%")
    expect_tile(page, "avg_session_time", "2m 5s")
    expect_tile(page, "median_session_time", "1m 1s")
    expect_tile(page, "conversions", "42", "₩120,000 · €1,999.50")
    expect_tile(page, "conversion_rate", "3.4%")
    expect_rows(page, "sources", [("Direct", "400"), ("Search", "180"), ("Social", "60")])
    expect_rows(page, "places", [("South Korea", "500"), ("Germany", "90"), ("Unknown", "12")])
    expect_rows(page, "goals", [("order", "40"), ("newsletter", "2")])
    expect(page.locator("#panel-goals-rows .extra").first).to_have_text("€1,996.00 · 3.2 per 100 sessions")
    expect(page.locator("#panel-pages-rows .share").first).to_have_text("42%")
    expect(page.locator("#pages-now .label")).to_have_text(["/", "/lamps"])
    first = page.locator("#active tr").first
    for text in ["Oak lamp", "/lamps/oak", "South Korea", "3m 51s"]:
        expect(first).to_contain_text(text)
    expect(page.locator("#minutes svg rect.accent")).to_have_count(30)
    expect(page.locator("#chart .lines path.accent")).to_have_attribute("d", re.compile("^M[0-9.]+,[0-9.]+L"))
    expect(page.locator("#timezone")).to_contain_text("Asia/Seoul (UTC+09:00)")
    expect(page.locator("#partial")).to_have_text("still counting")
    assert page.title() == "17 now · shop · LiveInsight"
    # No storm at the start: the sites, the stream, the summary, the chart, and one breakdown for each card.
    end = api.last(SUMMARY)["to"]  # a quarter of an hour may just be over
    asked = [path for path, query in api.asked if query.get("to", end) == end]
    assert sorted(asked) == sorted(["/api/sites/", "/api/realtime/stream", SUMMARY, SERIES, *[BREAKDOWN] * 4])

    # The same figures for those who do not look at the chart.
    page.get_by_text("As a table").click()
    expect(page.locator("#table-head th")).to_have_text(
        ["Time", "Page views", "Page views before", "Sessions", "Sessions before"]
    )
    assert page.locator("#table-rows tr").count() > 90


def test_compares_with_the_period_before(api: StandIn, visit: Visits) -> None:
    page = visit().open()
    change = page.locator("[data-metric=visitors] .change")
    expect(change).to_have_text("↑ +25%, 880 in the previous period")
    expect(page.locator("#chart .befores path[visibility=visible]")).to_have_count(2)
    expect(page.locator("#legend")).to_contain_text("Previous period")
    assert api.last(SUMMARY)["compare"] == api.last(SERIES)["compare"] == "previous"

    page.get_by_label("Compare").uncheck()
    expect(change).to_have_text("")
    expect(page.locator("#chart .befores path[visibility=visible]")).to_have_count(0)
    page.reload()
    expect_tile(page, "visitors", "1,100")
    expect(page.get_by_label("Compare")).not_to_be_checked()
    expect(change).to_have_text("")
    assert "compare" not in api.last(SUMMARY)


def test_draws_the_lines_that_are_chosen(api: StandIn, visit: Visits) -> None:
    page = visit().open("/?site=shop&range=6h")
    expect(page.locator("#chart-step")).to_have_text("by 5 minutes")
    chart = page.locator("#chart svg")
    chart.hover(position={"x": 300, "y": 100})
    readout = page.locator("#chart .readout")
    expect(readout).to_contain_text("Page views")
    expect(readout).to_contain_text("in the previous period")
    page.get_by_role("button", name="Page views").click()
    expect(page.get_by_role("button", name="Page views")).to_have_attribute("aria-pressed", "false")
    chart.hover(position={"x": 320, "y": 100})
    expect(readout).to_contain_text("Sessions")
    expect(readout).not_to_contain_text("Page views")

    page.get_by_role("button", name="Bounce rate").click()  # another unit, another scale
    expect(page.locator("#legend li").first).to_have_text("Bounce rate")
    expect(page.get_by_role("button", name="Sessions", exact=True)).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Visitors", exact=True).click()  # not kept by the minute
    expect(page.locator("#chart-step")).to_have_text("by the quarter-hour")
    assert api.last(SERIES)["metrics"] == "visitors"


def test_ranges_and_time_zones_are_asked_for_and_shown(api: StandIn, visit: Visits) -> None:
    page = visit().open("/?site=shop&range=1h")
    expect(page.locator("#summary-title")).to_have_text("Last hour")
    expect(page.locator("#chart-step")).to_have_text("by the minute")
    query = api.last(SERIES)
    start, end = from_iso(query["from"]), from_iso(query["to"])
    assert start.timestamp() % 900 == end.timestamp() % 900 == 0
    assert timedelta(hours=1) <= end - start <= timedelta(hours=1, minutes=30)
    assert query["tz"] == "Asia/Seoul"

    page.get_by_role("radio", name="30 days").check()
    expect(page.locator("#chart-step")).to_have_text("by the day")
    midnight = from_iso(api.last(SERIES, interval="day")["from"])
    assert midnight.hour == 15  # UTC, of Seoul's midnight
    expect(page.locator("#range-text")).to_contain_text("00:00 – now")

    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Time zone").select_option("Asia/Calcutta")
    expect(page.locator("#timezone")).to_contain_text("Asia/Calcutta (UTC+05:30)")
    expect(page.locator("#range-text")).to_contain_text("00:00 – now")
    page.keyboard.press("Escape")
    page.get_by_role("radio", name="7 days").check()
    expect(page.locator("#chart-step")).to_have_text("by the hour")
    query = api.last(SERIES, interval="hour")
    assert query["tz"] == "Asia/Calcutta"
    assert from_iso(query["from"]).minute == 30
    page.reload()
    expect(page.locator("#timezone")).to_contain_text("Asia/Calcutta")
    page.get_by_role("radio", name="12 months").check()
    expect(page.locator("#summary-title")).to_have_text("Last 12 months")
    page.go_back()
    expect(page.locator("#summary-title")).to_have_text("Last 7 days")


def test_a_range_of_ones_own(api: StandIn, visit: Visits) -> None:
    page = visit().open()
    page.get_by_role("radio", name="Custom").check()
    page.locator("#custom-from").fill("2015-05-17T10:00")
    page.locator("#custom-to").fill("2015-05-17T09:00")
    page.locator("#custom").get_by_role("button", name="Show").click()
    expect(page.locator("#custom-problem")).to_contain_text("must be before")
    page.locator("#custom-to").fill("2015-05-20T21:00")
    page.locator("#custom").get_by_role("button", name="Show").click()
    expect(page.locator("#summary-title")).to_have_text("Chosen range")
    expect(page.locator("#range-text")).to_have_text("17 May 2015, 10:00 – 20 May 2015, 21:00")
    expect(page.locator("#partial")).to_be_hidden()
    expect(page.locator("#chart-step")).to_have_text("by the hour")
    query = api.last(SUMMARY)
    assert (query["from"], query["to"]) == ("2015-05-17T01:00:00.000Z", "2015-05-20T12:00:00.000Z")
    page.reload()
    expect(page.locator("#custom-from")).to_have_value("2015-05-17T10:00")


def test_breakdowns_have_tabs_more_rows_and_a_file(api: StandIn, visit: Visits) -> None:
    page = visit().open()
    panel = page.locator("#panel-sources")
    expect(panel.get_by_role("tab")).to_have_text(["Channel", "Source", "Referrer", "Campaign"])
    expect(panel.get_by_role("tabpanel", name="Channel")).to_be_visible()
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)  # the last of those asked for at the start
    before = len(api.asked)
    panel.get_by_role("tab", name="Referrer").click()
    expect_rows(page, "sources", [("Direct", "240"), ("google.com", "180")])
    assert {query.get("dimension") for path, query in api.asked[before:] if path == BREAKDOWN} == {"referrer"}
    panel.get_by_role("tab", name="Referrer").press("ArrowRight")
    expect(panel.get_by_role("tab", name="Campaign")).to_be_focused()
    expect_rows(page, "sources", [("mail", "30")])
    panel.get_by_role("combobox", name="Campaign parameter").select_option("utm_campaign")
    expect_rows(page, "sources", [("spring", "20")])
    panel.get_by_role("combobox", name="Campaign parameter").select_option("utm_term")
    expect(panel.locator(".nothing")).to_have_text("Nothing in this range.")

    pages = page.locator("#panel-pages")
    expect(pages.locator("li")).to_have_count(10)
    pages.get_by_role("button", name="Show more (13 more)").click()
    expect(pages.locator("li")).to_have_count(23)
    pages.get_by_role("button", name="Show fewer").click()
    expect(pages.locator("li")).to_have_count(10)
    with page.expect_download() as caught:
        pages.get_by_role("link", name="CSV").click()
    assert caught.value.suggested_filename == "shop-page.csv"
    assert caught.value.path().read_text().startswith("page,page_views")


def test_a_row_filters_the_whole_dashboard(api: StandIn, visit: Visits) -> None:
    shop = api.sites["shop"]
    shop.active.append(session("s3", current_page="/lamps", current_title="All lamps"))
    shop.on_page = [event("e1", "page_view", title="All lamps")]
    page = visit().open()
    row = page.locator("#panel-pages").get_by_role("button", name="/lamps", exact=False).first
    expect(page.locator("#active tr")).to_have_count(3)
    page.locator("#panel-pages-rows button", has_text="/lamps").first.focus()
    page.keyboard.press("Enter")
    chip = page.get_by_role("button", name="Remove the filter Page: /lamps")
    expect(chip).to_be_visible()
    expect(row).to_be_focused()
    expect(row).to_have_attribute("aria-pressed", "true")
    expect_tile(page, "page_views", "430")
    expect(page.locator("[data-metric=page_views] .change")).to_contain_text("+100%")
    expect_tile(page, "sessions", "–", "not kept here")
    expect(page.locator("#legend li")).to_have_text(["Page views", "Previous period"])
    expect(page.locator("#active .title")).to_have_text(["All lamps"])
    expect(page.locator("#active-count")).to_have_text("1 of 3 match")
    expect(page.locator("#panel-sources .nothing")).to_contain_text("Not available for one page")
    expect(page.locator("#panel-sources-rows")).to_be_hidden()
    expect(page.locator("#page-entries dd").first).to_have_text("120")
    expect(page.locator("#page-exits dd").first).to_have_text("77")
    expect(page.locator("#page-events li")).to_have_count(1)
    query = api.last(SERIES, dimension="page")
    assert (query["label"], query["metrics"], query["interval"]) == ("/lamps", "page_views", "15m")
    asked = [query for path, query in api.asked if path == SUMMARY]

    page.reload()
    expect_tile(page, "page_views", "430")
    expect(chip).to_be_visible()
    assert [query for path, query in api.asked if path == SUMMARY] == asked
    page.go_back()
    expect(chip).to_be_hidden()
    expect_tile(page, "page_views", "4,321")
    expect_rows(page, "sources", [("Direct", "400"), ("Search", "180"), ("Social", "60")])
    expect(page.locator("#page-details")).to_be_hidden()
    page.go_forward()
    expect_tile(page, "page_views", "430")
    chip.click()
    expect_tile(page, "page_views", "4,321")
    expect(page.locator("#active tr")).to_have_count(3)
    assert "label" not in page.url

    # A label without a name is a label as well, and has the figures of sessions.
    page.locator("#panel-sources").get_by_role("tab", name="Referrer").click()
    page.locator("#panel-sources-rows button", has_text="Direct").click()
    expect(page.get_by_role("button", name="Remove the filter Referrer: Direct")).to_be_visible()
    expect_tile(page, "bounce_rate", "25%")
    expect_tile(page, "visitors", "–", "not kept here")
    expect(page.locator("#active-nothing")).to_contain_text("None of the active sessions")


def test_the_site_is_kept_in_the_address_and_history(api: StandIn, visit: Visits) -> None:
    api.sites["shop"].active = []
    page = visit().open("/")
    expect(page.locator("#site")).to_have_value("blog")  # where somebody is
    page.wait_for_url("**/?site=blog")
    expect(page.locator("#visitors-now")).to_have_text("3")
    page.locator("#site").select_option("shop")
    expect(page.locator("#visitors-now")).to_have_text("17")
    assert "site=shop" in page.url
    page.get_by_role("radio", name="7 days").check()
    expect(page.locator("#summary-title")).to_have_text("Last 7 days")
    page.go_back()
    expect(page.locator("#summary-title")).to_have_text("Last 24 hours")
    page.go_back()
    expect(page.locator("#site")).to_have_value("blog")
    expect(page.locator("#visitors-now")).to_have_text("3")


def test_what_the_old_site_answers_late_is_not_shown(api: StandIn, visit: Visits) -> None:
    page = visit().open()
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)
    gate = api.held["shop"] = threading.Event()
    with page.expect_request("**/timeseries/**"):
        page.get_by_role("radio", name="6 h").check()
    api.sites["blog"].totals["page_views"] = 5
    page.locator("#site").select_option("blog")
    expect_tile(page, "page_views", "5")
    gate.set()
    expect(page.locator("#visitors-now")).to_have_text("3")
    expect_tile(page, "page_views", "5")
    expect(page).to_have_title("3 now · blog · LiveInsight")


def test_a_site_without_data_tells_how_to_install_the_tracker(api: StandIn, visit: Visits) -> None:
    page = visit().open('/?site=new"site')
    expect(page.locator("#empty-title")).to_have_text('No data from new"site yet')
    expect(page.locator("#install-line")).to_have_text(
        '<script async src="https://YOUR-COLLECTOR/liveinsight.js" data-site="new&quot;site"></script>'
    )
    expect(page.locator("#visitors-now")).to_have_text("0")
    expect_tile(page, "bounce_rate", "–")
    expect(page.locator("#active-nothing")).to_contain_text("Nobody is here right now")

    api.sites["shop"] = empty_site()
    api.broken["/api/sites"] = (200, '{"sites": ["blog", "shop"]}')
    page.goto(page.url.split("?")[0] + "?site=shop")
    expect(page.locator("#empty-title")).to_have_text("Nothing from shop in this range")


HOSTILE = [
    "<script>alert(1)</script>",
    "\u202egpj.exe \u0000 \ufeff",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "</title><script>alert(4)</script>",
    "javascript:alert(5)",
    "data:text/html,<script>alert(6)</script>",
    "{{constructor.constructor('alert(7)')()}}",
    "__proto__",
    '=HYPERLINK("http://evil.example")',
    "x" * 10_000,
]


def test_shows_hostile_data_as_text(api: StandIn, visit: Visits) -> None:
    shop = api.sites["shop"]
    counted = [(text, 90 - place) for place, text in enumerate(HOSTILE)]
    shop.breakdowns = dict.fromkeys(shop.breakdowns, counted)
    shop.reading = counted
    fields = ["current_page", "current_title", "source", "country", "device", "browser", "os", "referrer", "user_id"]
    fields += ["channel", "language", "entry_page"]
    shop.active = [
        session(f"h{place}/../{text[:40]}", **dict.fromkeys(fields, text)) for place, text in enumerate(HOSTILE)
    ]
    shop.totals["conversion_values"] = {HOSTILE[0]: 5.0}
    shop.on_page = shop.events[shop.active[0]["session_id"]] = [
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
    cut = [text if len(text) < 400 else text[:400] + "…" for text in HOSTILE]
    for tab in ["Source", "Browser", "Event type", "Entry page"]:
        page.get_by_role("tab", name=tab, exact=True).click()
    expect(page.locator("#panel-sources-rows li")).to_have_count(10)
    expect(page.locator("#panel-places-rows li")).to_have_count(10)
    expect(page.locator("#panel-goals-rows li")).to_have_count(10)
    expect(page.locator("#active tr")).to_have_count(len(HOSTILE))
    labels = page.locator("#panel-sources-rows .label").evaluate_all("all => all.map((one) => one.textContent)")
    assert labels == cut[:10]
    titles = page.locator("#active .title").evaluate_all("all => all.map((one) => one.textContent)")
    assert titles == cut
    page.locator("#active .title").first.click()
    expect(page.locator("#session-events li")).to_have_count(4 * len(HOSTILE))
    kinds = page.locator("#session-events li b").evaluate_all("all => all.map((one) => one.textContent)")
    assert kinds[3::4] == [text[:64] for text in HOSTILE]
    assert links_elsewhere(page) == []
    page.keyboard.press("Escape")

    for place in (0, 1):  # markup, then bidi and NUL: filtered by, in the address, and back from it
        page.locator("#pages-now button").nth(place).click()
        expect(page.locator("#page-events li")).to_have_count(4 * len(HOSTILE))
        assert page.locator("#filter-text").evaluate("one => one.textContent") == f"Page: {cut[place][:80]}"
        page.reload()
        assert api.last(SERIES, dimension="page")["label"] == HOSTILE[place]
        expect(page.locator("#pages-now button[aria-pressed=true]")).to_have_count(1)
        page.locator("#filter").click()
    assert links_elsewhere(page) == []
    assert page.locator("img, iframe, object, embed, base, script:not([src='/dashboard/dashboard.js'])").count() == 0
    assert page.locator("[onerror], [onload]").count() == 0


def links_elsewhere(page: Page) -> list[str]:
    """Links that are neither http(s) with the right rel, nor ours."""
    return page.eval_on_selector_all(
        "a:not(.skip, .csv)",
        "links => links.filter((a) => !/^https?:$/.test(a.protocol) || a.rel !== 'noopener noreferrer').map((a) => a.outerHTML)",
    )


def test_only_web_addresses_become_links(api: StandIn, visit: Visits) -> None:
    labels = ["https://shop.example/a?b=1", "JavaScript:alert(1)", " javascript:alert(2)", "/plain"]
    api.sites["shop"].breakdowns["page"] = [(label, 9) for label in labels]
    page = visit().open()
    expect(page.locator("#panel-pages-rows li")).to_have_count(4)
    links = page.locator("#panel-pages-rows a")
    expect(links).to_have_count(1)
    expect(links).to_have_attribute("href", "https://shop.example/a?b=1")
    expect(links).to_have_attribute("rel", "noopener noreferrer")
