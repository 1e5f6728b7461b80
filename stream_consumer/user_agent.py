"""Browser, operating system and kind of device, from a user agent."""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

_TABLETS = ("ipad", "tablet", "kindle", "silk/", "playbook")
_PHONES = ("mobi", "iphone", "ipod", "windows phone", "opera mini")


class Agent(Struct, frozen=True, array_like=True):
    """Names without versions; '' where the user agent does not tell. ``device`` is desktop, mobile or tablet."""

    browser: str = ""
    os: str = ""
    device: str = ""


@lru_cache(maxsize=8192)
def recognise(user_agent: str) -> Agent:
    """Read a user agent with ua-parser's patterns; the kind of device is what the browser says of itself."""
    if not user_agent:
        return Agent()
    from ua_parser import parse_os, parse_user_agent  # its tables take 0.2 s to load: not at cold start

    browser = parse_user_agent(user_agent)
    system = parse_os(user_agent)
    return Agent(browser.family if browser else "", system.family if system else "", _device(user_agent.lower()))


def _device(said: str) -> str:
    if any(sign in said for sign in _TABLETS) or ("android" in said and "mobi" not in said):
        return "tablet"
    if any(sign in said for sign in _PHONES):
        return "mobile"
    return "desktop" if "mozilla/" in said or "opera/" in said else ""
