"""What a path is: its declaration, from which it is both served and described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from query_api.parameters import Arguments, Parameter

JSON = "application/json"
CSV = "text/csv; charset=utf-8"
EVENT_STREAM = "text/event-stream"


class Made(NamedTuple):
    """What an answer says, and until when (ms since 1970) it may be given out.

    ``value`` is what is encoded as JSON, or bytes of ``content_type``. ``received``: the latest arrival counted (ms), 0
    for none; ``lag``: seconds, None for unknown; ``partial``: the range is not over, or a list is cut.
    """

    value: Any
    until: int
    received: int = 0
    lag: float | None = None
    partial: bool = False
    content_type: str = JSON
    headers: Mapping[str, str] = {}


class Asked(NamedTuple):
    """A request as it was understood: ``make`` gives its answer, which is that of every request with the same ``key``.

    ``make`` is called in any thread.
    """

    key: tuple[object, ...]
    make: Callable[[], Made]


#: Understands a request for a site: (site, query parameters, parts of the path) -> what is asked.
Ask = Callable[..., Asked]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One path. ``name`` is that of the method which understands its requests, ``bound`` what that is given besides.

    ``answer`` is the type of its JSON. ``of_site``: it tells of one site, and needs that site's read key.
    ``may_be_stale``: whether an old answer may stand in where the tables cannot be read.
    """

    path: str
    name: str
    group: str
    title: str
    description: str
    answer: Any
    parameters: tuple[Parameter, ...] = ()
    errors: tuple[str, ...] = ()
    content_types: tuple[str, ...] = (JSON,)
    of_site: bool = True
    may_be_stale: bool = True
    bound: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> frozenset[str]:
        """The names of its query parameters."""
        return frozenset(one.name for one in self.parameters if not one.in_path)


__all__ = ["CSV", "EVENT_STREAM", "JSON", "Arguments", "Ask", "Asked", "Endpoint", "Made"]
