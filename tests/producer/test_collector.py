"""The collector through its HTTP doors, with a producer whose deliveries the test decides.

Each test goes through both: Flask's WSGI, and what ``python -m producer collector`` serves, granian's RSGI.
"""

import asyncio
import functools
import gzip
import http.client
import io
import itertools
import json
import logging
import socket
import threading
import time
import zlib

import pytest
from granian.constants import Interfaces
from granian.server.embed import Server
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse, create_environ, run_wsgi_app

from producer import collector, erasure, posts
from producer.client import BufferFull, DeliveryFailed, ProducerClosed
from producer.collector import CollectorSettings, create_app
from producer.collector_gateway import CollectorGateway
from producer.event import Reason, encode
from producer.posts import MAX_BODY_BYTES, MAX_DROPPED_BYTES, MAX_EVENTS, Refusal
from tests.free_ports import free_ports

NOW = 1_795_000_000_000


class FakeReceipt:
    """Settled once the producer is told to ``acknowledge``."""

    def __init__(self, producer):
        self.producer = producer

    def wait(self, timeout):
        if timeout:
            self.producer.waiting.release()
        if not self.producer.acknowledge.wait(timeout):
            raise TimeoutError
        if self.producer.failure:
            raise self.producer.failure

    def when_settled(self, call):
        def wait():
            if self.producer.acknowledge.wait(20):
                call()

        threading.Thread(target=wait, daemon=True).start()
        self.producer.waiting.release()


class FakeProducer:
    """EventProducer's interface; ``full`` and ``failure`` decide what becomes of the events."""

    def __init__(self):
        self.events = []
        self.sent = 0
        self.full = None
        self.failure = None
        self.closing = False
        self.acknowledge = threading.Event()
        self.acknowledge.set()
        self.waiting = threading.Semaphore(0)

    def send_many(self, events):
        if self.full:
            raise self.full
        self.events += events
        self.sent += 1
        return FakeReceipt(self)

    def stats(self):
        return {"buffered_bytes": 0}


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


