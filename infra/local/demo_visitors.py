"""Invented visitors of invented sites: what they do, as the tracker in their browsers would tell it.

Pure: what happens is decided by the generator of random numbers and the times that are given.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Protocol, TypeVar

#: Events of a visit on average; what a rate of events is turned into a rate of visits by.
EVENTS_PER_VISIT = 12.8
HEARTBEAT_MS = 15_000
#: Events that come within this time go in one request, as the tracker has it.
GATHER_MS = 1_000
#: Share of the full rate at the beginning and at the end of the time before the start: traffic that grows.
EARLY, LATE = 0.2, 0.7


class Weighted(Protocol):
    @property
    def weight(self) -> float: ...


_W = TypeVar("_W", bound=Weighted)


@dataclass(frozen=True)
class Page:
    path: str
    title: str


@dataclass(frozen=True)
class Goal:
    """Something worth counting: a conversion on ``page`` by a share of the visits that get as far."""

    kind: str
    page: Page
    share: float
    values: tuple[float, float] = (0.0, 0.0)
    currency: str = ""


@dataclass(frozen=True)
class Site:
    """``site_id`` '' leaves the field out, which means the site ``default``. Pages: the most visited first."""

    site_id: str
    host: str
    weight: float
    pages: tuple[Page, ...]
    goals: tuple[Goal, ...] = ()
    actions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Referral:
    """Where visits come from. ``campaign`` is added to the landing page's address."""

    weight: float
    url: str = ""
    campaign: str = ""


@dataclass(frozen=True)
class Browser:
    weight: float
    user_agent: str


@dataclass(frozen=True)
class Place:
    weight: float
    country: str
    language: str


@dataclass(frozen=True)
class Visitor:
    user_id: str
    browser: Browser
    place: Place


@dataclass(frozen=True, order=True)
class Request:
    """What one browser posts at ``at`` (ms since 1970 UTC): events in the tracker's form, and its headers."""

    at: int
    serial: int
    visitor: Visitor = field(compare=False)
    events: tuple[dict[str, Any], ...] = field(compare=False)

    @property
    def headers(self) -> dict[str, str]:
        return {
            "User-Agent": self.visitor.browser.user_agent,
            "Accept-Language": f"{self.visitor.place.language},en;q=0.5",
            "CloudFront-Viewer-Country": self.visitor.place.country,
        }


def _pages(*titles: str) -> tuple[Page, ...]:
    """A site's pages from ``path title`` lines."""
    return tuple(Page(*line.split(" ", 1)) for line in titles)


_CHECKOUT = Page("/checkout/done", "Thank you for your order")
_SIGNED_UP = Page("/newsletter/welcome", "Welcome aboard")

