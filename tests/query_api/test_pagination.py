"""Lists page by page, while they change."""

import base64
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from query_api import pagination, statistics
from query_api.app import create_app
from query_api.settings import ApiSettings
from stream_consumer.rollup import MINUTE_MS
from tests.builders import NOON, an_event
from tests.query_api.fake_reader import FakeReader
from tests.query_api.test_app import NAMES


class Site:
    """A site without a cache, to which events come when the test says so."""

    def __init__(self) -> None:
        self.now = NOON + 10 * MINUTE_MS
        self.reader = FakeReader(lambda: self.now)
        nothing_kept = ApiSettings(NAMES, live_lifetime=0, session_lifetime=0, recent_lifetime=0)
        self.http = create_app(self.reader, nothing_kept, lambda: self.now).test_client()
        self.number = 0

    def come(self, name, at, **fields) -> None:
        self.number += 1
        self.reader.add(an_event(self.number, session_id=name, timestamp=at, received_at=at, **fields))

    def get(self, path, status=200):
        answer = self.http.get(path)
        assert answer.status_code == status, answer.data
        return answer.json


def names(page) -> list[str]:
    return [row["session_id"] for row in page["results"]]


ACTIVE = "/api/sessions/active/?site=blog&page=1&page_size="


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 9 * MINUTE_MS), min_size=1, max_size=40), st.integers(1, 7), st.integers(5, 50), st.data()
)
def test_every_session_that_did_not_change_is_seen_exactly_once(ages, size, most_read, data) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MAX_ACTIVE_READ", most_read)
        site = Site()
        for number, age in enumerate(ages):
            site.come(f"s{number}", site.now - age)
        unchanged = {f"s{number}" for number in range(len(ages))}
        seen: list[str] = []
        path, arrived = f"{ACTIVE}{size}", 0
        while path:
            page = site.get(path)
            seen += names(page)
            path = page["next"]
            for _ in range(data.draw(st.integers(0, 3))):
                site.now += data.draw(st.integers(0, 2000))
                if data.draw(st.booleans()):
                    arrived += 1
                    site.come(f"new{arrived}", site.now)
                else:
                    moved = data.draw(st.sampled_from(sorted(f"s{number}" for number in range(len(ages)))))
                    unchanged.discard(moved)
                    site.come(moved, site.now)
        assert [seen.count(name) for name in sorted(unchanged)] == [1] * len(unchanged)


@settings(max_examples=60)
@given(st.integers(0, 30), st.integers(1, 7))
def test_the_way_back_is_the_way_there(count, size) -> None:
    site = Site()
    for number in range(count):
        site.come(f"s{number:02}", site.now - number * 1000)
    there, path = [], f"{ACTIVE}{size}"
    while path:
        there.append(site.get(path))
        path = there[-1]["next"]
    assert [name for page in there for name in names(page)] == [f"s{number:02}" for number in range(count)]
    back = [there[-1]]
    while back[-1]["previous"]:
        back.append(site.get(back[-1]["previous"]))
    assert [page["results"] for page in reversed(back)] == [page["results"] for page in there]
    assert {page["count"] for page in there} == {count}


def test_sessions_that_came_since_are_on_the_way_back() -> None:
    site = Site()
    for number in range(4):
        site.come(f"s{number}", site.now - number * 1000)
    second = site.get(site.get(f"{ACTIVE}2")["next"])
    assert names(second) == ["s2", "s3"]
    site.now += 1000
    site.come("new", site.now)
    first = site.get(second["previous"])
    assert names(first) == ["s0", "s1"]
    assert names(site.get(first["previous"])) == ["new"]


