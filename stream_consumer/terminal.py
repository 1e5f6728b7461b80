"""A person's terminal: progress bars, and text that does nothing to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def printable(text: str) -> str:
    """The text with what is not printable as escapes."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


@contextmanager
def bars(doing: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each kind of thing that is told of, where a person watches."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def seen(what: str, count: int, of: int) -> None:
        bar = bars.get(what)
        if bar is None:
            bar = bars[what] = tqdm(total=of, desc=f"{doing} {what}", unit=" items", disable=None, file=sys.stderr)
        # The size of a table is an estimate.
        bar.total = max(bar.total or 0, bar.n + count)
        bar.update(count)

    try:
        yield seen
    finally:
        for bar in bars.values():
            bar.close()
