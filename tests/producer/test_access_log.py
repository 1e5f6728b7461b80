"""The log import's core: what a line says, what counts, where sessions end, and that ids never change."""

import gzip
import json
import random
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.access_log import (
    MAX_AHEAD_MS,
    MAX_LINE,
    SESSION_GAP_MS,
    STATIC_EXTENSIONS,
    Fault,
    ImportSettings,
    Request,
    Sessions,
    Skip,
    Source,
    Tally,
    page_views,
    parse_line,
    skipped_as,
)
from producer.event import MAX_URL, Reason, Rejected, decode, encode

IMPORTED_AT = 1_795_000_000_000
MAY_17 = 1_431_857_103_000  # 17/May/2015:10:05:03 +0000
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "access.log.gz"


def stamp(at):
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")


def line(at=MAY_17, address="192.0.2.1", request="GET / HTTP/1.1", status=200, referrer="-", user_agent=FIREFOX):
    return f'{address} - - [{stamp(at)}] "{request}" {status} 512 "{referrer}" "{user_agent}"\n'.encode()


def imported(*logs, tally=None, site="shop", received_at=IMPORTED_AT, **settings):
    sources = [Source(f"log-{number}", log) for number, log in enumerate(logs, 1)]
    tally = Tally() if tally is None else tally
    return list(page_views(sources, ImportSettings(site, received_at, **settings), tally)), tally


# -- one line ---------------------------------------------------------------------------------------

GOOD_LINES = {
    "combined": (
        line(request="GET /a?b=c HTTP/1.1", referrer="https://example.org/x"),
        Request(MAY_17, "192.0.2.1", "GET", "/a?b=c", 200, "https://example.org/x", FIREFOX),
    ),
    "common: no referrer, no user agent": (
        b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.0" 200 512',
        Request(MAY_17, "192.0.2.1", "GET", "/", 200, "", ""),
    ),
    "referrer only": (
        b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.0" 200 512 "/x"',
        Request(MAY_17, "192.0.2.1", "GET", "/", 200, "/x", ""),
    ),
    "more fields at the end": (
        line().rstrip() + b' "203.0.113.9" 0.012',
        Request(MAY_17, "192.0.2.1", "GET", "/", 200, "", FIREFOX),
    ),
    "more fields after the common ones": (
        b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.0" 200 - 0.012',
        Request(MAY_17, "192.0.2.1", "GET", "/", 200, "", ""),
    ),
    "CRLF": (line().rstrip() + b"\r\n", Request(MAY_17, "192.0.2.1", "GET", "/", 200, "", FIREFOX)),
    "IPv6": (line(address="2001:db8::1"), Request(MAY_17, "2001:db8::1", "GET", "/", 200, "", FIREFOX)),
    "a user with spaces": (
        b'192.0.2.1 - jo [x] "y" doe [17/May/2015:10:05:03 +0000] "GET / HTTP/1.0" 200 512',
        Request(MAY_17, "192.0.2.1", "GET", "/", 200, "", ""),
    ),
    "another time zone": (
        b'192.0.2.1 - - [17/May/2015:02:35:03 -0730] "GET / HTTP/1.0" 200 512',
        Request(MAY_17, "192.0.2.1", "GET", "/", 200, "", ""),
    ),
    "a leap second": (
        b'192.0.2.1 - - [31/Dec/2016:23:59:60 +0000] "GET / HTTP/1.0" 200 512',
        Request(1_483_228_800_000, "192.0.2.1", "GET", "/", 200, "", ""),
    ),
    "a 29th of February": (
        b'192.0.2.1 - - [29/Feb/2024:00:00:00 +0000] "GET / HTTP/1.0" 200 512',
        Request(1_709_164_800_000, "192.0.2.1", "GET", "/", 200, "", ""),
    ),
    "escaped quotes": (
        line(user_agent=r"a \"b\" \\ c", referrer=r"/\x22\t"),
        Request(MAY_17, "192.0.2.1", "GET", "/", 200, '/"\t', 'a "b" \\ c'),
    ),
    "escaped bytes that are UTF-8": (
        line(request=r"GET /caf\xc3\xa9 HTTP/1.1"),
        Request(MAY_17, "192.0.2.1", "GET", "/café", 200, "", FIREFOX),
    ),
    "bytes that are no UTF-8": (
        line(request=r"GET /caf\xe9 HTTP/1.1").replace(b"Mozilla", b"\xff\xfe"),
        Request(MAY_17, "192.0.2.1", "GET", "/caf\ufffd", 200, "", FIREFOX.replace("Mozilla", "\ufffd\ufffd")),
    ),
    "a backslash that escapes nothing": (
        line(request=r"GET /a\d\x4 HTTP/1.1"),
        Request(MAY_17, "192.0.2.1", "GET", r"/a\d\x4", 200, "", FIREFOX),
    ),
    "no request": (line(request="-", status=408), Request(MAY_17, "192.0.2.1", "", "", 408, "", FIREFOX)),
    "an empty request": (line(request="", status=400), Request(MAY_17, "192.0.2.1", "", "", 400, "", FIREFOX)),
    "TLS to a plain port": (
        line(request=r"\x16\x03\x01\x00", status=400),
        Request(MAY_17, "192.0.2.1", "", "", 400, "", FIREFOX),
    ),
    "HTTP/0.9": (line(request="GET /old"), Request(MAY_17, "192.0.2.1", "GET", "/old", 200, "", FIREFOX)),
    "HTTP/2": (line(request="GET /new HTTP/2"), Request(MAY_17, "192.0.2.1", "GET", "/new", 200, "", FIREFOX)),
    "a path with spaces": (
        line(request="GET /a b HTTP/1.1"),
        Request(MAY_17, "192.0.2.1", "GET", "/a b", 200, "", FIREFOX),
    ),
    "a whole URL": (
        line(request="GET http://shop.example/a HTTP/1.1"),
        Request(MAY_17, "192.0.2.1", "GET", "http://shop.example/a", 200, "", FIREFOX),
    ),
}

