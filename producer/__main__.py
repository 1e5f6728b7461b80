"""The producers' commands: ``python -m producer collector`` and ``python -m producer import``."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import math
import os
import select
import signal
import socket
import stat
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from producer.serving import at_least_one, free_address, port_number, serve, url_of

if TYPE_CHECKING:
    from producer.access_log import Tally
    from producer.client import EventProducer, Receipt
    from producer.event import Event

_ABOUT = """\
Put web analytics events on LiveInsight's stream: over HTTP, or from a web server's access log. Each command
has a --help of its own.

Both find the stream through the environment; where nothing there names one, it is that of a `make run` on
this machine.

  LIVEINSIGHT_STREAM     the stream's name (default: liveinsight-local-events)
  LIVEINSIGHT_LANES      its number of lanes, one and the same for all who send to it (default: 64)
  AWS_ENDPOINT_URL, AWS_REGION, credentials: as boto3 reads them
"""

_COLLECTOR = """\
Serve the collector over HTTP:

  POST /events          one event, an array, or {"events": [...], "sent_at": ms}; at most 1 MiB, gzip or not
  GET  /health          200 or 503, with counters
  GET  /liveinsight.js  the browser tracker

  curl -d '{"site_id": "shop", "event_type": "page_view", "page_url": "/"}' http://127.0.0.1:8080/events

A 200 means that the stream holds the event. On SIGTERM or Ctrl-C it takes no further connection, answers
what it has begun, and exits with 0. TLS, and protection from clients that send on purpose slowly, are for a
proxy in front of it.

environment:
  LIVEINSIGHT_ALLOWED_ORIGINS     web sites that may send: https://a.example,https://b.example (default: *, all)
  LIVEINSIGHT_TRUST_EDGE_HEADERS  1: take the country from CloudFront-Viewer-Country (default: 0)
  LIVEINSIGHT_ANSWER_SECONDS      how long a request waits for the stream before its 503 (default: 10)
  LIVEINSIGHT_MAX_WAITING         how many requests of one worker may wait for the stream (default: 4096)
"""

_IMPORT = """\
Send the page views of an access log (combined or common log format; plain or gzip; - is stdin).

A visitor is a hash of site, address and user agent; the address itself is not sent. A session is a
visitor's requests with gaps of at most 30 minutes. A page view is a GET answered 2xx or 304, of a path
without a static file's extension, by no known crawler. Events keep the times and paths of the log.

Importing the same log again adds nothing: ids come from its lines. Give the pieces of a rotated log, or the
logs of several servers of one site, in one command, in any order, so that sessions across them stay whole.

  python -m producer import --site shop --origin https://shop.example /var/log/nginx/access.log*
  zcat old.log.gz | python -m producer import --site shop --dry-run -
