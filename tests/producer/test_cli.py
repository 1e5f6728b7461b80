"""The commands, as a user runs them: real processes and a real (embedded) Kinesis where it matters."""

import gzip
import http.client
import json
import os
import pty
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from producer import __main__ as commands
from producer.access_log import ImportSettings, Source, Tally, page_views
from producer.client import BufferFull, local_or_environ_kinesis
from producer.event import Event, decode
from producer.kpl import Aggregate, decode_record

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "access.log.gz"
COMMAND = [sys.executable, "-m", "producer"]


@pytest.fixture(scope="module")
def aws():
    """The environment of an embedded AWS."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }
    server.stop()


class Stream:
    """A stream of its own for one test, and the environment that names it."""

    def __init__(self, aws, name):
        self.environ = {**aws, "LIVEINSIGHT_STREAM": name}
        self.kinesis = boto3.client(
            "kinesis",
            endpoint_url=aws["AWS_ENDPOINT_URL"],
            region_name=aws["AWS_REGION"],
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        self.name = name
        self.kinesis.create_stream(StreamName=name, ShardCount=2)

    def events(self):
        found = []
        for shard in self.kinesis.list_shards(StreamName=self.name)["Shards"]:
            iterator = self.kinesis.get_shard_iterator(
                StreamName=self.name, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            while True:
                answer = self.kinesis.get_records(ShardIterator=iterator, Limit=10_000)
                if not answer["Records"]:
                    break
                iterator = answer["NextShardIterator"]
                for record in answer["Records"]:
                    aggregate = decode_record(record["Data"])
                    assert isinstance(aggregate, Aggregate)
                    found += [decode(entry.data) for entry in aggregate.records]
        assert all(isinstance(event, Event) for event in found)
        return found


@pytest.fixture
def stream(aws, request):
    return Stream(aws, "stream-" + str(abs(hash(request.node.name))))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process, under the given environment: (exit status, stdout, stderr)."""

    def run(environ, *arguments):
        for name in [name for name in os.environ if name.startswith(("AWS_", "LIVEINSIGHT_"))]:
            monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        try:
            status = commands.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return run


