"""Values that several requests want at the same time: each computed once, kept for a stated time, and beyond it given
out as stale where it cannot be computed anew. Encoded answers may be shared with other server processes by Redis.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from cachelib.serializers import BaseSerializer
from flask import Flask
from flask_caching import Cache

from stream_consumer.table import Unavailable

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: Answers that a process keeps at a time.
_ANSWERS = 2000
#: Refreshes of stale values at a time. With all of them hanging, other stale values are given out without one.
_REFRESHES = 8
#: At most this part of a lifetime is cut off, so that what was computed together does not expire together.
_JITTER = 0.1
#: After a failed refresh of a key none is tried for about this time (ms): twice as long after each further failure.
_FIRST_REST_MS = 1000
_LONGEST_REST_MS = 5000
_REMEMBERED_FAILURES = _ANSWERS
#: Longer names of keys (in characters) are hashed in Redis.
_LONGEST_NAME = 200
#: Seconds that Redis has to accept a connection, and to answer. Beside it the same answer is a read of DynamoDB away.
_REDIS_TIMEOUT = 0.2
#: How long (ms) Redis is left alone after a failure.
_REDIS_REST_MS = 3000

_log = logging.getLogger("liveinsight.query_api")


@dataclass(frozen=True)
class Fresh(Generic[T_co]):
    """A computed value, and until when (ms since 1970) it may be given out."""

    value: T_co
    until: int


@dataclass(frozen=True, slots=True)
class Served(Generic[T_co]):
    """A value as it is given out: good until ``until`` (ms since 1970), or too old for ``stale`` ms (0: it is not).

    It is computed anew, in the background, from ``ahead`` ms before that, if anybody asks for it then.
    """

    value: T_co
    until: int
    stale: int = 0
    ahead: int = 0


class Answer(msgspec.Struct, frozen=True):
    """An encoded answer: its bytes, their strong ETag (without quotes), and headers of its own.

    It is shared by requests: nobody may change ``headers``.
    """

    body: bytes
    etag: str
    headers: dict[str, str]


def make_answer(body: bytes, headers: dict[str, str]) -> Answer:
    """The answer of these bytes. Its ETag is a hash of ``body``, and of nothing else."""
    return Answer(body, hashlib.blake2b(body, digest_size=16).hexdigest(), headers)


class Store(Protocol):
    """Where values are kept (``timeout``: for how many seconds); it may forget any of them at any time.

    Neither method raises. A store of which a part is slow has a method ``near(key)`` too: what it holds at hand.
    """

    def get(self, key: str, /) -> Any: ...
    def set(self, key: str, value: Any, timeout: int, /) -> Any: ...


class _Flight(Generic[T]):
    """A computation under way. ``old``: what there is meanwhile, once that is known."""

    def __init__(self, began: int) -> None:
        self.began = began
        self.old: Future[Served[T] | None] = Future()
        self.landed: Future[Served[T]] = Future()
        self.in_background = False
        self.waiting = 0


@dataclass(frozen=True)
class _Failure:
    """How often in a row a key's refresh has failed, and when (ms since 1970) the next may be tried."""

    times: int
    again: int


