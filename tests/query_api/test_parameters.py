import contextlib
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from query_api import parameters, ranges
from query_api.definitions import DIMENSIONS, INTERVALS, METRICS
from query_api.parameters import DAY_MS, Page, ParameterError, Slice, Span
from stream_consumer.rollup import QUARTER_MS

NOW = 1_700_000_123_456
NOON = 1_700_049_600_000  # 2023-11-15T12:00:00Z


def test_what_is_not_given_has_a_default() -> None:
    assert parameters.site({}) == parameters.site({"site": ""}) == "default"
    assert parameters.limit({}, 10) == 10
    assert parameters.page({}) == Page(1, 25)
    assert parameters.page_or_list({}) is None
    assert parameters.page_or_list({"page_size": "50"}) is None
    assert parameters.page_or_list({"page": "2"}) == Page(2, 25)
    assert parameters.page_or_list({"page": "3", "page_size": "50"}) == Page(3, 50)
    assert parameters.page_or_list({"cursor": "x"}) == Page(1, 25, "x")
    (start, end), zone, *_ = ranges.span({}, NOW)
    assert zone.key == "UTC"
    assert end - QUARTER_MS < NOW <= end
    assert start <= NOW - DAY_MS < start + QUARTER_MS
    assert ranges.span({"to": str(NOON)}, NOW).span == Span(NOON - DAY_MS, NOON)
    assert ranges.span({"to": "1970-01-01T06:00:00"}, NOW).span == Span(0, 6 * 3600 * 1000)


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
    assert ranges.span({"from": text, "to": str(NOON + 1)}, NOW).span.start == NOON


def test_a_date_begins_at_midnight_utc() -> None:
    midnight = NOON - DAY_MS // 2
    assert ranges.span({"from": "2023-11-15", "to": "2023-11-16"}, NOW).span == Span(midnight, midnight + DAY_MS)


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
        ranges.span(arguments, NOW)


def test_the_longest_range_is_what_was_asked_for_not_what_it_is_widened_to() -> None:
    arguments = {"from": str(NOW - 7 * DAY_MS), "to": str(NOW)}
    (start, end), _, asked, _ = ranges.span(arguments, NOW, max_days=7)
    assert asked == 7 * DAY_MS
    assert end - start > 7 * DAY_MS
    with pytest.raises(ParameterError, match="at most 7 days"):
        ranges.span(arguments | {"to": str(NOW + 1)}, NOW, max_days=7)
    assert ranges.span({"from": "2000-01-01", "to": "2001-01-01"}, NOW)


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


KNOWN = [
    "site", "from", "to", "tz", "hour", "limit", "page", "page_size", "cursor", "metrics", "interval", "dimension",
    "label", "compare", "format", "referrer",
]  # fmt: skip
hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["\x00", "\u202e", "\ufffd", "x" * 10_000, "../../etc/passwd", "٣", "²", ",", "UTC\x00", "-0", "NaN"]
    ),
    st.sampled_from([*METRICS, *DIMENSIONS, "previous", "csv", "day", "2023-11-15", "Asia/Seoul", str(NOON)]),
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KNOWN), hostile))
@example({"from": "2023-W01"})
@example({"tz": "/etc/localtime"})
def test_any_text_is_either_understood_or_refused(arguments) -> None:
    def over_time(given):
        asked, one = ranges.span(given, NOW), parameters.one_label(given)
        return ranges.interval(given, asked, parameters.metrics(given, ("events",)), one)

    for parse in (
        parameters.site,
        parameters.page,
        parameters.viewed,
        parameters.referrer,
        parameters.dimension,
        parameters.compares,
        parameters.wants_csv,
        ranges.hour,
        over_time,
        lambda given: parameters.limit(given, 10),
    ):
        with contextlib.suppress(ParameterError):
            parse(arguments)


