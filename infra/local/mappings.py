"""The event source mappings of one machine: one for each generation that is to be consumed.

On AWS, `replay start` makes a second mapping of the consumer's function, and `replay drop` removes it. Here this
service does the same: it follows the list of generations, and runs an event source for each, whose function is told by
its alias what it writes. The first generation's is there from the start.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.local.event_source import EventSource, options, run_until_signalled, source_of
from infra.local.shard_mapping import StartingPosition
from stream_consumer.generations import FIRST, Generation, Generations, State
from stream_consumer.replay.mapping import BATCH_SIZE
from stream_consumer.table import TableNames, Unavailable

logger = logging.getLogger("infra.local.mappings")

#: Seconds between two looks at the list of generations: `replay drop` counts on it.
LOOK_EVERY = 1.0

DESCRIPTION = """Runs an event source (see python -m infra.local.event_source) for each generation that the table of
roll-ups lists as to be consumed: `replay start` adds one, `replay drop` ends one. The options are those of the first
generation's event source; those of others begin where their replay does, and keep their checkpoints in a directory of
their own in --state.

SIGTERM and SIGINT are for all of them.
"""


class Mappings:
    """Event sources by generation. ``look`` gives the generations there are, ``open_source`` makes one's event source.

    ``forget`` is told of a generation that is dropped.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[Generation]],
        open_source: Callable[[Generation], EventSource],
        forget: Callable[[Generation], None] = lambda generation: None,
    ) -> None:
        self._look = look
        self._open_source = open_source
        self._forget = forget
        self._running: dict[str, tuple[EventSource, threading.Thread]] = {}
        self._results: dict[str, int] = {}
        self._ending = threading.Event()
        self._asked: list[Callable[[EventSource], None]] = []
        self._trouble = ""

    def ask(self, what: Callable[[EventSource], None]) -> None:
        """Let all end: ``what`` is ``EventSource.drain`` or ``EventSource.stop``. From any thread or signal handler."""
        self._asked.append(what)
        for source, _ in list(self._running.values()):
            what(source)
        self._ending.set()

    def drain(self) -> None:
        """Let all end once what is in the stream is processed."""
        self.ask(EventSource.drain)

    def stop(self) -> None:
        """Let all end after the batches in flight."""
        self.ask(EventSource.stop)

    def run(self) -> int:
        """Run until :meth:`ask`; the greatest of the event sources' results (0: all is processed)."""
        while not self._ending.is_set():
            self._follow()
            self._ending.wait(LOOK_EVERY)
        for _, thread in list(self._running.values()):
            thread.join()
        return max(self._results.values(), default=0)

    def _follow(self) -> None:
        try:
            generations = self._look()
        except Unavailable as why:
            if str(why) != self._trouble:
                logger.warning("cannot tell which generations there are, trying again: %s", why)
            self._trouble = str(why)
            return
        self._trouble = ""
        for one in generations:
            running = self._running.get(one.name)
            if one.consumes and (running is None or not running[1].is_alive()):
                self._start(one)
            elif not one.consumes and running is not None:
                self._stop(one)

    def _start(self, generation: Generation) -> None:
        name = generation.name
        source = self._open_source(generation)

        def run() -> None:
            try:
                self._results[name] = source.run()
            except Exception:
                self._results[name] = 1
                logger.exception("%s: its event source ended; starting it again", name)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._running[name] = source, thread
        logger.info("%s: consuming", name)
        thread.start()
        # A signal may have come in between.
        for what in self._asked:
            what(source)

    def _stop(self, generation: Generation) -> None:
        source, thread = self._running[generation.name]
        logger.info("%s: is %s: consuming ends", generation.name, generation.state)
        source.stop()
        thread.join()
        del self._running[generation.name]
        self._results.pop(generation.name, None)
        if generation.state in (State.DROPPING, State.DROPPED):
            self._forget(generation)


def of_generation(given: argparse.Namespace, generation: Generation) -> argparse.Namespace:
    """The options of a generation's event source."""
    if generation.name == FIRST:
        return given
    begin: dict[str, object] = {"starting_position": StartingPosition.TRIM_HORIZON, "starting_timestamp": None}
    if generation.read_from:
        begin = {
            "starting_position": StartingPosition.AT_TIMESTAMP,
            "starting_timestamp": generation.read_from / 1000,
        }
    changes = begin | {
        "state": state_of(given.state, generation),
        "qualifier": generation.name,
        "batch_size": BATCH_SIZE,
    }
    return argparse.Namespace(**vars(given) | changes)


def state_of(state: Path, generation: Generation) -> Path:
    """Where a generation's event source keeps its checkpoints."""
    return state if generation.name == FIRST else state / generation.name


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0 drained, 1 something is left, 2 the settings cannot be used."""
    given = options("python -m infra.local.mappings", DESCRIPTION).parse_args(arguments)

    def make() -> Mappings:
        import boto3

        source_of(given)  # what is wrong with the options shows now
        return Mappings(
            Generations(boto3.client("dynamodb"), TableNames.from_environ(os.environ)).all,
            lambda one: source_of(of_generation(given, one)),
            lambda one: shutil.rmtree(given.state / one.name, ignore_errors=True),
        )

    logger.setLevel(logging.INFO)
    return run_until_signalled(make, given.log_level)


if __name__ == "__main__":
    sys.exit(main())
