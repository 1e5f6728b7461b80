"""A collector that is told to stop under load loses no event that it has answered, whenever that happens."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from producer.event import Event, decode
from producer.kpl import Aggregate, decode_record

ROOT = Path(__file__).parents[2]
POINTS = 50 if os.environ.get("LIVEINSIGHT_LONG") else 8
#: Collectors that run at the same time. Starting one is most of a point's work.
AT_A_TIME = 4
CLIENTS = 8
#: The signal comes at most so long (s) after the load began.
LATEST = 0.5


class Kinesis(ThreadingHTTPServer):
    """PutRecords over HTTP: slow now and then, and some records are refused. What it acknowledged is in ``taken``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PutRecords)
        self.rng = random.Random(50)
        self.taken: list[bytes] = []
        self.refused = 0
        self._lock = threading.Lock()

    def put(self, records: list[dict[str, str]]) -> dict[str, object]:
        with self._lock:
            answers = [self._put(base64.b64decode(record["Data"])) for record in records]
        return {"FailedRecordCount": sum("ErrorCode" in answer for answer in answers), "Records": answers}

    def _put(self, data: bytes) -> dict[str, str]:
        if self.rng.random() < 0.05:
            self.refused += 1
            return {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "too fast"}
        self.taken.append(data)
        return {"ShardId": "shardId-000000000000", "SequenceNumber": str(len(self.taken))}

    def event_ids(self) -> Counter[str]:
        """Those on the stream, and how often."""
        found: Counter[str] = Counter()
        for data in self.taken:
            aggregate = decode_record(data)
            assert isinstance(aggregate, Aggregate)
            for record in aggregate.records:
                event = decode(record.data)
                assert isinstance(event, Event)
                found[event.event_id] += 1
        return found


class PutRecords(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Kinesis

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["X-Amz-Target"] == "Kinesis_20131202.PutRecords"
        time.sleep(self.server.rng.uniform(0, 0.03))
        answer = json.dumps(self.server.put(request["Records"])).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kinesis() -> Iterator[Kinesis]:
    with Kinesis() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def a_collector(environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A collector's main process, the leader of a process group of its own, and its address, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "producer", "collector", "--port", "0"],
        env=environ,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stderr
            said = process.stderr.readline()
            assert "//" in said, said
            address = said.split("//")[1].split("/")[0]
            deadline = time.monotonic() + 30
            while not healthy(address):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, said
                time.sleep(0.02)
            yield process, address
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def healthy(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@dataclass
class Point:
    """One stop: when (s after the load began) and how, and what the clients were told."""

    number: int
    after: float
    to_group: bool
    accepted: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    answered_late: int = 0
    exit_code: int | None = None
    log: str = ""
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        return f"point {self.number}: SIGTERM {'to all ' if self.to_group else ''}after {self.after:.3f} s"

    def run(self, environ: dict[str, str]) -> None:
        with a_collector(environ) as (process, address):
            clients = [threading.Thread(target=self._post, args=(address, client)) for client in range(CLIENTS)]
            for client in clients:
                client.start()
            time.sleep(self.after)
            self.stopped = True
            if self.to_group:
                os.killpg(process.pid, signal.SIGTERM)
            else:
                process.terminate()
            _, self.log = process.communicate(timeout=60)
            self.exit_code = process.returncode
            for client in clients:
                client.join()

    def _post(self, address: str, client: int) -> None:
        """Post events of one visitor after the other until nobody listens any more."""
        rng = random.Random(f"{self.number} {client}")
        connection = http.client.HTTPConnection(address, timeout=30)
        for number in itertools.count():
            visitor = f"{self.number}-{client}-{number}"
            events = [
                {"event_type": "page_view", "event_id": f"{visitor}-{at}", "session_id": visitor}
                for at in range(rng.choice([1, 1, 2, 10]))
            ]
            try:
                connection.request("POST", "/events", json.dumps(events))
                answer = connection.getresponse()
                told = json.loads(answer.read())
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException):
                connection.close()  # the collector closed it; the next one may be refused
                continue
            with self.lock:
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self.accepted += [event["event_id"] for event in told["events"]]
                    self.answered_late += self.stopped


@pytest.mark.sized
def test_sigterm_at_random_points_under_load_loses_no_acknowledged_event(kinesis: Kinesis) -> None:
    """To the main process alone, or, as systemd and a terminal do it, to its workers as well."""
    began = time.monotonic()
    rng = random.Random(15)
    points = [Point(number, rng.uniform(0, LATEST), rng.random() < 0.5) for number in range(POINTS)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LIVEINSIGHT_"))} | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{kinesis.server_port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "LIVEINSIGHT_STREAM": "events",
    }
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(lambda point: point.run(environ), points))

    # One stream for all points: a port that a stopped collector had may be the next one's.
    stored = kinesis.event_ids()
    lost = {str(point): missing for point in points if (missing := set(point.accepted) - stored.keys())}
    assert lost == {}
    assert {str(point): point.log for point in points if point.exit_code != 0} == {}
    accepted = sum(len(point.accepted) for point in points)
    caught = sum(point.answered_late > 0 for point in points)
    statuses = sum((point.statuses for point in points), Counter[int]())
    assert statuses.keys() <= {200, 503}
    assert kinesis.refused > 0, "some records had to be put again"
    assert caught >= POINTS / 2, "the signal came while requests waited for their answer"
    print(
        f"SIGTERM at {POINTS} points under load: {accepted:,} events answered, 0 lost; in {caught} points requests "
        f"were waiting; answers {dict(statuses)}; {len(kinesis.taken):,} records, {kinesis.refused} refused; "
        f"{time.monotonic() - began:.1f} s"
    )
