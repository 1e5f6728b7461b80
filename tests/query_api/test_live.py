"""Streams of a changing answer: what a client is sent, and when it ends."""

import threading
import time
from types import SimpleNamespace

import pytest

from query_api.live import Live, TooManyStreams
from stream_consumer.table import Unavailable


class Changing:
    """Answers that a test changes; counts who asked, and from which thread."""

    def __init__(self) -> None:
        self.state = 1
        self.failure = None
        self.asked = []

    def __call__(self, site_id):
        self.asked.append((site_id, threading.current_thread().name))
        if self.failure:
            raise self.failure
        body = b'{"site":"%s","state":%d}' % (site_id.encode(), self.state)
        return SimpleNamespace(value=SimpleNamespace(body=body, etag=f"tag-{self.state}"))


@pytest.fixture
def answer():
    return Changing()


@pytest.fixture
def begin(answer):
    """Makes a Live of fast times."""
    made = []

    def begin(most=10, **times):
        made.append(Live(answer, most, **{"period": 0.01, "beat": 60.0, "lifetime": 60.0, **times}))
        return made[-1]

    yield begin
    for live in made:
        live.close()


def event(site, state):
    return b'event: realtime\nid: tag-%d\ndata: {"site":"%s","state":%d}\n\n' % (state, site.encode(), state)


def eventually(holds, seconds=10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def watchers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("live ")]


def received(stream, seconds):
    """All that can be taken within some time."""
    deadline, chunks = time.monotonic() + seconds, b""
    while time.monotonic() < deadline:
        chunks += stream.take()
        time.sleep(0.002)
    return chunks


def test_a_stream_begins_with_how_to_come_back_and_the_newest_answer(begin) -> None:
    stream = begin().stream("blog")
    sent = next(stream)
    while b"data" not in sent:
        sent += next(stream)
    assert sent == b"retry: 3000\n\n" + event("blog", 1)


def test_it_sends_what_changed_and_nothing_else(begin, answer) -> None:
    stream = begin().stream("blog")
    eventually(lambda: len(answer.asked) > 2)
    stream.take()
    looks = len(answer.asked)
    eventually(lambda: len(answer.asked) > looks + 5)
    assert stream.take() == b""
    answer.state = 2
    assert next(stream) == event("blog", 2)


def test_each_site_has_its_own_answers(begin, answer) -> None:
    live = begin()
    blog, shop = live.stream("blog"), live.stream("shop")
    for stream, site in ((blog, "blog"), (shop, "shop")):
        assert received(stream, 0.2).endswith(event(site, 1))
    assert {site for site, _ in answer.asked} == {"blog", "shop"}


def test_many_clients_cost_one_look_a_period(begin, answer) -> None:
    live = begin(100, period=0.05)
    streams = [live.stream("blog") for _ in range(100)]
    eventually(lambda: len(answer.asked) >= 2)
    began, looks = time.monotonic(), len(answer.asked)
    answer.state = 2
    for stream in streams:
        eventually(lambda stream=stream: event("blog", 2) in stream.take())
    time.sleep(0.3)
    assert len(answer.asked) - looks <= (time.monotonic() - began) / 0.05 + 1
    assert len(watchers()) == 1


def test_who_comes_later_gets_the_newest_answer_without_a_look(begin, answer) -> None:
    live = begin(period=30)
    first = live.stream("blog")
    eventually(lambda: b"data" in first.take())
    assert live.stream("blog").take() == b"retry: 3000\n\n" + event("blog", 1)
    assert len(answer.asked) == 1


def test_a_slow_client_gets_the_newest_value_alone_and_holds_up_nobody(begin, answer) -> None:
    live = begin()
    slow, fast = live.stream("blog"), live.stream("blog")
    for state in range(2, 6):
        answer.state = state
        eventually(lambda state=state: fast.take().endswith(event("blog", state)))
    assert slow.take() == b"retry: 3000\n\n" + event("blog", 5)


