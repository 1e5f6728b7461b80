import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from query_api import parameters
from query_api.parameters import DAY_MS, Page, ParameterError, Span
from stream_consumer.rollup import QUARTER_MS

NOW = 1_700_000_123_456
NOON = 1_700_049_600_000  # 2023-11-15T12:00:00Z


def test_what_is_not_given_has_a_default() -> None:
    assert parameters.site({}) == parameters.site({"site": ""}) == "default"
    assert parameters.limit({}, 10) == 10
    assert parameters.page({}) is None
    assert parameters.page({"page_size": "50"}) is None
    assert parameters.page({"page": "2"}) == Page(2, 25)
    assert parameters.page({"page": "3", "page_size": "50"}) == Page(3, 50)
    assert Page(3, 50).offset == 100
    start, end = parameters.span({}, NOW)
    assert end - QUARTER_MS < NOW <= end
    assert start <= NOW - DAY_MS < start + QUARTER_MS
    assert parameters.span({"to": str(NOON)}, NOW) == Span(NOON - DAY_MS, NOON)
    assert parameters.span({"to": "1970-01-01T06:00:00"}, NOW) == Span(0, 6 * 3600 * 1000)


@pytest.mark.parametrize(
    "text",
    [
        str(NOON),
        "2023-11-15T12:00:00Z",
        "2023-11-15T12:00:00.000Z",
        "2023-11-15T12:00",
        "2023-11-15 12:00:00",
        "2023-11-15T21:00:00+09:00",
        "2023-11-15T21:00:00 09:00",
        "2023-11-15T06:15:00-05:45",
    ],
)
def test_times_are_iso_8601_or_milliseconds(text) -> None:
    assert parameters.span({"from": text, "to": str(NOON + 1)}, NOW).start == NOON


def test_a_date_begins_at_midnight_utc() -> None:
    midnight = NOON - DAY_MS // 2
    assert parameters.span({"from": "2023-11-15", "to": "2023-11-16"}, NOW) == Span(midnight, midnight + DAY_MS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "12:00"}, "to"),
        ({"to": "-1"}, "to"),
        ({"to": "1e12"}, "to"),
        ({"to": "9999-06-01"}, "to"),
        ({"to": "0001-01-01T00:00:00+23:59"}, "to"),
        ({"from": "9" * 15}, "from"),
        ({"from": "1969-12-31"}, "from"),
        ({"from": "٣"}, "from"),
        ({"from": str(NOW)}, "from"),
        ({"from": "2023-11-16", "to": "2023-11-15"}, "from"),
        ({"from": "2000-01-01", "to": "2001-01-02"}, "from, to"),
    ],
)
def test_a_range_that_cannot_be_is_named(arguments, named) -> None:
    with pytest.raises(ParameterError, match=f"^{named}: "):
        parameters.span(arguments, NOW)


def test_the_longest_range_is_what_was_asked_for_not_what_it_is_widened_to() -> None:
    arguments = {"from": str(NOW - 7 * DAY_MS), "to": str(NOW)}
    start, end = parameters.span(arguments, NOW, max_days=7)
    assert end - start > 7 * DAY_MS
    with pytest.raises(ParameterError, match="at most 7 days"):
        parameters.span(arguments | {"to": str(NOW + 1)}, NOW, max_days=7)
    assert parameters.span({"from": "2000-01-01", "to": "2001-01-01"}, NOW)


@pytest.mark.parametrize("text", ["0", "1001", "-1", "1.5", "ten", "²", "9" * 30, " 5"])
def test_a_number_of_rows_is_whole_and_bounded(text) -> None:
    with pytest.raises(ParameterError, match=r"^limit: a whole number from 1 to 1000$"):
        parameters.limit({"limit": text}, 10)
    with pytest.raises(ParameterError, match=r"^page_size: a whole number from 1 to 100$"):
        parameters.page({"page": "1", "page_size": text})


@pytest.mark.parametrize("site", ["a b", "-a", "a" * 65, "a#0", "ä", "a\n", "�"])
def test_a_site_id_is_checked(site) -> None:
    with pytest.raises(ParameterError, match=r"^site: "):
        parameters.site({"site": site})


@pytest.mark.parametrize(
    ("text", "possible"), [("A-z0.9_:~@+=", True), ("", False), ("a#b", False), ("a" * 129, False)]
)
def test_session_ids_are_those_that_events_may_have(text, possible) -> None:
    assert parameters.is_session_id(text) is possible


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["site", "from", "to", "limit", "page", "page_size"]), st.text(max_size=40)))
@example({"from": "2023-W01"})
def test_any_text_is_either_understood_or_refused(arguments) -> None:
    for parse in (
        parameters.site,
        parameters.page,
        lambda given: parameters.limit(given, 10),
        lambda given: parameters.span(given, NOW),
    ):
        with contextlib.suppress(ParameterError):
            parse(arguments)


@settings(deadline=None)
@given(st.integers(0, 4 * 10**12), st.integers(1, 300 * DAY_MS))
def test_a_range_is_widened_to_quarters_and_by_less_than_one(start, length) -> None:
    found = parameters.span({"from": str(start), "to": str(start + length)}, NOW)
    assert found.start % QUARTER_MS == found.end % QUARTER_MS == 0
    assert 0 <= start - found.start < QUARTER_MS
    assert 0 <= found.end - start - length < QUARTER_MS