class Granian:
    """A server in this process, for as many collectors as there are: a header names the one that is meant."""

    def __init__(self):
        self.gateways = {}
        [self.port] = free_ports(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "no server"
                time.sleep(0.01)
            else:
                return

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._server = Server(
            self._answer, port=self.port, interface=Interfaces.RSGI, log_enabled=False, backpressure=1024
        )
        self._loop.run_until_complete(self._server.serve())

    async def _answer(self, scope, protocol):
        await self.gateways[scope.headers.get("x-collector")](scope, protocol)

    def add(self, app):
        name = str(len(self.gateways))
        self.gateways[name] = CollectorGateway(app, 1)
        return name

    def stop(self):
        self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(20)


@pytest.fixture(scope="module", autouse=True, params=["flask", "granian"])
def front(request):
    if request.param == "flask":
        yield request.param
        return
    Door.server = Granian()
    yield request.param
    Door.server.stop()
    Door.server = None


class Door:
    """One collector: ``post`` and ``get`` speak HTTP with it."""

    server = None

    def __init__(self, settings=None, clock=None):
        numbers = itertools.count(1)
        self.producer = FakeProducer()
        self.clock = clock or Clock()
        self.app = create_app(
            self.producer, settings or CollectorSettings(), clock=self.clock, fresh_id=lambda: f"made-{next(numbers)}"
        )

        self.name = self.server and self.server.add(self.app)

    def open(self, method, path, data=b"", headers=(), content_type=None, address="127.0.0.1"):
        headers = dict(headers) if content_type is None else {**dict(headers), "Content-Type": content_type}
        if not self.server:
            there = {"REMOTE_ADDR": address}
            return self.app.test_client().open(path, method=method, data=data, headers=headers, environ_base=there)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            encoded = {name: value.encode() for name, value in headers.items()}
            connection.request(method, path, data, {**encoded, "X-Collector": self.name})
            return answer_of(connection.getresponse())
        finally:
            connection.close()

    def post(self, body, **request):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.open("POST", "/events", data, **request)

    def post_parts(self, parts, length=None):
        """A body in pieces, that ends where they do, whatever ``length`` was announced; chunked without one."""
        if not self.server:
            told = {"HTTP_TRANSFER_ENCODING": "chunked"} if length is None else {"CONTENT_LENGTH": str(length)}
            return post_stream(self, io.BytesIO(b"".join(parts)), **told)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            told = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
            connection.request(
                "POST", "/events", iter(parts), {**told, "X-Collector": self.name}, encode_chunked=length is None
            )
            if length is not None and sum(map(len, parts)) < length:
                connection.sock.shutdown(socket.SHUT_WR)
            return answer_of(connection.getresponse())
        finally:
            connection.close()

    def get(self, path, **request):
        return self.open("GET", path, **request)

    def options(self, origin):
        return self.open("OPTIONS", "/events", headers={"Origin": origin} if origin else {})

    def health(self):
        return self.get("/health").get_json()


def answer_of(response):
    """As Flask's client has it."""
    return TestResponse([response.read()], f"{response.status} {response.reason}", response.getheaders(), request=None)


def view(**fields):
    return {"event_type": "page_view", "event_id": "e", "session_id": "s", "site_id": "shop", **fields}


# -- taking events ----------------------------------------------------------------------------------


def test_one_event_is_put_on_the_stream_and_answered_with_its_ids():
    door = Door()
    answer = door.post(view(page_url="/a"))
    assert answer.status_code == 200
    assert answer.get_json() == {"message": "Event accepted", "event_id": "e", "session_id": "s"}
    [event] = door.producer.events
    assert (event.page_url, event.timestamp, event.received_at) == ("/a", NOW, NOW)


def test_nobody_can_erase_through_the_collector():
    erase = {"erase": {"site_id": "shop", "session_id": "s", "erased_at": NOW}}
    door = Door()
    assert door.post(erase).status_code == 400
    assert door.post({**erase, **view()}).status_code == 200
    assert door.post([erase, {**erase, "event_type": "click"}]).get_json()["accepted"] == 1
    assert [event.event_type for event in door.producer.events] == ["page_view", "click"]
    assert [erasure.decode(encode(event)) for event in door.producer.events] == [None, None]


def test_ids_that_are_missing_are_made_and_returned():
    answer = Door().post({"event_type": "page_view"}).get_json()
    assert (answer["event_id"], answer["session_id"]) == ("made-1", "made-2")


def test_ids_are_random_unless_the_maker_says_otherwise():
    app = create_app(FakeProducer(), CollectorSettings())
    answers = [app.test_client().post("/events", data=b'{"event_type": "x"}').get_json() for _ in range(20)]
    ids = {answer[name] for answer in answers for name in ("event_id", "session_id")}
    assert len(ids) == 40
    assert all(len(made) == 32 and int(made, 16) for made in ids)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain;charset=UTF-8", "image/png", ""])
def test_the_body_is_json_whatever_its_content_type_says(content_type):
    assert Door().post(view(), content_type=content_type).status_code == 200


def test_a_form_is_not_read_as_a_form():
    answer = Door().post(b"event_type=page_view", content_type="application/x-www-form-urlencoded")
    assert (answer.status_code, answer.get_json()["reason"]) == (400, Reason.NOT_JSON)


@pytest.mark.parametrize("wrap", [lambda events: events, lambda events: {"events": events}])
def test_several_events_are_answered_with_counts_and_ids(wrap):
    door = Door()
    answer = door.post(wrap([view(), {}, {"event_type": "click"}, 5, view(site_id="a b")]))
    assert answer.status_code == 200
    told = answer.get_json()
    assert [(refused["index"], refused["reason"]) for refused in told.pop("rejected")] == [
        (1, Reason.MISSING_FIELD),
        (3, Reason.NOT_AN_OBJECT),
        (4, Reason.BAD_IDENTIFIER),
    ]
    assert told == {
        "message": "2 of 5 events accepted",
        "accepted": 2,
        "events": [
            {"index": 0, "event_id": "e", "session_id": "s"},
            {"index": 2, "event_id": "made-1", "session_id": "made-2"},
        ],
    }
    assert [event.event_type for event in door.producer.events] == ["page_view", "click"]


def test_the_form_of_the_answer_follows_the_form_of_the_request_not_the_number_of_events():
    for body in ([view()], {"events": [view()]}):
        assert Door().post(body).get_json()["accepted"] == 1
    assert "accepted" not in Door().post(view(title='has "events" in it')).get_json()


@pytest.mark.parametrize("body", [[{}, 1], {"events": [{}]}, [], {"events": []}])
def test_a_batch_of_which_nothing_is_accepted_was_read_all_the_same(body):
    door = Door()
    answer = door.post(body)
    assert (answer.status_code, answer.get_json()["accepted"]) == (200, 0)
    assert door.producer.sent == 0, "there is nothing to wait for"


def test_sent_at_corrects_the_senders_clock():
    door = Door()
    door.post({"sent_at": 5_000, "events": [view(timestamp=2_000)]})
    assert door.producer.events[0].timestamp == NOW - 3_000


# -- refusing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.NOT_JSON),
        (b"nonsense", Reason.NOT_JSON),
        (b"5", Reason.NOT_AN_OBJECT),
        (b"\xff", Reason.NOT_UTF8),
        (b"{}", Reason.MISSING_FIELD),
        (b'[{"event_type": "x"}', Reason.NOT_JSON),
        (b'{"events": 5}', Reason.WRONG_TYPE),
        (b'{"event_type": "x", "conversion_value": NaN}', Reason.NOT_FINITE),
        (b"[" * 100_000, Reason.TOO_DEEP),
    ],
)
def test_what_cannot_be_read_is_a_400_with_its_reason(body, reason):
    door = Door()
    answer = door.post(body)
    assert answer.status_code == 400
    told = answer.get_json()
    assert told.keys() == {"error", "reason"}
    assert told["reason"] == reason
    assert door.health()["rejected"] == {reason: 1}
    assert door.producer.events == []