BROKEN_LINES = {
    "prose": (b"the quick brown fox\n", Fault.NOT_A_LOG_LINE),
    "JSON": (b'{"remote_addr": "192.0.2.1", "status": 200}\n', Fault.NOT_A_LOG_LINE),
    "binary": (bytes(range(256)), Fault.NOT_A_LOG_LINE),
    "cut in the time": (line()[:30], Fault.NOT_A_LOG_LINE),
    "cut in the request": (line()[:50], Fault.BAD_QUOTES),
    "cut in the user agent": (line()[:-10], Fault.BAD_QUOTES),
    "a quote that is not escaped": (line(user_agent='a "b" c'), Fault.BAD_QUOTES),
    "an escape at the end": (line(user_agent="a\\"), Fault.BAD_QUOTES),
    "no status": (b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.0"', Fault.BAD_QUOTES),
    "no such day": (line().replace(b"17/May", b"31/Feb"), Fault.BAD_TIME),
    "no such month": (line().replace(b"May", b"Mai"), Fault.BAD_TIME),
    "no such hour": (line().replace(b":10:05:03", b":24:05:03"), Fault.BAD_TIME),
    "before 1970": (line().replace(b"/2015", b"/1969"), Fault.BAD_TIME),
    "year 0": (line().replace(b"/2015", b"/0000"), Fault.BAD_TIME),
    "other digits": (line().replace(b"17/May", "\u0661\u0667/May".encode()), Fault.BAD_TIME),
    "another form of time": (
        line().replace(b"17/May/2015:10:05:03 +0000", b"2015-05-17T10:05:03+00:00"),
        Fault.BAD_TIME,
    ),
    "too long": (line(user_agent="x" * MAX_LINE), Fault.LINE_TOO_LONG),
}


@pytest.mark.parametrize("name", GOOD_LINES)
def test_a_line_is_read(name):
    given_line, request = GOOD_LINES[name]
    assert parse_line(given_line) == request


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_broken_line_is_named(name):
    given_line, fault = BROKEN_LINES[name]
    broken = parse_line(given_line)
    assert isinstance(broken, Rejected)
    assert broken.reason == fault
    assert broken.detail


def test_every_fault_has_an_example():
    assert {fault for _, fault in BROKEN_LINES.values()} | {Fault.IN_THE_FUTURE} == set(Fault)


def test_the_time_of_a_line_in_any_zone():
    moment = datetime(2015, 5, 17, 10, 5, 3, tzinfo=UTC)
    for minutes in range(-14 * 60, 14 * 60 + 1, 15):
        local = moment.astimezone(timezone(timedelta(minutes=minutes))).strftime("%d/%b/%Y:%H:%M:%S %z")
        assert parse_line(line().replace(stamp(MAY_17).encode(), local.encode())).at == MAY_17, local


@given(
    st.binary(max_size=200)
    | st.tuples(st.integers(0, 150), st.binary(max_size=4)).map(
        lambda cut: line()[: cut[0]] + cut[1] + line()[cut[0] + 1 :]
    )
)
def test_parse_line_never_raises(data):
    assert isinstance(parse_line(data), Request | Rejected)


def test_a_hostile_line_takes_no_time():
    for hostile in (
        b"a" * MAX_LINE,
        b'a b ["' * 5000,
        b"a b " + b"[" * 30_000,
        b"\\" * 30_000,
        line()[:-2] + b'\\"' * 15_000,
    ):
        started = datetime.now()
        parse_line(hostile)
        assert datetime.now() - started < timedelta(seconds=0.5)


# -- what is a page view ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "skip"),
    [
        ({}, None),
        ({"status": 204}, None),
        ({"status": 304}, None),
        ({"status": 206}, None),
        ({"status": 301}, Skip.STATUS),
        ({"status": 404}, Skip.STATUS),
        ({"status": 500}, Skip.STATUS),
        ({"status": 199}, Skip.STATUS),
        ({"request": "POST / HTTP/1.1"}, Skip.NOT_GET),
        ({"request": "HEAD / HTTP/1.1"}, Skip.NOT_GET),
        ({"request": "get / HTTP/1.1"}, Skip.NOT_GET),
        ({"request": "-"}, Skip.NOT_GET),
        ({"request": "GET /style.css HTTP/1.1"}, Skip.STATIC),
        ({"request": "GET /a/B.PnG HTTP/1.1"}, Skip.STATIC),
        ({"request": "GET /jquery.min.js?v=2 HTTP/1.1"}, Skip.STATIC),
        ({"request": "GET http://shop.example/x.css HTTP/1.1"}, Skip.STATIC),
        ({"request": "GET http://shop.js HTTP/1.1"}, None),
        ({"request": "GET /page?file=x.png HTTP/1.1"}, None),
        ({"request": "GET /page?x=/a.png HTTP/1.1"}, None),
        ({"request": "GET /v1.js/page HTTP/1.1"}, None),
        ({"request": "GET /css HTTP/1.1"}, None),
        ({"request": "GET /index.html HTTP/1.1"}, None),
        ({"request": "GET /feed.xml HTTP/1.1"}, None),
        ({"request": "GET /a.jsx HTTP/1.1"}, None),
        ({"request": "GET /a.png. HTTP/1.1"}, None),
        ({"user_agent": GOOGLEBOT}, Skip.CRAWLER),
        ({"user_agent": "-"}, None),
        ({"user_agent": ""}, None),
        ({"request": "POST /x.png HTTP/1.1", "status": 404, "user_agent": GOOGLEBOT}, Skip.NOT_GET),
    ],
)
def test_what_is_no_page_view_is_skipped_under_one_name(change, skip):
    assert skipped_as(parse_line(line(**change))) == skip
    events, tally = imported([line(**change)])
    assert len(events) == (skip is None)
    assert tally.skipped == ({} if skip is None else {skip: 1})