@pytest.mark.parametrize("query", ["site=a&site=a", "site=a&x=1&site=b"])
def test_a_parameter_is_given_once(query) -> None:
    with pytest.raises(ParameterError, match=r"^site: given more than once$"):
        parameters.read(query, {"site"})
    assert parameters.read("x=1&x=2&site=a", {"site"}) == {"site": "a"}


def test_a_query_of_very_many_parameters_is_refused() -> None:
    with pytest.raises(ParameterError, match="at most 100"):
        parameters.read("&".join(f"x{number}=1" for number in range(101)), {"site"})


@pytest.mark.parametrize("raw", ["%", "%zz", "%ED%A0%80", "%ff%fe", "%00"])
def test_any_escape_is_read(raw) -> None:
    assert parameters.read(f"label={raw}&dimension=page", {"label"})["label"]


def test_metrics_keep_their_order_and_are_named_once() -> None:
    assert parameters.metrics({"metrics": "events,bounce_rate"}, ()) == ("events", "bounce_rate")
    assert parameters.metrics({"metrics": ""}, ("events",)) == ("events",)
    for wrong in ("events,events", "events,", "none", "Events", "events, sessions", "x," * 9999):
        with pytest.raises(ParameterError, match=r"^metrics: "):
            parameters.metrics({"metrics": wrong}, ())


def test_rows_are_sorted_by_a_count() -> None:
    parameters.check_sorts(("sessions", "bounce_rate"))
    with pytest.raises(ParameterError, match="must be one of sessions, page_views, events, conversions"):
        parameters.check_sorts(("bounce_rate", "sessions"))


def test_a_metric_that_a_dimension_lacks_is_named() -> None:
    parameters.check_dimension_has("source", ("sessions",))
    with pytest.raises(ParameterError, match="by page there is no sessions, only page_views"):
        parameters.check_dimension_has("page", ("page_views", "sessions"))


def test_a_label_goes_with_its_dimension() -> None:
    assert parameters.one_label({}) is None
    assert parameters.one_label({"dimension": "page", "label": "https://a.example/x?y#z"}) == Slice("page", "/x")
    assert parameters.one_label({"dimension": "referrer", "label": ""}) == Slice("referrer", "")
    for wrong in ({"dimension": "page"}, {"label": "/x"}, {"dimension": "page", "label": "x" * 2049}):
        with pytest.raises(ParameterError, match=r"^label: "):
            parameters.one_label(wrong)
    with pytest.raises(ParameterError, match=r"^dimension: one of page, "):
        parameters.one_label({"dimension": "pages", "label": "/x"})


def test_a_page_and_a_referrer_are_those_that_are_counted() -> None:
    assert parameters.viewed({"page": "https://blog.example/hello?utm_source=x"}) == "/hello"
    assert parameters.viewed({"page": "/" + "é" * 200}).endswith("…")
    assert parameters.referrer({"referrer": "Google.com"}) == "google.com"
    assert parameters.referrer({"referrer": "Direct"}) == parameters.referrer({"referrer": ""}) == ""
    for parse, wrong in ((parameters.viewed, {}), (parameters.viewed, {"page": "x" * 9999}), (parameters.referrer, {})):
        with pytest.raises(ParameterError):
            parse(wrong)


def test_times_without_an_offset_are_local() -> None:
    asked = ranges.span({"from": "2026-03-29", "to": "2026-03-30", "tz": "Europe/Berlin"}, NOW)
    assert asked.span.end - asked.span.start == 23 * 3600 * 1000
    assert (
        ranges.span({"from": "2026-03-29T00:00Z", "to": "2026-03-30", "tz": "Europe/Berlin"}, NOW).span.start % DAY_MS
        == 0
    )
    span, zone, *_ = ranges.hour({"hour": "2026-01-31T12:34", "tz": "Asia/Kolkata"})
    assert (span.start % (3600 * 1000), zone.key) == (30 * 60 * 1000, "Asia/Kolkata")


