"""What strangers send: texts that try to be more than text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Anything of these that runs adds to ``window.ran``.
SCRIPTS = (
    "<script>window.ran++</script>",
    "</title><script>window.ran++</script>",
    '"><script>window.ran++</script>',
    "'><img src=x onerror=window.ran++>",
    "<img src=x onerror=window.ran++>",
    "<svg onload=window.ran++>",
    "<svg><animate onbegin=window.ran++ attributeName=x dur=1s>",
    "<body onload=window.ran++>",
    "<iframe srcdoc='<script>parent.ran++</script>'>",
    "<details open ontoggle=window.ran++>",
    "<input autofocus onfocus=window.ran++>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=window.ran++&gt;'>",
    "<a href='javascript:window.ran++'>x</a>",
    "{{constructor.constructor('window.ran++')()}}",
    "${window.ran++}",
    "`${window.ran++}`",
    "\\u003cscript\\u003ewindow.ran++\\u003c/script\\u003e",
    "%3Cscript%3Ewindow.ran++%3C/script%3E",
    "&lt;script&gt;window.ran++&lt;/script&gt;",
    "<!--><script>window.ran++</script>-->",
    "<link rel=stylesheet href='data:text/css,*{color:red}'>",
    "<meta http-equiv=refresh content='0;url=javascript:window.ran++'>",
    "<base href='https://evil.example/'>",
    "<form action=https://evil.example/><button autofocus>",
    "' onmouseover='window.ran++",
    '" style="position:fixed;inset:0" onmouseover="window.ran++',
)
URLS = (
    "javascript:window.ran++",
    "JaVaScRiPt:window.ran++//",
    " javascript:window.ran++",
    "java\tscript:window.ran++",
    "\x01javascript:window.ran++",
    "data:text/html,<script>window.ran++</script>",
    "vbscript:window.ran++",
    "blob:https://evil.example/x",
    "file:///etc/passwd",
    "https://shop.example@evil.example/",
    "https://evil.example/\u2066gnp.\u2069exe",
    "//evil.example/x",
    "https://[::1]:99999/",
    "http://" + "a" * 3000 + "/",
    "/" + "x" * 10_000,
    "/%00%ff%fe",
    "/?" + "&".join(f"utm_source=s{n}" for n in range(300)),
)
FORMULAS = (
    '=HYPERLINK("https://evil.example","win")',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1+9)",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
    "\uff1d1+1",
    "%0A=1+1",
)
TEXTS = (
    "\u202egnp.exe\u202c",
    "\u2067\u2066\u2069" * 20,
    "nul\x00in the middle",
    "\ufeff\u200b\u200d\u00ad",
    "Z\u0351\u036b" * 60,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 40,
    "\ud83d lone surrogate".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    "x" * 10_000,
    "\u0000",
    "\x1b[31mred\x1b[0m\x07",
    "line\nbreak\r\nand\u2028separators\u2029",
    "__proto__",
    "constructor",
    "null",
    "NaN",
    "-1e999",
    "' OR '1'='1",
    "pk = :pk AND begins_with(sk, :low)",
    "#site#day#totals",
    "../../../etc/passwd",
    "(other)",
    "\u2764\ufe0f",
)
VECTORS = (*SCRIPTS, *URLS, *FORMULAS, *TEXTS)

#: Where a stranger's text gets into an event.
FIELDS = (
    "title",
    "page_url",
    "referrer",
    "user_agent",
    "utm",
    "element",
    "conversion",
    "event_type",
    "property",
    "user",
)


def events(now: int) -> Iterator[dict[str, Any]]:
    """Events as a tracker might post them, one for each vector in each field; times from ``now`` (ms) back."""
    for number, vector in enumerate(VECTORS):
        for place, field in enumerate(FIELDS):
            event: dict[str, Any] = {
                "event_id": f"h{number}-{place}",
                "session_id": f"hostile-{number}-{place % 4}",
                "site_id": "hostile",
                "event_type": "page_view",
                "timestamp": now - 1000 * (place + 1),
                "page_url": f"https://shop.example/p{number}",
                "title": "fine",
                "country": "KR",
            }
            match field:
                case "title" | "page_url" | "referrer" | "user_agent":
                    event[field] = vector
                case "utm":
                    event["page_url"] = f"https://shop.example/?utm_source={vector}&utm_campaign={vector}"
                case "element":
                    event |= {
                        "event_type": "click",
                        "element_text": vector,
                        "element_href": vector,
                        "element_id": vector,
                    }
                case "conversion":
                    event |= {
                        "event_type": "conversion",
                        "conversion_type": vector,
                        "conversion_currency": vector,
                        "conversion_value": 1,
                    }
                case "event_type":
                    event["event_type"] = vector
                case "property":
                    event |= {"event_type": "signup", "properties": {vector: vector}}
                case "user":
                    event["user_id"] = vector
            yield event
