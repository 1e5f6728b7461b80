"""A day of a few sites' events, as the consumer stores them: the same for the same plan."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from infra.local.aws_state import Content, TableContent
from producer.event import Event
from stream_consumer.compaction import Compaction
from stream_consumer.consume import consume
from stream_consumer.table import TableNames
from tests.builders import a_batch
from tests.fake_dynamodb import NAMES, FakeDynamo, MemoryTables

HOUR_MS = 3_600_000
#: Sites, and their parts of the sessions.
SITES = {"shop": 6, "blog": 3, "docs": 1}
_BATCH = 5_000
#: Sessions that are to be active began within this time (ms); the others ended before it.
_ACTIVE_MS = 20 * 60_000
_OVER_MS = 60 * 60_000

_PAGES = 400
_REFERRERS = ["", "", "https://www.google.com/", "https://news.example/", "https://t.co/x", "https://duckduckgo.com/"]
_COUNTRIES = ["US", "US", "DE", "KR", "IN", "BR", "FR", "GB", "JP", ""]
_LANGUAGES = ["en", "en", "de", "ko", "pt", "fr"]
_CAMPAIGNS = ["", "", "", "?utm_source=letter&utm_medium=email&utm_campaign=may", "?utm_source=ads&utm_medium=cpc"]
_AGENTS = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1"
    " Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Mobile"
    " Safari/537.36",
]
_LATER = ["page_view", "page_view", "click", "scroll", "heartbeat", "heartbeat"]


@dataclass(frozen=True)
class Plan:
    """``events`` in the 24 hours before ``end`` (ms since 1970), about; ``active`` sessions go on at the end. A session has
    ``per_session`` events, or 5 to 10.
    """

    events: int
    end: int
    active: int = 400
    shards: int = 2
    seed: int = 4
    per_session: int | None = None

    @property
    def sessions(self) -> int:
        return round(self.events / (self.per_session or 7.5))


def events_of(plan: Plan, shard: int) -> list[Event]:
    """The events of one shard, in order of arrival: 5 to 10 for each session."""
    rng = random.Random(f"{plan.seed} {shard}")
    sites, weights = list(SITES), list(SITES.values())
    found: list[Event] = []
    for number in range(shard, plan.sessions, plan.shards):
        site = rng.choices(sites, weights)[0]
        if number < plan.active:
            at = plan.end - rng.randrange(1_000, _ACTIVE_MS)
        else:
            at = plan.end - rng.randrange(_OVER_MS, 24 * HOUR_MS)
        agent, country, language = rng.choice(_AGENTS), rng.choice(_COUNTRIES), rng.choice(_LANGUAGES)
        user = f"u{rng.randrange(plan.sessions)}" if rng.random() < 0.2 else ""
        kinds = ["page_view", *rng.choices(_LATER, k=(plan.per_session or rng.randrange(5, 11)) - 1)]
        if rng.random() < 0.03:
            kinds[-1] = "conversion"
        page = ""
        for seq, kind in enumerate(kinds, 1):
            if kind == "page_view":
                # Few pages have most of the views.
                page = f"https://{site}.example/p/{int(_PAGES * rng.random() ** 3)}"
            found.append(
                Event(
                    event_id=f"{number}-{seq}",
                    site_id=site,
                    session_id=f"visit-{number}",
                    event_type=kind,
                    timestamp=at,
                    received_at=min(at + rng.randrange(50, 900), plan.end),
                    user_id=user,
                    source="tab",
                    seq=seq,
                    page_url=page + rng.choice(_CAMPAIGNS) if seq == 1 else page,
                    referrer=rng.choice(_REFERRERS) if seq == 1 else "",
                    user_agent=agent,
                    country=country,
                    language=language,
                    conversion_type="order" if kind == "conversion" else "",
                    conversion_value=round(rng.uniform(5, 200), 2) if kind == "conversion" else 0.0,
                    conversion_currency="EUR" if kind == "conversion" else "",
                )
            )
            at = min(at + rng.randrange(2_000, 60_000), plan.end)
    found.sort(key=lambda event: event.received_at)
    return found


def stored(plan: Plan) -> FakeDynamo:
    """The tables that the consumer makes of it, with what is over merged, as a `make run` would hold them."""
    whole = FakeDynamo()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(_consume, repeat(plan), range(plan.shards)):
            for name, items in part.items():
                whole.tables[name].update(items)
    Compaction(whole, NAMES).run(plan.end, progress=_merging)  # type: ignore[arg-type]
    return whole


def write_state(dynamo: FakeDynamo, path: Path, now: float) -> int:
    """Have the next `make run` whose directory holds ``path`` (its aws-state) begin with these tables.

    Faster than a write for each item by a hundred times. Returns how many items; ``now`` in seconds since 1970.
    """
    local = asdict(TableNames.from_environ({}))
    names = {name: local[table] for table, name in asdict(NAMES).items()}
    tables = {
        names[name]: TableContent(["pk", "sk" if name != NAMES.sessions else None], list(items.values()))
        for name, items in dynamo.tables.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.msgpack.encode(Content(saved_at=now, streams={}, tables=tables, queues={})))
    return sum(len(table.items) for table in tables.values())


def _consume(plan: Plan, shard: int) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    tables = MemoryTables()
    events = events_of(plan, shard)
    with tqdm(
        total=len(events), position=shard, unit="event", unit_scale=True, desc=f"shard {shard}", disable=None
    ) as bar:
        for first in range(0, len(events), _BATCH):
            batch = events[first : first + _BATCH]
            outcome = consume(a_batch(batch, first + 1, f"shardId-{shard:012d}"), tables)
            assert outcome.applied == len(batch), outcome
            bar.update(len(batch))
    return tables.dynamo.tables


def _merging(due: Any) -> Iterator[Any]:
    return iter(tqdm(due, desc="merging", disable=None, leave=False))