def test_a_body_may_have_a_mebibyte_and_not_a_byte_more():
    door = Door()
    assert door.post(b"[]".ljust(MAX_BODY_BYTES)).status_code == 200
    answer = door.post(b"[]".ljust(MAX_BODY_BYTES + 1))
    assert (answer.status_code, answer.get_json()["reason"]) == (413, Refusal.BODY_TOO_LARGE)


def flask_only(front):
    if front != "flask":
        pytest.skip("of Flask's own reading")


def post_stream(door, stream, **environ):
    """As the server does it: the stream ends where the body does, whatever length was announced."""
    environ = {
        **create_environ("/events", method="POST"),
        "wsgi.input": stream,
        "wsgi.input_terminated": True,
        **environ,
    }
    return TestResponse(*run_wsgi_app(door.app, environ), request=None)


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY_BYTES, 200), (MAX_BODY_BYTES + 1, 413)])
def test_a_body_of_unknown_length_is_bounded_too(size, status):
    body = b"[]".ljust(size)
    assert Door().post_parts([body[:100_000], body[100_000:]]).status_code == status


@pytest.mark.parametrize("told", [True, False])
def test_who_sends_too_much_sees_the_answer_and_not_a_closed_connection(told):
    parts = [bytes(MAX_BODY_BYTES)] * 8
    answer = Door().post_parts(parts, len(b"".join(parts)) if told else None)
    assert (answer.status_code, answer.get_json()["reason"]) == (413, Refusal.BODY_TOO_LARGE)


@pytest.mark.parametrize(("size", "read"), [(MAX_BODY_BYTES + 1, MAX_BODY_BYTES + 1), (2**30, MAX_DROPPED_BYTES)])
def test_a_body_that_is_too_large_is_read_on_within_reason_so_that_its_sender_sees_the_answer(front, size, read):
    flask_only(front)

    class Body(io.RawIOBase):
        count = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            got = min(len(buffer), size - self.count)
            self.count += got
            return got

    stream = Body()
    answer = post_stream(Door(), stream, CONTENT_LENGTH=str(size))
    assert (answer.status_code, stream.count) == (413, read)


@pytest.mark.parametrize("length", [3, 100_000], ids=["short", "long"])
def test_a_body_that_ends_early_is_refused(length):
    answer = Door().post_parts([b"[]"], length)
    assert (answer.status_code, answer.get_json()["reason"]) == (400, Refusal.BODY_INCOMPLETE)


def test_a_request_has_at_most_so_many_events():
    door = Door()
    assert door.post(b"[" + b",".join([b"1"] * MAX_EVENTS) + b"]").status_code == 200
    answer = door.post(b"[" + b",".join([b"1"] * (MAX_EVENTS + 1)) + b"]")
    assert (answer.status_code, answer.get_json()["reason"]) == (413, Refusal.TOO_MANY_EVENTS)


def gzipped(door, data, encoding="gzip"):
    return door.post(data, headers={"Content-Encoding": encoding})


