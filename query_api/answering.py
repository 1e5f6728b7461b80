"""From what is asked to what is sent: cached bytes, with the headers that tell how good they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Response

from query_api.caching import Answer, Fresh, Served, Shared, Store, make_answer
from query_api.endpoints import Asked, Made
from query_api.representation import moment
from query_api.settings import ApiSettings

#: A larger answer (in bytes) is shared by those who wait for it, but takes no room in the cache.
MAX_CACHED_BYTES = 256 * 1024
#: Headers of our own, which pages of other origins may read.
OWN_HEADERS = (
    "LiveInsight-As-Of",
    "LiveInsight-Generation",
    "LiveInsight-Lag",
    "LiveInsight-Partial",
    "LiveInsight-Stale",
)
#: A browser or proxy asks again after so many seconds at most: it cannot know when another generation is promoted.
MOST_CLIENT_SECONDS = 60

_encode = msgspec.json.Encoder().encode


class Answering:
    """Gives answers out. ``store`` keeps them; ``clock`` gives ms since 1970 UTC; ``jitter`` numbers from 0 to 1.

    ``ahead``: the last part of an answer's time, in which it is made anew if it is asked for. ``patience``: how long
    (s) a new one is waited for where an old one could stand in. ``shared_caches``: whether caches between us and the
    client may keep what they pass on.
    """

    def __init__(
        self,
        store: Store,
        settings: ApiSettings,
        clock: Callable[[], int],
        jitter: Callable[[], float],
        *,
        shared_caches: bool,
        ahead: float,
        patience: float,
    ) -> None:
        self._clock = clock
        self._scope = "public" if shared_caches else "private"

        def shared(stale_ms: int) -> Shared[Answer]:
            def keep(answer: Answer) -> bool:
                return len(answer.body) <= MAX_CACHED_BYTES

            return Shared(store, clock, keep=keep, stale_ms=stale_ms, patience=patience, ahead=ahead, jitter=jitter)

        self._answers = shared(round(settings.stale_lifetime * 1000))
        self._never_stale = shared(0)

    def close(self) -> None:
        """Let no thread behind."""
        self._answers.close()
        self._never_stale.close()

    def served(self, key: str, make: Callable[[], Made], *, may_be_stale: bool = True) -> Served[Answer]:
        """The answer of this key, made if none is fresh; an old one where the tables cannot be read, if it may be.

        Raises what ``make`` does.
        """

        def compute() -> Fresh[Answer]:
            made = make()
            return Fresh(_answer(made), made.until)

        return (self._answers if may_be_stale else self._never_stale).get(key, compute)

    def response(self, served: Served[Answer], environ: dict[str, Any], generation: str) -> Response:
        """The response to the request of this WSGI environment: 304 without a body where the client has it."""
        answer = served.value
        etag = f'"{answer.etag}"'
        headers = list(answer.headers.items())
        headers.append(("ETag", etag))
        headers.append(("LiveInsight-Generation", generation))
        if served.stale:
            headers.append(("LiveInsight-Stale", str(-(-served.stale // 1000))))
            headers.append(("Cache-Control", "no-store"))
        else:
            left = min(max(0, served.until - self._clock()) // 1000, MOST_CLIENT_SECONDS)
            headers.append(("Cache-Control", f"{self._scope}, max-age={left}"))
        known = environ.get("HTTP_IF_NONE_MATCH")
        if known and (etag in known or known.strip() == "*"):
            return Response(status=304, headers=headers)
        return Response(answer.body, 200, headers)


def key_of(asked: Asked) -> str:
    """What the answer is kept under: different questions have different keys."""
    return _encode(asked.key).decode()


def _answer(made: Made) -> Answer:
    headers = {"Content-Type": made.content_type, **made.headers}
    if made.received > 0:
        headers["LiveInsight-As-Of"] = moment(made.received)
    if made.lag is not None:
        headers["LiveInsight-Lag"] = f"{made.lag:g}"
    if made.partial:
        headers["LiveInsight-Partial"] = "true"
    return make_answer(made.value if isinstance(made.value, bytes) else _encode(made.value), headers)
