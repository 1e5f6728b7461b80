"""Files that are served as they are: the dashboard's and the documentation's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flask import Response

from query_api.caching import Answer, make_answer

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}


class StaticFiles:
    """The files of a directory by their names, kept in memory and read again when one changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, tuple[tuple[int, int], Answer]] = {}

    def get(self, name: str) -> Answer | None:
        """A file, None if the directory has none of this name or it is of no kind that is served."""
        content_type = _CONTENT_TYPES.get(Path(name).suffix) if re.fullmatch(r"[\w][\w.-]*", name, re.ASCII) else None
        if content_type is None:
            return None
        path = self._directory / name
        try:
            now = path.stat()
            version = now.st_mtime_ns, now.st_size
            held = self._read.get(name)
            if held is None or held[0] != version:
                held = self._read[name] = version, make_answer(path.read_bytes(), {"Content-Type": content_type})
        except OSError:
            return None
        return held[1]


def respond(answer: Answer, environ: dict[str, Any]) -> Response:
    """The response to the request of this WSGI environment: to be asked for each time, and 304 where nothing changed.

    So a new release is seen at once, whole.
    """
    etag = f'"{answer.etag}"'
    headers = {**answer.headers, "ETag": etag, "Cache-Control": "no-cache"}
    known = environ.get("HTTP_IF_NONE_MATCH")
    if known and (etag in known or known.strip() == "*"):
        return Response(status=304, headers=headers)
    return Response(answer.body, 200, headers)