def nowhere():
    """The environment of an AWS that does not answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_MAX_ATTEMPTS": "1",
    }


def line(number, agent="Firefox/140.0"):
    minute, second = divmod(number, 60)
    hour, minute = divmod(minute, 60)
    return (
        f"192.0.2.{number % 7} - - [17/May/2015:{hour % 24:02}:{minute:02}:{second:02} +0000] "
        f'"GET /{number} HTTP/1.1" 200 512 "-" "{agent}"\n'
    ).encode()


LOG = b"".join(line(number) for number in range(500))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "access.log"
    path.write_bytes(LOG)
    return path


def expected_ids(data=LOG):
    source = Source("log", data.splitlines(keepends=True))
    return {
        (e.event_id, e.session_id) for e in page_views([source], ImportSettings("shop", 1_795_000_000_000), Tally())
    }


def ids(events):
    return {(event.event_id, event.session_id) for event in events}


# -- import -----------------------------------------------------------------------------------------


def test_an_import_puts_each_page_view_on_the_stream(stream, run, log):
    before = time.time() * 1000
    status, out, err = run(stream.environ, "import", log, "--site", "shop", "--origin", "https://shop.example/")
    assert (status, err) == (0, "")
    events = stream.events()
    assert len(events) == 500
    assert ids(events) == expected_ids()
    assert {event.page_url for event in events} == {f"https://shop.example/{number}" for number in range(500)}
    [received_at] = {event.received_at for event in events}
    assert before - 1 <= received_at <= time.time() * 1000
    assert "500; 500 sent" in out


def test_a_second_import_puts_the_same_events_again(stream, run, log):
    for _ in range(2):
        assert run(stream.environ, "import", log, "--site", "shop")[0] == 0
    events = stream.events()
    assert len(events) == 1000
    assert len(ids(events)) == 500


def test_gzip_and_stdin_and_pieces_give_the_same_events(stream, run, tmp_path):
    lines = LOG.splitlines(keepends=True)
    (tmp_path / "new.log").write_bytes(b"".join(lines[200:]))
    (tmp_path / "old").write_bytes(gzip.compress(b"".join(lines[:200])))
    assert run(stream.environ, "import", tmp_path / "new.log", tmp_path / "old", "--site", "shop")[0] == 0
    piped = subprocess.run(
        [*COMMAND, "import", "--site", "shop", "-"],
        input=gzip.compress(LOG),
        env={**os.environ, **stream.environ},
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (piped.returncode, piped.stderr) == (0, b"")
    events = stream.events()
    assert len(events) == 1000
    assert ids(events) == expected_ids()


def test_the_summary_as_json(stream, run, tmp_path):
    path = tmp_path / "mixed.log"
    path.write_bytes(LOG + b"nonsense\n\n" + line(501).replace(b"GET /501", b"GET /x.png") + line(502, "Googlebot/2.1"))
    status, out, _ = run(stream.environ, "import", path, "--site", "shop", "--json")
    summary = json.loads(out)
    assert status == 0
    for name in ("seconds", "lines_per_second", "events_per_second"):
        assert summary.pop(name) > 0
    assert summary == {
        "site": "shop",
        "lines": 504,
        "page_views": 500,
        "sent": 500,
        "sessions": 7,
        "visitors": 7,
        "skipped": {"blank": 1, "static": 1, "crawler": 1},
        "broken": {"not_a_log_line": 1},
        "broken_lines": [
            {
                "source": str(path),
                "line": 501,
                "reason": "not_a_log_line",
                "detail": 'not of the form: address - user [time] "request" status size ...',
            }
        ],
        "late": 0,
        "dry_run": False,
        "interrupted": False,
        "unreadable": [],
    }


def test_a_dry_run_needs_no_stream(run, log):
    status, out, err = run(nowhere(), "import", log, "--site", "shop", "--dry-run")
    assert (status, err) == (0, "")
    assert "500; nothing sent" in out


def test_broken_lines_are_named_the_first_few_or_all(run, tmp_path):
    path = tmp_path / "bad.log"
    path.write_bytes(b"nonsense\n" * 8 + LOG)
    status, out, _ = run({}, "import", path, "--site", "shop", "--dry-run")
    assert status == 0
    assert out.count(f"{path}:") == 5
    assert f"{path}:5: not_a_log_line:" in out
    assert "and 3 more" in out
    _, out, _ = run({}, "import", path, "--site", "shop", "--dry-run", "--verbose")
    assert out.count(f"{path}:") == 8
    assert "more" not in out


def test_what_is_no_log_at_all_is_an_error(run, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"dear diary\n\n" * 5)
    status, _, err = run({}, "import", path, "--site", "shop", "--dry-run")
    assert status == 1
    assert "not one line" in err


def test_an_overlong_line_is_broken_and_the_next_one_is_read(run, tmp_path):
    path = tmp_path / "long.log"
    path.write_bytes(b"x" * 3_000_000 + b"\n" + LOG)
    _, out, _ = run({}, "import", path, "--site", "shop", "--dry-run", "--json")
    summary = json.loads(out)
    assert (summary["lines"], summary["page_views"], summary["broken"]) == (501, 500, {"line_too_long": 1})


def test_a_gzip_file_that_ends_early_is_read_as_far_as_it_goes(stream, run, tmp_path):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(LOG, 0)[:-2000])
    status, _, err = run(stream.environ, "import", path, "--site", "shop")
    assert status == 1
    assert err.startswith(f"import: {path}: unreadable after line ")
    assert 400 < len(stream.events()) < 500


@pytest.mark.parametrize("name", ["missing.log", "."])
def test_a_file_that_cannot_be_opened_is_one_clear_line(run, tmp_path, log, name):
    status, out, err = run({}, "import", log, tmp_path / name, "--site", "shop", "--dry-run")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert str(tmp_path / name) in err


@pytest.mark.parametrize("arguments", [("--site", "a b"), ("--site", "shop", "--origin", "shop.example")])
def test_a_site_or_origin_that_cannot_be_is_one_clear_line(run, log, arguments):
    status, _, err = run({}, "import", log, *arguments)
    assert status == 2
    assert err.count("\n") == 1


def test_a_stream_that_is_not_there_is_one_clear_line(aws, run, log):
    status, out, err = run({**aws, "LIVEINSIGHT_STREAM": "no-such"}, "import", log, "--site", "shop")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    for told in ("no-such", aws["AWS_ENDPOINT_URL"], "make run"):
        assert told in err


def test_an_aws_that_does_not_answer_is_one_clear_line(run, log):
    environ = nowhere()
    status, out, err = run(environ, "import", log, "--site", "shop")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    for told in (environ["AWS_ENDPOINT_URL"], "make run"):
        assert told in err


def test_a_stream_that_fails_on_the_way_is_one_clear_line(stream, run, log, monkeypatch):
    """It was there when the import began, but takes nothing."""

    class Failing:
        def __init__(self, kinesis):
            self.meta, self.describe_stream_summary = kinesis.meta, kinesis.describe_stream_summary

        def put_records(self, **_):
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not you"}}, "PutRecords")

    def failing(environ):
        kinesis, settings = local_or_environ_kinesis(environ)
        return Failing(kinesis), settings

    monkeypatch.setattr("producer.client.local_or_environ_kinesis", failing)
    status, out, err = run(stream.environ, "import", log, "--site", "shop")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    for told in (stream.name, "not you", "it has 0 of them"):
        assert told in err


def test_a_buffer_too_small_for_one_event_is_one_clear_line(stream, run, log):
    status, _, err = run({**stream.environ, "LIVEINSIGHT_MAX_BUFFER_BYTES": "300"}, "import", log, "--site", "shop")
    assert (status, "it has 0 of them" in err) == (1, True)
    assert err.count("\n") == 1


def test_a_progress_bar_is_drawn_for_a_terminal(tmp_path):
    path = tmp_path / "big.log"
    path.write_bytes(LOG * 20)
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    process = subprocess.Popen(
        [*COMMAND, "import", str(path), "--site", "shop", "--dry-run"], stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT
    )
    os.close(stderr)
    drawn = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux says that the other side of a terminal is closed
            break
        drawn += part
    os.close(terminal)
    with process:
        out = process.stdout.read()
    assert process.returncode == 0
    assert b"shop" in drawn
    assert b"B/s" in drawn
    assert b"lines       10,000" in out


def test_ctrl_c_stops_it_with_what_was_sent_safe(stream):
    environ = {**os.environ, **stream.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*COMMAND, "import", "--site", "shop", "--json", "--sort-window", "100", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        cwd=ROOT,
    )
    with process:
        # More than the sort window, so that some is sent before the end, which never comes.
        process.stdin.write(b"".join(line(number) for number in range(2000)))
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not stream.events() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()
        process.stdin.close()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"import: stopped after 1," in err or b"import: stopped after 2,000" in err
    summary = json.loads(out)
    assert summary["interrupted"]
    assert summary["sent"] == len(stream.events()) > 0


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no sample log at {SAMPLE}")
def test_the_sample_log_is_imported_in_a_few_seconds(stream, run):
    status, out, _ = run(stream.environ, "import", SAMPLE, "--site", "semicomplete", "--json")
    summary = json.loads(out)
    assert status == 0
    assert (summary["sent"], summary["sessions"], summary["visitors"]) == (1254, 705, 539)
    assert summary["seconds"] < 10
    events = stream.events()
    assert len(events) == 1254
    assert len({event.session_id for event in events}) == 705


class FullProducer:
    """Takes ``room`` events at a time; waiting for a receipt makes room again."""

    def __init__(self, room):
        self.room = self.free = room
        self.taken = []
        self.most = 0

    def send_many(self, events):
        if len(events) > self.free:
            raise BufferFull("full")
        self.free -= len(events)
        self.taken += events
        self.most = max(self.most, self.room - self.free)
        return self.Receipt(self, len(events))

    class Receipt:
        def __init__(self, producer, count):
            self.producer, self.count = producer, count

        def wait(self, timeout):
            self.producer.free += self.count


@pytest.mark.parametrize("room", [1, 7, 199, 200, 450, 100_000])
def test_a_full_buffer_makes_the_import_wait_and_loses_nothing(room):
    producer = FullProducer(room)
    outbox = commands._Outbox(producer)
    for number in range(1001):
        outbox.add(number)
    outbox.finish()
    assert producer.taken == list(range(1001))
    assert outbox.acknowledged == 1001
    assert producer.free == room
    assert producer.most <= room


def test_an_import_does_not_pile_up_receipts():
    producer = FullProducer(10**9)
    outbox = commands._Outbox(producer)
    for number in range(outbox.LOT * outbox.LOTS_UNDER_WAY * 3):
        outbox.add(number)
    assert producer.most <= outbox.LOT * (outbox.LOTS_UNDER_WAY + 1)


def test_ctrl_c_never_cuts_a_lot_in_two():
    class Interrupted(FullProducer):
        def send_many(self, events):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            return super().send_many(events)

    producer = Interrupted(1000)
    outbox = commands._Outbox(producer)
    for number in range(199):
        outbox.add(number)
    with pytest.raises(KeyboardInterrupt):
        outbox.add(199)
    assert producer.taken == list(range(200))
    producer.__class__ = FullProducer
    outbox.finish()
    assert outbox.acknowledged == 200


# -- collector --------------------------------------------------------------------------------------


class Server:
    """A collector process. Its address is in the line that it prints first."""

    def __init__(self, environ, *arguments):
        self.process = subprocess.Popen(
            [*COMMAND, "collector", "--port", "0", *arguments],
            env={**os.environ, **environ},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said = self.process.stderr.readline()
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        self.address = self.said.split("//")[1].split("/")[0]
        deadline = time.monotonic() + 30
        while True:
            try:
                self.request("GET", "/health")
                break
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.05)

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def stop(self, timeout=20):
        self.process.terminate()
        return self.wait(timeout)

    def signal_all(self, signum):
        """As a terminal's Ctrl-C and systemd do it: to the workers as well."""
        os.killpg(self.process.pid, signum)
        return self.wait(10)

    def wait(self, timeout):
        status = self.process.wait(timeout)
        self.reader.join(5)
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.process.stderr.close()


