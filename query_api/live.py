"""Server-sent events: each change of a site's realtime figures, handed to all who watch the site.

One thread for each watched site looks at the answer, however many watch, and hands the same bytes to every stream.
A stream holds what its client was not yet sent: the newest value alone, so that a slow client skips values and holds
up nobody. Threads and I/O are its reader's: a stream is an iterator that waits (WSGI), or is taken from when it says
that it is ready (:mod:`query_api.gateway`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, Self

from stream_consumer.table import Unavailable

#: What a browser waits (ms) before it connects again, after its stream ended or broke.
RETRY_MS = 3000
_HEAD = b"retry: %d\n\n" % RETRY_MS
_COMMENT = b":\n\n"

_log = logging.getLogger("liveinsight.query_api.live")


class TooManyStreams(Exception):  # noqa: N818 - an answer, not a fault
    """As many streams are open as may be, or none are begun any more; a sentence for the client."""


class Watched(Protocol):
    """What is looked at: an encoded answer, JSON without line ends, and the name of this state of it."""

    @property
    def body(self) -> bytes: ...
    @property
    def etag(self) -> str: ...


class Looked(Protocol):
    """What a look gives; :class:`query_api.caching.Served` is one."""

    @property
    def value(self) -> Watched: ...


class Stream(Iterator[bytes]):
    """The events for one client. Ends after its lifetime, or with :meth:`end`; who reads it calls :meth:`close`.

    Iterating waits for events. A reader that must not wait gives :meth:`when_ready` a function, and takes.
    """

    def __init__(self, left: Callable[[Stream], None], now: float, lifetime: float) -> None:
        self._left = left
        self._changed = threading.Condition()
        self._ready: Callable[[], None] = lambda: None
        self._head = _HEAD
        self._pending = b""
        self._etag = ""
        self._taken_at = now
        self._ends_at = now + lifetime
        self._over = False
        self._closed = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def offer(self, etag: str, event: bytes, now: float, beat: float) -> None:
        """Have ``event`` sent, in place of one that has not been; unless it is the last one again.

        ``now`` and ``beat`` in seconds: where nothing was taken for ``beat``, a comment is sent.
        """
        with self._changed:
            if event and etag != self._etag:
                self._etag, self._pending = etag, event
            elif not self._pending and now - self._taken_at >= beat:
                self._pending = _COMMENT
            elif now < self._ends_at:
                return
            self._over = self._over or now >= self._ends_at
            self._changed.notify_all()
        self._ready()

    def take(self) -> bytes:
        """What is to be sent now; empty if nothing is."""
        with self._changed:
            chunk, self._head, self._pending = self._head + self._pending, b"", b""
            if chunk:
                self._taken_at = time.monotonic()
            return chunk

    def when_ready(self, call: Callable[[], None]) -> None:
        """``call`` is called, in any thread, when there is something to take or the stream is over; also at once."""
        self._ready = call
        call()

    def end(self) -> None:
        """Let nothing more come."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._ready()

    def close(self) -> None:
        """Give the stream's place to another. May be called twice."""
        self.end()
        with self._changed:
            closed, self._closed = self._closed, True
        if not closed:
            self._left(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        with self._changed:
            while not (self._over or self._head or self._pending):
                self._changed.wait()
        if self._over:
            self.close()
            raise StopIteration
        return self.take()


class _Watch:
    """A watched site: its newest event, and its streams."""

    def __init__(self) -> None:
        self.etag = ""
        self.event = b""
        self.streams: set[Stream] = set()


class Live:
    """Streams of the answers that ``answer`` gives for a site, ``most`` at a time.

    All times are in seconds. While anybody watches a site, ``answer`` is called about every ``period``, in a thread of
    the site's own; a change is an event, and without one for ``beat`` a comment tells dead connections from quiet
    ones. A stream lasts for about ``lifetime`` (``spread`` picks a number between two, so that those which began
    together do not end together): load balancers and new releases then get their connections back, and the browser
    connects again by itself. An answer that cannot be had is no event, and ends nothing.
    """

    def __init__(
        self,
        answer: Callable[[str], Looked],
        most: int,
        *,
        period: float = 1.0,
        beat: float = 15.0,
        lifetime: float = 600.0,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._answer = answer
        self._most = most
        self._period = period
        self._beat = beat
        self._lifetime = lifetime
        self._spread = spread
        self._lock = threading.Lock()
        self._open = 0
        self._watches: dict[str, _Watch] = {}
        self._closing = threading.Event()

    def stream(self, site_id: str) -> Stream:
        """The events of a site, from the newest on: its place is taken now. Raises :class:`TooManyStreams`."""
        now = time.monotonic()
        with self._lock:
            if self._closing.is_set():
                raise TooManyStreams("this server is stopping; connect again in some seconds")
            if self._open >= self._most:
                raise TooManyStreams(f"{self._most} streams are open, as many as may be; ask /api/realtime/ instead")
            watch = self._watches.get(site_id)
            if watch is None:
                watch = _Watch()
                # It takes the lock before it ends, so it finds the stream that is added below.
                threading.Thread(target=self._look, args=(site_id, watch), name=f"live {site_id}", daemon=True).start()
                self._watches[site_id] = watch
            streams = watch.streams

            def left(stream: Stream) -> None:
                with self._lock:
                    streams.discard(stream)
                    self._open -= 1

            stream = Stream(left, now, self._lifetime * self._spread(0.8, 1.2))
            stream.offer(watch.etag, watch.event, now, self._beat)
            streams.add(stream)
            self._open += 1
        return stream

    def close(self) -> None:
        """End every stream and every thread; no stream begins after it."""
        with self._lock:
            self._closing.set()
            streams = [stream for watch in self._watches.values() for stream in watch.streams]
        for stream in streams:
            stream.end()

    def _look(self, site_id: str, watch: _Watch) -> None:
        while True:
            try:
                found = self._answer(site_id).value
                if found.etag != watch.etag:
                    event = b"event: realtime\nid: %s\ndata: %s\n\n" % (found.etag.encode(), found.body)
                    with self._lock:
                        watch.etag, watch.event = found.etag, event
            except Unavailable as why:
                _log.info("live %s: %s", site_id, why)
            except Exception:  # noqa: BLE001 - a thread that ended would leave its streams mute
                _log.exception("live %s: the answer failed", site_id)
            with self._lock:
                streams = list(watch.streams)
                if not streams or self._closing.is_set():
                    del self._watches[site_id]
                    return
            now = time.monotonic()
            for stream in streams:
                stream.offer(watch.etag, watch.event, now, self._beat)
            self._closing.wait(self._period)
