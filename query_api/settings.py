"""The query API's settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stream_consumer.generations import is_name
from stream_consumer.table import TableNames


@dataclass(frozen=True)
class ApiSettings:
    """What the environment decides.

    Lifetimes of cached answers are in seconds: ``realtime`` for who is here now, ``live`` for lists of active
    sessions, ``session`` for one session or one user's, ``recent`` for figures that may still change, ``closed`` for
    those to which nothing more comes; ``stale`` is for how long beyond theirs old answers stand in where DynamoDB
    cannot be read.
    ``allowed_origins``: those (lower case, or ``*``) whose pages may read. ``readers``: DynamoDB calls at a time.
    ``streams``: realtime streams open at a time in a process. ``read_keys``: whether only who has a site's key may
    read it. ``cache_url``: a Redis that processes share answers in, None for none. ``region``: AWS's, None for what
    boto3 finds by itself, which does not look at AWS_REGION. ``generation``: the one to answer from, '' for the one
    that is served.
    """

    tables: TableNames
    allowed_origins: tuple[str, ...] = ("*",)
    realtime_lifetime: float = 1.2
    live_lifetime: float = 2.0
    session_lifetime: float = 2.0
    recent_lifetime: float = 2.0
    closed_lifetime: float = 86_400.0
    stale_lifetime: float = 3600.0
    readers: int = 16
    streams: int = 1000
    read_keys: bool = False
    cache_url: str | None = None
    region: str | None = None
    generation: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ApiSettings:
        """Read LIVEINSIGHT_*_TABLE, LIVEINSIGHT_API_* and AWS_REGION. ValueError names what cannot be, and what can."""
        origins = environ.get("LIVEINSIGHT_API_ALLOWED_ORIGINS", "*").split(",")
        allowed = tuple(origin for given in origins if (origin := given.strip().rstrip("/").lower()))
        for origin in allowed:
            if origin != "*" and not re.fullmatch(r"https?://[^\s/?#*]+", origin):
                raise ValueError(
                    f"LIVEINSIGHT_API_ALLOWED_ORIGINS: {origin!r} is neither * nor like https://example.com"
                )
        cache_url = environ.get("CACHE_URL", "").strip() or None
        if cache_url and not re.match(r"(rediss?|unix)://", cache_url):
            # Not the value: it may hold a password.
            raise ValueError("CACHE_URL: is not like redis://127.0.0.1:6379/0")
        generation = environ.get("LIVEINSIGHT_API_GENERATION", "").strip()
        if generation and not is_name(generation):
            raise ValueError(f"LIVEINSIGHT_API_GENERATION: {generation!r} is no generation, such as g2")
        return cls(
            TableNames.from_environ(environ),
            allowed_origins=allowed,
            realtime_lifetime=_number(environ, "LIVEINSIGHT_API_REALTIME_SECONDS", cls.realtime_lifetime, 0, 30),
            live_lifetime=_number(environ, "LIVEINSIGHT_API_LIVE_SECONDS", cls.live_lifetime, 0, 30),
            session_lifetime=_number(environ, "LIVEINSIGHT_API_SESSION_SECONDS", cls.session_lifetime, 0, 300),
            recent_lifetime=_number(environ, "LIVEINSIGHT_API_RECENT_SECONDS", cls.recent_lifetime, 0, 300),
            closed_lifetime=_number(environ, "LIVEINSIGHT_API_CLOSED_SECONDS", cls.closed_lifetime, 0, 604_800),
            stale_lifetime=_number(environ, "LIVEINSIGHT_API_STALE_SECONDS", cls.stale_lifetime, 0, 86_400),
            readers=int(_number(environ, "LIVEINSIGHT_API_READERS", cls.readers, 1, 128)),
            streams=int(_number(environ, "LIVEINSIGHT_API_STREAMS", cls.streams, 0, 100_000)),
            read_keys=_switch(environ, "LIVEINSIGHT_API_READ_KEYS", cls.read_keys),
            cache_url=cache_url,
            region=environ.get("AWS_REGION") or None,
            generation=generation,
        )


def _switch(environ: Mapping[str, str], name: str, default: bool) -> bool:
    text = environ.get(name, "").strip().lower()
    if text not in {"", "on", "off"}:
        raise ValueError(f"{name}: {text!r} is neither on nor off")
    return text == "on" if text else default


def _number(environ: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ValueError(f"{name}: {text!r} is not a number from {least:g} to {most:g}")
    return number