def test_a_quiet_stream_sends_comments(begin) -> None:
    stream = begin(beat=0.1).stream("blog")
    sent = received(stream, 0.65)
    assert sent.startswith(b"retry: 3000\n\n" + event("blog", 1) + b":\n\n")
    assert 3 <= sent.count(b"\n\n:\n\n") + sent.count(b":\n\n:\n\n") <= 7


@pytest.mark.parametrize("failure", [Unavailable("DynamoDB cannot be reached"), KeyError("a fault of ours")])
def test_an_answer_that_cannot_be_had_ends_nothing(begin, answer, failure) -> None:
    answer.failure = failure
    stream = begin().stream("blog")
    eventually(lambda: len(answer.asked) > 2)
    assert stream.take() == b"retry: 3000\n\n"
    answer.failure = None
    assert next(stream) == event("blog", 1)
    answer.failure = failure
    looks = len(answer.asked)
    eventually(lambda: len(answer.asked) > looks + 2)
    answer.failure, answer.state = None, 2
    assert next(stream) == event("blog", 2)


def test_one_stream_too_many_is_refused_at_once_and_a_closed_one_makes_room(begin) -> None:
    live = begin(2)
    first, _ = live.stream("blog"), live.stream("shop")
    with pytest.raises(TooManyStreams, match="2 streams are open"):
        live.stream("blog")
    first.close()
    first.close()
    live.stream("blog")
    with pytest.raises(TooManyStreams):
        live.stream("blog")


def test_a_place_is_free_again_after_a_stream_that_nobody_read(begin) -> None:
    live = begin(1)
    live.stream("blog").close()
    live.stream("blog")


def test_with_none_allowed_there_are_none(begin, answer) -> None:
    with pytest.raises(TooManyStreams):
        begin(0).stream("blog")
    assert answer.asked == []


def test_a_stream_ends_after_its_lifetime_and_its_place_is_free(begin, answer) -> None:
    live = begin(1, lifetime=0.2, spread=lambda least, most: most)
    began = time.monotonic()
    assert b"".join(live.stream("blog")).startswith(b"retry: 3000\n\n")
    assert 0.2 * 1.2 <= time.monotonic() - began < 5
    live.stream("blog")


def test_lifetimes_differ(begin) -> None:
    asked = []
    live = begin(spread=lambda least, most: asked.append((least, most)) or 1.0)
    live.stream("blog")
    assert asked == [(0.8, 1.2)]


def test_a_client_that_reads_nothing_is_over_after_its_lifetime_too(begin) -> None:
    stream = begin(lifetime=0.05).stream("blog")
    eventually(lambda: stream.over)


def test_nobody_looks_where_nobody_watches(begin, answer) -> None:
    live = begin()
    live.stream("blog").close()
    eventually(lambda: not watchers())
    looks = len(answer.asked)
    time.sleep(0.1)
    assert len(answer.asked) == looks
    assert b"data" in received(live.stream("blog"), 0.2)


def test_close_ends_all_who_wait_and_all_who_look(begin) -> None:
    live = begin(beat=60)
    sent = []
    readers = [threading.Thread(target=lambda: sent.append(b"".join(live.stream("blog")))) for _ in range(5)]
    for reader in readers:
        reader.start()
    eventually(lambda: len(watchers()) == 1)
    time.sleep(0.1)
    live.close()
    for reader in readers:
        reader.join(10)
    assert sent == [b"retry: 3000\n\n" + event("blog", 1)] * 5
    eventually(lambda: not watchers())
    with pytest.raises(TooManyStreams, match="stopping"):
        live.stream("blog")


def test_a_reader_that_does_not_wait_is_told_when_there_is_something(begin, answer) -> None:
    live = begin()
    stream = live.stream("blog")
    told = threading.Event()
    stream.when_ready(told.set)
    assert told.is_set()
    eventually(lambda: b"data" in stream.take())
    told.clear()
    assert not told.wait(0.1)
    answer.state = 2
    assert told.wait(10)
    assert stream.take() == event("blog", 2)
    told.clear()
    live.close()
    assert told.wait(10)
    assert stream.over
