"""What is checked of a deployment: that events come in, are counted once and exactly, and can be read.

Every run posts into one site of its own (so a deployment's other figures stay as they are) as a visitor, sessions and
pages of its own. Two runs at once would see each other in the site's totals.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from infra.smoke.web import Address, Answer, Unreachable

#: The environment variable of the site's read key. Not an option: command lines are seen by others and kept.
READ_KEY = "LIVEINSIGHT_SMOKE_READ_KEY"
#: The most events that the load check may post: it is to find out whether a deployment works, not how much it bears.
MOST_LOAD = 6_000
#: Events of one request of the load.
_BATCH = 10
#: Origin of a page that has nothing to do with the deployment, as a browser names it.
_ORIGIN = "https://shop.example"
_QUARTER_MS = 900_000
#: How long the API may still give out an answer from before the last event, in seconds.
_CACHED = 2.5


@dataclass
class Ledger:
    """The site's events before the run, and how many the run has had acknowledged since, each counted once."""

    before: int = 0
    posted: int = 0


@dataclass(frozen=True)
class Smoke:
    """What is checked, and how much. ``within`` (s): how soon what was posted must be read. ``rate`` (events/s) for
    ``seconds`` is the load; 0 for none.
    """

    collector: Address
    api: Address
    site: str = "liveinsight-smoke"
    within: float = 30.0
    events: int = 60
    sessions: int = 12
    rate: float = 20.0
    seconds: float = 3.0
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    began: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def user(self) -> str:
        return f"smoke-{self.run}"


@dataclass(frozen=True)
class Result:
    """What a check found, and how long (s) it took."""

    name: str
    ok: bool
    seconds: float
    detail: str


class Wrong(Exception):  # noqa: N818 - what a check has found
    """What was promised does not hold; the message says what was found instead."""


def run(smoke: Smoke) -> Iterator[Result]:
    """All checks, one after another, each as it is done. If there is no way in or out, the others are not tried."""
    for name, check in CHECKS.items():
        began = time.monotonic()
        try:
            detail, ok = check(smoke), True
        except (Wrong, Unreachable) as problem:
            detail, ok = str(problem), False
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            detail, ok = f"the answer has not the documented form: {type(problem).__name__}: {problem}", False
        yield Result(name, ok, time.monotonic() - began, detail)
        if not ok and name == "reachable":
            return


def reachable(smoke: Smoke) -> str:
    """Both halves answer their health checks, and the site may be read."""
    took = []
    for name, address, path in (("collector", smoke.collector, "/health"), ("API", smoke.api, "/health/")):
        answer = address.ask(path)
        if answer.status != 200:
            raise Wrong(f"{name} {address.url}{path}: {answer.status} {_said(answer)}")
        took.append(f"{name} {answer.seconds * 1000:.0f} ms")
    smoke.ledger.before = _total(smoke)
    return ", ".join(took)


def end_to_end(smoke: Smoke) -> str:
    """An event that the collector acknowledged is read from the API."""
    event = _event(smoke, f"{smoke.run}-e2e", 0)
    _post(smoke, [event])
    smoke.ledger.posted += 1
    path = f"/api/sessions/{quote(event['session_id'])}/events/"
    took = _until(smoke, lambda: event["event_id"] in _ids(_asked(smoke, path)), "the event was acknowledged, but")
    return f"read {took:.1f} s after it was acknowledged"


def every_path(smoke: Smoke) -> str:
    """Each path of the API's description answers as it says."""
    described = _get(smoke, "/openapi.json").json()["paths"]
    slowest, took, wrong = "", 0.0, []
    for path, methods in described.items():
        operation = methods["get"]
        streams = "text/event-stream" in operation["responses"]["200"]["content"]
        answer = smoke.api.ask(_example(smoke, path, operation["parameters"]), first_line=streams)
        content_type = answer.headers.get("content-type", "").partition(";")[0]
        known = {one.partition(";")[0] for one in operation["responses"]["200"]["content"]}
        if answer.status != 200 or content_type not in known:
            wrong.append(f"{path}: {answer.status} {content_type} {_said(answer)}")
        if answer.seconds > took:
            slowest, took = path, answer.seconds
    if wrong:
        more = f"; and {len(wrong) - 3} more" if wrong[3:] else ""
        raise Wrong(f"{len(wrong)} of {len(described)} paths: " + "; ".join(wrong[:3]) + more)
    return f"{len(described)} paths answer 200; the slowest is {slowest} with {took * 1000:.0f} ms"


