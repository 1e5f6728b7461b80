"""One event source for each generation that is consumed, as the list of generations says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.local import mappings as service
from infra.local.event_source import EventSource, options, source_of
from infra.local.mappings import Mappings, of_generation
from stream_consumer.generations import Generation, State
from stream_consumer.table import Unavailable


class Source:
    """An event source that runs until it is told to end, and may fail."""

    def __init__(self, log: list[str], name: str, fails: bool = False, result: int = 0) -> None:
        self.log = log
        self.name = name
        self.fails = fails
        self.result = result
        self.told = threading.Event()

    def run(self) -> int:
        self.log.append(f"{self.name} runs")
        if self.fails:
            raise RuntimeError("no such stream")
        self.told.wait(20)
        return self.result

    def drain(self) -> None:
        self.log.append(f"{self.name} drains")
        self.told.set()

    def stop(self) -> None:
        self.log.append(f"{self.name} stops")
        self.told.set()


class Running:
    """The service in a thread."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.generations: list[Generation] | Unavailable = [Generation("g1")]
        self.fails: set[str] = set()
        self.results: dict[str, int] = {}
        self.forgotten: list[str] = []
        self.mappings = Mappings(self.look, self.open, lambda one: self.forgotten.append(one.name))  # type: ignore[arg-type]
        self.result: int | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        self.result = self.mappings.run()

    def look(self) -> list[Generation]:
        if isinstance(self.generations, Unavailable):
            raise self.generations
        return self.generations

    def open(self, generation: Generation) -> Source:
        return Source(self.log, generation.name, generation.name in self.fails, self.results.get(generation.name, 0))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def end(self, ask: Callable[[Source], None] = Source.drain) -> int | None:
        self.mappings.ask(ask)  # type: ignore[arg-type]
        self.thread.join(10)
        return self.result


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(service, "LOOK_EVERY", 0.02)
    found = Running()
    yield found
    found.end()


def test_a_generation_is_consumed_from_when_it_is_listed_until_it_is_dropped(running: Running) -> None:
    running.until(lambda: running.log == ["g1 runs"])
    running.generations = [Generation("g1"), Generation("g2", State.PREPARING)]
    time.sleep(0.1)
    assert running.log == ["g1 runs"], "nothing consumes into what is being prepared"
    running.generations = [Generation("g1"), Generation("g2")]
    running.until(lambda: running.log == ["g1 runs", "g2 runs"])
    running.generations = [Generation("g1", State.DROPPING), Generation("g2")]
    running.until(lambda: running.log == ["g1 runs", "g2 runs", "g1 stops"])
    running.until(lambda: running.forgotten == ["g1"])
    assert running.end() == 0
    assert running.log[3:] == ["g2 drains"]


def test_while_the_list_cannot_be_read_all_goes_on(running: Running) -> None:
    running.until(lambda: running.log == ["g1 runs"])
    running.generations = Unavailable("DynamoDB is away")
    time.sleep(0.1)
    running.generations = [Generation("g1"), Generation("g2")]
    running.until(lambda: running.log == ["g1 runs", "g2 runs"])


def test_an_event_source_that_ends_by_itself_is_started_again(running: Running) -> None:
    running.fails.add("g2")
    running.generations = [Generation("g1"), Generation("g2")]
    running.until(lambda: running.log.count("g2 runs") >= 3)
    running.fails.clear()
    time.sleep(0.1)
    tries = running.log.count("g2 runs")
    time.sleep(0.1)
    assert running.log.count("g2 runs") == tries, "it runs now"
    assert running.log.count("g1 runs") == 1


def test_the_result_is_the_worst_one(running: Running) -> None:
    running.results["g2"] = 1
    running.generations = [Generation("g1"), Generation("g2")]
    running.until(lambda: len(running.log) == 2)
    assert running.end(Source.stop) == 1


def test_the_options_of_a_generation_begin_where_its_replay_does_and_name_its_alias() -> None:
    given = options("mappings", "").parse_args(
        ["--stream", "s", "--handler", "a.b", "--state", "/x", "--batch-size", "7"]
    )
    assert of_generation(given, Generation("g1")) is given
    replay = of_generation(given, Generation("g2", read_from=1_772_322_900_500))
    assert (replay.state, replay.qualifier, replay.batch_size) == (Path("/x/g2"), "g2", 10_000)
    assert (replay.starting_position, replay.starting_timestamp) == ("AT_TIMESTAMP", 1_772_322_900.5)
    whole = of_generation(given, Generation("g3"))
    assert (whole.starting_position, whole.starting_timestamp) == ("TRIM_HORIZON", None)


def test_of_these_options_an_event_source_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    given = options("mappings", "").parse_args(["--stream", "s", "--handler", "a.b", "--state", str(tmp_path)])
    source = source_of(of_generation(given, Generation("g2", read_from=1_772_322_900_500)))
    assert isinstance(source, EventSource)
    assert source.mapping.starting_timestamp == 1_772_322_900.5
    assert source.mapping.batch_size == 10_000