SITES = (
    Site(
        "shop",
        "shop.example",
        4.0,
        _pages(
            "/ Harbour Goods",
            "/sale Winter sale",
            "/c/lamps Lamps",
            "/p/brass-desk-lamp Brass desk lamp",
            "/c/kitchen Kitchen",
            "/p/enamel-kettle Enamel kettle",
            "/p/linen-apron Linen apron",
            "/search Search",
            "/c/garden Garden",
            "/p/copper-watering-can Copper watering can",
            "/p/oak-stool Oak stool",
            "/delivery Delivery and returns",
            "/c/books Books",
            "/p/bread-knife Bread knife",
            "/p/wool-blanket Wool blanket",
            "/gift-cards Gift cards",
            "/p/tea-towels Tea towels, set of three",
            "/stores Our stores",
            "/about About Harbour Goods",
            "/contact Contact",
        ),
        (Goal("purchase", _CHECKOUT, 0.12, (12.0, 180.0), "EUR"), Goal("newsletter", _SIGNED_UP, 0.04)),
        ("add_to_cart", "search", "filter"),
    ),
    Site(
        "blog",
        "blog.example",
        2.5,
        _pages(
            "/ Notes from the night shift",
            "/a-queue-is-a-promise A queue is a promise",
            "/how-we-lost-forty-events How we lost forty events, and how we know",
            "/small-batches Small batches",
            "/measuring-what-is-late Measuring what is late",
            "/the-cost-of-a-retry The cost of a retry",
            "/why-we-dropped-averages Why we dropped averages",
            "/archive Archive",
            "/a-week-with-one-shard A week with one shard",
            "/tags/databases Posts on databases",
            "/on-call-with-a-newborn On call with a newborn",
            "/about About the authors",
            "/clocks-are-opinions Clocks are opinions",
        ),
        (Goal("newsletter", _SIGNED_UP, 0.07),),
        ("share", "read_to_end"),
    ),
    Site(
        "docs",
        "docs.example",
        2.0,
        _pages(
            "/ Documentation",
            "/quickstart Quick start",
            "/install Installation",
            "/guides/events Guide: events",
            "/reference/api API reference",
            "/guides/sessions Guide: sessions",
            "/reference/errors Errors",
            "/guides/deploying Guide: deploying",
            "/faq Frequently asked questions",
            "/reference/limits Limits",
            "/changelog Changelog",
            "/guides/replaying Guide: replaying a stream",
        ),
        (Goal("trial", Page("/trial/started", "Your trial has started"), 0.05, (0.0, 29.0), "USD"),),
        ("copy_code", "search", "feedback"),
    ),
    Site(
        "",
        "www.example",
        1.0,
        _pages("/ Home", "/products Products", "/pricing Pricing", "/team Team", "/jobs Jobs", "/imprint Imprint"),
        (Goal("contact", Page("/contact/sent", "We have your message"), 0.08),),
    ),
)

REFERRALS = (
    Referral(34.0),
    Referral(22.0, "https://www.google.com/"),
    Referral(3.0, "https://www.google.de/"),
    Referral(4.0, "https://www.bing.com/"),
    Referral(4.0, "https://duckduckgo.com/"),
    Referral(4.0, "https://news.ycombinator.com/"),
    Referral(4.0, "https://www.reddit.com/"),
    Referral(3.0, "https://t.co/"),
    Referral(2.0, "https://www.linkedin.com/"),
    Referral(2.0, "https://bsky.app/"),
    Referral(2.5, "https://www.theguardian.com/technology"),
    Referral(1.5, "https://www.heise.de/news/"),
    Referral(4.0, "https://chatgpt.com/"),
    Referral(1.5, "https://www.perplexity.ai/"),
    Referral(1.5, "https://claude.ai/"),
    Referral(3.0, "", "utm_source=newsletter&utm_medium=email&utm_campaign=november-letter"),
    Referral(3.0, "https://www.google.com/", "utm_source=google&utm_medium=cpc&utm_campaign=winter-sale&utm_term=lamp"),
    Referral(2.0, "https://www.instagram.com/", "utm_source=instagram&utm_medium=paid_social&utm_campaign=winter-sale"),
    Referral(1.0, "https://partner.example/tools", "utm_source=partner&utm_medium=referral&utm_campaign=toolbox"),
)

_WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64)"
_MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0"
_IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
_IPAD = "Mozilla/5.0 (iPad; CPU OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"

BROWSERS = (
    Browser(24.0, f"{_WINDOWS} {_CHROME} Safari/537.36"),
    Browser(9.0, f"{_MAC} {_CHROME} Safari/537.36"),
    Browser(8.0, f"{_MAC} AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.1 Safari/605.1.15"),
    Browser(7.0, f"{_WINDOWS} {_CHROME} Safari/537.36 Edg/142.0.0.0"),
    Browser(4.0, "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0"),
    Browser(3.0, "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"),
    Browser(2.0, f"Mozilla/5.0 (X11; Linux x86_64) {_CHROME} Safari/537.36"),
    Browser(18.0, f"{_IPHONE} Version/18.6 Mobile/15E148 Safari/604.1"),
    Browser(3.0, f"{_IPAD} Version/18.6 Mobile/15E148 Safari/604.1"),
    Browser(16.0, f"Mozilla/5.0 (Linux; Android 10; K) {_CHROME} Mobile Safari/537.36"),
    Browser(
        4.0,
        "Mozilla/5.0 (Linux; Android 14; SM-S921B) AppleWebKit/537.36 (KHTML, like Gecko) "
        "SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36",
    ),
    Browser(2.0, "Mozilla/5.0 (Android 15; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0"),
)