@pytest.mark.parametrize("extension", sorted(STATIC_EXTENSIONS))
def test_a_file_that_belongs_to_a_page_is_no_page_view(extension):
    assert skipped_as(parse_line(line(request=f"GET /x.{extension} HTTP/1.1"))) == Skip.STATIC


def test_the_static_extensions_are_those_agreed():
    agreed = "css js mjs map png jpg jpeg gif svg ico webp avif bmp woff woff2 ttf otf eot mp3 mp4 webm ogg wav"
    assert sorted(STATIC_EXTENSIONS) == sorted(agreed.split())


# -- the event --------------------------------------------------------------------------------------

GOLDEN_LINE = line(request="GET /a?b=c HTTP/1.1", referrer="https://example.org/x")
GOLDEN_EVENT = {
    "event_id": "0557aa8fd8a23e79d13a841ff4df39d1",
    "site_id": "shop",
    "session_id": "86eb174df89a727cf8121ceee2d32110",
    "event_type": "page_view",
    "timestamp": MAY_17,
    "received_at": IMPORTED_AT,
    "user_id": "8cd6811c83deb8927bf5a940fd714cfd",
    "page_url": "https://shop.example/a?b=c",
    "referrer": "https://example.org/x",
    "user_agent": FIREFOX,
}


def test_the_event_of_a_line():
    """The ids too: another version that made others would count every imported log again."""
    [event], _ = imported([GOLDEN_LINE], origin="https://shop.example")
    assert json.loads(encode(event)) == GOLDEN_EVENT