class Shared(Generic[T]):
    """Values by key. Who asks for one that is being computed waits for it, and shares its failure too.

    ``clock`` gives ms since 1970. ``keep`` tells whether a value may take room in ``store``. For ``stale_ms`` beyond
    its time a value is still given out, marked, where a new one takes longer than ``patience`` seconds or its
    computation raises :class:`Unavailable`. Then a value is computed in a thread of ``refreshers`` (by default of a
    pool that :meth:`close` ends), so ``compute`` may use nothing that belongs to the asking thread. Where a value is
    made of another ``Shared``'s, only the outer one should give out stale ones: it cannot see the inner one's mark.
    For the last ``ahead`` (0 to 1) of its time a value that is asked for is computed anew while it is still given
    out, so that nobody waits for what many want; then what it is made of must be good for less time than that.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], int],
        *,
        keep: Callable[[T], bool] = lambda value: True,
        stale_ms: int = 0,
        patience: float = 0.3,
        ahead: float = 0.0,
        jitter: Callable[[], float] = random.random,
        refreshers: ThreadPoolExecutor | None = None,
    ) -> None:
        self._store = store
        self._near: Callable[[str], Served[T] | None] = getattr(store, "near", store.get)
        self._clock = clock
        self._keep = keep
        self._stale_ms = stale_ms
        self._patience = patience
        self._ahead = ahead
        self._jitter = jitter
        self._refreshers = refreshers or ThreadPoolExecutor(_REFRESHES, thread_name_prefix="refresh")
        self._ends_refreshers = refreshers is None
        self._refreshing = 0
        self._failures = Newest(_REMEMBERED_FAILURES)
        self._lock = threading.Lock()
        self._under_way: dict[str, _Flight[T]] = {}

    def get(self, key: str, compute: Callable[[], Fresh[T]]) -> Served[T]:
        """The value of ``key``, computed if none is fresh; an old one, marked, where that fails or takes too long.

        Raises what ``compute`` raises: :class:`Unavailable` if there is no old value, anything else in any case, as
        that is an answer (there is no such thing) or a fault of ours, which an old value must not hide.
        """
        kept = self._near(key)
        now = self._clock()
        if kept is not None and kept.until > now:
            if kept.until - now <= kept.ahead and key not in self._under_way:
                self._renew(key, kept, compute)
            return kept
        old = self._usable(kept, now)
        if old is not None and self._rests(key, now):
            return _marked(old, now)
        with self._lock:
            flight = self._under_way.get(key)
            leads = flight is None
            if flight is None:
                flight = self._under_way[key] = _Flight(now)
            flight.waiting += 1
        if leads:
            self._lead(key, flight, compute, old)
        return self._outcome(flight)

    def put(self, key: str, fresh: Fresh[T]) -> None:
        """Keep a value that was computed elsewhere."""
        self._computed(key, lambda: fresh)

    def close(self) -> None:
        """Let no thread behind: none is waited for, but each ends after its computation. Old values stay available."""
        if self._ends_refreshers:
            self._refreshers.shutdown(wait=False, cancel_futures=True)

    def _lead(self, key: str, flight: _Flight[T], compute: Callable[[], Fresh[T]], old: Served[T] | None) -> None:
        """See to it that ``flight`` lands: at once, or in the background if there is an old value."""
        try:
            if old is None:
                # Another process may have it; or the flight before this one landed after we looked.
                found, now = self._store.get(key), self._clock()
                if found is not None and found.until > now:
                    return self._land(key, flight, found)
                old = self._usable(found, now)
            flight.old.set_result(old)
            if old is None:
                return self._land(key, flight, self._computed(key, compute))
            if not self._refresh_in_background(key, flight, compute):
                return self._land(key, flight, _marked(old, self._clock()))
        except BaseException as error:  # noqa: BLE001 - it belongs to all who wait
            return self._land(key, flight, error)

    def _renew(self, key: str, kept: Served[T], compute: Callable[[], Fresh[T]]) -> None:
        """Begin to compute what is still good, unless somebody has."""
        if self._rests(key, self._clock()):
            return
        with self._lock:
            if key in self._under_way:
                return
            flight = self._under_way[key] = _Flight(self._clock())
        flight.old.set_result(kept)
        if not self._refresh_in_background(key, flight, compute, newer_than=kept.until):
            self._land(key, flight, kept)

    def _refresh_in_background(
        self, key: str, flight: _Flight[T], compute: Callable[[], Fresh[T]], newer_than: int = 0
    ) -> bool:
        """Whether it could be begun. What another process has stored meanwhile does, if good for longer."""
        with self._lock:
            if self._refreshing >= _REFRESHES or self._rests(key, self._clock()):
                return False
            self._refreshing += 1
            flight.in_background = True

        def refresh() -> None:
            try:
                found: Served[T] | None = self._store.get(key)
                fresh = found is not None and found.until > max(self._clock(), newer_than)
                self._land(key, flight, found if found is not None and fresh else self._computed(key, compute))
            except BaseException as error:  # noqa: BLE001 - it belongs to all who wait
                self._land(key, flight, error)

        def dropped(work: Future[None]) -> None:
            if work.cancelled():
                self._land(key, flight, Unavailable("this server is about to stop"))

        try:
            self._refreshers.submit(refresh).add_done_callback(dropped)
        except RuntimeError:  # it is closed, or the system has no more threads
            return False
        return True

    def _computed(self, key: str, compute: Callable[[], Fresh[T]]) -> Served[T]:
        fresh = compute()
        now = self._clock()
        until = fresh.until - int(max(0, fresh.until - now) * _JITTER * self._jitter())
        served = Served(fresh.value, until, ahead=int(max(0, until - now) * self._ahead))
        left = until + self._stale_ms - now
        if left > 0 and self._keep(fresh.value):
            # Stores count whole seconds; ``until`` is what decides.
            self._store.set(key, served, left // 1000 + 1)
        return served

    def _land(self, key: str, flight: _Flight[T], result: Served[T] | BaseException) -> None:
        with self._lock:
            if self._under_way.get(key) is not flight:
                return
            del self._under_way[key]
            if flight.in_background:
                self._refreshing -= 1
                if isinstance(result, Unavailable):
                    self._count_failure(key)
            if isinstance(result, Served) and not result.stale:
                self._failures.forget(key)
            if not flight.old.done():
                flight.old.set_result(None)
            if isinstance(result, BaseException):
                flight.landed.set_exception(result)
            else:
                flight.landed.set_result(result)
            unheard = flight.waiting == 0
        if unheard and isinstance(result, BaseException) and not isinstance(result, Unavailable):
            _log.error("a refresh of %.200r failed", key, exc_info=result)

    def _outcome(self, flight: _Flight[T]) -> Served[T]:
        old = flight.old.result()
        now = self._clock()
        if old is None or self._usable(old, now) is None:
            return flight.landed.result()
        # Patience counts from when the flight began: with a hanging table only the first who ask wait for all of it.
        left = min(self._patience, self._patience - (now - flight.began) / 1000)
        try:
            error = flight.landed.exception(max(0.0, left))
        except TimeoutError:
            with self._lock:
                if not flight.landed.done():
                    flight.waiting -= 1
                    return _marked(old, self._clock())
            error = flight.landed.exception()
        return _marked(old, self._clock()) if isinstance(error, Unavailable) else flight.landed.result()

    def _usable(self, kept: Served[T] | None, now: int) -> Served[T] | None:
        return kept if kept is not None and kept.until + self._stale_ms > now else None

    def _rests(self, key: str, now: int) -> bool:
        failure: _Failure | None = self._failures.get(key)
        return failure is not None and now < failure.again

    def _count_failure(self, key: str) -> None:
        failure: _Failure | None = self._failures.get(key)
        times = failure.times + 1 if failure else 1
        rest = min(_FIRST_REST_MS << min(times - 1, 10), _LONGEST_REST_MS) * (0.75 + 0.5 * self._jitter())
        self._failures.set(key, _Failure(times, self._clock() + int(rest)), 0)


def _marked(old: Served[T], now: int) -> Served[T]:
    return replace(old, stale=max(1, now - old.until))


class Newest:
    """A :class:`Store` of the ``room`` values that were set last, as they are, whatever their timeout. Reads of it
    wait for nobody.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, /) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: Any, timeout: int, /) -> None:
        with self._lock:
            # In this order, so that who reads meanwhile finds the old value or the new one.
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._room:
                self._values.popitem(last=False)

    def forget(self, key: str, /) -> None:
        """Hold nothing under ``key``."""
        with self._lock:
            self._values.pop(key, None)