def cors(smoke: Smoke) -> str:
    """A page of any site may send events; the API says who may read it, and lets a key through."""
    asks = {
        "Origin": _ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight = smoke.collector.ask("/events", method="OPTIONS", headers=asks)
    _allows(preflight, "collector's preflight", method="POST", header="content-type")
    posted = smoke.collector.ask("/events", _body([_event(smoke, f"{smoke.run}-cors", 0)]), headers={"Origin": _ORIGIN})
    _allows(posted, "collector")
    smoke.ledger.posted += 1
    asks = {
        "Origin": _ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    preflight = smoke.api.ask("/api/metrics/", method="OPTIONS", headers=asks)
    if "access-control-allow-origin" not in preflight.headers:
        return f"{_ORIGIN} may send, and may not read (LIVEINSIGHT_API_ALLOWED_ORIGINS)"
    _allows(preflight, "API's preflight", method="GET", header="authorization")
    _allows(smoke.api.ask("/api/metrics/", headers={"Origin": _ORIGIN}), "API")
    return f"{_ORIGIN} may send and read"


def consistency(smoke: Smoke) -> str:
    """Events with known ids, a third of them sent twice, are counted exactly once each."""
    ids = [f"{smoke.run}-c{number % smoke.sessions}" for number in range(smoke.events)]
    events = [_event(smoke, session, number) for number, session in enumerate(ids)]
    _post(smoke, events)
    smoke.ledger.posted += len(events)
    _post(smoke, events[::3])
    wanted: dict[str, set[str]] = {}
    for event in events:
        wanted.setdefault(event["session_id"], set()).add(event["event_id"])
    found: dict[str, list[str]] = {}

    def complete() -> bool:
        for session in wanted:
            found[session] = _ids(_asked(smoke, f"/api/sessions/{quote(session)}/events/", limit="1000"))
        return all(wanted[session] <= set(found[session]) for session in wanted)

    took = _until(smoke, complete, f"of {len(events)} events in {len(wanted)} sessions")
    if extra := [session for session in wanted if sorted(found[session]) != sorted(wanted[session])]:
        raise Wrong(f"sessions {', '.join(extra[:3])} hold other events than were posted, or one twice")
    _exactly(smoke)
    return f"{len(events)} events in {len(wanted)} sessions, each once, {took:.1f} s after they were acknowledged"


def pagination(smoke: Smoke) -> str:
    """Whoever follows the cursors of a list sees each row once."""
    size = max(2, smoke.sessions // 3)
    seen: list[str] = []
    pages = 0
    path: str | None = _path(smoke, f"/api/users/{quote(smoke.user)}/sessions/", page_size=str(size))
    while path:
        answer = _get(smoke, path).json()
        rows = [row["session_id"] for row in answer["results"]]
        if len(rows) > size:
            raise Wrong(f"a page of {size} rows has {len(rows)}")
        seen += rows
        pages += 1
        if pages > smoke.sessions + 10:
            raise Wrong(f"after {pages} pages there is still a next one")
        path = answer["next"]
    if repeated := sorted({one for one in seen if seen.count(one) > 1}):
        raise Wrong(f"{', '.join(repeated[:3])} came on more than one page")
    wanted = {f"{smoke.run}-c{number}" for number in range(min(smoke.sessions, smoke.events))}
    if missing := sorted(wanted - set(seen)):
        raise Wrong(f"{', '.join(missing[:3])} came on no page of {pages}")
    return f"{len(seen)} rows on {pages} pages of {size}, none twice"


def load(smoke: Smoke) -> str:
    """Some events a second are all acknowledged, and all counted."""
    batches = round(smoke.rate * smoke.seconds / _BATCH)
    if batches == 0:
        return "none asked for"
    began = time.monotonic()

    def send(batch: int) -> float:
        time.sleep(max(0.0, began + batch * _BATCH / smoke.rate - time.monotonic()))
        return _post(smoke, [_event(smoke, f"{smoke.run}-l{batch}", number) for number in range(_BATCH)])

    with ThreadPoolExecutor(max_workers=16) as threads:
        took = sorted(threads.map(send, range(batches)))
    seconds = time.monotonic() - began
    smoke.ledger.posted += batches * _BATCH
    _exactly(smoke)
    middle, high = took[len(took) // 2] * 1000, took[int(len(took) * 0.95)] * 1000
    return (
        f"{batches * _BATCH} events in {seconds:.1f} s, all acknowledged and counted; "
        f"requests of {_BATCH} took {middle:.0f} ms (median), {high:.0f} ms (95 %)"
    )


CHECKS: dict[str, Callable[[Smoke], str]] = {
    "reachable": reachable,
    "end to end": end_to_end,
    "CORS": cors,
    "consistency": consistency,
    "pagination": pagination,
    "API": every_path,
    "load": load,
}


def _event(smoke: Smoke, session: str, number: int) -> dict[str, Any]:
    return {
        "event_id": f"{session}-{number}",
        "site_id": smoke.site,
        "session_id": session,
        "user_id": smoke.user,
        "event_type": "page_view",
        "page_url": "https://liveinsight.example/smoke",
        "title": "smoke",
    }


def _body(events: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps({"events": events}).encode()


def _post(smoke: Smoke, events: Sequence[dict[str, Any]]) -> float:
    """Seconds until all were acknowledged."""
    answer = smoke.collector.ask("/events", _body(events), headers={"Content-Type": "text/plain"})
    if answer.status != 200 or answer.json()["accepted"] != len(events):
        raise Wrong(f"the collector does not take {len(events)} events: {answer.status} {_said(answer)}")
    return answer.seconds


def _path(smoke: Smoke, path: str, **query: str) -> str:
    return f"{path}?{urlencode({'site': smoke.site, **query})}"


def _asked(smoke: Smoke, path: str, **query: str) -> Answer:
    """A question that no cache on the way has been asked before: edges keep a 404 for seconds."""
    return smoke.api.ask(_path(smoke, path, **query, asked=uuid.uuid4().hex[:8]))


def _get(smoke: Smoke, path: str) -> Answer:
    answer = smoke.api.ask(path)
    if answer.status != 200:
        raise Wrong(f"{path.partition('?')[0]}: {answer.status} {_said(answer)}")
    return answer


def _ids(answer: Answer) -> list[str]:
    return [event["event_id"] for event in answer.json()] if answer.status == 200 else []


def _total(smoke: Smoke) -> int:
    """The site's events since the quarter of an hour in which the run began: a fixed start, so it only grows."""
    start = smoke.began - smoke.began % _QUARTER_MS
    query = {"from": str(start), "to": str(start + 24 * 4 * _QUARTER_MS)}
    answer = _asked(smoke, "/api/statistics/summary/", **query)
    if answer.status != 200:
        raise Wrong(f"/api/statistics/summary/: {answer.status} {_said(answer)}")
    return int(answer.json()["total_events"])


def _exactly(smoke: Smoke) -> None:
    """Wait until the site's events are as many as were posted, and see that they stay so."""
    wanted = smoke.ledger.before + smoke.ledger.posted
    _until(smoke, lambda: _total(smoke) >= wanted, f"of {wanted} events of site {smoke.site}")
    time.sleep(_CACHED)
    if (counted := _total(smoke)) != wanted:
        raise Wrong(f"site {smoke.site} counts {counted} events instead of {wanted}: is another run going?")


def _until(smoke: Smoke, holds: Callable[[], bool], what: str) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > smoke.within:
            raise Wrong(f"{what} not all could be read within {smoke.within:.0f} s: is the consumer running?")
        time.sleep(0.1)
    return time.monotonic() - began


def _example(smoke: Smoke, path: str, parameters: Sequence[dict[str, Any]]) -> str:
    """The path with what it must be given: this run's own session and user, else the description's examples."""
    own = {"session_id": f"{smoke.run}-e2e", "user_id": smoke.user}
    query = {"site": smoke.site}
    for parameter in parameters:
        value = str(own.get(parameter["name"], parameter.get("example", "")))
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(value, safe=""))
        elif parameter["required"]:
            query[parameter["name"]] = value
    return f"{path}?{urlencode(query)}"


def _allows(answer: Answer, whose: str, *, method: str = "", header: str = "") -> None:
    said = answer.headers
    if not 200 <= answer.status < 300:
        raise Wrong(f"{whose}: {answer.status} {_said(answer)}")
    if said.get("access-control-allow-origin") not in {"*", _ORIGIN}:
        raise Wrong(f"{whose}: no Access-Control-Allow-Origin for {_ORIGIN}: does the edge pass the header on?")
    if method and method not in said.get("access-control-allow-methods", ""):
        raise Wrong(f"{whose}: Access-Control-Allow-Methods has no {method}")
    if header and header not in said.get("access-control-allow-headers", "").lower():
        raise Wrong(f"{whose}: Access-Control-Allow-Headers has no {header}")


def _said(answer: Answer) -> str:
    said = answer.body[:200].decode("utf-8", "replace").strip()
    if answer.status in (401, 403):
        return f"{said} (a read key of the site is wanted in {READ_KEY}: python -m query_api keys create --site ...)"
    return said