"""

_IMPORT_EXITS = """\
exit status: 0 all was sent; 1 the stream or a file failed; 2 the command line is wrong; 130 Ctrl-C.
Memory: some 150 MB at most, however long the log, and about 100 bytes more for each visitor.
"""


class _Failure(Exception):  # noqa: N818 - one line for the user, and the exit status
    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Messages go to stderr, results to stdout."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except _Failure as failure:
        print(f"{arguments.command}: {failure}", file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        print(f"{arguments.command}: stopped", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m producer", description=_ABOUT, formatter_class=as_written)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "collector",
        help="take events from browsers and servers over HTTP",
        description=_COLLECTOR,
        formatter_class=as_written,
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=port_number, default=8080, help="0 takes a free one (default: %(default)s)")
    serve.add_argument("--workers", type=at_least_one, default=1, help="server processes (default: %(default)s)")
    serve.add_argument(
        "--threads",
        type=at_least_one,
        default=8,
        help="of each; a request needs none while it waits for the stream (default: %(default)s)",
    )
    serve.set_defaults(run=_serve)

    load = commands.add_parser(
        "import",
        help="send the page views of an access log",
        description=_IMPORT,
        epilog=_IMPORT_EXITS,
        formatter_class=as_written,
    )
    load.add_argument("files", nargs="+", metavar="FILE", help="log file, plain or .gz; - is stdin")
    load.add_argument("--site", required=True, metavar="ID", help="site that the page views count for")
    load.add_argument("--origin", default="", metavar="URL", help="put before the logged paths: https://example.com")
    load.add_argument("--dry-run", action="store_true", help="read and count only; needs no stream")
    load.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    load.add_argument("--verbose", action="store_true", help="list all broken lines, not the first 5")
    load.add_argument(
        "--sort-window",
        type=at_least_one,
        default=100_000,
        metavar="N",
        help="how many requests are kept to be sorted by time, about 1 kB each (default: %(default)s)",
    )
    load.set_defaults(run=_import)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    from botocore.exceptions import BotoCoreError

    from producer import collector
    from producer.client import local_or_environ_kinesis
    from producer.collector_gateway import CollectorGateway

    try:
        settings = collector.CollectorSettings.from_environ(os.environ)
        kinesis, producer_settings = local_or_environ_kinesis(os.environ)
        address = free_address(arguments.host, arguments.port)
    except (ValueError, BotoCoreError) as error:
        raise _Failure(str(error), 2) from None
    at = f"stream {producer_settings.stream} at {kinesis.meta.endpoint_url}"
    print(f"collector: {url_of(address)}/events -> {at}", file=sys.stderr, flush=True)
    serve(
        "producer.collector:app",
        address,
        workers=arguments.workers,
        threads=arguments.threads,
        grace=math.ceil(settings.answer_within + collector.CLOSE_SECONDS) + 3,
        gateway=CollectorGateway,
    )
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from producer.access_log import ImportSettings, Source, Tally, page_views

    try:
        settings = ImportSettings(
            arguments.site, time.time_ns() // 1_000_000, arguments.origin.rstrip("/"), arguments.sort_window
        )
    except ValueError as error:
        raise _Failure(str(error), 2) from None
    tally = Tally(keep=100_000 if arguments.verbose else 5)
    interrupted = False
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_Signals())
        logs = [stack.enter_context(_LogFile(name, signals)) for name in dict.fromkeys(arguments.files)]
        outbox = _Outbox(None) if arguments.dry_run else stack.enter_context(_connected_outbox())
        bar = stack.enter_context(
            tqdm(
                total=None if any(log.size is None for log in logs) else sum(log.size or 0 for log in logs),
                unit="B",
                unit_scale=True,
                desc=arguments.site,
                disable=None,
                leave=False,
            )
        )

        def progress() -> None:
            bar.update(sum(log.position for log in logs) - bar.n)

        started = time.monotonic()
        try:
            for event in page_views([Source(log.name, log.lines(progress)) for log in logs], settings, tally):
                outbox.add(event)
            outbox.finish()
        except KeyboardInterrupt:
            interrupted = True
            outbox.finish()
        seconds = time.monotonic() - started
    failures = [log.failure for log in logs if log.failure]
    summary = _summary(tally, settings.site, outbox.acknowledged, seconds)
    if arguments.json:
        print(json.dumps(summary | {"dry_run": arguments.dry_run, "interrupted": interrupted, "unreadable": failures}))
    else:
        _print_summary(summary, [log.name for log in logs], arguments.dry_run)
    for failure in failures:
        print(f"import: {failure}", file=sys.stderr)
    if interrupted:
        print(
            f"import: stopped after {tally.lines:,} lines; the same command again sends the rest, nothing counts twice",
            file=sys.stderr,
        )
        return 130
    if tally.lines and sum(tally.broken.values()) + tally.skipped["blank"] == tally.lines:
        print("import: not one line is of a combined or common access log", file=sys.stderr)
        return 1
    return 1 if failures else 0


class _Signals:
    """Lets Ctrl-C end the wait for more of a pipe.

    Without it that might go unheard: a signal that comes just before the call that waits is only noted, and Python acts
    on it when the call is over.
    """

    def __enter__(self) -> Self:
        self._came, self._waker = socket.socketpair()
        self._came.setblocking(False)
        self._waker.setblocking(False)
        self._before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        self._came.close()
        self._waker.close()

    def wait(self, file: io.FileIO) -> None:
        """Return when there is something to read. Handlers of signals run, and may raise, as soon as one comes."""
        poll = select.poll()  # not select(), which takes no file beyond the 1,024th
        poll.register(file, select.POLLIN)
        poll.register(self._came, select.POLLIN)
        while all(ready != file.fileno() for ready, _ in poll.poll()):
            with contextlib.suppress(BlockingIOError):
                self._came.recv(4096)


class _Counted(io.RawIOBase):
    """Reads from ``raw`` and counts the bytes."""

    def __init__(self, raw: io.FileIO, signals: _Signals) -> None:
        self._raw = raw
        self._signals = signals
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._signals.wait(self._raw)
        got = self._raw.readinto(buffer)
        self.count += got or 0
        return got


class _LogFile:
    """A log: plain or gzip, told by its first bytes; ``-`` is stdin. ``failure`` says why it ended early, if it did.

    ``size`` (bytes, None for a pipe) and ``position`` are of the file as it lies there, packed or not.
    """

    def __init__(self, path: str, signals: _Signals) -> None:
        self.name = "stdin" if path == "-" else path
        self.failure = ""
        try:
            self._file = io.FileIO(0, closefd=False) if path == "-" else io.FileIO(path)
            status = os.fstat(self._file.fileno())
            self._counted = _Counted(self._file, signals)
            buffered = io.BufferedReader(self._counted, 1 << 18)
            packed = buffered.peek(2)[:2] == b"\x1f\x8b"
        except OSError as error:
            raise _Failure(f"{self.name}: {error.strerror or error}", 2) from None
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._stream: gzip.GzipFile | io.BufferedReader[_Counted] = (
            gzip.GzipFile(fileobj=buffered) if packed else buffered
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def position(self) -> int:
        return self._counted.count

    def lines(self, progress: Callable[[], None]) -> Iterator[bytes]:
        """The lines, each cut at ``MAX_LINE + 1`` bytes; ``progress`` is called now and then."""
        from producer.access_log import MAX_LINE

        number = 0
        try:
            while line := self._stream.readline(MAX_LINE + 1):
                number += 1
                yield line
                if number % 1024 == 0:
                    progress()
                while len(line) > MAX_LINE and not line.endswith(b"\n"):
                    line = self._stream.readline(MAX_LINE + 1)
        except (OSError, EOFError, zlib.error) as error:
            self.failure = f"{self.name}: unreadable after line {number:,}: {error}; the lines before it were read"


class _Outbox:
    """Hands events to the producer in lots, and waits for older lots when it has enough of them.

    With no producer it only counts. KeyboardInterrupt comes out of it between two lots, never within one.
    """

    LOT = 200
    LOTS_UNDER_WAY = 200

    def __init__(self, producer: EventProducer | None) -> None:
        self.acknowledged = 0
        self._producer = producer
        self._lot: list[Event] = []
        self._under_way: deque[tuple[int, Receipt]] = deque()

    def add(self, event: Event) -> None:
        self._lot.append(event)
        if len(self._lot) >= self.LOT:
            lot, self._lot = self._lot, []
            self._send(lot)

    def finish(self) -> None:
        """Send what is left, and return when all of it is acknowledged."""
        lot, self._lot = self._lot, []
        self._send(lot)
        while self._under_way:
            self._settle()

    def _send(self, lot: list[Event]) -> None:
        from producer.client import BufferFull

        if self._producer is None or not lot:
            return
        while True:
            try:
                with _uninterrupted():
                    self._under_way.append((len(lot), self._producer.send_many(lot)))
                break
            except BufferFull:
                if self._under_way:
                    self._settle()
                elif len(lot) > 1:
                    middle = len(lot) // 2
                    self._send(lot[:middle])
                    lot = lot[middle:]
                else:
                    raise
        if len(self._under_way) > self.LOTS_UNDER_WAY:
            self._settle()

    def _settle(self) -> None:
        """Wait for the oldest lot."""
        count, receipt = self._under_way[0]
        receipt.wait(None)
        self._under_way.popleft()
        self.acknowledged += count


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done."""
    came: list[FrameType | None] = []
    before = signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _connected_outbox() -> Iterator[_Outbox]:
    """An outbox for the stream that the environment names; raises _Failure when that takes no events."""
    from botocore.exceptions import BotoCoreError, ClientError

    from producer.client import BufferFull, DeliveryFailed, EventProducer, local_or_environ_kinesis

    try:
        kinesis, settings = local_or_environ_kinesis(os.environ)
    except (ValueError, BotoCoreError) as error:
        raise _Failure(str(error), 2) from None
    where = f"stream {settings.stream} at {kinesis.meta.endpoint_url}"
    remedy = "is `make run` running? LIVEINSIGHT_STREAM and AWS_ENDPOINT_URL name another stream"
    try:
        kinesis.describe_stream_summary(StreamName=settings.stream)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "ResourceNotFoundException":
            raise _Failure(f"there is no {where}; {remedy}") from None
        if code != "AccessDeniedException":  # whoever may only write may not ask for the stream either
            raise _Failure(f"{where} does not answer: {error}; {remedy}") from None
    except BotoCoreError as error:
        raise _Failure(f"cannot reach {where}: {error}; {remedy}") from None
    producer = EventProducer(settings, kinesis)
    outbox = _Outbox(producer)
    try:
        yield outbox
    except (DeliveryFailed, BufferFull) as failure:
        raise _Failure(
            f"{where} did not take the page views: {failure}; it has {outbox.acknowledged:,} of them; {remedy}"
        ) from None
    finally:
        # Nothing is left to wait for: all is acknowledged, or it failed, or the user has had enough.
        with contextlib.suppress(DeliveryFailed, TimeoutError):
            producer.close(0)


