"""Answers come from the generation that is served, each wholly from one, and follow a promotion by themselves."""

from __future__ import annotations

import threading

import pytest

from query_api.app import create_app
from query_api.reader import Reader
from query_api.serving import LOOK_EVERY_MS, Serving
from query_api.settings import ApiSettings
from stream_consumer.consume import consume
from stream_consumer.generations import Generations, Pointer, scoped
from stream_consumer.table import Tables, Unavailable
from tests.builders import NOON, a_batch, an_event
from tests.query_api.stored import NAMES, tables

LATER = NOON + 30 * 86_400_000
SUMMARY = f"/api/statistics/summary/?site=blog&from={NOON}&to={NOON + 900_000}"


class Pointing:
    """A pointer that is looked at, and may fail."""

    def __init__(self) -> None:
        self.name = "g1"
        self.fails = False
        self.looks = 0
        self.may_look = threading.Event()
        self.may_look.set()

    def __call__(self) -> str:
        self.looks += 1
        assert self.may_look.wait(10)
        if self.fails:
            raise Unavailable("DynamoDB cannot be reached")
        return Pointer(self.name)


def test_the_pointer_is_followed_within_a_second_and_nobody_waits_for_it() -> None:
    now = [1_000_000]
    pointing = Pointing()
    serving = Serving(pointing, lambda: now[0])
    assert serving().serving == "g1"
    pointing.name = "g2"
    now[0] += LOOK_EVERY_MS - 1
    assert serving().serving == "g1"
    assert pointing.looks == 1
    now[0] += 1
    pointing.may_look.clear()
    assert serving().serving == serving().serving == "g1", "it is looked at in the background"
    pointing.may_look.set()
    for _ in range(1000):
        if serving().serving == "g2":
            break
        threading.Event().wait(0.005)
    assert serving().serving == "g2"
    pointing.name = "g3"
    now[0] += 3_600_000
    assert serving().serving == "g3", "after a long silence the first who asks waits"


def test_what_the_pointer_said_last_holds_while_it_cannot_be_read_and_nothing_is_guessed_before() -> None:
    now = [1_000_000]
    pointing = Pointing()
    pointing.fails = True
    serving = Serving(pointing, lambda: now[0])
    with pytest.raises(Unavailable):
        serving()
    pointing.fails, pointing.name = False, "g2"
    assert serving().serving == "g2"
    pointing.fails = True
    now[0] += 3_600_000
    assert serving().serving == "g2"
    looks = pointing.looks
    assert serving().serving == "g2"
    assert pointing.looks == looks, "a failure is not asked for again by everybody"


@pytest.fixture
def stored():
    """Two generations: the first has one page view more of each of two sessions than the second."""
    with tables() as client:
        for generation, count in (("g1", 4), ("g2", 2)):
            consumer = Tables(scoped(client, NAMES, generation), NAMES, writers=1)
            events = [an_event(n, session_id=f"s{n % 2}", user_id="ada") for n in range(1, count + 1)]
            assert consume(a_batch(events), consumer).applied == count
        yield client


def app_over(client, serving, **settings):
    readers = []

    def reader_of(generation: str) -> Reader:
        readers.append(Reader(scoped(client, NAMES, generation), NAMES, clock=lambda: LATER))
        return readers[-1]

    return create_app(reader_of, ApiSettings(NAMES, **settings), lambda: LATER, serving=serving)


def test_every_kind_of_answer_is_of_the_served_generation_and_caches_turn_over(stored) -> None:
    generations = Generations(stored, NAMES)
    http = app_over(stored, generations.pointer).test_client()

    def told() -> tuple:
        answers = [
            http.get(path)
            for path in (
                SUMMARY,
                "/api/sessions/s1/?site=blog",
                "/api/sessions/s1/events/?site=blog",
                "/api/users/ada/sessions/?site=blog",
                "/api/sites/",
            )
        ]
        assert {answer.status_code for answer in answers} == {200}
        summary, session, events, user, sites = (answer.get_json() for answer in answers)
        (generation,) = {answer.headers["LiveInsight-Generation"] for answer in answers}
        assert sites == {"sites": ["blog"]}
        views = [one["page_views"] for one in user["results"]]
        return generation, summary["page_views"], session["page_views"], len(events), views

    first = ("g1", 4, 2, 2, [2, 2])
    second = ("g2", 2, 1, 1, [1, 1])
    assert told() == first
    assert told() == first
    generations.point(Pointer(), Pointer("g2", "g1", 1))
    assert told() == second, "though the answers of the first are still fresh"
    generations.point(Pointer("g2", "g1", 1), Pointer("g1", "g2", 2))
    assert told() == first


def test_a_client_may_keep_no_answer_for_longer_than_a_promotion_should_take(stored) -> None:
    http = app_over(stored, Pointer).test_client()
    answer = http.get(SUMMARY.replace("summary", "pages"))
    assert answer.headers["Cache-Control"] == "public, max-age=60"


def test_one_generation_can_be_looked_at_before_it_is_promoted() -> None:
    assert ApiSettings.from_environ({"LIVEINSIGHT_API_GENERATION": "g2"}).generation == "g2"
    with pytest.raises(ValueError, match="LIVEINSIGHT_API_GENERATION: 'new' is no generation, such as g2"):
        ApiSettings.from_environ({"LIVEINSIGHT_API_GENERATION": "new"})