PLACES = (
    Place(26.0, "US", "en-US"),
    Place(16.0, "DE", "de-DE"),
    Place(11.0, "GB", "en-GB"),
    Place(7.0, "FR", "fr-FR"),
    Place(6.0, "IN", "en-IN"),
    Place(5.0, "NL", "nl-NL"),
    Place(5.0, "BR", "pt-BR"),
    Place(4.0, "JP", "ja-JP"),
    Place(4.0, "ES", "es-ES"),
    Place(3.0, "PL", "pl-PL"),
    Place(3.0, "SE", "sv-SE"),
    Place(2.0, "AT", "de-AT"),
)


class Crowd:
    """Everyone who may come. ``rng`` decides all."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known: deque[tuple[Site, Visitor]] = deque(maxlen=2_000)
        self._serial = 0

    def visit(self, start: int) -> list[Request]:
        """All that one visitor sends in a visit that begins at ``start`` (ms), in order."""
        rng = self._rng
        site, visitor = self._next_visitor()
        timeline = _Timeline(rng, site, visitor, start)
        entry = site.pages[0] if rng.random() < 0.35 else _zipf(rng, site.pages)
        referral = _weighted(rng, REFERRALS)
        url = f"https://{site.host}{entry.path}" + (f"?{referral.campaign}" if referral.campaign else "")
        if rng.random() < 0.38:
            timeline.view(entry, url, referral.url)
            timeline.stay(min(rng.lognormvariate(2.0, 0.9), 120.0))
            return self._requests(visitor, timeline.leave())
        pages = [_zipf(rng, site.pages) for _ in range(min(1 + int(rng.expovariate(0.45)), 15))]
        timeline.view(entry, url, referral.url)
        for page in pages:
            timeline.stay(min(rng.lognormvariate(2.7, 0.9), 240.0))
            if site.actions and rng.random() < 0.15:
                timeline.add(rng.choice(site.actions), properties={"page": page.path})
            timeline.follow(page)
        goal = next((goal for goal in site.goals if rng.random() < goal.share), None)
        timeline.stay(min(rng.lognormvariate(2.5, 0.8), 240.0))
        if goal is not None:
            timeline.follow(goal.page)
            value = {"conversion_value": round(rng.uniform(*goal.values), 2), "conversion_currency": goal.currency}
            timeline.add("conversion", conversion_type=goal.kind, **(value if goal.currency else {}))
            timeline.stay(rng.uniform(2.0, 12.0))
        return self._requests(visitor, timeline.leave())

    def _next_visitor(self) -> tuple[Site, Visitor]:
        rng = self._rng
        if self._known and rng.random() < 0.25:
            return rng.choice(self._known)
        visitor = Visitor(_id(rng), _weighted(rng, BROWSERS), _weighted(rng, PLACES))
        self._known.append((_weighted(rng, SITES), visitor))
        return self._known[-1]

    def _requests(self, visitor: Visitor, events: list[dict[str, Any]]) -> list[Request]:
        requests: list[Request] = []
        gathered: list[dict[str, Any]] = []
        for event in [*events, None]:
            if gathered and (event is None or event["timestamp"] > gathered[0]["timestamp"] + GATHER_MS):
                self._serial += 1
                requests.append(Request(gathered[-1]["timestamp"] + 200, self._serial, visitor, tuple(gathered)))
                gathered = []
            if event is not None:
                gathered.append(event)
        return requests


class _Timeline:
    """The events of one visit, as its tab would number and date them."""

    def __init__(self, rng: random.Random, site: Site, visitor: Visitor, start: int) -> None:
        self._rng = rng
        self._site = site
        self._visitor = visitor
        self._now = float(start)
        self._session, self._source = _id(rng), _id(rng)
        self._events: list[dict[str, Any]] = []
        self._url = ""
        self._depth = 0

    def add(self, event_type: str, **fields: Any) -> None:
        event = {
            "event_type": event_type,
            "event_id": _id(self._rng),
            "session_id": self._session,
            "user_id": self._visitor.user_id,
            "source": self._source,
            "seq": len(self._events) + 1,
            "timestamp": int(self._now),
            "page_url": self._url,
            **fields,
        }
        if self._site.site_id:
            event["site_id"] = self._site.site_id
        self._events.append(event)

    def view(self, page: Page, url: str, referrer: str) -> None:
        self._url, self._depth = url, 0
        self.add("page_view", referrer=referrer, title=page.title, language=self._visitor.place.language)

    def follow(self, page: Page) -> None:
        """Click a link to ``page``, and see it."""
        url = f"https://{self._site.host}{page.path}"
        self.add("click", element_tag="a", element_text=page.title, element_href=url)
        self._now += self._rng.uniform(150, 700)
        self.view(page, url, self._url)

    def stay(self, seconds: float) -> None:
        """Read for a while: scrolling down, with heartbeats."""
        end = self._now + seconds * 1000
        scroll_every = self._rng.uniform(2_500, 12_000)
        beat, scroll = self._now + HEARTBEAT_MS, self._now + scroll_every
        while (soonest := min(beat, scroll)) < end:
            self._now = soonest
            if soonest == beat:
                self.add("heartbeat")
                beat += HEARTBEAT_MS
            elif self._depth < 100:
                self._depth += 25
                self.add("scroll", properties={"depth": self._depth})
                scroll += scroll_every
            else:
                scroll = float("inf")
        self._now = end

    def leave(self) -> list[dict[str, Any]]:
        """The whole visit. Some tabs are killed before they can say that they go."""
        if self._rng.random() < 0.85:
            self.add("page_exit")
        return self._events


def traffic(rng: random.Random, start: int, rate: float, history: int) -> Iterator[Request]:
    """Endless requests in the order of their time, about ``rate`` events per second from ``start`` (ms) on.

    They begin ``history`` ms before the start with visits that have a part of the full rate, growing; some of them are
    still under way at the start.
    """
    crowd = Crowd(rng)
    began = start - history
    arrival = float(began)
    pending: list[Request] = []
    while True:
        share = 1.0 if arrival >= start else EARLY + (LATE - EARLY) * (arrival - began) / history
        arrival += rng.expovariate(rate * share / EVENTS_PER_VISIT) * 1000
        while pending and pending[0].at <= arrival:
            yield heapq.heappop(pending)
        for request in crowd.visit(int(arrival)):
            heapq.heappush(pending, request)


def bundle(requests: Iterable[Request], size: int) -> list[Request]:
    """The events of many browsers' ``requests`` in few, each of at least ``size`` events but for the last ones.

    Every event then names its own browser, and the visitors of one request are all in one country, for that is not an
    event's to say.
    """
    bundles: list[Request] = []
    gathered: dict[str, list[dict[str, Any]]] = {}
    latest: dict[str, Request] = {}
    for request in requests:
        latest[request.visitor.place.country] = request
        events = gathered.setdefault(request.visitor.place.country, [])
        events += [{**event, "user_agent": request.visitor.browser.user_agent} for event in request.events]
        if len(events) >= size:
            bundles.append(replace(request, events=tuple(gathered.pop(request.visitor.place.country))))
    return bundles + [replace(latest[country], events=tuple(events)) for country, events in gathered.items()]


def _weighted(rng: random.Random, choices: Sequence[_W]) -> _W:
    return rng.choices(choices, [choice.weight for choice in choices])[0]


def _zipf(rng: random.Random, pages: tuple[Page, ...]) -> Page:
    return rng.choices(pages, cum_weights=list(accumulate(1 / rank for rank in range(1, len(pages) + 1))))[0]


def _id(rng: random.Random) -> str:
    return f"{rng.getrandbits(128):032x}"
