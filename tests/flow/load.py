"""Posts events at a set rate, and tells which of them were acknowledged.

python -m tests.flow.load --collector http://127.0.0.1:8080 --api http://127.0.0.1:8000 --seconds 30
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import sys
import threading
import time
import urllib.parse
import uuid
from dataclasses import dataclass, field


@dataclass
class Load:
    """What was posted: event counts by the answer, and the time (s) each request took."""

    acknowledged: int = 0
    page_views: int = 0
    refused: int = 0
    sessions: set[str] = field(default_factory=set)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0


def post(collector: str, site: str, rate: int, seconds: float, batch: int = 10, threads: int = 16) -> Load:
    """Post ``rate`` events/s in batches for ``seconds``; a batch is one visitor's, each third visitor comes back."""
    address = urllib.parse.urlsplit(collector)
    due: queue.Queue[int | None] = queue.Queue()
    load, lock = Load(), threading.Lock()

    def worker() -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        while (number := due.get()) is not None:
            session = f"load-{number - number % 3}-{site}"
            now = int(time.time() * 1000)
            kinds = ["page_view", "click", "scroll", "heartbeat", "page_view"]
            events = [
                {
                    "event_id": uuid.uuid4().hex,
                    "site_id": site,
                    "session_id": session,
                    "event_type": kinds[at % len(kinds)],
                    "page_url": f"https://example.com/p{(number * at) % 97}",
                    "timestamp": now,
                    "source": f"tab{number}",
                    "seq": at + 1,
                }
                for at in range(batch)
            ]
            body = json.dumps({"events": events, "sent_at": now})
            began = time.monotonic()
            try:
                connection.request("POST", "/events", body, {"Content-Type": "text/plain"})
                answer = connection.getresponse()
                accepted = json.loads(answer.read()).get("accepted", 0) if answer.status == 200 else 0
            except OSError:
                connection.close()
                accepted = 0
            with lock:
                load.latencies.append(time.monotonic() - began)
                load.acknowledged += accepted
                load.refused += batch - accepted
                if accepted:
                    load.sessions.add(session)
                    load.page_views += sum(event["event_type"] == "page_view" for event in events)
        connection.close()

    workers = [threading.Thread(target=worker) for _ in range(threads)]
    for one in workers:
        one.start()
    began = time.monotonic()
    for number in range(int(rate * seconds / batch)):
        wait = began + number * batch / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        due.put(number)
    for _ in workers:
        due.put(None)
    for one in workers:
        one.join()
    load.seconds = time.monotonic() - began
    return load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collector", default="http://127.0.0.1:8080")
    parser.add_argument("--api", default="http://127.0.0.1:8000")
    parser.add_argument("--rate", type=int, default=1000, help="events per second")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--drain", type=float, default=120, help="how long to wait for the figures, s")
    given = parser.parse_args()
    import urllib.request

    site = f"load-{uuid.uuid4().hex[:8]}"
    load = post(given.collector, site, given.rate, given.seconds)
    latencies = sorted(load.latencies)
    print(
        f"posted for {load.seconds:.1f} s: {load.acknowledged} events acknowledged ({load.acknowledged / load.seconds:.0f}/s), "
        f"{load.refused} refused; answers p50 {latencies[len(latencies) // 2] * 1000:.0f} ms, "
        f"p99 {latencies[int(len(latencies) * 0.99)] * 1000:.0f} ms"
    )
    began = time.monotonic()
    while True:
        with urllib.request.urlopen(f"{given.api}/api/statistics/summary/?site={site}", timeout=60) as answer:
            counted = json.load(answer)
        if counted["total_events"] >= load.acknowledged or time.monotonic() - began > given.drain:
            break
        time.sleep(0.5)
    print(
        f"after {time.monotonic() - began:.1f} s more: {counted['total_events']} events, {counted['total_sessions']} sessions counted"
    )
    right = (counted["total_events"], counted["total_sessions"], counted["page_views"]) == (
        load.acknowledged,
        len(load.sessions),
        load.page_views,
    )
    print(
        "exact"
        if right
        else f"NOT exact: acknowledged {load.acknowledged}, sessions {len(load.sessions)}, page views {load.page_views}"
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