def test_a_gzip_body_is_unpacked():
    door = Door()
    packed = gzip.compress(json.dumps([view(), view(event_id="f")]).encode())
    for encoding in ("gzip", "x-gzip", "GZip"):
        assert gzipped(door, packed, encoding).get_json()["accepted"] == 2
    assert gzipped(door, b"[]", "identity").status_code == 200


@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
def test_the_limit_holds_for_what_gzip_unpacks_to(size):
    answer = gzipped(Door(), gzip.compress(b"[]".ljust(size)))
    assert answer.status_code == (200 if size == MAX_BODY_BYTES else 413)


@functools.cache
def bomb():
    return gzip.compress(bytes(200 * MAX_BODY_BYTES), 1)


def test_a_gzip_bomb_is_not_unpacked_beyond_the_limit(monkeypatch):
    unpacked = []

    class Watched:
        def __init__(self, *args, **kwargs):
            self.inner = real(*args, **kwargs)

        def decompress(self, data, limit):
            out = self.inner.decompress(data, limit)
            unpacked.append(len(out))
            return out

        def __getattr__(self, name):
            return getattr(self.inner, name)

    real = zlib.decompressobj
    monkeypatch.setattr(posts.zlib, "decompressobj", Watched)
    answer = gzipped(Door(), bomb())
    assert answer.status_code == 413
    assert unpacked == [MAX_BODY_BYTES + 1]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        gzip.compress(b"[]")[:-1],
        gzip.compress(b"[]") + b"x",
        gzip.compress(b"[]")[:-8] + bytes(8),
        zlib.compress(b"[]"),
    ],
    ids=["empty", "not gzip", "cut", "more behind it", "bad checksum", "zlib"],
)
def test_broken_gzip_is_a_400(data):
    answer = gzipped(Door(), data)
    assert (answer.status_code, answer.get_json()["reason"]) == (400, Refusal.BAD_GZIP)


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip"])
def test_other_encodings_are_a_415(encoding):
    answer = gzipped(Door(), b"[]", encoding)
    assert (answer.status_code, answer.get_json()["reason"]) == (415, Refusal.UNSUPPORTED_ENCODING)


@functools.cache
def any_door(front):
    return Door()


def test_a_header_that_comes_twice_counts_as_one_with_both():
    door = Door()
    if door.server:
        connection = http.client.HTTPConnection("127.0.0.1", door.server.port, timeout=20)
        connection.putrequest("POST", "/events")
        for name, value in [("Content-Encoding", "gzip"), ("Content-Encoding", "gzip"), ("X-Collector", door.name)]:
            connection.putheader(name, value)
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"[]")
        answer = answer_of(connection.getresponse())
        connection.close()
    else:
        answer = door.post(b"[]", headers={"Content-Encoding": "gzip,gzip"})
    assert (answer.status_code, answer.get_json()["reason"]) == (415, Refusal.UNSUPPORTED_ENCODING)


@given(st.binary(max_size=80))
def test_any_body_gets_an_answer_in_json(front, body):
    answer = any_door(front).post(body)
    assert answer.status_code in {200, 400}
    assert answer.is_json


# -- waiting for Kinesis ----------------------------------------------------------------------------


def in_background(call):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    return thread, answers


def test_the_answer_waits_for_the_acknowledgement_so_long_and_no_longer():
    door = Door(CollectorSettings(answer_within=0.3))
    door.producer.acknowledge.clear()
    began = time.monotonic()
    answer = door.post(view())
    assert (answer.status_code, answer.get_json()["reason"]) == (503, "not_in_time")
    assert time.monotonic() - began >= 0.29
    assert door.health()["waiting"] == 0


def test_the_answer_waits_for_the_acknowledgement():
    door = Door()
    door.producer.acknowledge.clear()
    thread, answers = in_background(lambda: door.post(view()))
    assert door.producer.waiting.acquire(timeout=5)
    thread.join(0.1)
    assert answers == []
    assert door.health()["waiting"] == 1
    door.producer.acknowledge.set()
    thread.join(5)
    assert answers[0].status_code == 200
    assert (door.health()["waiting"], door.health()["accepted"]) == (0, 1)