def test_the_collector_serves_a_real_port(stream):
    with Server(stream.environ) as server:
        assert stream.name in server.said
        assert stream.environ["AWS_ENDPOINT_URL"] in server.said
        status, answer = server.request("POST", "/events", json.dumps({"event_type": "x", "event_id": "one"}))
        assert (status, json.loads(answer)["event_id"]) == (200, "one")
        assert [event.event_id for event in stream.events()] == ["one"], "answered means: on the stream"
        packed = gzip.compress(b'[{"event_type": "x"}]')
        assert server.request("POST", "/events", packed, {"Content-Encoding": "gzip"})[0] == 200
        assert server.request("POST", "/events", b"x" * 1_100_000)[0] == 413
        chunked = server.request("POST", "/events", iter([b"y" * 100_000] * 11))
        assert chunked[0] == 413
        assert server.request("OPTIONS", "/events", headers={"Origin": "https://shop.example"})[0] == 204
        status, answer = server.request("GET", "/health")
        assert (status, json.loads(answer)["accepted"]) == (200, 2)
        assert server.signal_all(signal.SIGINT) == 0


def test_sigterm_under_load_loses_no_event_that_was_answered(stream):
    accepted, statuses, lock = [], Counter(), threading.Lock()

    def load(server, sender):
        connection = http.client.HTTPConnection(server.address, timeout=30)
        for number in range(100_000):
            event_id = f"{sender}-{number}"
            try:
                connection.request("POST", "/events", json.dumps({"event_type": "x", "event_id": event_id}))
                answer = connection.getresponse()
                answer.read()
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException):
                connection.close()  # a connection that the server has closed; the next one is refused
                continue
            with lock:
                statuses[answer.status] += 1
                if answer.status == 200:
                    accepted.append(event_id)

    with Server(stream.environ) as server:
        senders = [threading.Thread(target=load, args=(server, sender), daemon=True) for sender in range(8)]
        for sender in senders:
            sender.start()
        deadline = time.monotonic() + 20
        while len(accepted) < 100 and time.monotonic() < deadline:
            time.sleep(0.02)
        before = len(accepted)
        assert server.stop(timeout=15) == 0, server.log
        for sender in senders:
            sender.join(10)
    assert before >= 100
    assert statuses.keys() == {200}
    stored = [event.event_id for event in stream.events()]
    assert set(accepted) <= set(stored)
    assert len(stored) == len(set(stored))


