"""HTTP as the checks speak it: every answer is a value, whatever its status."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


class Unreachable(Exception):  # noqa: N818 - carries a sentence to the user
    """There was no answer; the message says whose."""


@dataclass(frozen=True)
class Answer:
    """``seconds`` is how long it took until the body (of a stream: its first line) was read."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    seconds: float

    def json(self) -> Any:
        """Raises ``ValueError`` for what is no JSON."""
        return json.loads(self.body)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: followed, it would take the read key to wherever it leads."""

    def redirect_request(self, *_: object) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


class Address:
    """One of the deployment's two addresses. ``headers`` go with each request; ``patience`` is in seconds."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, patience: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._headers = dict(headers or {})
        self._patience = patience

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        first_line: bool = False,
    ) -> Answer:
        """One request; ``first_line`` reads no more of the answer than that. Raises :class:`Unreachable`."""
        given = {"User-Agent": "LiveInsight-smoke", **self._headers, **(headers or {})}
        request = urllib.request.Request(self.url + path, body, given, method=method)  # noqa: S310 - see checked_url
        began = time.monotonic()
        try:
            with _opener.open(request, timeout=self._patience) as answer:
                read = answer.readline() if first_line else answer.read()
                return Answer(answer.status, _lower(answer.headers), read, time.monotonic() - began)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _lower(error.headers), error.read(), time.monotonic() - began)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(f"{self.url}{path.partition('?')[0]} does not answer: {reason}") from error


def checked_url(text: str) -> str:
    """An address as given by a user. Raises ``ValueError`` for what is no http or https URL of a host alone."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{text!r} is no address like https://figures.example.com")
    return text


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
