"""A store in memory that keeps the conditions of the real one, and fails where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from stream_consumer.items import (
    Item,
    Positions,
    StoredRollUp,
    StoredSession,
    join_positions,
    read_rollup,
    read_session,
    rollup_key,
    session_key,
)
from stream_consumer.table import Conflict, RollUpName, SessionName, Unavailable

_T = TypeVar("_T")


class Crash(BaseException):
    """The function's process ended here."""


class MemoryStore:
    """``fault(n)`` says what the n-th write meets: '', 'refused' (an error, not written), 'lost' (an error,
    yet written), 'crash' (before it), 'crash after'."""

    def __init__(self, fault: Callable[[int], str] = lambda _: "") -> None:
        self.sessions: dict[str, Item] = {}
        self.rollups: dict[tuple[str, str], Item] = {}
        self.events: dict[tuple[str, str], Item] = {}
        self.quarantine: dict[tuple[str, str], Item] = {}
        self.sites: set[str] = set()
        self.fault = fault
        self.writes = 0

    def load_sessions(self, names: Sequence[SessionName]) -> dict[SessionName, StoredSession]:
        keys = {name: session_key(*name) for name in names}
        return {name: read_session(self.sessions[key]) for name, key in keys.items() if key in self.sessions}

    def load_rollups(self, names: Sequence[RollUpName]) -> dict[RollUpName, StoredRollUp]:
        keys = {name: rollup_key(*name) for name in names}
        return {name: read_rollup(self.rollups[key]) for name, key in keys.items() if key in self.rollups}

    def save_rollup(self, item: Item, base: str | None) -> None:
        key = (item["pk"]["S"], item["sk"]["S"])
        self._write(lambda: self._conditionally(self.rollups, key, item, base))

    def save_session(self, item: Item, base: Positions | None) -> None:
        joined = None if base is None else join_positions(base)
        self._write(lambda: self._conditionally(self.sessions, item["pk"]["S"], item, joined))

    def put_events(self, items: Sequence[Item]) -> None:
        if items:
            self._write(lambda: self.events.update({(item["pk"]["S"], item["sk"]["S"]): item for item in items}))

    def put_quarantine(self, items: Sequence[Item]) -> None:
        if items:
            self._write(lambda: self.quarantine.update({(item["pk"]["S"], item["sk"]["S"]): item for item in items}))

    def put_sites(self, items: Sequence[Item]) -> None:
        self.sites.update(item["sk"]["S"] for item in items)

    def each(self, work: Callable[[_T], None], values: Iterable[_T]) -> list[Exception | None]:
        results: list[Exception | None] = []
        for value in values:
            try:
                work(value)
                results.append(None)
            except (Conflict, Unavailable) as failure:
                results.append(failure)
        return results

    def _conditionally(self, table: dict, key: object, item: Item, base: str | None) -> None:
        held = table.get(key)
        if (held["pos"]["S"] if held else None) != base:
            if held and held["pos"] == item["pos"]:
                return
            raise Conflict(str(key))
        table[key] = item

    def _write(self, write: Callable[[], None]) -> None:
        self.writes += 1
        fault = self.fault(self.writes)
        if fault == "crash":
            raise Crash
        if fault == "refused":
            raise Unavailable("refused")
        write()
        if fault == "crash after":
            raise Crash
        if fault == "lost":
            raise Unavailable("the answer was lost")