class Tiers:
    """A :class:`Store` of :class:`Served` values: what is ``behind``, and in front of it those used last.

    ``near`` looks in front only. ``get`` asks behind too, and gives the newer one.
    """

    def __init__(self, front: Newest, behind: Store) -> None:
        self._front = front
        self._behind = behind
        self.near = front.get

    def get(self, key: str, /) -> Any:
        near, far = self._front.get(key), self._behind.get(key)
        if far is None or (near is not None and near.until >= far.until):
            return near
        self._front.set(key, far, 0)
        return far

    def set(self, key: str, value: Any, timeout: int, /) -> None:
        self._front.set(key, value, timeout)
        self._behind.set(key, value, timeout)


class Breaker:
    """A circuit breaker: after a failure nobody tries for ``rest_ms``, then one does; when that works, all do again.

    All times are ms of the same clock. Who is admitted must tell whether it failed or worked; thread-safe.
    """

    def __init__(self, rest_ms: int) -> None:
        self._rest_ms = rest_ms
        self._lock = threading.Lock()
        self._opened: int | None = None
        self._again: int | None = None

    def admits(self, now: int) -> bool:
        """Whether to try."""
        with self._lock:
            if self._opened is None:
                return True
            if self._again is None or now < self._again:
                return False
            # Until this one has told what became of it; it may hang for longer than a rest.
            self._again = None
            return True

    def failed(self, now: int) -> bool:
        """Count a failure that was seen at ``now``; whether it begins an outage."""
        with self._lock:
            begins = self._opened is None
            if begins:
                self._opened = now
            self._again = now + self._rest_ms
            return begins

    def worked(self, began: int) -> bool:
        """Count a success of a try admitted at ``began``; whether it ends an outage."""
        with self._lock:
            if self._opened is None or began <= self._opened:  # one from before the outage says nothing about its end
                return False
            self._opened = None
            return True


