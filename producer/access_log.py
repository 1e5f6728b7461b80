"""A web server's access log, turned into page views.

Reads the combined log format (Apache, nginx and others) and the common one, which lacks referrer
and user agent. What counts:

- A *visitor* is a hash of site, client address and user agent. The address goes no further.
- A *session* is the visitor's requests, of whatever kind, with gaps of at most 30 minutes.
- A *page view* is a GET answered 2xx or 304, whose path has no extension of a static file and
  whose user agent is no known crawler's. Only page views become events.

Everything is a function of the log's bytes alone: the same log gives the same ids, so a second
import adds nothing. The one thing taken from outside is ``received_at``, the time of the import.

Web servers write a line when a request ends but may date it by its start, and several files of one
site overlap in time. So requests are brought into the order of their times: files are merged, and
a window of ``sort_window`` requests is kept sorted. Memory is bounded by that window (see
:data:`SORT_WINDOW`), by the visitors of the last 30 minutes, and by about 100 bytes for each
visitor counted; not by the log's length.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec
from crawleruseragents import is_crawler
from msgspec import Struct

from producer.event import MAX_TEXT, PAGE_VIEW, Event, Rejected, SiteId, decode, encode, stable_id

#: Longest gap (ms) between two requests of one session; a gap of exactly this is still inside.
SESSION_GAP_MS = 30 * 60 * 1000
#: How many requests are kept to be sorted: about 100 MB. A line displaced further is counted as late.
SORT_WINDOW = 100_000
#: Longest line (bytes) that is read; servers allow about 8 kB in each of its parts.
MAX_LINE = 32 * 1024
#: How far ahead of the import (ms) a line may be dated: a server's clock in the wrong time zone.
MAX_AHEAD_MS = 24 * 3600 * 1000

STATIC_EXTENSIONS = frozenset(
    "css js mjs map png jpg jpeg gif svg ico webp avif bmp woff woff2 ttf otf eot mp3 mp4 webm ogg wav".split()  # noqa: SIM905
)


class Fault(StrEnum):
    """Why a line could not be read. A page view may also be refused with one of ``event.Reason``."""

    NOT_A_LOG_LINE = "not_a_log_line"
    BAD_TIME = "bad_time"
    BAD_QUOTES = "bad_quotes"
    LINE_TOO_LONG = "line_too_long"
    IN_THE_FUTURE = "in_the_future"


class Skip(StrEnum):
    """Why a line that was read is no page view: the first of these, in this order, that holds."""

    BLANK = "blank"
    NOT_GET = "not_get"
    STATUS = "status"
    STATIC = "static"
    CRAWLER = "crawler"


class Request(Struct, frozen=True, gc=False):
    """One line. ``at`` is in ms since 1970 UTC; ``-`` is read as an empty string.

    A request line that is none (``-``, or a TLS handshake sent to a plain port) has the method
    and target ``""``.
    """

    at: int
    address: str
    method: str
    target: str
    status: int
    referrer: str
    user_agent: str


_MONTHS = {name: n for n, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}  # noqa: SIM905
_QUOTED = rb'"([^"\\]*(?:\\.[^"\\]*)*)"'
_HEAD = re.compile(rb"(\S+) \S+ .*?\[([^\[\]]{20,32})\] " + _QUOTED + rb" (\d{3}) (?:\d+|-)(?= |\Z)", re.DOTALL)
_START = re.compile(rb"\S+ \S+ .*?\[[^\[\]]{20,32}\] \"", re.DOTALL)
_TAIL = re.compile(rb" " + _QUOTED + rb"(?: " + _QUOTED + rb'|(?! "))(?= |\Z)', re.DOTALL)
_TIME = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)([0-5]\d)", re.ASCII)
_REQUEST_LINE = re.compile(r"([A-Za-z][A-Za-z_-]{0,31}) (\S.*?)(?: HTTP/\d(?:\.\d)?)?", re.DOTALL)
_ORIGIN_OF_TARGET = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"v": b"\v", b"f": b"\f", b'"': b'"', b"\\": b"\\"}


def parse_line(line: bytes) -> Request | Rejected:
    """Read one line of a combined or common log, or name the one :class:`Fault` that it has.

    Fields after the user agent (a forwarded address, a duration) are ignored. Apache's and nginx's
    escapes are undone; bytes that are no UTF-8 become U+FFFD.
    """
    if len(line) > MAX_LINE:
        return Rejected(Fault.LINE_TOO_LONG, f"longer than {MAX_LINE} bytes")
    line = line.rstrip(b"\r\n")
    head = _HEAD.match(line)
    if head is None:
        if _START.match(line):
            return Rejected(Fault.BAD_QUOTES, "the quoted request is not closed, or no status and size follow it")
        return Rejected(Fault.NOT_A_LOG_LINE, 'not of the form: address - user [time] "request" status size ...')
    referrer = user_agent = b""
    if line.startswith(b' "', head.end()):
        tail = _TAIL.match(line, head.end())
        if tail is None:
            return Rejected(Fault.BAD_QUOTES, "the quoted referrer or user agent is not closed")
        referrer, user_agent = tail[1], tail[2] or b""
    address, time, request, status = head.groups()
    at = _millis(time)
    if at is None:
        return Rejected(Fault.BAD_TIME, f"{_text(time)!r} is no time of the form 31/Dec/2026:23:59:59 +0000")
    asked = _REQUEST_LINE.fullmatch(_text(request))
    return Request(
        at=at,
        address=_text(address),
        method=asked[1] if asked else "",
        target=asked[2] if asked else "",
        status=int(status),
        referrer=_dashed(referrer),
        user_agent=_dashed(user_agent),
    )


def skipped_as(request: Request) -> Skip | None:
    """Why ``request`` is no page view, or None when it is one."""
    if request.method != "GET":
        return Skip.NOT_GET
    if not (200 <= request.status <= 299 or request.status == 304):
        return Skip.STATUS
    if _is_static(request.target):
        return Skip.STATIC
    if _is_crawler(request.user_agent):
        return Skip.CRAWLER
    return None


@dataclass(frozen=True)
class ImportSettings:
    """How one import reads its log.

    ``received_at`` (ms) is the time of the import; ``origin`` (``https://example.com``) goes before
    the logged paths. Raises ValueError, with the remedy, for a site or origin that cannot be.
    """

    site: str
    received_at: int
    origin: str = ""
    sort_window: int = SORT_WINDOW

    def __post_init__(self) -> None:
        try:
            msgspec.convert(self.site, SiteId)
        except msgspec.ValidationError:
            raise ValueError(
                f"site {self.site!r}: use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
            ) from None
        if self.origin and not re.fullmatch(r"https?://[^\s/?#]{1,255}", self.origin):
            raise ValueError(f"origin {self.origin!r}: write it as https://example.com, without a path")
        if self.sort_window < 1:
            raise ValueError(f"sort window {self.sort_window}: it holds at least one request")


class Source(NamedTuple):
    """One log: its name for messages, and its lines. A line cut at ``MAX_LINE + 1`` bytes counts as too long."""

    name: str
    lines: Iterable[bytes]


class BrokenLine(NamedTuple):
    source: str
    line: int
    reason: str
    detail: str


@dataclass
class Tally:
    """What became of every line: ``lines = page_views + skipped + broken + waiting`` (0 waiting at the end).

    ``late`` requests came out of order by more than the sort window; the sessions of those are a best
    guess. Only the first ``keep`` broken lines are kept, each one is counted.
    """

    keep: int = 5
    lines: int = 0
    page_views: int = 0
    sessions: int = 0
    late: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    broken_lines: list[BrokenLine] = field(default_factory=list)
    _visitors: set[int] = field(default_factory=set)

    @property
    def visitors(self) -> int:
        return len(self._visitors)

    def refuse(self, source: str, line: int, refusal: Rejected) -> None:
        self.broken[str(refusal.reason)] += 1
        if len(self.broken_lines) < self.keep:
            self.broken_lines.append(BrokenLine(source, line, str(refusal.reason), refusal.detail))

    def view(self, visitor: str, first_of_session: bool) -> None:
        self.page_views += 1
        self.sessions += first_of_session
        self._visitors.add(int(visitor[:16], 16))


def page_views(sources: Sequence[Source], settings: ImportSettings, tally: Tally) -> Iterator[Event]:
    """The page views of all ``sources`` together, in the order of their times; ``tally`` counts every line.

    Lazy: reads on as events are taken. Several sources are one log in pieces, in any order.
    """
    visits = Sessions(settings.site)
    streams = [_requests(source, settings, tally) for source in sources]
    merged = streams[0] if len(streams) == 1 else _merged(streams)
    watermark = 0
    for logged in _sorted_within(settings.sort_window, merged):
        tally.late += logged.at < watermark
        watermark = max(watermark, logged.at)
        session = visits.visit(logged.visitor, logged.at, logged.line_id)
        if logged.event is None:
            continue
        tally.view(logged.visitor, not session.viewed)
        session.viewed = True
        yield msgspec.structs.replace(logged.event, session_id=session.session_id, timestamp=session.view(logged.at))


class Session(Struct):
    """A session under way: its id, its span so far (ms), and whether a page view of it was seen."""

    session_id: str
    first: int
    last: int
    viewed: bool = False
    viewed_at: int = -1
    views_then: int = 0

    def view(self, at: int) -> int:
        """The event time (ms) of a page view asked for at ``at``. A log tells times to the second; a session's
        page views of one second keep their order by milliseconds, or entry and exit page would be any of them.
        """
        self.views_then = self.views_then + 1 if at == self.viewed_at else 0
        self.viewed_at = at
        return at + min(self.views_then, 999)


class Sessions:
    """The sessions under way: who asked within the last 30 minutes of log time.

    Exact when requests come in the order of their times. One that comes late joins the visitor's
    session if it lies within a gap of it, and begins another one if not.
    """

    def __init__(self, site: str, gap: int = SESSION_GAP_MS) -> None:
        self._site = site
        self._gap = gap
        self._watermark = 0
        self._open: dict[str, Session] = {}  # the longest untouched first

    def __len__(self) -> int:
        return len(self._open)

    def visit(self, visitor: str, at: int, request_id: str) -> Session:
        """The session that a visitor's request at ``at`` (ms) belongs to; ``request_id`` names one it begins."""
        session = self._open.pop(visitor, None)
        if session is None or not session.first - self._gap <= at <= session.last + self._gap:
            session = Session(stable_id("session", self._site, visitor, request_id), at, at)
        else:
            session.first = min(session.first, at)
            session.last = max(session.last, at)
        self._open[visitor] = session
        if at > self._watermark:
            self._watermark = at
            self._close_ended()
        return session

    def _close_ended(self) -> None:
        ended = []
        for visitor, session in self._open.items():
            if session.last + self._gap >= self._watermark:
                break
            ended.append(visitor)
        for visitor in ended:
            del self._open[visitor]


class _Logged(Struct, frozen=True, gc=False):
    """A request that may extend a session, and when it is a page view its event, whose session is not yet known."""

    at: int
    line: int
    line_id: str
    visitor: str
    event: Event | None


def _requests(source: Source, settings: ImportSettings, tally: Tally) -> Iterator[_Logged]:
    """One source's requests in its order. A crawler's are left out: all of its visitor's requests are a crawler's."""
    repeats = _Repeats()
    latest = settings.received_at + MAX_AHEAD_MS
    for number, line in enumerate(source.lines, 1):
        tally.lines += 1
        if not line.strip():
            tally.skipped[Skip.BLANK] += 1
            continue
        request = parse_line(line)
        if not isinstance(request, Rejected) and request.at > latest:
            request = Rejected(Fault.IN_THE_FUTURE, "dated more than a day after the import: check the server's clock")
        if isinstance(request, Rejected):
            tally.refuse(source.name, number, request)
            continue
        skip = skipped_as(request)
        if skip is not None:
            tally.skipped[skip] += 1
            if _is_crawler(request.user_agent):
                continue
        visitor = stable_id("visitor", settings.site, request.address, request.user_agent)
        text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        line_id = stable_id("line", settings.site, text)
        if ordinal := repeats.ordinal(line_id):
            line_id = stable_id("line", settings.site, text, str(ordinal))
        event = None
        if skip is None:
            event = _page_view(request, line_id, visitor, settings)
            checked = decode(encode(event))
            if isinstance(checked, Rejected):
                tally.refuse(source.name, number, checked)
                event = None
        yield _Logged(request.at, number, line_id, visitor, event)


def _page_view(request: Request, line_id: str, visitor: str, settings: ImportSettings) -> Event:
    return Event(
        event_id=line_id,
        site_id=settings.site,
        session_id=line_id,
        user_id=visitor,
        event_type=PAGE_VIEW,
        timestamp=request.at,
        received_at=settings.received_at,
        page_url=settings.origin + request.target if request.target.startswith("/") else request.target,
        referrer=request.referrer,
        user_agent=request.user_agent[:MAX_TEXT],
    )


class _Repeats:
    """Numbers equal lines of one source: 0, 1, ... Forgets a line after some 100,000 others.

    Equal lines are of the same second, so they stand close together.
    """

    def __init__(self, size: int = SORT_WINDOW) -> None:
        self._size = size
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def ordinal(self, key: str) -> int:
        """How often ``key`` (which stands for a line) came before."""
        seen = self._young.get(key)
        if seen is None:
            seen = self._old.get(key, 0)
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = seen + 1
        return seen


_Key = tuple[int, int, str, int]


def _keyed(stream: Iterator[_Logged], count: Callable[[], int]) -> Iterator[tuple[_Key, _Logged]]:
    """Each request with its place: by time, then line number; ids and arrival only decide between sources."""
    for logged in stream:
        yield (logged.at, logged.line, logged.line_id, count()), logged


def _merged(streams: Sequence[Iterator[_Logged]]) -> Iterator[_Logged]:
    """All streams' requests; at each step that of the stream whose next one is the earliest."""
    count = iter(range(2**62)).__next__
    for _, logged in heapq.merge(*(_keyed(stream, count) for stream in streams)):
        yield logged


def _sorted_within(window: int, stream: Iterator[_Logged]) -> Iterator[_Logged]:
    """The stream in order of time, if nothing in it is displaced by more than ``window`` places."""
    count = iter(range(2**62)).__next__
    heap: list[tuple[_Key, _Logged]] = []
    for item in _keyed(stream, count):
        if len(heap) < window:
            heapq.heappush(heap, item)
        else:
            yield heapq.heappushpop(heap, item)[1]
    while heap:
        yield heapq.heappop(heap)[1]


@lru_cache(maxsize=4096)
def _millis(time: bytes) -> int | None:
    parts = _TIME.fullmatch(time.decode("latin-1"))
    if parts is None or parts[2] not in _MONTHS:
        return None
    day, _, year, hour, minute, second, sign, off_hours, off_minutes = parts.groups()
    offset = timedelta(hours=int(off_hours), minutes=int(off_minutes))
    leap = second == "60"  # a leap second is written so; it is the next minute's first
    try:
        local = datetime(int(year), _MONTHS[parts[2]], int(day), int(hour), int(minute), 59 if leap else int(second))  # noqa: DTZ001 - the offset is applied below
    except ValueError:
        return None
    since = local - datetime(1970, 1, 1) + (offset if sign == "-" else -offset)  # noqa: DTZ001 - both are UTC
    at = (since // timedelta(seconds=1) + leap) * 1000
    return at if at >= 0 else None


def _text(raw: bytes) -> str:
    if b"\\" in raw:
        raw = _ESCAPE.sub(_unescape, raw)
    return raw.decode("utf-8", "replace")


def _unescape(match: re.Match[bytes]) -> bytes:
    escape = match[1]
    if len(escape) == 3:
        return bytes.fromhex(escape[1:].decode())
    return _ESCAPED.get(escape, match[0])


def _dashed(raw: bytes) -> str:
    return "" if raw == b"-" else _text(raw)


def _is_static(target: str) -> bool:
    path = target.partition("?")[0]
    if not path.startswith("/"):
        path = _ORIGIN_OF_TARGET.sub("", path, count=1)
    _, dot, extension = path.rpartition("/")[2].rpartition(".")
    return bool(dot) and extension.lower() in STATIC_EXTENSIONS


@lru_cache(maxsize=8192)
def _is_crawler(user_agent: str) -> bool:
    return bool(user_agent) and bool(is_crawler(user_agent))
