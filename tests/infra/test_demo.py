"""The demo traffic: events that the collector takes as they are, in the amount and at the time asked for."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise, takewhile
from typing import Any

import pytest

from infra.local.demo_visitors import EVENTS_PER_VISIT, Crowd, Request, bundle, traffic
from producer.event import BUILT_IN_TYPES, Event, Received, parse_request
from stream_consumer.acquisition import acquire
from stream_consumer.user_agent import recognise

START = 1_800_000_000_000
MINUTE = 60_000


def some(minutes: float, *, rate: float = 50.0, history: float = 0, seed: int = 1) -> list[Request]:
    """The traffic from ``history`` minutes before START to ``minutes`` after it."""
    endless = traffic(random.Random(seed), START, rate, int(history * MINUTE))
    return list(takewhile(lambda request: request.at < START + minutes * MINUTE, endless))


def events_of(requests: list[Request]) -> list[dict[str, Any]]:
    return [event for request in requests for event in request.events]


def by_session(requests: list[Request]) -> dict[str, list[dict[str, Any]]]:
    sessions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events_of(requests):
        sessions[event["session_id"]].append(event)
    return sessions


def test_the_collector_takes_every_event_and_keeps_its_time() -> None:
    for request in some(5):
        body = json.dumps({"events": request.events, "sent_at": request.at}).encode()
        received = Received(request.at, fresh_id=lambda: "made", sent_at=None)
        outcomes = parse_request(body, received)
        assert isinstance(outcomes, list)
        for given, taken in zip(request.events, outcomes, strict=True):
            assert isinstance(taken, Event), taken
            assert taken.timestamp == given["timestamp"] <= request.at
            assert taken.site_id == given.get("site_id", "default")


def test_the_same_seed_is_the_same_traffic_and_another_is_not() -> None:
    assert some(2, seed=7, history=5) == some(2, seed=7, history=5)
    assert some(2, seed=7) != some(2, seed=8)


def test_requests_come_in_the_order_of_their_time() -> None:
    times = [request.at for request in some(5, history=10)]
    assert times == sorted(times)
    assert times[0] >= START - 10 * MINUTE


def test_the_rate_is_about_the_one_asked_for() -> None:
    crowd = Crowd(random.Random(3))
    visits = 2_000
    events = sum(len(request.events) for _ in range(visits) for request in crowd.visit(START))
    assert events / visits == pytest.approx(EVENTS_PER_VISIT, rel=0.05)
    # After some minutes as many visits end as begin.
    steady = [event for event in events_of(some(25, rate=20)) if event["timestamp"] > START + 10 * MINUTE]
    assert len(steady) / (15 * 60) == pytest.approx(20, rel=0.15)


def test_the_past_is_there_at_the_start_with_visits_under_way() -> None:
    requests = some(10, history=40, rate=20)
    past = [event for event in events_of(requests) if event["timestamp"] <= START]
    per_ten_minutes = Counter((event["timestamp"] - START) // (10 * MINUTE) for event in past)
    assert set(per_ten_minutes) >= {-4, -3, -2, -1}
    assert per_ten_minutes[-4] < per_ten_minutes[-2] < per_ten_minutes[-1]
    assert len(past) < 0.5 * 40 * 60 * 20
    under_way = [
        events for events in by_session(requests).values() if events[0]["timestamp"] < START < events[-1]["timestamp"]
    ]
    assert len(under_way) > 20


def test_a_session_is_numbered_and_told_as_the_tracker_does() -> None:
    for events in by_session(some(30, rate=20)).values():
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert len({event["source"] for event in events}) == 1
        assert len({event["user_id"] for event in events}) == 1
        times = [event["timestamp"] for event in events]
        assert times == sorted(times)
        assert events[0]["event_type"] == "page_view"
        assert max((later - earlier for earlier, later in pairwise(times)), default=0) < 30 * MINUTE
        for event in events:
            if event["event_type"] == "page_view":
                assert event["title"]
                page = event["page_url"]
            assert event["page_url"] == page
    ids = [event["event_id"] for event in events_of(some(5))]
    assert len(set(ids)) == len(ids)


def test_the_traffic_is_lively() -> None:
    requests = some(60, rate=20)
    events = events_of(requests)
    sessions = by_session(requests)
    assert {event.get("site_id", "default") for event in events} == {"shop", "blog", "docs", "default"}
    assert {event["event_type"] for event in events} > BUILT_IN_TYPES
    landings = [acquire(some[0]["page_url"], some[0].get("referrer", "")) for some in sessions.values()]
    channels = {landing.channel for landing in landings}
    assert channels >= {"direct", "search", "social", "referral", "email", "paid", "ai"}
    assert len({landing.utm_campaign for landing in landings}) >= 4
    kinds = [Counter(event["event_type"] for event in some) for some in sessions.values()]
    passive = {"page_view", "heartbeat", "page_exit", "scroll"}
    bounces = sum(1 for counts in kinds if counts["page_view"] == 1 and counts.keys() <= passive)
    assert 0.25 < bounces / len(sessions) < 0.55
    worth = [event for event in events if event.get("conversion_value")]
    assert worth
    assert {event["conversion_currency"] for event in worth} == {"EUR", "USD"}
    views = Counter(
        event["page_url"].partition("?")[0]
        for event in events
        if event["event_type"] == "page_view" and event.get("site_id") == "shop"
    )
    ranked = [count for _, count in views.most_common()]
    assert ranked[0] > 5 * ranked[10] > 0
    lengths = sorted(some[-1]["timestamp"] - some[0]["timestamp"] for some in sessions.values())
    assert lengths[len(lengths) // 10] < 10_000
    assert lengths[-len(lengths) // 20] > 2 * MINUTE
    agents = {request.headers["User-Agent"] for request in requests}
    recognised = [recognise(agent) for agent in agents]
    assert len({agent.browser for agent in recognised}) >= 4
    assert len({agent.device for agent in recognised}) >= 2
    assert len({request.headers["CloudFront-Viewer-Country"] for request in requests}) >= 8
    users = Counter(some[0]["user_id"] for some in sessions.values())
    assert users.most_common(1)[0][1] > 1


def test_bundles_hold_the_same_events_each_with_its_browser_and_of_one_country() -> None:
    requests = some(3)
    bundles = bundle(requests, 50)
    assert len(bundles) < len(requests) / 5
    browser = {event["event_id"]: request.headers["User-Agent"] for request in requests for event in request.events}
    country = {
        event["event_id"]: request.headers["CloudFront-Viewer-Country"]
        for request in requests
        for event in request.events
    }
    sent = events_of(bundles)
    assert Counter(event["event_id"] for event in sent) == Counter(browser.keys())
    assert all(event["user_agent"] == browser[event["event_id"]] for event in sent)
    for one in bundles:
        assert {country[event["event_id"]] for event in one.events} == {one.headers["CloudFront-Viewer-Country"]}


class Collector(ThreadingHTTPServer):
    """Refuses the first requests, then takes all."""

    daemon_threads = True

    def __init__(self, refuse: int) -> None:
        self.refuse = refuse
        self.bodies: list[tuple[dict[str, Any], str]] = []
        self.mutex = threading.Lock()
        super().__init__(("127.0.0.1", 0), Taking)


class Taking(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.mutex:
            self.server.refuse -= 1
            refused = self.server.refuse >= 0
            if not refused:
                self.server.bodies.append((body, self.headers["User-Agent"]))
        self.send_response(503 if refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector(refuse=3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_what_is_refused_is_sent_again_and_a_signal_ends_it(collector: Collector) -> None:
    url = f"http://127.0.0.1:{collector.server_port}/events"
    command = [sys.executable, "-m", "infra.local.demo", "--url", url, "--rate", "200", "--history", "2", "--seed", "1"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(collector.bodies) < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    now = time.time() * 1000
    events = [event for body, _ in collector.bodies for event in body["events"]]
    assert len(collector.bodies) >= 60
    assert len({event["event_id"] for event in events}) == len(events)
    assert all(event["timestamp"] <= body["sent_at"] <= now for body, _ in collector.bodies for event in body["events"])
    assert len({agent for _, agent in collector.bodies}) > 3
    assert max(event["timestamp"] for event in events) > now - 20_000
