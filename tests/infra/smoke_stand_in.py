"""A deployment in small: a collector and an API over one dictionary, which can be made to break what it promises."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PATHS = {
    "/api/metrics/": ("application/json", []),
    "/api/realtime/stream": ("text/event-stream", []),
    "/api/sessions/{session_id}/events/": ("application/json", [("session_id", "path", "s1")]),
    "/api/statistics/breakdown/": ("application/json", [("dimension", "query", "source")]),
}


class Deployment:
    """Its events by session and id. ``faults`` names what it does wrong; ``asked`` are the requests it got."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sessions: dict[str, list[str]] = {}
        self.users: dict[str, str] = {}
        self.faults: set[str] = set()
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.posted = 0

    def take(self, events: list[dict[str, Any]]) -> int:
        with self.lock:
            for event in events:
                self.posted += 1
                known = self.sessions.setdefault(event["session_id"], [])
                self.users[event["session_id"]] = event["user_id"]
                lost = "loses events" in self.faults and self.posted % 7 == 0
                if not lost and (event["event_id"] not in known or "counts twice" in self.faults):
                    known.append(event["event_id"])
        return len(events)

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if path == "/openapi.json":
            return 200, {"paths": {name: {"get": _described(*PATHS[name])} for name in PATHS}}
        if path == "/api/statistics/breakdown/" and ("path fails" in self.faults or "dimension" not in query):
            return 500, {"error": {"reason": "internal"}}
        if path == "/api/statistics/summary/" and "wants a key" in self.faults:
            return 401, {"error": {"reason": "key_missing"}}
        if path == "/api/statistics/summary/":
            return 200, {"total_events": sum(map(len, self.sessions.values()))}
        if path.endswith("/events/"):
            found = self.sessions.get(parts[2])
            return (200, [{"event_id": one} for one in found]) if found is not None else (404, {})
        if path.endswith("/sessions/"):
            rows = sorted(session for session, user in self.users.items() if user == parts[2])
            start, size = int(query.get("cursor", 0)), int(query["page_size"])
            after = start + size - (1 if "repeats rows" in self.faults else 0)
            following = f"{path}?cursor={after}&page_size={size}" if start + size < len(rows) else None
            return 200, {"results": [{"session_id": row} for row in rows[start : start + size]], "next": following}
        return (
            (200, {}) if path in {"/health", "/health/", "/api/metrics/", "/api/statistics/breakdown/"} else (404, {})
        )


def _described(content_type: str, parameters: list[tuple[str, str, str]]) -> dict[str, Any]:
    declared = [{"name": name, "in": where, "required": True, "example": one} for name, where, one in parameters]
    return {"parameters": declared, "responses": {"200": {"content": {content_type: {}}}}}


@contextmanager
def serving(deployment: Deployment) -> Iterator[str]:
    """The deployment's address, the same for collector and API."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            deployment.asked.append(("GET", parts.path, dict(self.headers)))
            if parts.path == "/api/realtime/stream":
                self._send(200, b"event: now\n\n", "text/event-stream", end=False)
                return
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            status, value = deployment.answer(parts.path, query)
            self._send(status, json.dumps(value).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            deployment.asked.append(("POST", self.path, dict(self.headers)))
            self._send(200, json.dumps({"accepted": deployment.take(body["events"])}).encode())

        def do_OPTIONS(self) -> None:
            self._send(204, b"")

        def _send(self, status: int, body: bytes, content_type: str = "application/json", *, end: bool = True) -> None:
            self.send_response(301 if "redirects" in deployment.faults else status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Type", content_type)
            if end:
                self.send_header("Content-Length", str(len(body)))
            if "no CORS" not in deployment.faults:
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Access-Control-Allow-Methods", "GET, POST")
                self.send_header("Access-Control-Allow-Headers", "Content-Type, Authorization")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