@pytest.mark.parametrize(
    "name", ["Mars/Phobos", "../../etc/passwd", "/etc/localtime", "utc\x00", "europe/berlin", "x" * 10_000, "Europe"]
)
def test_a_time_zone_is_one_of_those_known(name) -> None:
    with pytest.raises(ParameterError, match=r"^tz: a time zone's IANA name"):
        ranges.zone({"tz": name})


def chosen(days, metrics=("events",), one=None, tz="UTC", **given):
    asked = ranges.span({"from": str(NOON - days * DAY_MS), "to": str(NOON), "tz": tz}, NOW)
    return ranges.interval(given, asked, metrics, one).name


def test_the_interval_is_the_finest_that_fits_unless_one_is_named() -> None:
    assert [chosen(days) for days in (1, 2, 14, 15, 366)] == ["5m", "hour", "hour", "day", "day"]
    assert chosen(1, ("visitors",)) == chosen(1, one=Slice("page", "/")) == "hour"
    assert chosen(1, interval="minute") == "minute"
    assert chosen(14, interval="day") == "day"
    # An autumn day of 25 hours is a day.
    berlin = {"from": "2026-10-25", "to": "2026-10-26", "tz": "Europe/Berlin"}
    assert ranges.interval({"interval": "minute"}, ranges.span(berlin, NOW), ("events",), None).name == "minute"


@pytest.mark.parametrize(
    ("days", "given", "sentence"),
    [
        (
            2,
            {"interval": "minute"},
            "from, to: at most 1 day with interval=minute; use interval=5m or a shorter range",
        ),
        (8, {"interval": "5m"}, "use interval=15m or a shorter range"),
        (40, {"interval": "hour"}, "use interval=day or a shorter range"),
        (1, {"interval": "5m", "metrics": ("events", "visitors")}, "metrics: visitors are kept by 15m, not by 5m; use"),
        (1, {"interval": "5m", "one": Slice("page", "/")}, "interval: figures of one label are kept by 15m, not by 5m"),
        (1, {"interval": "week"}, "interval: one of minute, 5m, 15m, hour, day"),
    ],
)
def test_an_interval_that_cannot_be_is_refused_with_its_remedy(days, given, sentence) -> None:
    with pytest.raises(ParameterError) as refused:
        chosen(days, given.pop("metrics", ("events",)), given.pop("one", None), **given)
    assert sentence in str(refused.value)


def test_visitors_of_many_local_days_are_refused_unless_they_are_utc_s() -> None:
    def check(days, tz):
        asked = ranges.span({"from": str(NOON - days * DAY_MS), "to": str(NOON), "tz": tz}, NOW)
        ranges.check_visitors(asked, INTERVALS["day"])

    check(92, "Asia/Seoul")
    check(366, "UTC")
    check(366, "Africa/Abidjan")
    with pytest.raises(ParameterError, match="in Asia/Seoul for at most 92 days; use tz=UTC or a shorter range"):
        check(93, "Asia/Seoul")


def test_the_period_before_1970_cannot_be_compared_with() -> None:
    with pytest.raises(ParameterError, match=r"^compare: "):
        _ = ranges.span({"from": "1970-01-02", "to": "1970-01-08"}, NOW).previous


@given(st.text(max_size=200))
def test_what_is_written_is_what_is_read(text) -> None:
    written = quote(text.encode("utf-8", "surrogatepass"))
    assert parameters.read(f"label={written}", {"label"})["label"] == text.encode("utf-8", "surrogatepass").decode(
        "utf-8", "replace"
    )


@given(st.integers(0, 4 * 10**12), st.integers(1, 300 * DAY_MS))
def test_a_range_is_widened_to_quarters_and_by_less_than_one(start, length) -> None:
    found = ranges.span({"from": str(start), "to": str(start + length)}, NOW).span
    assert found.start % QUARTER_MS == found.end % QUARTER_MS == 0
    assert 0 <= start - found.start < QUARTER_MS
    assert 0 <= found.end - start - length < QUARTER_MS