def test_visitors_whose_browsers_keep_connections_open_keep_nobody_out(stream):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    idle = []
    try:
        with Server(stream.environ) as server:
            host, port = server.address.split(":")
            idle += [socket.create_connection((host, int(port))) for _ in range(1500)]
            assert server.request("POST", "/events", '{"event_type": "x"}')[0] == 200
            assert server.signal_all(signal.SIGTERM) == 0
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.long
def test_a_stalled_client_does_not_keep_the_collector_from_stopping(stream):
    environ = {**stream.environ, "LIVEINSIGHT_ANSWER_SECONDS": "0.5"}
    with Server(environ) as server, socket.socket() as stalled:
        host, port = server.address.split(":")
        stalled.connect((host, int(port)))
        stalled.sendall(b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.2)
        assert server.stop(timeout=30) == 0


def test_a_stream_that_is_not_there_is_a_503_and_bad_health(aws):
    environ = {**aws, "LIVEINSIGHT_STREAM": "no-such", "LIVEINSIGHT_ANSWER_SECONDS": "2"}
    with Server(environ) as server:
        assert server.request("GET", "/health")[0] == 200
        assert server.request("POST", "/events", '{"event_type": "x"}')[0] == 503
        assert server.request("GET", "/health")[0] == 503


def test_a_port_that_is_taken_is_one_clear_line(run):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as the server itself has it
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = run(nowhere(), "collector", "--port", port)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"127.0.0.1 port {port}" in err
    assert "--port" in err