@pytest.mark.parametrize(
    ("attribute", "error", "reason"),
    [
        ("full", BufferFull("16 MiB wait"), "buffer_full"),
        ("full", ProducerClosed("closed"), "closing"),
        ("failure", DeliveryFailed("no such stream"), "delivery_failed"),
        ("failure", TimeoutError(), "not_in_time"),
    ],
)
@pytest.mark.parametrize("body", [view(), [view(), {}]])
def test_what_kinesis_does_not_take_is_a_503_with_retry_after(attribute, error, reason, body):
    door = Door()
    setattr(door.producer, attribute, error)
    answer = door.post(body)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.get_json()["reason"] == reason
    assert answer.get_json()["error"]
    assert door.health()["unavailable"] == {reason: 1}
    assert door.health()["accepted"] == 0
    setattr(door.producer, attribute, None)
    assert door.post(body).status_code == 200


def test_no_more_requests_wait_than_may():
    door = Door(CollectorSettings(max_waiting=2))
    door.producer.acknowledge.clear()
    threads = [in_background(lambda: door.post(view())) for _ in range(2)]
    for _ in threads:
        assert door.producer.waiting.acquire(timeout=5)
    answer = door.post(view())
    assert (answer.status_code, answer.get_json()["reason"]) == (503, "busy")
    assert len(door.producer.events) == 2, "what is refused is not put on the stream"
    door.producer.acknowledge.set()
    for thread, answers in threads:
        thread.join(5)
        assert answers[0].status_code == 200
    assert door.post(view()).status_code == 200


def test_no_more_answers_wait_than_memory_allows(monkeypatch):
    """A batch of which nearly nothing is accepted needs little of the producer's buffer, but its answer is long."""
    monkeypatch.setattr(collector, "MAX_WAITING_ANSWERS", 50_000)
    door = Door()
    door.producer.acknowledge.clear()
    batch = [view(), *[{}] * 400]
    thread, answers = in_background(lambda: door.post(batch))
    assert door.producer.waiting.acquire(timeout=5)
    answer = door.post(batch)
    assert (answer.status_code, answer.get_json()["reason"]) == (503, "busy")
    other, others = in_background(lambda: door.post(view()))
    assert door.producer.waiting.acquire(timeout=5)
    door.producer.acknowledge.set()
    thread.join(5)
    other.join(5)
    assert [done.status_code for done in answers + others] == [200, 200]
    assert door.post(batch).status_code == 200


def test_while_the_stream_fails_only_a_few_requests_try_it():
    door = Door()
    door.producer.failure = DeliveryFailed("down")
    door.post(view())
    door.producer.waiting = threading.Semaphore(0)
    door.producer.acknowledge.clear()
    threads = [in_background(lambda: door.post(view())) for _ in range(collector.PROBES)]
    for _ in threads:
        assert door.producer.waiting.acquire(timeout=5)
    assert door.post(view()).get_json()["reason"] == "busy"
    door.producer.failure = None
    door.producer.acknowledge.set()
    for thread, answers in threads:
        thread.join(5)
        assert answers[0].status_code == 200
    assert door.health()["status"] == "ok"


def test_an_error_of_our_own_leaves_nobody_waiting():
    door = Door()
    door.producer.full = RuntimeError("a bug")
    answer = door.post(view())
    assert (answer.status_code, answer.get_json()) == (500, {"error": "internal error"})
    assert door.health()["waiting"] == 0


# -- what the request's headers say -----------------------------------------------------------------

HEADERS = {
    "User-Agent": "Firefox",
    "Accept-Language": "de-AT,de;q=0.9,en;q=0.8",
    "CloudFront-Viewer-Country": "AT",
    "X-Forwarded-For": "203.0.113.77",
}


def facts_of(settings=None, headers=HEADERS, **fields):
    door = Door(settings)
    assert door.post(view(**fields), headers=headers, address="198.51.100.88").status_code == 200
    [event] = door.producer.events
    return event


def test_headers_tell_what_the_event_does_not():
    event = facts_of()
    assert (event.user_agent, event.language) == ("Firefox", "de-AT")
    event = facts_of(user_agent="App/2", language="fr")
    assert (event.user_agent, event.language) == ("App/2", "fr")


def test_the_country_is_taken_only_from_an_edge_that_is_trusted():
    assert facts_of().country == ""
    trusting = CollectorSettings(trust_edge_headers=True)
    assert facts_of(trusting).country == "AT"
    for strange in ("at", "AUT", "A", "", "A\u0391"):
        assert facts_of(trusting, {"CloudFront-Viewer-Country": strange}).country == ""