def _summary(tally: Tally, site: str, acknowledged: int, seconds: float) -> dict[str, Any]:
    return {
        "site": site,
        "lines": tally.lines,
        "page_views": tally.page_views,
        "sent": acknowledged,
        "sessions": tally.sessions,
        "visitors": tally.visitors,
        "skipped": dict(tally.skipped),
        "broken": dict(tally.broken),
        "broken_lines": [line._asdict() for line in tally.broken_lines],
        "late": tally.late,
        "seconds": round(seconds, 3),
        "lines_per_second": round(tally.lines / max(seconds, 1e-9)),
        "events_per_second": round(acknowledged / max(seconds, 1e-9)),
    }


def _print_summary(summary: dict[str, Any], names: Sequence[str], dry_run: bool) -> None:
    sent = "nothing sent (dry run)" if dry_run else f"{summary['sent']:,} sent, {summary['events_per_second']:,}/s"
    print(f"{', '.join(names)} -> site {summary['site']}")
    print(f"  lines       {summary['lines']:,} in {summary['seconds']:.1f} s, {summary['lines_per_second']:,}/s")
    print(f"  page views  {summary['page_views']:,}; {sent}")
    print(f"  sessions    {summary['sessions']:,}")
    print(f"  visitors    {summary['visitors']:,}")
    print(f"  skipped     {_counts(summary['skipped'])}")
    print(f"  broken      {_counts(summary['broken'])}")
    for line in summary["broken_lines"]:
        print(f"    {line['source']}:{line['line']}: {line['reason']}: {line['detail']}")
    if (unlisted := sum(summary["broken"].values()) - len(summary["broken_lines"])) > 0:
        print(f"    and {unlisted:,} more (--verbose lists them)")
    if summary["late"]:
        print(f"  out of order {summary['late']:,} too far to be sorted; their sessions are a best guess")


def _counts(counts: dict[str, int]) -> str:
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name}" for name, count in by_count) or "0"


if __name__ == "__main__":
    sys.exit(main())
