"""CSV, as a spreadsheet and as a program read it."""

import csv
import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from query_api.export import harmless
from tests.query_api.test_routes import NOON, Site, a_site, visit  # noqa: F401

PATH = f"/api/statistics/breakdown/?site=blog&from={NOON}&to={NOON + 1}&format=csv"


def rows(answer) -> list[list[str]]:
    return list(csv.reader(io.StringIO(answer.data.decode("utf-8-sig"), newline="")))


def lines(site, query) -> list[list[str]]:
    answer = site.http.get(f"{PATH}&{query}")
    assert answer.status_code == 200, answer.data
    return rows(answer)


def test_a_breakdown_as_csv() -> None:
    bought = {"conversion_type": "order", "conversion_value": 12.5, "conversion_currency": "EUR"}
    site = a_site(
        visit("a", NOON, "page_view", "page_view", country="KR"),
        visit("b", NOON, "page_view", "conversion", country="KR", **bought),
        visit("c", NOON, "page_view", country="ÅX"[1:] + "A"),
    )
    answer = site.http.get(f"{PATH}&dimension=country&metrics=sessions,bounce_rate")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    disposition = answer.headers["Content-Disposition"]
    assert re.fullmatch(r'attachment; filename="liveinsight_blog_country_2023-11-14_2023-11-14\.csv"', disposition)
    assert answer.data.startswith(b"\xef\xbb\xbf")
    assert rows(answer) == [["country", "sessions", "bounce_rate"], ["KR", "2", "0.0"], ["XA", "1", "1.0"]]
    assert answer.headers["LiveInsight-As-Of"]
    by_type = lines(site, "dimension=conversion_type")
    assert by_type == [["conversion_type", "conversions", "conversion_values EUR"], ["order", "1", "12.5"]]


def test_numbers_are_numbers_and_text_is_quoted_whatever_separates_columns() -> None:
    site = a_site(visit("a", NOON, "page_view", page="/a;=1+1"))
    text = site.http.get(f"{PATH}&dimension=page").data.decode("utf-8-sig")
    assert text == '"page","page_views"\r\n"/a;=1+1",1\r\n'


def test_the_period_before_is_beside() -> None:
    site = a_site(
        visit("a", NOON, "page_view", "page_view"),
        visit("b", NOON - 15 * 60_000, "page_view"),
        visit("c", NOON, "click"),
    )
    assert lines(site, "dimension=page&compare=previous") == [
        ["page", "page_views", "previous page_views"],
        ["/a", "2", "1"],
    ]


def test_all_labels_are_there_unless_fewer_are_asked_for_and_what_is_not_held_apart_comes_last() -> None:
    events = [event for number in range(410) for event in visit(f"s{number}", NOON, "page_view", page=f"/{number}")]
    site = a_site(events)
    found = lines(site, "dimension=page")
    assert len(found) == 1 + 400 + 1
    assert found[-1] == ["(other)", "10"]
    answer = site.http.get(f"{PATH}&dimension=page&limit=3")
    assert len(rows(answer)) == 1 + 3 + 1
    assert answer.headers["LiveInsight-Partial"] == "true"


def test_a_label_with_quotes_and_line_breaks_is_one_cell() -> None:
    name = 'a "b"\r\nc, d'
    site = a_site(visit("a", NOON, name.replace("\r\n", " ")))
    (_, (label, count)) = lines(site, "dimension=event_type")
    assert (label, count) == (name.replace("\r\n", " "), "1")


@pytest.mark.parametrize(
    "start",
    ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "﹦", "\ufeff=", "\u200b=", "  =", "\xa0+", "\x00="],
)
def test_what_a_spreadsheet_would_compute_is_text(start) -> None:
    assert harmless(f"{start}HYPERLINK(1)") == f"'{start}HYPERLINK(1)"


def test_a_formula_as_a_label_comes_out_as_text() -> None:
    site = a_site(visit("a", NOON, '=HYPERLINK("http://evil.example","x")'))
    assert lines(site, "dimension=event_type")[1][0] == '\'=HYPERLINK("http://evil.example","x")'


@given(st.text(max_size=20))
@example("")
@example("\u202e=1")
def test_no_text_begins_like_a_formula_and_none_is_lost(text) -> None:
    shown = harmless(text)
    assert shown in {text, f"'{text}"}
    assert not shown.lstrip().startswith(("=", "+", "-", "@"))
    assert not shown.startswith(("\t", "\r", "\n"))


@pytest.mark.parametrize("plain", ["/pricing", "google.com", "", "a=b", "'quoted'", "Ünïcode", "100%"])
def test_other_text_is_as_it_was(plain) -> None:
    assert harmless(plain) == plain
