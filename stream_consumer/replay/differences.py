"""What two generations differ in: sessions and figures, by how much, with examples.

Both go on while they are compared. An item is compared where both generations have folded it up to the same
position; one that is behind is looked at again, and told of as moving if it does not come to rest.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from stream_consumer.generations import scoped
from stream_consumer.items import Item, read_rollup, read_session
from stream_consumer.merged import totals_of
from stream_consumer.replay.scanning import scan, size
from stream_consumer.rollup import (
    EVENT_DIMENSIONS,
    EVENT_MEASURES,
    SESSION_MEASURES,
    RollUp,
)
from stream_consumer.table import TableNames, get_items
from stream_consumer.visitors import Visitors

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: How often an item that is not at rest is looked at again, and how long (s) between two looks.
_LOOKS = 12
_BETWEEN_LOOKS = 0.4
_ROLLUP = re.compile(r"[^#]+#[0-9]{6}")
#: What of a session is compared, in this order, beside what it was counted as.
_SESSION_FIELDS = ("start", "end", "events", "page_views", "interactions", "conversions", "scroll_depth", "values")


class SessionDifference(Struct, frozen=True):
    """A session that differs: by field, its value in the one and in the other generation; None where it is missing."""

    site: str
    session: str
    fields: dict[str, tuple[Any, Any]]


class Differences(Struct):
    """What generation ``one`` has and ``other`` has not, or otherwise.

    ``fields``: in how many sessions each field differs. ``figures``: by site and figure, its sums over the roll-ups
    that differ, in the one and in the other; ``labels`` the same by dimension and label. ``moving``: items that did
    not come to rest.
    """

    one: str
    other: str
    sessions: int = 0
    sessions_differ: int = 0
    rollups: int = 0
    rollups_differ: int = 0
    moving: int = 0
    fields: dict[str, int] = field(default_factory=dict)
    figures: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    labels: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    session_examples: list[SessionDifference] = field(default_factory=list)
    rollup_examples: list[str] = field(default_factory=list)

    @property
    def none(self) -> bool:
        """Whether nothing differs, and everything was at rest."""
        return not (self.sessions_differ or self.rollups_differ or self.moving)


class Comparison:
    """Compares generation ``one`` with ``other``, of one site or of all. ``examples``: sessions told of at most."""

    def __init__(
        self,
        client: DynamoDBClient,
        names: TableNames,
        one: str,
        other: str,
        *,
        site: str = "",
        examples: int = 20,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._names = names
        self._generations = one, other
        self._site = site
        self._examples = examples
        self._sleep = sleep
        self._lock = threading.Lock()
        self._found = Differences(one, other)
        self._fields: Counter[str] = Counter()

    def run(self, seen: Callable[[str, int, int], None] = lambda what, count, of: None) -> Differences:
        """Read all of both. ``seen`` is told of the items read: (of what, how many more, of about how many).

        Raises ``Unavailable``.
        """
        one, other = self._generations
        for what, table, compare in (
            ("sessions", self._names.sessions, self._compare_sessions),
            ("roll-ups", self._names.rollups, self._compare_rollups),
        ):
            of = 2 * size(self._client, table)
            keys = ("pk",) if table == self._names.sessions else ("pk", "sk")

            def more(count: int, what: str = what, of: int = of) -> None:
                seen(what, count, of)

            def all_of_one(items: list[Item], table: str = table, keys: Sequence[str] = keys) -> None:
                mine = {_key(item): item for item in items if self._is_wanted(item)}
                compare(self._pairs(table, keys, mine))  # noqa: B023 - it is called before the next one

            def others_alone(items: list[Item], table: str = table, keys: Sequence[str] = keys) -> None:
                wanted = {_key(item): item for item in items if self._is_wanted(item)}
                known = {_key(item) for item in self._get(one, table, keys, wanted)}
                missing = {key: item for key, item in wanted.items() if key not in known}
                compare(self._pairs(table, keys, missing))  # noqa: B023

            scan(self._client, table, one, all_of_one, seen=more)
            scan(self._client, table, other, others_alone, seen=more, attributes=", ".join(keys))
        self._found.fields = dict(self._fields.most_common())
        return self._found

    def _is_wanted(self, item: Item) -> bool:
        pk = item["pk"]["S"]
        if self._site and pk.partition("#")[0] != self._site:
            return False
        return "sk" not in item or _ROLLUP.fullmatch(pk) is not None

    def _get(self, generation: str, table: str, keys: Sequence[str], wanted: Mapping[Any, Item]) -> list[Item]:
        asked = [{key: item[key] for key in keys} for item in wanted.values()]
        return list(get_items(scoped(self._client, self._names, generation), table, asked))

    def _pairs(
        self, table: str, keys: Sequence[str], wanted: Mapping[tuple[str, str], Item]
    ) -> Iterator[tuple[Item | None, Item | None]]:
        """The items of both generations under these keys, each pair at the same position, or at rest otherwise."""
        left = dict(wanted)
        for look in range(_LOOKS):
            if not left:
                return
            if look:
                self._sleep(_BETWEEN_LOOKS)
            some = [{_key(item): item for item in self._get(name, table, keys, left)} for name in self._generations]
            for key in list(left):
                one, other = some[0].get(key), some[1].get(key)
                if (one and other and (one["pos"] == other["pos"] or _same(one, other))) or look == _LOOKS - 1:
                    del left[key]
                    yield one, other

    def _compare_sessions(self, pairs: Iterator[tuple[Item | None, Item | None]]) -> None:
        for one, other in pairs:
            fields = {} if one and other and _same(one, other) else _session_fields(one, other)
            moving = bool(fields and one and other and one["pos"] != other["pos"])
            with self._lock:
                self._found.sessions += 1
                self._found.moving += moving
                if not fields or moving:
                    continue
                self._found.sessions_differ += 1
                self._fields.update(fields.keys())
                if len(self._found.session_examples) < self._examples:
                    site, _, session = ((one or other) or {})["pk"]["S"].partition("#")
                    self._found.session_examples.append(SessionDifference(site, session, fields))

    def _compare_rollups(self, pairs: Iterator[tuple[Item | None, Item | None]]) -> None:
        for one, other in pairs:
            same = one is not None and other is not None and _same(one, other)
            moving = bool(not same and one and other and one["pos"] != other["pos"])
            with self._lock:
                self._found.rollups += 1
                self._found.moving += moving
                if same or moving:
                    continue
                self._found.rollups_differ += 1
                key = ((one or other) or {})["pk"]["S"], ((one or other) or {})["sk"]["S"]
                if len(self._found.rollup_examples) < self._examples:
                    self._found.rollup_examples.append(" ".join(key))
                self._add_figures(key[0].partition("#")[0], one, other)

    def _add_figures(self, site: str, one: Item | None, other: Item | None) -> None:
        empty = RollUp(site, 0, "")
        both = [read_rollup(item).rollup if item else empty for item in (one, other)]
        figures = self._found.figures.setdefault(site, {})
        for name, amounts in _zipped(*map(_figures_of, both)).items():
            _add(figures, name, amounts)
        labels = self._found.labels.setdefault(site, {})
        for name, amounts in _zipped(*map(_labels_of, both)).items():
            _add(labels, name, amounts)


def _key(item: Item) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"] if "sk" in item else ""


def _same(one: Item, other: Item) -> bool:
    """Whether they tell the same, and were counted as the same."""
    return bool(one["body"] == other["body"] and one.get("counted") == other.get("counted"))


def _session_fields(one: Item | None, other: Item | None) -> dict[str, tuple[Any, Any]]:
    """In what two sessions differ: what they hold, and what they were counted as."""
    if one is None or other is None:
        return {"present": (one is not None, other is not None)}
    told = [_session_figures(item) for item in (one, other)]
    return {name: (told[0][name], told[1][name]) for name in told[0] if told[0][name] != told[1][name]} or {
        "memory": (None, None)
    }


def _session_figures(item: Item) -> dict[str, Any]:
    stored = read_session(item)
    session = stored.session
    counted = stored.counted or (0,) * len(SESSION_MEASURES)
    found: dict[str, Any] = {name: getattr(session, name) for name in _SESSION_FIELDS}
    found |= {
        f"counted {name}": amount
        for name, amount in zip(SESSION_MEASURES, counted, strict=False)
        if name not in found and name != "sessions"
    }
    found |= {"user": session.user_id, "exit_url": session.exit.page_url, "entry_url": session.landing.page_url}
    found |= {
        f"landing {name}": getattr(session.landing.acquisition, name) for name in ("referrer", "source", "channel")
    }
    found |= {f"agent {name}": getattr(session.landing.agent, name) for name in ("device", "browser", "os")}
    return found


def _figures_of(rollup: RollUp) -> dict[str, int]:
    totals = totals_of(rollup)
    found = {name: sum(row[at] for row in totals.happened) for at, name in enumerate(EVENT_MEASURES)}
    began = {name: sum(row[at] for row in totals.began) for at, name in enumerate(SESSION_MEASURES)}
    found |= {name if name not in found else f"{name} of sessions": amount for name, amount in began.items()}
    found["visitors"] = Visitors.from_bytes(rollup.visitors).estimate()
    return found


def _labels_of(rollup: RollUp) -> dict[str, int]:
    """The first measure of each label."""
    found: dict[str, int] = {}
    for dimension, counter in rollup.counters.items():
        rows: Mapping[str, Sequence[int]] = counter.rows | ({"(other)": counter.other} if counter.other else {})
        measure = EVENT_DIMENSIONS[dimension][1][0] if dimension in EVENT_DIMENSIONS else SESSION_MEASURES[0]
        found |= {f"{measure} of {dimension} {label}": row[0] for label, row in rows.items()}
    return found


def _zipped(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    names = dict.fromkeys((*one, *other))
    return {name: (one.get(name, 0), other.get(name, 0)) for name in names if one.get(name, 0) != other.get(name, 0)}


def _add(sums: dict[str, tuple[int, int]], name: str, amounts: tuple[int, int]) -> None:
    before = sums.get(name, (0, 0))
    sums[name] = before[0] + amounts[0], before[1] + amounts[1]
