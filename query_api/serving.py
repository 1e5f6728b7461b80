"""Which generation is served: the pointer, followed by every server process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from stream_consumer.generations import Pointer
from stream_consumer.table import Unavailable

#: How long (ms) what the pointer said is good without a look; so long after a promotion the last process follows.
LOOK_EVERY_MS = 1000
#: Who asks after a longer silence (ms) waits for a look.
_TOO_OLD_MS = 10_000

_log = logging.getLogger("liveinsight.query_api")


class Serving:
    """Follows a pointer. ``look`` reads it, and may raise :class:`Unavailable`.

    It is looked at in the background, so that nobody waits, and what it said last holds where it cannot be read.
    ``clock`` gives ms since 1970. Thread-safe.
    """

    def __init__(self, look: Callable[[], Pointer], clock: Callable[[], int]) -> None:
        self._look = look
        self._clock = clock
        self._pointer: Pointer | None = None
        self._looked_at = 0
        self._looking = threading.Lock()

    def __call__(self) -> Pointer:
        """The pointer. Raises :class:`Unavailable` if it was never known."""
        known, age = self._pointer, self._clock() - self._looked_at
        if known and age < LOOK_EVERY_MS:
            return known
        if known and age < _TOO_OLD_MS:
            if self._looking.acquire(blocking=False):
                threading.Thread(target=self._look_and_release, name="serving", daemon=True).start()
            return known
        with self._looking:
            if self._pointer is None or self._clock() - self._looked_at >= _TOO_OLD_MS:
                self._follow()
            assert self._pointer is not None
            return self._pointer

    def _look_and_release(self) -> None:
        try:
            self._follow()
        finally:
            self._looking.release()

    def _follow(self) -> None:
        began = self._clock()
        try:
            found = self._look()
        except Unavailable as why:
            if self._pointer is None:
                raise
            _log.warning("cannot tell which generation is served, going on with %s: %s", self._pointer.serving, why)
        else:
            if self._pointer and found != self._pointer:
                _log.info("generation %s is served from now on", found.serving)
            self._pointer = found
        # Also after a failure: the next look is due as ever.
        self._looked_at = began
