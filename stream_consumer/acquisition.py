"""Where a session came from: referrer, source, channel and campaign, from its landing URL and referrer."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote_plus

from msgspec import Struct

UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
#: Click ids that advertisers add to a landing URL; their presence means paid traffic.
_PAID_CLICK_IDS = frozenset({"gclid", "gbraid", "wbraid", "msclkid", "dclid", "ttclid", "twclid"})
_PAID_MEDIUMS = frozenset({"cpc", "ppc", "cpm", "paid", "paidsearch", "paid_social", "paidsocial", "display", "banner"})
_MAX_PARAMETERS = 64
_MAX_LABEL = 100

# Host (or its last labels) -> (source, channel). The first label that fits from the left wins.
_KNOWN_HOSTS = {
    "bing.com": ("Bing", "search"),
    "duckduckgo.com": ("DuckDuckGo", "search"),
    "ecosia.org": ("Ecosia", "search"),
    "baidu.com": ("Baidu", "search"),
    "naver.com": ("Naver", "search"),
    "daum.net": ("Daum", "search"),
    "qwant.com": ("Qwant", "search"),
    "startpage.com": ("Startpage", "search"),
    "search.brave.com": ("Brave", "search"),
    "kagi.com": ("Kagi", "search"),
    "facebook.com": ("Facebook", "social"),
    "instagram.com": ("Instagram", "social"),
    "threads.net": ("Threads", "social"),
    "twitter.com": ("X", "social"),
    "x.com": ("X", "social"),
    "t.co": ("X", "social"),
    "linkedin.com": ("LinkedIn", "social"),
    "lnkd.in": ("LinkedIn", "social"),
    "reddit.com": ("Reddit", "social"),
    "news.ycombinator.com": ("Hacker News", "social"),
    "lobste.rs": ("Lobsters", "social"),
    "youtube.com": ("YouTube", "social"),
    "tiktok.com": ("TikTok", "social"),
    "pinterest.com": ("Pinterest", "social"),
    "mastodon.social": ("Mastodon", "social"),
    "bsky.app": ("Bluesky", "social"),
    "t.me": ("Telegram", "social"),
    "vk.com": ("VK", "social"),
    "chatgpt.com": ("ChatGPT", "ai"),
    "chat.openai.com": ("ChatGPT", "ai"),
    "perplexity.ai": ("Perplexity", "ai"),
    "claude.ai": ("Claude", "ai"),
    "gemini.google.com": ("Gemini", "ai"),
    "copilot.microsoft.com": ("Copilot", "ai"),
    "mail.google.com": ("Gmail", "email"),
    "outlook.live.com": ("Outlook", "email"),
    "mail.yahoo.com": ("Yahoo Mail", "email"),
}
# Search engines that answer under many country domains: google.de, search.yahoo.co.jp, yandex.ru.
_KNOWN_NAMES = {"google": ("Google", "search"), "yahoo": ("Yahoo", "search"), "yandex": ("Yandex", "search")}


class Acquisition(Struct, frozen=True, array_like=True):
    """``referrer`` is the referring host ('' for none or the site itself); the rest are labels, '' for unset."""

    referrer: str
    source: str
    channel: str
    utm_source: str
    utm_medium: str
    utm_campaign: str
    utm_term: str
    utm_content: str


@lru_cache(maxsize=8192)
def acquire(page_url: str, referrer: str) -> Acquisition:
    """Classify a landing. ``channel`` is direct, search, social, referral, email, paid or ai."""
    host = host_of(referrer)
    if host and host == host_of(page_url):
        host = ""
    parameters = _parameters(page_url)
    utm = {name: parameters.get(name, "")[:_MAX_LABEL] for name in UTM}
    medium = utm["utm_medium"].lower()
    source, channel = _known(host) if host else ("Direct", "direct")
    if utm["utm_source"]:
        source = utm["utm_source"]
        if channel == "direct":
            channel = "referral"
    if medium in _PAID_MEDIUMS or not _PAID_CLICK_IDS.isdisjoint(parameters):
        channel = "paid"
    elif medium in {"email", "e-mail", "newsletter"}:
        channel = "email"
    elif medium in {"social", "organic_social", "social-media"}:
        channel = "social"
    elif medium == "organic":
        channel = "search"
    return Acquisition(host, source, channel, **utm)


@lru_cache(maxsize=8192)
def host_of(url: str) -> str:
    """The host of an absolute URL, in lower case and without ``www.`` and port; '' where there is none."""
    scheme, separator, rest = url.partition("://")
    if not separator or not scheme.isascii() or "/" in scheme:
        return ""
    host = rest
    for end in "/?#":
        host = host.partition(end)[0]
    host = host.rpartition("@")[2].lower()
    if not host.startswith("["):
        host = host.partition(":")[0]
    return host.removeprefix("www.").rstrip(".")[:_MAX_LABEL]


@lru_cache(maxsize=8192)
def page_of(url: str) -> str:
    """The page that a URL (or a path) names: its path, without query and fragment; '' for an empty URL."""
    if not url:
        return ""
    path = url.partition("#")[0].partition("?")[0]
    scheme, separator, rest = path.partition("://")
    if separator and "/" not in scheme:
        _, slash, path = rest.partition("/")
        path = slash + path
    return path or "/"


def _parameters(url: str) -> dict[str, str]:
    query = url.partition("#")[0].partition("?")[2]
    found: dict[str, str] = {}
    for pair in query.split("&")[:_MAX_PARAMETERS] if query else ():
        name, _, value = pair.partition("=")
        found.setdefault(unquote_plus(name).lower(), unquote_plus(value, errors="replace"))
    return found


def _known(host: str) -> tuple[str, str]:
    labels = host.split(".")
    for start in range(len(labels) - 1):
        if known := _KNOWN_HOSTS.get(".".join(labels[start:])):
            return known
    for label in labels[:-1]:
        if known := _KNOWN_NAMES.get(label):
            return known
    return host, "referral"