class Remote:
    """A :class:`Store` on a server that may be away or slow: then it holds nothing, and is left alone for a while.

    ``clock`` gives ms, and need not be that of the values.
    """

    def __init__(self, store: Store, breaker: Breaker, clock: Callable[[], int]) -> None:
        self._store = store
        self._breaker = breaker
        self._clock = clock

    def get(self, key: str, /) -> Any:
        return self._ask(lambda: self._store.get(_name(key)))

    def set(self, key: str, value: Any, timeout: int, /) -> None:
        self._ask(lambda: self._store.set(_name(key), value, timeout))

    def _ask(self, call: Callable[[], Any]) -> Any:
        began = self._clock()
        if not self._breaker.admits(began):
            return None
        try:
            found = call()
        except Exception as error:  # noqa: BLE001 - no answer depends on it, whatever its client raises
            # That it keeps something else under this name is no outage, but a miss.
            if not str(error).startswith("WRONGTYPE"):
                if self._breaker.failed(self._clock()):
                    _log.warning("Redis fails (%s): answers go on without it; it is tried again now and then", error)
                return None
            found = None
        if self._breaker.worked(began):
            _log.info("Redis works again")
        return found


def _name(key: str) -> str:
    """What Redis calls ``key``: itself if it is short and printable, else a hash. No two keys share a name."""
    if len(key) <= _LONGEST_NAME and key.isascii() and key.isprintable() and not key.startswith("#"):
        return key
    return "#" + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Packed(BaseSerializer):
    """Served answers as msgpack of [until, body, etag, headers]. What is not that is None: nothing is unpickled."""

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(tuple[int, bytes, str, dict[str, str]]).decode

    def dumps(self, value: Served[Answer], protocol: int = 0) -> bytes:
        answer = value.value
        return self._encode((value.until, answer.body, answer.etag, answer.headers))

    def loads(self, bvalue: bytes | None) -> Served[Answer] | None:
        if bvalue is None:
            return None
        try:
            until, body, etag, headers = self._decode(bvalue)
        except (msgspec.MsgspecError, ValueError):  # the latter: text that is not UTF-8
            return None
        return Served(Answer(body, etag, headers), until)


def newest(app: Flask, config: dict[str, Any], args: list[Any], options: dict[str, Any]) -> Newest:
    """flask-caching's in-process backend here: called by it, as CACHE_TYPE names it."""
    return Newest(config["CACHE_THRESHOLD"])


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def answer_store(app: Flask, cache_url: str | None, clock: Callable[[], int] = _monotonic_ms) -> Store:
    """Where ``app``'s served answers are kept: in this process, and with ``cache_url`` (``redis://...``) in Redis too.

    Redis may be away at any time; without it, answers are slower to come. It belongs to one deployment: answers from
    other tables under the same names would be given out. ValueError: ``cache_url`` is none.
    ``clock`` (ms) times how long a failing Redis is left alone.
    """
    if cache_url is None:
        # Not SimpleCache: its reads wait for a lock, and once it is full, each write sorts all that it holds.
        return _backend(app, {"CACHE_TYPE": f"{__name__}.{newest.__name__}", "CACHE_THRESHOLD": _ANSWERS})
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = {
        "socket_timeout": _REDIS_TIMEOUT,
        "socket_connect_timeout": _REDIS_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        # Of RESP 3 nothing is used, and its greeting would be one more exchange.
        "protocol": 2,
    }
    config = {
        "CACHE_TYPE": "RedisCache",
        "CACHE_REDIS_URL": cache_url,
        "CACHE_OPTIONS": options,
        "CACHE_KEY_PREFIX": "liveinsight:",
        "CACHE_SERIALIZER": Packed(),
    }
    return Tiers(Newest(_ANSWERS), Remote(_backend(app, config), Breaker(_REDIS_REST_MS), clock))


def _backend(app: Flask, config: dict[str, Any]) -> Store:
    cache = Cache(app, with_jinja2_ext=False, config=config)
    with app.app_context():
        return cache.cache
