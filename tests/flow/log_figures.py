"""The figures of a web server's log by other means: plain Python over its lines, none of the project's code."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import crawleruseragents

LINE = re.compile(r'(\S+) \S+ \S+ \[([^]]+)\] "(\S+) (\S+)[^"]*" (\d+) \S+ "([^"]*)" "(.*)"$')
NOT_PAGES = set(
    "css js mjs map png jpg jpeg gif svg ico webp avif bmp woff woff2 ttf otf eot mp3 mp4 webm ogg wav".split()  # noqa: SIM905
)
CRAWLERS = re.compile("|".join(entry["pattern"] for entry in crawleruseragents.CRAWLER_USER_AGENTS_DATA))


def figures(path: Path) -> dict[str, Any]:
    """Page views, sessions, visitors, pages and referrers of a combined log."""
    visitors: dict[tuple[str, str], list] = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8", "surrogateescape").split("\n"):
        match = LINE.match(line)
        if not match:
            continue
        address, when, method, url, status, referrer, agent = match.groups()
        at = datetime.strptime(when, "%d/%b/%Y:%H:%M:%S %z").timestamp()
        page = url.split("?")[0].split("#")[0]
        extension = page.split("/")[-1].lower()
        is_page = (
            method == "GET"
            and (status[0] == "2" or status == "304")
            and not ("." in extension and extension.split(".")[-1] in NOT_PAGES)
            and not CRAWLERS.search(agent)
        )
        visitors.setdefault((address, agent), []).append((at, is_page, page, referrer))
    sessions = []
    for requests in visitors.values():
        requests.sort(key=lambda request: request[0])
        previous = None
        for request in requests:
            if previous is None or request[0] - previous > 30 * 60:
                sessions.append([])
            previous = request[0]
            if request[1]:
                sessions[-1].append(request)
    sessions = [session for session in sessions if session]
    views = [view for session in sessions for view in session]
    return {
        "page_views": len(views),
        "sessions": len(sessions),
        "visitors": sum(any(request[1] for request in requests) for requests in visitors.values()),
        "pages": Counter(view[2] for view in views),
        "referrers": Counter(_host(session[0][3]) for session in sessions),
        "bounces": sum(len(session) == 1 for session in sessions),
        "seconds": sum(session[-1][0] - session[0][0] for session in sessions),
    }


def _host(referrer: str) -> str:
    if "://" not in referrer:
        return "Direct"
    host = re.split("[/?#]", referrer.split("://", 1)[1])[0].split("@")[-1].split(":")[0].lower()
    return host.removeprefix("www.") or "Direct"
