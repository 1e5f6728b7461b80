"""Every way in which the API says no: one shape, and a registered reason for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec import Struct

#: Reason -> its HTTP status, and what it means. Clients may depend on these names.
REASONS = {
    "bad_parameter": (400, "A parameter cannot be understood, or does not go with another; the message names it."),
    "key_missing": (401, "Read keys are on and the request has none: Authorization: Bearer li_..."),
    "key_unknown": (401, "The read key is none that is known here."),
    "other_site": (403, "The read key is of another site."),
    "no_such_path": (404, "There is nothing at this path."),
    "no_such_session": (404, "The site has no session of this id, or it has expired."),
    "method_not_allowed": (405, "The path does not take this method; Allow names those that it takes."),
    "too_large": (413, "The request's body is larger than any request's here."),
    "too_many_streams": (
        429,
        "As many streams as there may be are open; ask /api/realtime/ from time to time instead.",
    ),
    "internal": (500, "Something went wrong here; the server's log says what."),
    "unavailable": (503, "The tables cannot be read at the moment; try again after Retry-After seconds."),
}


class Error(Struct):
    """Why there is no answer: ``status`` is the HTTP status, ``reason`` a stable name, ``message`` a sentence."""

    status: int
    reason: str
    message: str


class ErrorAnswer(Struct):
    """The body of every answer of status 400 and above."""

    error: Error


class Problem(Exception):  # noqa: N818 - what the client is told, not always a fault
    """An answer that says no. ``headers`` go with it."""

    def __init__(self, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.headers = dict(headers or {})


class Refusal(NamedTuple):
    """An error as it is sent."""

    status: int
    body: bytes


def refusal(reason: str, message: str, status: int | None = None) -> Refusal:
    """The answer for a registered reason; ``status`` where it is not the reason's own."""
    code = status or REASONS[reason][0]
    return Refusal(code, msgspec.json.encode(ErrorAnswer(Error(code, reason, message))))