def test_the_address_goes_no_further():
    [event], tally = imported([line(address="198.51.100.77")])
    assert b"198.51.100.77" not in encode(event)
    assert "198.51.100.77" not in repr(tally)


def test_without_an_origin_the_path_stands_as_logged():
    [event], _ = imported([line(request="GET /a?b=c HTTP/1.1")])
    assert event.page_url == "/a?b=c"


def test_an_origin_goes_before_paths_only():
    [event], _ = imported([line(request="GET http://other.example/a HTTP/1.1")], origin="https://shop.example")
    assert event.page_url == "http://other.example/a"


def test_a_long_user_agent_is_cut_a_long_url_is_refused_by_name():
    long_path = "GET /" + "a" * MAX_URL + " HTTP/1.1"
    events, tally = imported(
        [
            line(user_agent="x" * 600),
            line(request=long_path),
            line(referrer="r" * 2049),
            line(request=r"GET /\x00 HTTP/1.1"),
        ]
    )
    assert [event.user_agent for event in events] == ["x" * 512]
    assert tally.broken == {Reason.TOO_LONG: 2, Reason.NUL_CHARACTER: 1}
    assert [(broken.source, broken.line) for broken in tally.broken_lines] == [("log-1", 2), ("log-1", 3), ("log-1", 4)]


def test_a_visitor_is_told_by_site_address_and_user_agent():
    others = [line(), line(address="192.0.2.2"), line(user_agent="Opera")]
    events, tally = imported(others)
    elsewhere, _ = imported(others, site="blog")
    assert len({event.user_id for event in events + elsewhere}) == 6
    assert len({event.session_id for event in events + elsewhere}) == 6
    assert len({event.event_id for event in events + elsewhere}) == 6
    assert tally.visitors == 3


def test_every_line_is_counted_once():
    log = [line(), b"\n", b" \r\n", b"nonsense\n", line(status=404), line(user_agent=GOOGLEBOT), line()]
    events, tally = imported(log)
    assert tally.lines == len(log)
    assert tally.page_views == len(events) == 2
    assert tally.skipped == {Skip.BLANK: 2, Skip.STATUS: 1, Skip.CRAWLER: 1}
    assert tally.broken == {Fault.NOT_A_LOG_LINE: 1}
    assert tally.lines == tally.page_views + sum(tally.skipped.values()) + sum(tally.broken.values())


def test_only_the_first_broken_lines_are_kept():
    _, tally = imported([b"nonsense\n"] * 9, tally=Tally(keep=2))
    assert tally.broken == {Fault.NOT_A_LOG_LINE: 9}
    assert [broken.line for broken in tally.broken_lines] == [1, 2]


def test_a_line_from_the_future_is_broken():
    log = [line(IMPORTED_AT + MAX_AHEAD_MS), line(IMPORTED_AT + MAX_AHEAD_MS + 1000)]
    events, tally = imported(log)
    assert [event.timestamp for event in events] == [IMPORTED_AT + MAX_AHEAD_MS]
    assert tally.broken == {Fault.IN_THE_FUTURE: 1}


@pytest.mark.parametrize("site", ["", "-a", "a b", "x" * 65, "a\n"])
def test_a_site_that_cannot_be_is_refused(site):
    with pytest.raises(ValueError, match="site"):
        ImportSettings(site, 0)


@pytest.mark.parametrize("origin", ["shop.example", "ftp://x", "https://", "https://x/path", "https://x y"])
def test_an_origin_that_cannot_be_is_refused(origin):
    with pytest.raises(ValueError, match="origin"):
        ImportSettings("shop", 0, origin)


# -- sessions ---------------------------------------------------------------------------------------


def sessions_of(events):
    found = defaultdict(list)
    for event in events:
        found[event.session_id].append(event.page_url)
    return sorted(sorted(pages) for pages in found.values())


def test_a_gap_of_30_minutes_stays_inside_one_second_more_does_not():
    gap = SESSION_GAP_MS
    log = [
        line(MAY_17, request="GET /1"),
        line(MAY_17 + gap, request="GET /2"),
        line(MAY_17 + 2 * gap + 1000, request="GET /3"),
    ]
    events, tally = imported(log)
    assert sessions_of(events) == [["/1", "/2"], ["/3"]]
    assert tally.sessions == 2