@pytest.mark.parametrize(
    ("header", "language"),
    [("en", "en"), ("en;q=0.5", "en"), (" sr-Latn-RS , en", "sr-Latn-RS"), ("*", ""), ("", ""), ("<x>", "")],
)
def test_the_language_is_the_first_tag(header, language):
    assert facts_of(headers={"Accept-Language": header}).language == language


def test_a_user_agent_that_is_no_ascii(front):
    flask_only(front)  # granian leaves such a header out
    assert facts_of(headers={"User-Agent": "Zoë".encode().decode("latin-1")}).user_agent == "Zoë"


def test_a_user_agent_is_cut():
    assert facts_of(headers={"User-Agent": "x" * 600}).user_agent == "x" * 512


def test_the_clients_address_is_not_kept(caplog):
    with caplog.at_level(logging.DEBUG):
        event = facts_of(CollectorSettings(trust_edge_headers=True))
        Door().post(b"nonsense", address="198.51.100.88", headers=HEADERS)
    for address in (b"203.0.113.77", b"198.51.100.88"):
        assert address not in encode(event)
        assert address.decode() not in caplog.text


# -- other origins ----------------------------------------------------------------------------------

LISTED = CollectorSettings(allowed_origins=("https://shop.example", "https://blog.example:8443"))


def test_by_default_any_page_may_send():
    answer = Door().options("https://anyone.example")
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "Content-Type" in answer.headers["Access-Control-Allow-Headers"]
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Access-Control-Allow-Credentials" not in answer.headers
    posted = Door().post(view(), headers={"Origin": "https://anyone.example"})
    assert posted.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("origin", ["https://shop.example", "https://blog.example:8443"])
def test_a_listed_origin_may_send(origin):
    preflight = Door(LISTED).options(origin)
    assert (preflight.status_code, preflight.headers["Access-Control-Allow-Origin"]) == (204, origin)
    posted = Door(LISTED).post(view(), headers={"Origin": origin})
    assert (posted.status_code, posted.headers["Access-Control-Allow-Origin"]) == (200, origin)
    assert posted.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin", ["https://other.example", "http://shop.example", "https://shop.example.evil.example", "null"]
)
def test_an_origin_that_is_not_listed_may_not_send(origin):
    door = Door(LISTED)
    preflight = door.options(origin)
    assert preflight.status_code == 403
    assert "Access-Control-Allow-Origin" not in preflight.headers
    posted = door.post(view(), headers={"Origin": origin})
    assert (posted.status_code, posted.get_json()["reason"]) == (403, Refusal.ORIGIN_NOT_ALLOWED)
    assert "Access-Control-Allow-Origin" not in posted.headers
    assert door.producer.events == []


def test_servers_and_the_collectors_own_pages_may_send_whatever_is_listed():
    assert Door(LISTED).post(view()).status_code == 200
    own = {"Origin": "https://collect.example", "Host": "collect.example"}
    assert Door(LISTED).post(view(), headers=own).status_code == 200


def test_a_page_can_read_errors_too():
    for body in (b"nonsense", b" " * (MAX_BODY_BYTES + 1)):
        assert Door().post(body).headers["Access-Control-Allow-Origin"] == "*"
    door = Door()
    door.producer.full = BufferFull("full")
    answer = door.post(view())
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"


# -- the other paths --------------------------------------------------------------------------------


def test_health_tells_the_counters():
    door = Door()
    door.post([view(), view(), {}])
    answer = door.get("/health")
    assert answer.status_code == 200
    assert answer.get_json() == {
        "status": "ok",
        "buffered_bytes": 0,
        "accepted": 2,
        "waiting": 0,
        "rejected": {Reason.MISSING_FIELD: 1},
        "unavailable": {},
    }


def test_health_is_bad_after_a_failed_delivery_until_one_succeeds():
    door = Door()
    door.producer.failure = DeliveryFailed("down")
    door.post(view())
    answer = door.get("/health")
    assert (answer.status_code, answer.get_json()["status"]) == (503, "stream_unreachable")
    door.producer.failure = None
    door.post(view())
    assert door.get("/health").status_code == 200


def test_health_recovers_by_itself_since_nobody_asks_a_collector_that_is_taken_out():
    door = Door()
    door.producer.failure = DeliveryFailed("down")
    door.post(view())
    door.clock.now += collector.UNHEALTHY_SECONDS * 1000 - 1
    assert door.get("/health").status_code == 503
    door.clock.now += 1
    assert door.get("/health").status_code == 200