def test_a_cursor_goes_before_a_page_number() -> None:
    site = Site()
    for number in range(6):
        site.come(f"s{number}", site.now - number * 1000)
    path = site.get(f"{ACTIVE}2")["next"]
    assert parse_qs(urlsplit(path).query)["page"] == ["2"]
    assert names(site.get(path.replace("page=2", "page=9"))) == ["s2", "s3"]
    assert names(site.get(f"{ACTIVE}2".replace("page=1", "page=3"))) == ["s4", "s5"]
    cursor = parse_qs(urlsplit(path).query)["cursor"][0]
    assert names(site.get(f"/api/sessions/active/?site=blog&cursor={cursor}")) == ["s2", "s3", "s4", "s5"]


def test_a_user_s_sessions_are_paged_the_newest_first() -> None:
    site = Site()
    for number in range(5):
        site.come(f"s{number}", NOON + number * 1000, user_id="ann / ü")
    site.come("other", NOON, user_id="bob")
    path = f"/api/users/{quote('ann / ü', safe='')}/sessions/?site=blog"
    whole = site.get(path)
    assert (names(whole), whole["count"]) == (["s4", "s3", "s2", "s1", "s0"], 5)
    first = site.get(f"{path}&page_size=2")
    site.come("s5", NOON + 9000, user_id="ann / ü")
    assert names(first) + names(site.get(first["next"])) == ["s4", "s3", "s2", "s1"]
    nobody = site.get("/api/users/nobody/sessions/?site=blog")
    assert nobody == {"count": 0, "next": None, "previous": None, "results": []}
    assert site.get(f"/api/users/{'x' * 129}/sessions/", status=400)["error"]["reason"] == "bad_parameter"


def test_the_events_of_a_session_that_goes_on_are_paged() -> None:
    site = Site()
    for number in range(5):
        site.come("s1", NOON + number * 1000)
    first = site.get("/api/sessions/s1/events/?site=blog&page=1&page_size=3")
    site.come("s1", NOON + 500)  # late: before what was shown
    site.come("s1", NOON + 9000)
    second = site.get(first["next"])
    assert [row["event_id"] for row in first["results"] + second["results"]] == ["e1", "e2", "e3", "e4", "e5", "e7"]
    assert (first["count"], second["count"]) == (5, 7)


def packed(*values) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(values)).rstrip(b"=").decode()


GOOD = [1, "active", False, [-5, "s1"]]


@pytest.mark.parametrize(
    "cursor",
    [
        "x", "====", "é", "A" * 2000, "%00", "a b", quote("\x00\ufffd"),
        packed(2, *GOOD[1:]), packed(1, "events", *GOOD[2:]), packed(1, "active", False, ["x", "s1"]),
        packed(1, "active", 0, [-5, "s1"]), packed(1, "active", False, [-5]), packed(*GOOD, 1), packed(1),
        base64.urlsafe_b64encode(b"\x81" * 300).decode().rstrip("="),
        base64.urlsafe_b64encode(b"\x91" * 700).decode().rstrip("="),
    ],
)  # fmt: skip
def test_a_cursor_of_another_making_is_refused(cursor) -> None:
    site = Site()
    error = site.get(f"/api/sessions/active/?site=blog&cursor={cursor}", status=400)["error"]
    assert error["reason"] == "bad_parameter"
    assert error["message"].startswith("cursor: ")


def test_a_cursor_may_point_anywhere() -> None:
    site = Site()
    site.come("s1", site.now)
    for place in ([0, ""], [-(2**62), "~"], [2**62, "~"]):
        for backwards in (True, False):
            page = site.get(f"/api/sessions/active/?site=blog&cursor={packed(1, 'active', backwards, place)}")
            assert page["count"] == 1
            assert len(page["results"]) + bool(page["next"]) + bool(page["previous"]) == 1


@given(st.text(max_size=60))
@example(packed(*GOOD))
def test_any_text_is_a_cursor_or_is_refused(text) -> None:
    try:
        cursor = pagination.decode(text, "active")
    except pagination.ParameterError:
        return
    assert pagination.decode(pagination.encode("active", cursor.backwards, cursor.place), "active") == cursor