@pytest.mark.parametrize("between", [{"request": "GET /x.png"}, {"request": "POST /form"}, {"status": 404}])
def test_any_request_of_the_visitor_keeps_the_session_going(between):
    minute = 60_000
    log = [
        line(MAY_17, request="GET /1"),
        line(MAY_17 + 20 * minute, **between),
        line(MAY_17 + 40 * minute, request="GET /2"),
    ]
    events, _ = imported(log)
    assert sessions_of(events) == [["/1", "/2"]]
    without, _ = imported([log[0], log[2]])
    assert sessions_of(without) == [["/1"], ["/2"]]


def test_a_session_begins_with_the_first_request_of_whatever_kind():
    image, page = line(MAY_17, request="GET /x.png"), line(MAY_17 + 1000)
    [with_image], _ = imported([image, page])
    [without], _ = imported([page])
    assert with_image.event_id == without.event_id
    assert with_image.session_id != without.session_id


def test_a_session_without_a_page_view_sends_and_counts_nothing():
    events, tally = imported([line(request="GET /x.png"), line(status=404)])
    assert events == []
    assert (tally.sessions, tally.visitors) == (0, 0)


def test_lines_out_of_order_are_brought_into_the_order_of_their_times():
    """A 40-minute download is logged when it ends, by some servers under the time when it began."""
    minute = 60_000
    log = [
        line(MAY_17, request="GET /1"),
        line(MAY_17 + 45 * minute, request="GET /2"),
        line(MAY_17 + 20 * minute, request="GET /download"),
    ]
    events, tally = imported(log)
    assert [event.page_url for event in events] == ["/1", "/download", "/2"]
    assert len({event.session_id for event in events}) == 1
    assert tally.late == 0


def naive_sessions(requests, gap=SESSION_GAP_MS):
    """The definition, word for word: for each visitor, cut the requests in order wherever the gap is too long."""
    by_visitor = defaultdict(list)
    for number, (at, visitor, is_page) in enumerate(requests):
        by_visitor[visitor].append((at, number, is_page))
    found = []
    for visited in by_visitor.values():
        session, last = [], None
        for at, number, is_page in sorted(visited):
            if last is not None and at - last > gap:
                found.append(session)
                session = []
            session.append((number, is_page))
            last = at
        found.append(session)
    pages = [[number for number, is_page in session if is_page] for session in found]
    return sorted(sorted(session) for session in pages if session)


def as_log(requests):
    return [
        line(at, address=f"192.0.2.{visitor}", request=f"GET /{number}{'' if is_page else '.png'} HTTP/1.1")
        for number, (at, visitor, is_page) in enumerate(requests)
    ]


def by_number(events):
    found = defaultdict(list)
    for event in events:
        found[event.session_id].append(int(event.page_url[1:]))
    return sorted(sorted(session) for session in found.values())


# Times around the one boundary that matters: multiples of the gap, give or take a second.
times = st.builds(
    lambda gaps, seconds: MAY_17 + gaps * SESSION_GAP_MS // 2 + seconds * 1000, st.integers(0, 12), st.integers(-1, 1)
)
requests = st.lists(st.tuples(times, st.integers(1, 3), st.booleans()), max_size=14)