@pytest.mark.parametrize(
    ("environ", "arguments", "told"),
    [
        ({"LIVEINSIGHT_ALLOWED_ORIGINS": "shop.example"}, [], "LIVEINSIGHT_ALLOWED_ORIGINS"),
        ({}, ["--host", "no such host"], "no such host"),
        ({}, ["--port", "70000"], "70000"),
        ({}, ["--port", "web"], "web"),
        ({}, ["--workers", "0"], "--workers"),
        ({}, ["--threads", "-1"], "--threads"),
    ],
)
def test_a_collector_that_cannot_start_says_why(run, environ, arguments, told):
    status, _, err = run({**nowhere(), **environ}, "collector", *arguments)
    assert status == 2
    assert told in err
    assert "Traceback" not in err


# -- help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], ["collector", "import", "LIVEINSIGHT_STREAM", "make run"]),
        (["collector"], ["POST /events", "--port", "--threads", "SIGTERM", *["ORIGINS", "EDGE", "SECONDS", "WAITING"]]),
        (["import"], ["--site", "--origin", "--dry-run", "--json", "--verbose", "30 minutes", "exit status", "zcat"]),
    ],
)
def test_help_tells_what_one_needs(run, arguments, told):
    status, out, _ = run({}, *arguments, "--help")
    assert status == 0
    assert [word for word in told if word not in out] == []
    assert max(map(len, out.splitlines())) <= 120


def test_no_command_is_a_usage_error(run):
    status, _, err = run({})
    assert status == 2
    assert "COMMAND" in err
