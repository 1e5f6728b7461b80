"""What a cold answer costs, by how long a stretch is asked for: items read from the tables, and CPU.

The tables hold a site's year on 8 shards, in the stored form: one day as the consumer and the compaction make it of
events, and the same day's merged items at each day before it. Each range begins at noon, so that hours are read, too.
The client of DynamoDB is a dictionary: what boto3 and the network would cost comes on top, for each query.
"""

from __future__ import annotations

import argparse
import bisect
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from query_api.app import create_app
from query_api.reader import Reader
from query_api.settings import ApiSettings
from stream_consumer.compaction import PARTS, Compaction
from stream_consumer.items import Item, merged_item, merged_key, read_labels, read_totals
from stream_consumer.merged import DAY_MS, HOUR_MS, TOTALS
from tests.benchmarks.api_data import Plan, events_of, stored
from tests.fake_dynamodb import NAMES, FakeDynamo

SITE = "shop"
SHARDS = 8
RANGES = {"a day": 1, "a month": 30, "a year": 365}
QUESTIONS = {
    "summary": "/api/statistics/summary/?",
    "timeseries": "/api/statistics/timeseries/?metrics=visitors,sessions,page_views&interval=",
    "breakdown": "/api/statistics/breakdown/?dimension=page&metrics=page_views",
}
END = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1000)


class Items:
    """The client's reads, as :class:`query_api.reader.Reader` makes them, over sorted lists; counts what it gives."""

    def __init__(self, items: Iterator[Item]) -> None:
        by_partition: dict[str, dict[str, Item]] = defaultdict(dict)
        for item in items:
            by_partition[item["pk"]["S"]][item["sk"]["S"]] = item
        self._items = {pk: sorted(rows.items()) for pk, rows in by_partition.items()}
        self.queries = self.read = self.bytes = 0

    def query(self, **query: Any) -> dict[str, Any]:
        values = query["ExpressionAttributeValues"]
        self.queries += 1
        if ":pk" not in values:  # the index of active sessions: nobody is here
            return {"Items": []}
        rows = self._items.get(values[":pk"]["S"], [])
        if ":low" in values:
            first = bisect.bisect_left(rows, values[":low"]["S"], key=lambda row: row[0])
            rows = rows[first : bisect.bisect_right(rows, values[":high"]["S"], key=lambda row: row[0])]
        self.read += len(rows)
        self.bytes += sum(len(item["body"]["B"]) for _, item in rows if "body" in item)
        return {"Items": [item for _, item in rows]}

    def batch_get_item(self, **_: Any) -> dict[str, Any]:
        return {"Responses": {}}


def tables(events: int, days: int) -> tuple[Items, int]:
    """A site's ``days`` up to a midnight, each with the same events; and how many those of a day are."""
    plan = Plan(events, END, active=0, shards=SHARDS)
    dynamo = stored(plan)
    Compaction(dynamo, NAMES).run(END + HOUR_MS)  # type: ignore[arg-type]
    of_a_day = sum(event.site_id == SITE for shard in range(SHARDS) for event in events_of(plan, shard))
    return Items(_repeated(dynamo, days)), of_a_day


def _repeated(dynamo: FakeDynamo, days: int) -> Iterator[Item]:
    rows = dynamo.tables[NAMES.rollups]
    yield from rows.values()
    borders = {days_of_range - 1 for days_of_range in RANGES.values()}
    for part in PARTS:
        read: Callable[[Item], Any] = read_totals if part == TOTALS else read_labels
        for whole_day in (True, False):
            pk, _ = merged_key(SITE, part, END - DAY_MS, whole_day=whole_day)
            for (found_pk, _), item in list(rows.items()):
                if found_pk != pk:
                    continue
                merged = read(item)
                first = merged.start
                # Of hours, those alone that a range begins with.
                for back in range(1, days) if whole_day else borders:
                    merged.start = first - back * DAY_MS
                    yield merged_item(merged_key(SITE, part, merged.start, whole_day=whole_day), "made of", merged)


def measure(events: int, ranges: dict[str, int], rounds: int) -> dict[str, Any]:
    """For each question and range: items, bytes, queries and CPU seconds of a cold answer."""
    client, of_a_day = tables(events, max(ranges.values()))
    found: dict[str, Any] = {"events_a_day": of_a_day, "shards": SHARDS, "answers": {}}
    counted: dict[str, int] = {}
    for question, path in QUESTIONS.items():
        for name, days in ranges.items():
            interval = ("hour" if days == 1 else "day") if path.endswith("interval=") else ""
            # From noon on: without the first half of the first day.
            asked = f"{path}{interval}&site={SITE}&from={END - days * DAY_MS + DAY_MS // 2}&to={END}"
            seconds = []
            for _ in range(rounds):
                client.queries = client.read = client.bytes = 0
                used, answer = cold(client, asked)
                seconds.append(used)
            if question == "summary":
                counted[name] = answer["total_events"]
            found["answers"][f"{question}, {name}"] = {
                "days": days,
                "items": client.read,
                "bytes": client.bytes,
                "queries": client.queries,
                "cpu_seconds": statistics.median(seconds),
                "cpu_spread": [min(seconds), max(seconds)],
                "rollups": SHARDS * (96 * days - 48),
            }
    half = counted["a day"]
    assert 0 < half < of_a_day
    for name, days in ranges.items():
        assert counted[name] == half + (days - 1) * of_a_day, (name, counted)
    return found


def cold(client: Items, path: str) -> tuple[float, Any]:
    """CPU seconds of the first answer of a server, and the answer."""
    reader = Reader(client, NAMES, clock=lambda: END + DAY_MS, readers=4)  # type: ignore[arg-type]
    app = create_app(reader, ApiSettings(NAMES), clock=lambda: END + DAY_MS)
    try:
        with app.test_client() as asking:
            asking.get("/api/metrics/")  # imports, and what Flask does once
            client.queries = client.read = client.bytes = 0
            began = time.process_time()
            answer = asking.get(path)
            used = time.process_time() - began
            assert answer.status_code == 200, answer.text
            return used, answer.get_json()
    finally:
        for closed in app.extensions["liveinsight"]:
            closed.close()
        reader.close()


def report(found: dict[str, Any]) -> list[str]:
    """The figures as a table."""
    lines = [
        f"a site of {found['events_a_day']:,} events a day on {found['shards']} shards; each answer cold",
        f"{'':24} {'items':>8} {'a day':>7} {'KiB':>8} {'queries':>8} {'CPU ms':>8} {'a day':>7}  roll-ups of that stretch",
    ]
    for name, one in found["answers"].items():
        lines.append(
            f"{name:24} {one['items']:8,} {one['items'] / one['days']:7.1f} {one['bytes'] / 1024:8,.0f}"
            f" {one['queries']:8} {one['cpu_seconds'] * 1000:8.1f} {one['cpu_seconds'] * 1000 / one['days']:7.2f}"
            f"  {one['rollups']:,}"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; raises where an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000, help="a day, of three sites (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each answer (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small and short: does it work?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there")
    given = parser.parse_args(argv)
    ranges = {"a day": 1, "a month": 30} if given.quick else RANGES
    found = measure(5_000 if given.quick else given.events, ranges, 1 if given.quick else given.rounds)
    print("\n".join(report(found)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
