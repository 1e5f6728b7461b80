"""The query API's settings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from stream_consumer.table import TableNames


@dataclass(frozen=True)
class ApiSettings:
    """What the environment decides.

    Lifetimes of cached answers are in seconds: ``live`` for active sessions, realtime and one session, ``recent``
    for figures that may still change, ``closed`` for those of past hours to which nothing has come lately.
    ``allowed_origins``: those (lower case, or ``*``) whose pages may read. ``readers``: DynamoDB calls at a time.
    ``region``: AWS's, None for what boto3 finds by itself, which does not look at AWS_REGION.
    """

    tables: TableNames
    allowed_origins: tuple[str, ...] = ("*",)
    live_lifetime: float = 1.5
    recent_lifetime: float = 2.0
    closed_lifetime: float = 60.0
    readers: int = 16
    region: str | None = None

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
        return cls(
            TableNames.from_environ(environ),
            allowed_origins=allowed,
            live_lifetime=_number(environ, "LIVEINSIGHT_API_LIVE_SECONDS", cls.live_lifetime, 0, 30),
            recent_lifetime=_number(environ, "LIVEINSIGHT_API_RECENT_SECONDS", cls.recent_lifetime, 0, 300),
            closed_lifetime=_number(environ, "LIVEINSIGHT_API_CLOSED_SECONDS", cls.closed_lifetime, 0, 86_400),
            readers=int(_number(environ, "LIVEINSIGHT_API_READERS", cls.readers, 1, 128)),
            region=environ.get("AWS_REGION") or None,
        )


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
