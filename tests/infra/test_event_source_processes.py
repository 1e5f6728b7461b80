"""The event source with real processes: the handler's, the command line's, and an embedded AWS."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra.local.event_source import EventSource, FunctionSettings, MappingSettings, SettingsError, main
from infra.local.shard_mapping import Answered, FunctionError, NotInvoked
from infra.local.shard_worker import WorkerProcess

HANDLERS = "tests.infra.event_source_handlers"
ROOT = Path(__file__).parents[2]
FAST = MappingSettings(poll_interval=0.02, first_backoff=0.01, longest_backoff=0.05, report_batch_item_failures=True)


@pytest.fixture(scope="module")
def aws():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    server.stop()


@pytest.fixture
def client(aws, monkeypatch):
    for name, value in aws.items():
        monkeypatch.setenv(name, value)
    return boto3.client


@pytest.fixture
def kinesis(client):
    return client("kinesis")


@pytest.fixture
def stream(kinesis):
    """A new stream of two shards; each holds what is put with the partition key "0" and "1"."""
    name = f"stream-{uuid.uuid4()}"
    kinesis.create_stream(StreamName=name, ShardCount=2)
    return name


def put(kinesis, stream, shard, *texts):
    for text in texts:
        hash_key = str(shard * 2**127 + 5)
        kinesis.put_record(StreamName=stream, Data=text.encode(), PartitionKey="k", ExplicitHashKey=hash_key)


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("EVENT_SOURCE_TEST_LOG", str(path))
    return path


def notes(log, what):
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["what"] == what]


def texts(log, what="done"):
    """The texts of each shard, in order."""
    found = {}
    for line in notes(log, what):
        found.setdefault(int(line["shard"][-1]), []).extend(line["texts"])
    return found


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def lives(pid):
    """Whether any thread of the process still runs; a killed one may be a zombie before its threads are gone."""
    try:
        ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not ended or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


# The handler's process.


@contextlib.contextmanager
def a_worker(handler, **more):
    worker = WorkerProcess(FunctionSettings(f"{HANDLERS}.{handler}", "my-function", **more))
    try:
        yield lambda event, request_id="id": worker.invoke(json.dumps(event).encode(), request_id, "arn:f")
    finally:
        worker.close()


def test_the_handler_gets_the_event_and_the_context_of_a_function(capfd, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with a_worker("describe", timeout=5, memory_mb=256) as invoke:
        outcome = invoke({"Records": ["ü"]}, "request-1")
        assert isinstance(outcome, Answered)
        assert outcome.request_id == "request-1"
        assert outcome.response["event"] == {"Records": ["ü"]}
        assert outcome.response["context"] == ["my-function", 256, "arn:f", "request-1", "$LATEST"]
        assert outcome.response["pid"] != os.getpid()
        # Printed metrics are out before the next thing can happen to the process.
        assert "printed by the handler" in capfd.readouterr().out


def test_powertools_finds_what_it_needs_in_the_context():
    with a_worker("with_powertools") as invoke:
        assert invoke({"a": 1}) == Answered("id", {"a": 1})


def test_a_process_stays_warm_over_errors_and_is_replaced_when_it_hangs_or_ends():
    with a_worker("obey", timeout=1.5) as invoke:
        pid = invoke({"do": "pid"}).response
        raised = invoke({"do": "raise"})
        assert (raised.kind, raised.request_id) == ("ValueError", "id")
        assert "as the record says" in raised.detail
        assert invoke({"do": "pid"}).response == pid

        began = time.monotonic()
        assert invoke({"do": "hang"}) == FunctionError("id", "Sandbox.Timedout", "Task timed out after 1.50 seconds")
        assert time.monotonic() - began < 20
        assert not lives(pid)

        second = invoke({"do": "pid"}).response
        assert second != pid
        ended = invoke({"do": "exit"})
        assert (ended.kind, ended.detail) == ("Runtime.ExitError", "the worker process ended with exit code 7")
        third = invoke({"do": "pid"}).response
        assert third not in (pid, second)

        # A process that went while nothing ran is no invocation's failure.
        os.kill(third, signal.SIGKILL)
        until(lambda: not lives(third))
        fourth = invoke({"do": "pid"}).response
        assert fourth != third
    assert not lives(fourth)


def test_signals_to_the_process_group_do_not_end_a_batch():
    with a_worker("obey") as invoke:
        pid = invoke({"do": "pid"}).response
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert invoke({"do": "pid"}).response == pid


def test_a_handler_that_cannot_be_loaded_fails_every_invocation():
    with a_worker("absent") as invoke:
        for _ in range(2):
            outcome = invoke({})
            assert outcome.kind == "AttributeError"
            assert "absent" in outcome.detail


def test_a_response_that_is_no_json_is_an_error_of_the_function():
    with a_worker("no_json") as invoke:
        assert invoke({}).kind == "Runtime.MarshalError"


def test_a_process_that_cannot_start_is_no_invocation(monkeypatch):
    def no_room(*_):
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", no_room)
    with a_worker("obey") as invoke:
        assert isinstance(invoke({"do": "pid"}), NotInvoked)


@pytest.mark.parametrize(
    "name", ["handler", "", "a..b", ".handler", "module.", "module:handler", "some/module.handler"]
)
def test_a_handler_is_named_as_lambdas_are(name):
    with pytest.raises(SettingsError, match=r"package\.module\.function"):
        FunctionSettings(name)


# From stream to handler.


def test_what_raises_hangs_or_dies_comes_again_and_nothing_is_lost(client, kinesis, stream, log, tmp_path):
    put(kinesis, stream, 0, "a", "raise", "b", "exit", "c")
    put(kinesis, stream, 1, "d", "hang", "e")
    function = FunctionSettings(f"{HANDLERS}.handler", timeout=0.5)
    mapping = MappingSettings(**{**vars(FAST), "batch_size": 2, "bisect_batch_on_function_error": True})
    source = EventSource(stream, function, mapping, tmp_path / "state", kinesis=kinesis)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(source.run()))
    thread.start()
    until(lambda: sum(map(len, texts(log).values())) == 8)
    source.drain()
    thread.join(20)
    assert codes == [0]
    assert texts(log) == {0: ["a", "raise", "b", "exit", "c"], 1: ["d", "hang", "e"]}
    # One process for each shard, and one more for each that was lost.
    assert len({line["pid"] for line in notes(log, "began")}) == 4


def test_a_batch_that_keeps_hanging_is_given_up_and_reported(client, kinesis, stream, log, tmp_path):
    sqs = client("sqs")
    url = sqs.create_queue(QueueName=f"failures-{uuid.uuid4()}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    put(kinesis, stream, 0, "always hang", "a")
    function = FunctionSettings(f"{HANDLERS}.handler", timeout=0.3)
    mapping = MappingSettings(**{**vars(FAST), "batch_size": 1, "maximum_retry_attempts": 1, "on_failure": arn})
    source = EventSource(stream, function, mapping, tmp_path / "state", kinesis=kinesis, sqs=sqs)
    source.drain()
    assert source.run() == 0
    assert texts(log) == {0: ["a"]}
    (message,) = sqs.receive_message(QueueUrl=url)["Messages"]
    document = json.loads(message["Body"])
    assert document["requestContext"]["approximateInvokeCount"] == 2
    assert document["responseContext"]["functionError"] == "Unhandled"
    assert document["KinesisBatchInfo"]["batchSize"] == 1


# The command line.


@contextlib.contextmanager
def the_command(stream, state, *arguments, handler="handler"):
    command = [sys.executable, "-m", "infra.local.event_source", "--stream", stream, "--state", str(state)]
    command += ["--handler", f"{HANDLERS}.{handler}", "--poll-interval", "0.02", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def test_sigterm_drains_and_a_restart_goes_on_from_there(kinesis, stream, log, tmp_path):
    put(kinesis, stream, 0, "a")
    with the_command(stream, tmp_path / "state", "--batch-size", "2") as process:
        until(lambda: texts(log))
        put(kinesis, stream, 0, *"bcdef")
        put(kinesis, stream, 1, *"xyz")
        # To the whole group, as a supervisor does it: the handlers' processes must finish their batches.
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert "drained" in process.stderr.read()
    assert texts(log) == {0: list("abcdef"), 1: list("xyz")}
    put(kinesis, stream, 0, "g")
    with the_command(stream, tmp_path / "state") as process:
        until(lambda: texts(log)[0][-1] == "g")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert texts(log) == {0: list("abcdefg"), 1: list("xyz")}


def test_after_a_crash_the_handlers_process_goes_and_the_batch_in_flight_comes_again(kinesis, stream, log, tmp_path):
    put(kinesis, stream, 0, "a")
    with the_command(stream, tmp_path / "state") as process:
        until(lambda: texts(log))
        put(kinesis, stream, 0, "always hang")
        until(lambda: "always hang" in texts(log, "began")[0])
        worker = notes(log, "began")[-1]["pid"]
        assert lives(worker)
        process.kill()
        process.wait()
        until(lambda: not lives(worker), 5)
    with the_command(stream, tmp_path / "state"):
        until(lambda: texts(log, "began")[0].count("always hang") == 2)
    assert texts(log) == {0: ["a"]}


def test_a_drain_ends_at_its_timeout_with_code_1_and_says_what_is_left(kinesis, stream, log, tmp_path):
    put(kinesis, stream, 0, "always hang", "b")
    put(kinesis, stream, 1, "c")
    with the_command(stream, tmp_path / "state", "--drain-timeout", "1.5") as process:
        until(lambda: texts(log, "began").keys() == {0, 1} and texts(log) == {1: ["c"]})
        process.terminate()
        assert process.wait(10) == 1
        assert "not drained: 1 of 2 shards" in process.stderr.read()
    until(lambda: not any(lives(line["pid"]) for line in notes(log, "began")), 5)


def test_a_second_sigterm_stops_after_the_batch_in_flight(kinesis, stream, log, tmp_path):
    put(kinesis, stream, 0, "slow 1", "slow 2", "slow 3")
    with the_command(stream, tmp_path / "state", "--batch-size", "1") as process:
        until(lambda: notes(log, "began"))
        process.terminate()
        time.sleep(0.1)
        process.terminate()
        assert process.wait(10) == 1
    assert texts(log) == {0: ["slow 1"]}


def test_settings_come_from_the_mapping_and_options_win(kinesis, stream, log, tmp_path):
    properties = {"StartingPosition": "TRIM_HORIZON", "BatchSize": 3, "FunctionResponseTypes": []}
    (tmp_path / "mapping.json").write_text(json.dumps(properties))
    put(kinesis, stream, 0, *"abcd")
    with the_command(stream, tmp_path / "state", "--mapping", str(tmp_path / "mapping.json")) as process:
        until(lambda: texts(log) == {0: list("abcd")})
        process.terminate()
        assert process.wait(20) == 0
    assert [len(line["texts"]) for line in notes(log, "done")] == [3, 1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch-size", "0"], "BatchSize"),
        (["--handler", "handler"], "package.module.function"),
        (["--starting-position", "AT_TIMESTAMP"], "StartingPositionTimestamp"),
        (["--on-failure", "failures"], "queue's ARN or URL"),
        (["--mapping", "absent.json"], "absent.json"),
    ],
)
def test_settings_that_cannot_be_used_are_named_and_nothing_starts(client, tmp_path, capsys, arguments, named):
    basics = ["--stream", "s", "--handler", "a.b", "--state", str(tmp_path / "state")]
    assert main(basics + arguments) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "state").exists()
