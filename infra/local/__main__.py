"""`python -m infra.local`: the whole path on one machine, what `make run` calls.

Starts the embedded AWS, makes its stacks, starts query API, event source with the consumer, collector and demo
traffic, and stops them in the order that loses nothing: demo, collector (it flushes), archive and event source (they
drain the stream), query API, AWS (it saves).
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.services import Interrupted, Service, ServiceFailed, Services
from infra.local.stacks import CONSUMER, FUNCTION, LOCAL_CONSUMER, MAPPING, properties_of

HOST = "127.0.0.1"
REGION = "us-east-1"
#: Seconds within which everything must be up. Bytecode is compiled at the very first start.
START_WITHIN = 90.0
#: Minutes of demo traffic from before the start.
HISTORY = 45.0
#: Seconds between two runs of the merging of roll-ups.
COMPACT_EVERY = 15.0

DESCRIPTION = """\
The whole path of LiveInsight on this machine: embedded AWS (moto), collector, event source with the consumer,
query API with the dashboard, and demo traffic. Everything listens on 127.0.0.1. Ctrl-C stops it; what was
acknowledged is kept in --dir and is there again at the next start.

Each option can be given as the environment variable named with it, also through make: make run DEMO=0.
AWS_ENDPOINT_URL names another AWS-like endpoint to use instead of the embedded one: the stacks are created there
if they are absent, credentials and region are the environment's, and it is left running.
"""


class Unusable(Exception):  # noqa: N818 - carries a sentence to the user
    """The settings cannot be used as they are; the message says what to change."""


@dataclass(frozen=True)
class RunSettings:
    """What a run is given. ``endpoint`` None: the embedded AWS. ``demo_rate``: events per second, 0 for none."""

    collector_port: int = 8080
    query_port: int = 8000
    aws_port: int = 5555
    demo_rate: float = 8.0
    fresh: bool = False
    directory: Path = Path(".liveinsight")
    endpoint: str | None = None
    archive: bool = False

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def aws_state(self) -> Path:
        return self.directory / "aws-state"

    @property
    def unsaved(self) -> Path:
        """Is there while the embedded AWS has content that ``aws_state`` has not."""
        return self.directory / "aws-state.unsaved"

    @property
    def checkpoints(self) -> Path:
        return self.directory / "event-source"

    @property
    def archived(self) -> Path:
        """The checkpoints of the archive's delivery stream."""
        return self.directory / "firehose"

    def forget_progress(self) -> None:
        """Have whoever reads the stream begin anew."""
        for state in (self.checkpoints, self.archived):
            shutil.rmtree(state, ignore_errors=True)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], arguments: list[str] | None = None) -> RunSettings:
        """Read ``arguments`` (default: the command line's) over ``environ``. Raises :class:`Unusable`."""
        parser = argparse.ArgumentParser(
            prog="python -m infra.local", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for name, kind, default, text in (
            ("collector-port", int, 8080, "port of the collector"),
            ("query-port", int, 8000, "port of the query API and the dashboard"),
            ("aws-port", int, 5555, "port of the embedded AWS"),
            ("demo", int, 1, "0: no demo traffic"),
            ("demo-rate", float, 8.0, "demo events per second, about"),
            ("archive", int, 0, "1: archive the stream's records in S3, to replay what the stream has no more"),
            ("fresh", int, 0, "1: start empty, and forget what the last run kept"),
            ("liveinsight-dir", Path, ".liveinsight", "where logs and what is kept between runs go"),
        ):
            variable = name.upper().replace("-", "_")
            parser.add_argument(
                f"--{name.removeprefix('liveinsight-')}",
                type=kind,
                default=environ.get(variable) or default,
                metavar="DIR" if kind is Path else "N",
                help=f"{text} ({variable}, default {default})",
            )
        # argparse converts a default that is text as it does an argument, and refuses a bad one the same way.
        given = parser.parse_args(arguments)
        if not 0 < given.demo_rate <= 1000:
            raise Unusable(f"DEMO_RATE={given.demo_rate}: give a number above 0 and at most 1000; DEMO=0 sends nothing")
        return cls(
            collector_port=given.collector_port,
            query_port=given.query_port,
            aws_port=given.aws_port,
            demo_rate=given.demo_rate if given.demo else 0.0,
            fresh=bool(given.fresh),
            directory=given.dir,
            endpoint=environ.get("AWS_ENDPOINT_URL") or None,
            archive=bool(given.archive),
        )


def main() -> int:
    try:
        settings = RunSettings.from_environ(os.environ)
        with only_run_in(settings.directory):
            return run(settings, os.environ)
    except Unusable as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def run(settings: RunSettings, environ: Mapping[str, str]) -> int:
    """Run until a signal or a failure; returns the exit code. Raises :class:`Unusable` before anything is started."""
    check_ports(settings)
    if settings.fresh:
        settings.aws_state.unlink(missing_ok=True)
        settings.unsaved.unlink(missing_ok=True)
        settings.forget_progress()
    if settings.unsaved.exists():
        say("the embedded AWS of the last run was killed: what came after it had started is lost")
        # Tables and archive are those of its start again, so their writers must be, too; what they have counts once.
        settings.forget_progress()
    settings.logs.mkdir(parents=True, exist_ok=True)
    services = Services(settings.logs)
    code = 0
    try:
        start(settings, environ, services)
        say("READY")
        services.watch()
    except Interrupted:
        say("stopping ...")
    except ServiceFailed as failure:
        print(f"error: {failure}", file=sys.stderr, flush=True)
        code = 1
    finally:
        began = time.monotonic()
        # After a failure there may be nothing left to flush to or to drain, however long one waits.
        wrong = services.stop(within=10.0 if code else None)
    for trouble in wrong:
        print(f"error: {trouble}", file=sys.stderr, flush=True)
    kept = said_by_aws(settings, "saved ")
    say(f"stopped in {time.monotonic() - began:.1f} s" + "".join(f"; {what} in {settings.aws_state}" for what in kept))
    return code or (1 if wrong else 0)


def start(settings: RunSettings, environ: Mapping[str, str], services: Services) -> None:
    """Start everything, wait until it is up, and print where it is. Raises ``ServiceFailed`` or ``Interrupted``."""
    environ = aws_environ(settings, environ)
    last_run = settings.aws_state.stat().st_mtime if settings.aws_state.exists() else 0.0
    if not settings.endpoint:
        aws = ["-m", "infra.local.aws", "--port", str(settings.aws_port), "--state", str(settings.aws_state)]
        services.start(
            Service("aws", aws, environ, healthy=lambda: accepts(settings.aws_port), stop_within=120.0, keep=True)
        )
        services.wait_healthy(START_WITHIN)
    outputs = make_stacks(environ)
    for line in () if settings.endpoint else said_by_aws(settings, "state: "):
        say(line)
    environ |= names(outputs)
    query_api = ["-m", "query_api", "--host", HOST, "--port", str(settings.query_port)]
    services.start(Service("query-api", query_api, environ, healthy=lambda: answers(settings.query_port, "/health/")))
    services.start(event_source(settings, environ))
    if settings.archive:
        services.start(firehose(settings, environ))
    compact = ["-m", "stream_consumer", "compact", "--every", str(COMPACT_EVERY)]
    services.start(Service("compaction", compact, environ))
    collector = ["-m", "producer", "collector", "--host", HOST, "--port", str(settings.collector_port)]
    services.start(
        Service("collector", collector, environ, lambda: answers(settings.collector_port, "/health"), stop_within=60.0)
    )
    services.wait_healthy(START_WITHIN)
    if settings.demo_rate > 0:
        # Visitors before the start, so that the charts begin with something; but none from before the last run's end.
        history = min(HISTORY, max(0.0, (time.time() - last_run) / 60))
        demo = ["-m", "infra.local.demo", "--url", f"http://{HOST}:{settings.collector_port}/events"]
        demo += ["--rate", str(settings.demo_rate), "--history", f"{history:.1f}"]
        services.start(Service("demo", demo, environ))
    for line in announcement(settings):
        say(line)


def event_source(settings: RunSettings, environ: Mapping[str, str]) -> Service:
    """The event source with the consumer, set up as the template says of the function and its mapping."""
    wanted = ["FunctionName", "Handler", "Timeout", "MemorySize"]
    function = properties_of(FUNCTION, CONSUMER, LOCAL_CONSUMER, only=wanted)
    mapping = settings.directory / "event-source-mapping.json"
    mapping.write_text(json.dumps(properties_of(MAPPING, CONSUMER, LOCAL_CONSUMER), indent=2))
    command = ["-m", "infra.local.mappings", "--stream", environ["LIVEINSIGHT_STREAM"], "--mapping", str(mapping)]
    command += ["--handler", function["Handler"], "--function-name", function["FunctionName"]]
    command += ["--timeout", str(function["Timeout"]), "--memory", str(function["MemorySize"])]
    command += ["--state", str(settings.checkpoints), "--drain-timeout", "60"]

    def function_is_up() -> bool:
        """For each shard: the first event shall not wait for a cold start."""
        log = (settings.logs / "event-source.log").read_text(errors="replace")
        return 0 < log.count("starting behind") <= log.count("the function is up")

    return Service("event-source", command, environ, function_is_up, stop_within=90.0)


def firehose(settings: RunSettings, environ: Mapping[str, str]) -> Service:
    """The archive's delivery stream."""
    command = ["-m", "infra.local.firehose", "--stream", environ["LIVEINSIGHT_STREAM"]]
    command += ["--bucket", environ["LIVEINSIGHT_ARCHIVE_BUCKET"], "--state", str(settings.archived)]
    return Service("firehose", [*command, "--drain-timeout", "60"], environ, stop_within=90.0)


def make_stacks(environ: Mapping[str, str]) -> dict[str, str]:
    """Create the data stack where ``environ`` points to, unless it is there; returns its outputs.

    The consumer's stack is not created: a Lambda function would need Docker here. The event source reads its template.
    """
    # In a process with that very environment, as everything else: boto3 looks at much of it.
    done = subprocess.run(
        [sys.executable, "-m", "infra.local.stacks"],
        env=dict(environ),
        check=False,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode != 0:
        raise ServiceFailed(f"the stack could not be created at {environ['AWS_ENDPOINT_URL']}: {done.stderr.strip()}")
    outputs: dict[str, str] = json.loads(done.stdout)
    return outputs


def aws_environ(settings: RunSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the services. The embedded AWS takes any credentials, and must never be sent real ones."""
    if settings.endpoint:
        # boto3 knows the region by one of its two names only.
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        return {**environ, "AWS_REGION": region, "AWS_DEFAULT_REGION": region} if region else dict(environ)
    mine = {name: value for name, value in environ.items() if name not in {"AWS_PROFILE", "AWS_SESSION_TOKEN"}}
    return mine | {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{settings.aws_port}",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "embedded",
        "AWS_SECRET_ACCESS_KEY": "embedded",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def names(outputs: Mapping[str, str]) -> dict[str, str]:
    """The stack's outputs under the names that the services read."""
    return {
        "LIVEINSIGHT_STREAM": outputs["StreamName"],
        "LIVEINSIGHT_SESSIONS_TABLE": outputs["SessionsTableName"],
        "LIVEINSIGHT_SESSION_EVENTS_TABLE": outputs["SessionEventsTableName"],
        "LIVEINSIGHT_ROLLUPS_TABLE": outputs["RollUpsTableName"],
        "LIVEINSIGHT_QUARANTINE_TABLE": outputs["QuarantineTableName"],
        "LIVEINSIGHT_FAILURES_QUEUE_URL": outputs["FailureQueueUrl"],
        "LIVEINSIGHT_ARCHIVE_BUCKET": outputs["ArchiveBucketName"],
        # Only what runs on this machine reaches the collector, so what it says of a visitor's country may be believed.
        "LIVEINSIGHT_TRUST_EDGE_HEADERS": "1",
    }


def announcement(settings: RunSettings) -> list[str]:
    """What is where."""
    collector = f"http://{HOST}:{settings.collector_port}"
    aws = settings.endpoint or f"http://{HOST}:{settings.aws_port} (embedded)"
    return [
        f"  dashboard  http://{HOST}:{settings.query_port}/",
        f"  collector  {collector}/events",
        f'  tracker    <script async src="{collector}/liveinsight.js" data-site="default"></script>',
        f"  AWS        {aws}",
        f"  logs       {settings.logs}",
    ]


def check_ports(settings: RunSettings) -> None:
    """Raise :class:`Unusable` if a port is taken, or given twice."""
    wanted = {"COLLECTOR_PORT": settings.collector_port, "QUERY_PORT": settings.query_port}
    if not settings.endpoint:
        wanted["AWS_PORT"] = settings.aws_port
    for variable, port in wanted.items():
        if not 0 < port < 65_536:
            raise Unusable(f"{variable}={port} is not a port: 1 to 65535")
        if list(wanted.values()).count(port) > 1:
            raise Unusable(f"{variable}={port}: another service is to have the same port; set another {variable}")
        with socket.socket() as probe:
            # As a server does it, so that a port that was in use a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise Unusable(
                    f"port {port} on {HOST} cannot be had ({error.strerror}); set {variable} to a free one, "
                    f"as in: make run {variable}={port + 1}"
                ) from error


@contextmanager
def only_run_in(directory: Path) -> Iterator[None]:
    """Hold ``directory`` for this run alone. Raises :class:`Unusable` if another has it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unusable(
                f"another run uses {directory}; stop it, or set LIVEINSIGHT_DIR to another directory"
            ) from error
        yield


def accepts(port: int) -> bool:
    """Whether something listens on the port."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def answers(port: int, path: str) -> bool:
    """Whether an HTTP GET is answered with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def said_by_aws(settings: RunSettings, start: str) -> list[str]:
    """The lines of the embedded AWS's log that begin with ``start``."""
    log = settings.logs / "aws.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() and not settings.endpoint else []
    return [line.removeprefix("state: ") for line in lines if line.startswith(start)]


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
