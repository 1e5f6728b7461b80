"""What a command says to its user: progress and results to stdout, problems to stderr."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line of progress or result, at once."""
    print(text, flush=True)


def tell_problem(command: str, text: str) -> int:
    """A problem, with its cause and its remedy; returns the exit status of what could not be done."""
    print(f"{command}: {text}", file=sys.stderr, flush=True)
    return 1


def table(rows: list[tuple[str, ...]], indent: str = "  ") -> list[str]:
    """Rows as lines, their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def agreed(question: str) -> bool:
    """Ask on a terminal; no without one, for nobody could have answered."""
    if not sys.stdin.isatty():
        print(f"{question} There is no terminal to answer from: give --yes.", file=sys.stderr, flush=True)
        return False
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