@given(requests)
def test_sessions_are_what_the_definition_says_in_whatever_order_the_lines_come(requests):
    events, tally = imported(as_log(requests))
    assert by_number(events) == naive_sessions(requests)
    assert tally.sessions == len(naive_sessions(requests))
    assert [event.timestamp // 1000 for event in events] == sorted(event.timestamp // 1000 for event in events)


@given(requests, st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_sort_window_sorts_lines_displaced_by_less_than_it(requests, window, rng):
    requests.sort(key=lambda request: request[0])
    places = sorted(range(len(requests)), key=lambda place: (place + rng.uniform(0, window), place))
    displaced = [requests[place] for place in places]
    events, tally = imported(as_log(displaced), sort_window=window + 1)
    assert by_number(events) == naive_sessions(displaced)
    assert tally.late == 0


@given(requests, st.data())
def test_pieces_of_a_log_are_one_log_in_whatever_order_they_are_given(requests, data):
    whole = as_log(sorted(requests, key=lambda request: request[0]))
    homes = data.draw(st.lists(st.integers(0, 2), min_size=len(whole), max_size=len(whole)))
    pieces = [[logged for logged, home in zip(whole, homes, strict=True) if home == piece] for piece in range(3)]
    cuts = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    rotated = [whole[: cuts[0]], whole[cuts[0] : cuts[1]], whole[cuts[1] :]]
    once, _ = imported(whole)
    expected = by_number(once)
    for logs in (pieces, rotated, rotated[::-1]):
        events, tally = imported(*logs, sort_window=1)
        assert by_number(events) == expected
        assert tally.late == 0
        again, _ = imported(*logs[::-1])
        assert {(e.event_id, e.session_id) for e in again} == {(e.event_id, e.session_id) for e in events}


def test_what_is_displaced_too_far_is_counted_and_joins_the_session_it_lies_in():
    minute = 60_000
    log = [line(MAY_17 + n * minute, request=f"GET /{n}") for n in range(20)]
    log.append(line(MAY_17 + 3 * minute, request="GET /late"))
    events, tally = imported(log, sort_window=4)
    assert tally.late == 1
    assert len({event.session_id for event in events}) == 1


def test_only_sessions_under_way_are_remembered():
    sessions = Sessions("shop")
    for number in range(10_000):
        sessions.visit(f"visitor-{number}", MAY_17 + number * 1000, f"line-{number}")
    assert len(sessions) == SESSION_GAP_MS // 1000 + 1


# -- importing again --------------------------------------------------------------------------------


@given(requests, st.integers(0, 2**40))
def test_a_second_import_gives_the_same_events_but_for_received_at(requests, later):
    log = as_log(requests) + as_log(requests)[:3]
    first, _ = imported(log)
    second, _ = imported(log, received_at=IMPORTED_AT + later)
    assert [msgspec.structs.replace(event, received_at=IMPORTED_AT) for event in second] == first
    assert len({event.event_id for event in first}) == len(first)
    assert all(decode(encode(event)) == event for event in first)


def test_equal_lines_are_told_apart_by_their_number():
    events, _ = imported([line()] * 5)
    assert len({event.event_id for event in events}) == 5
    assert len({event.session_id for event in events}) == 1


def test_a_copy_of_a_file_adds_nothing_whatever_its_line_ends():
    log = [line(MAY_17 + n * 1000, request=f"GET /{n % 3}") for n in range(9)] * 2
    once, _ = imported(log)
    twice, _ = imported(log, [given_line.rstrip() + b"\r\n" for given_line in log])
    assert {event.event_id for event in twice} == {event.event_id for event in once}
    assert {event.session_id for event in twice} == {event.session_id for event in once}


def test_a_log_that_has_grown_adds_only_what_is_new():
    log = [line(MAY_17 + n * 7 * 60_000, address=f"192.0.2.{n % 4}", request=f"GET /{n}") for n in range(40)]
    before, _ = imported(log[:25])
    after, _ = imported(log)
    assert after[:25] == before


# -- the sample -------------------------------------------------------------------------------------


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample log at {SAMPLE}")
def test_the_sample_log_in_figures():
    with gzip.open(SAMPLE) as log:
        events, tally = imported(log)
    assert tally.lines == 5000
    assert tally.page_views == len(events) == 1254
    assert tally.sessions == len({event.session_id for event in events}) == 705
    assert tally.visitors == len({event.user_id for event in events}) == 539
    assert tally.skipped == {Skip.STATIC: 2422, Skip.CRAWLER: 1081, Skip.STATUS: 223, Skip.NOT_GET: 20}
    assert (tally.broken, tally.late) == ({}, 0)
    assert len({event.event_id for event in events}) == len(events)
    assert Counter(event.page_url for event in events).most_common(5) == [
        ("/blog/tags/puppet?flav=rss20", 212),
        ("/projects/xdotool/", 102),
        ("/projects/xdotool/xdotool.xhtml", 76),
        ("/", 61),
        ("/articles/dynamic-dns-with-dhcp/", 55),
    ]


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample log at {SAMPLE}")
def test_the_sample_log_has_the_same_sessions_in_any_order():
    with gzip.open(SAMPLE) as log:
        lines = log.readlines()
    in_order, _ = imported(lines)
    random.Random(1).shuffle(lines)
    shuffled, tally = imported(lines)
    assert sessions_of(in_order) == sessions_of(shuffled)
    assert tally.sessions == 705


def test_page_views_of_one_second_keep_the_logs_order():
    events, _ = imported([line(request=f"GET /{page} HTTP/1.1") for page in ("in", "middle", "out")])
    assert [event.page_url for event in sorted(events, key=lambda event: event.timestamp)] == ["/in", "/middle", "/out"]
    assert events[2].timestamp - events[0].timestamp == 2