def test_a_full_buffer_is_no_reason_to_take_the_collector_out():
    door = Door()
    door.producer.full = BufferFull("full")
    door.post(view())
    assert door.get("/health").status_code == 200


def test_health_is_bad_when_the_producer_closes():
    door = Door()
    door.producer.closing = True
    answer = door.get("/health")
    assert (answer.status_code, answer.get_json()["status"]) == (503, "closing")


def test_the_tracker_is_served_for_caches(tmp_path, monkeypatch):
    script = tmp_path / "liveinsight.js"
    script.write_text("// Zoë")
    monkeypatch.setattr(collector, "TRACKER", script)
    door = Door(LISTED)
    answer = door.get("/liveinsight.js")
    assert (answer.status_code, answer.data) == (200, "// Zoë".encode())
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert answer.headers["Cache-Control"] == "public, max-age=3600"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    again = door.get("/liveinsight.js", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    script.write_text("// changed")
    changed = door.get("/liveinsight.js", headers={"If-None-Match": answer.headers["ETag"]})
    assert (changed.status_code, changed.data) == (200, b"// changed")


def test_a_tracker_that_is_not_there_is_a_404(tmp_path, monkeypatch):
    monkeypatch.setattr(collector, "TRACKER", tmp_path / "none.js")
    assert Door().get("/liveinsight.js").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/nowhere", 404),
        ("GET", "/static/x.js", 404),
        ("GET", "/events/", 404),
        ("GET", "/events", 405),
        ("DELETE", "/events", 405),
        ("POST", "/health", 405),
        ("POST", "/liveinsight.js", 405),
    ],
)
def test_every_error_has_one_shape(method, path, status):
    answer = Door().open(method, path)
    assert answer.status_code == status
    assert answer.is_json
    assert answer.get_json().keys() == {"error"}
    assert ("Allow" in answer.headers) == (status == 405)


# -- what is counted and logged ---------------------------------------------------------------------


def test_refusals_are_logged_in_lines_of_counts_at_a_bounded_rate(caplog):
    door = Door()
    with caplog.at_level(logging.WARNING, "liveinsight.collector"):
        for _ in range(50):
            door.post(b"nonsense")
        door.post([{}, {}])
        door.clock.now += 10_000
        door.post(b"nonsense")
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["counts"] for line in lines] == [{"not_json": 1}, {"not_json": 50, "missing_field": 2}]
    assert lines[0]["last"]["reason"] == "not_json"
    assert door.health()["rejected"] == {"not_json": 51, "missing_field": 2}


def test_no_count_is_lost_between_threads():
    door = Door()
    threads = [in_background(lambda: [door.post([view(), {}]) for _ in range(25)])[0] for _ in range(8)]
    for thread in threads:
        thread.join(20)
    assert door.health()["accepted"] == 200
    assert door.health()["rejected"] == {"missing_field": 200}


# -- settings ---------------------------------------------------------------------------------------


def test_settings_have_defaults():
    assert CollectorSettings.from_environ({}) == CollectorSettings()
    assert CollectorSettings.from_environ({"LIVEINSIGHT_ALLOWED_ORIGINS": " "}) == CollectorSettings()


def test_settings_are_read_from_the_environment():
    assert CollectorSettings.from_environ(
        {
            "LIVEINSIGHT_ALLOWED_ORIGINS": "https://Shop.example/, http://127.0.0.1:8000",
            "LIVEINSIGHT_TRUST_EDGE_HEADERS": "1",
            "LIVEINSIGHT_ANSWER_SECONDS": "2.5",
            "LIVEINSIGHT_MAX_WAITING": "9",
        }
    ) == CollectorSettings(("https://shop.example", "http://127.0.0.1:8000"), True, 2.5, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIVEINSIGHT_ALLOWED_ORIGINS", "shop.example"),
        ("LIVEINSIGHT_ALLOWED_ORIGINS", "https://*.example"),
        ("LIVEINSIGHT_TRUST_EDGE_HEADERS", "yes"),
        ("LIVEINSIGHT_ANSWER_SECONDS", "0"),
        ("LIVEINSIGHT_ANSWER_SECONDS", "nan"),
        ("LIVEINSIGHT_MAX_WAITING", "-1"),
        ("LIVEINSIGHT_MAX_WAITING", "0.5"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        CollectorSettings.from_environ({name: value})
