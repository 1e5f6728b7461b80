"""Values that several requests want at the same time: each computed once, and kept for a stated time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Fresh(Generic[T_co]):
    """A value, and until when (ms since 1970) it may be given out."""

    value: T_co
    until: int


class Store(Protocol):
    """Where values are kept; it may forget any of them at any time."""

    def get(self, key: str, /) -> Any: ...
    def set(self, key: str, value: Any, timeout: int, /) -> Any: ...


class Shared(Generic[T]):
    """Values by key. Who asks for one that is being computed waits for it, and shares its failure too.

    ``clock`` gives ms since 1970. ``keep`` tells whether a value may take room in ``store``.
    """

    def __init__(self, store: Store, clock: Callable[[], int], keep: Callable[[T], bool] = lambda value: True) -> None:
        self._store = store
        self._clock = clock
        self._keep = keep
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[Fresh[T]]] = {}

    def get(self, key: str, compute: Callable[[], Fresh[T]]) -> Fresh[T]:
        """The value of ``key``, computed if none is fresh. Raises what ``compute`` raises."""
        if (fresh := self._kept(key)) is not None:
            return fresh
        with self._lock:
            flight = self._under_way.get(key)
            leads = flight is None
            if flight is None:
                flight = self._under_way[key] = Future()
        if leads:
            try:
                flight.set_result(self._compute(key, compute))
            except BaseException as error:  # noqa: BLE001 - it belongs to all who wait
                flight.set_exception(error)
            finally:
                with self._lock:
                    del self._under_way[key]
        return flight.result()

    def _compute(self, key: str, compute: Callable[[], Fresh[T]]) -> Fresh[T]:
        # The flight before this one may have landed after we looked.
        if (fresh := self._kept(key)) is not None:
            return fresh
        fresh = compute()
        left = fresh.until - self._clock()
        if left > 0 and self._keep(fresh.value):
            # Stores count whole seconds; ``until`` is what decides.
            self._store.set(key, fresh, left // 1000 + 1)
        return fresh

    def _kept(self, key: str) -> Fresh[T] | None:
        fresh: Fresh[T] | None = self._store.get(key)
        return fresh if fresh is not None and fresh.until > self._clock() else None


class Newest:
    """A :class:`Store` of the ``room`` values that were set last, as they are."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, /) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any, timeout: int, /) -> None:
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            if len(self._values) > self._room:
                self._values.popitem(last=False)
