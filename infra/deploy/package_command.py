"""``python -m infra package``."""

from __future__ import annotations

import argparse
from pathlib import Path

from infra.deploy.package import PackageFailed, build, report
from infra.deploy.terminal import say, tell_problem

_ABOUT = """\
Make the functions' zip: producer/, stream_consumer/ and what they need of requirements.lock, as wheels for the Lambda
functions' Python and processor, checked against the lock's hashes. The same content gives the same bytes (with the
same zlib and the same Python for its bytecode), and its name in the code bucket is made of the content.

`deploy` does this itself; here you see what is in it and what it weighs.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``package`` to the commands."""
    package = commands.add_parser(
        "package",
        help="make the functions' zip",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    package.add_argument(
        "--output", type=Path, default=Path("build/functions.zip"), metavar="FILE", help="(default: %(default)s)"
    )
    package.add_argument(
        "--local", action="store_true", help="for this machine's Python, from what is installed here; asks no index"
    )
    package.set_defaults(run=_package)


def _package(given: argparse.Namespace) -> int:
    try:
        package = build(local=given.local)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_bytes(package.data)
    except PackageFailed as problem:
        return tell_problem("package", str(problem))
    except OSError as problem:
        return tell_problem("package", f"{given.output} cannot be written: {problem.strerror}")
    for line in report(package):
        say(line)
    say(f"{given.output}: content {package.digest}")
    return 0
