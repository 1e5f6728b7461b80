"""The dashboard for everyone: in Korean, in the dark, on a phone, by keyboard, through a screen reader, with a key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.query_api.dashboard_stand_in import (
    StandIn,
    Visits,
    error,
    event,
    session,
    shoot,
)

pytest_plugins = ["tests.query_api.dashboard_stand_in"]
pytestmark = pytest.mark.browser
HANGUL = re.compile("[가-힣]")


def expect_filled(page: Page) -> None:
    expect(page.locator("[data-metric=sessions] .value")).to_have_text("1,234")
    expect(page.locator("#panel-goals-rows li")).to_have_count(2)
    expect(page.locator("#chart .lines path").first).to_be_attached()


def test_speaks_korean(api: StandIn, visit: Visits, tmp_path: Path) -> None:
    api.sites["shop"].events["s1"] = [event("e1", "page_view", title="Lamps")]
    page = visit(locale="ko-KR").open()
    expect_filled(page)
    expect(page.locator("html")).to_have_attribute("lang", "ko")
    expect(page.locator("#now-title")).to_have_text("현재 방문자")
    expect(page.locator("#visitors-announced")).to_have_text("현재 방문자 17명")
    expect(page.locator("#panel-places-rows .label").first).to_have_text("대한민국")
    expect(page.locator("[data-metric=avg_session_time] .value")).to_have_text("2분 5초")
    expect(page).to_have_title("현재 17명 · shop · LiveInsight")
    shoot(page, tmp_path, "korean")
    # No English is left: every text of ours has Hangul, but names, and what strangers wrote.
    english = page.eval_on_selector_all(
        "[data-text], button:not(.row, .title), th, dt, legend, option, .note:not(:empty), .muted:not(.data, :empty)",
        "nodes => nodes.map((node) => node.textContent.trim()).filter((text) => /[A-Za-z]{3}/.test(text))",
    )
    names = {
        "English",
        "shop",
        "blog",
        "utm_source",
        "utm_medium",
        "utm_campaign",
        "utm_term",
        "utm_content",
        "Asia/Seoul",
    }
    assert [text for text in english if text not in names and not HANGUL.search(text)] == []
    page.locator("#active .title").first.click()
    expect(page.locator("#session-events b")).to_have_text("페이지뷰")
    expect(page.locator("#session-state")).to_contain_text("활성 · 3분 51초 · 페이지뷰 3회")
    page.keyboard.press("Escape")

    page.locator("#settings-open").click()
    page.locator("#language").select_option("en")
    expect(page.locator("#now-title")).to_have_text("Visitors now")
    assert "site=shop" in page.url
    page.goto(page.url.split("?")[0] + "?site=shop")  # remembered
    expect(page.locator("#now-title")).to_have_text("Visitors now")
    api.broken["/api/"] = (503, error(503, "unavailable", "The tables cannot be read."))
    page.goto(page.url + "&lang=ko")
    expect(page.locator("#outage-cause")).to_have_text("지금은 데이터베이스를 읽을 수 없습니다.")


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


def test_dark_and_light_with_a_choice_that_is_remembered(visit: Visits, tmp_path: Path) -> None:
    page = visit(color_scheme="dark").open("/?site=shop&dimension=channel&label=search")
    expect(page.locator("#panel-sources-rows li")).to_have_count(3)
    expect(page.locator("#panel-pages .nothing")).to_be_visible()
    expect(page.locator("[data-metric=sessions] .change")).to_contain_text("+")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    texts = ["#visitors-now", "#active-note", ".tile .note", ".tile .change", ".row .label", ".row .share", "th"]
    texts += [
        "td.page .path",
        "footer",
        "#range-choices span",
        "#filter",
        "#panel-pages .nothing",
        "#latest",
        ".legend",
    ]

    def dim() -> dict[str, float]:
        return {text: contrast(page, text) for text in texts if contrast(page, text) < 4.5}

    assert luminance(page.evaluate(ground)) < 0.05
    assert dim() == {}
    shoot(page, tmp_path, "dark")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="Light").check()
    assert luminance(page.evaluate(ground)) > 0.8
    assert dim() == {}
    page.reload()
    assert luminance(page.evaluate(ground)) > 0.8
    expect(page.locator("#panel-sources-rows li")).to_have_count(3)
    shoot(page, tmp_path, "light")


def test_narrow_screens_need_no_sideways_scrolling(api: StandIn, visit: Visits, tmp_path: Path) -> None:
    long = "https://shop.example/" + "a-very-long-path/" * 20
    shop = api.sites["shop"]
    page = visit(viewport={"width": 360, "height": 800}, has_touch=True, color_scheme="light").open()
    expect_filled(page)
    shoot(page, tmp_path, "phone")
    shop.breakdowns["page"] = [(long, 5), ("/ü" * 200, 3)]
    shop.active = [session("s1", current_page=long, current_title="W" * 300, source="s" * 90, country="x" * 50)]
    shop.totals |= {"total_events": 123_456_789, "page_views": 98_765_432}
    shop.visitors_now = 123_456
    shop.events["s1"] = shop.on_page = [event("e1", "page_view", page_url=long, title="W" * 300)]
    for path in (
        "/?site=shop&from=2026-01-01&to=2026-01-02&lang=ko",
        f"/?site=shop&dimension=page&label={long}&lang=en",
    ):
        page.goto("/".join(page.url.split("/")[:3]) + path)
        expect(page.locator("#visitors-now")).to_have_text("123,456")
        expect(page.locator("#panel-pages-rows li")).to_have_count(2)
        expect(page.locator("#legend li").first).to_be_visible()
        for width in (320, 360, 600, 900, 1024):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, (path, width)
    page.set_viewport_size({"width": 360, "height": 800})
    page.evaluate("scrollTo(0, 1e6)")
    page.goto(page.url.split("?")[0] + "?site=shop")
    page.locator("#active .title").first.tap()
    expect(page.locator("#session-events li")).to_have_count(1)
    assert page.eval_on_selector("#session", "drawer => drawer.scrollWidth - drawer.clientWidth") <= 0
    page.get_by_role("button", name="Close").tap()
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_works_by_keyboard_alone(api: StandIn, visit: Visits) -> None:
    api.sites["shop"].events["s1"] = [event("e1", "page_view", title="Lamps")]
    page = visit().open()
    expect_filled(page)

    def tab_to(name: str) -> str:
        """Walk on until the focus is on what is called so; it must be seen there."""
        for _ in range(40):
            page.keyboard.press("Tab")
            found = page.evaluate(
                """() => {
                  const { id, textContent, ariaLabel, labels } = document.activeElement;
                  return [id, ariaLabel, labels?.[0]?.textContent, textContent.slice(0, 60)].filter(Boolean).join("|");
                }"""
            )
            if name in found:
                return found
        raise AssertionError(f"no way to {name}")

    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    tab_to("site")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#summary-title")).to_have_text("Last 6 hours")
    tab_to("Compare")
    page.keyboard.press("Space")
    expect(page.locator("#chart .befores path[visibility=visible]")).to_have_count(0)
    tab_to("settings-open")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Time zone")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Time zone")).to_be_hidden()
    tab_to("Events by minute")
    page.keyboard.press("Home")
    expect(page.locator("#minutes .readout")).to_be_visible()
    tab_to("Visitors")
    page.keyboard.press("Space")
    expect(page.locator("[data-metric=visitors] button")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#chart-step")).to_have_text("by the quarter-hour")
    expect(page.locator("#legend li")).to_have_count(3)
    tab_to("Figures over time")
    chart = page.get_by_role("slider", name="Figures over time")
    page.keyboard.press("Home")
    expect(chart).to_have_attribute(
        "aria-valuetext", re.compile(r"^.*\d\d:\d\d, 20 Page views, 5 Sessions, 5 Visitors$")
    )
    page.keyboard.press("ArrowRight")
    expect(chart).to_have_attribute("aria-valuetext", re.compile("27 Page views, 7 Sessions, 7 Visitors$"))
    tab_to("panel-pages-tab-0")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Entry page")).to_be_focused()
    expect(page.locator("#panel-pages-rows .amount").first).to_have_text("600")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove the filter Entry page: /")).to_be_visible()
    expect(page.locator("#panel-pages-rows button").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#filter")).to_be_hidden()
    page.locator("#active-scroll").focus()
    page.keyboard.press("Tab")
    row = page.locator("#active .title").first
    expect(row).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#session-events li")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(row).to_be_focused()


def test_names_its_parts_to_assistive_technology(visit: Visits) -> None:
    page = visit().open()
    expect_filled(page)
    expect(page.get_by_role("main")).to_have_count(1)
    expect(page.get_by_role("combobox", name="Site")).to_be_visible()
    expect(page.get_by_role("group", name="Time range").get_by_role("radio")).to_have_count(7)
    for name in ["Visitors now", "Last 24 hours", "Pages", "Sources", "Places and devices", "Goals", "Active sessions"]:
        expect(page.get_by_role("region", name=name).first).to_be_visible()
    expect(page.get_by_role("tablist", name="Sources")).to_be_visible()
    expect(page.get_by_role("status").filter(visible=True)).to_have_text(["17 visitors now"])
    unnamed = page.eval_on_selector_all(
        "button, input, select, a",
        "nodes => nodes.filter((n) => !(n.textContent.trim() || n.labels?.length || n.ariaLabel)).map((n) => n.id)",
    )
    assert unnamed == []


def test_asks_for_the_read_key(api: StandIn, visit: Visits) -> None:
    api.key = "li_right"
    page = visit().open()
    field = page.get_by_label("Read key", exact=True)
    expect(field).to_be_focused()
    expect(page.locator("#now-title")).to_be_hidden()
    assert len(api.asked) == 1
    field.fill("li_wrong")
    field.press("Enter")
    expect(page.locator("#key-problem")).to_have_text("This read key is not known.")
    field.fill("li_right")
    field.press("Enter")
    expect_filled(page)
    expect(field).to_be_hidden()
    expect(page.locator("#freshness")).to_have_attribute("data-state", "live")
    page.reload()
    expect_filled(page)
    assert page.evaluate("[localStorage.length, sessionStorage.getItem('liveinsight-key')]")[1] == "li_right"
    with page.expect_download() as caught:  # a plain link could not send the key
        page.locator("#panel-sources").get_by_role("link", name="CSV").click()
    assert caught.value.suggested_filename == "shop-channel.csv"
    assert caught.value.path().read_text().startswith("channel,sessions")

    api.key = "li_other"  # the key is taken back while the page is open
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#key-problem")).to_have_text("This read key is not known.")
    expect(page.locator("#now-title")).to_be_hidden()

    page = visit().open("/?site=shop#key=li_other")
    expect_filled(page)
    assert page.url.endswith("/?site=shop")
