import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_consumer.acquisition import acquire, host_of, page_of


@pytest.mark.parametrize(
    ("url", "page"),
    [
        ("", ""),
        ("https://example.com", "/"),
        ("https://example.com/a/b?q=1#top", "/a/b"),
        ("/a?q=https://x/y", "/a"),
        ("//a/b", "//a/b"),
        ("/a?u=http://x.org/z", "/a"),
        ("/redirect/http://x.org/z", "/redirect/http://x.org/z"),
        ("https://example.com?x", "/"),
    ],
)
def test_a_page_is_the_path(url: str, page: str) -> None:
    assert page_of(url) == page


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://www.Example.com:8080/x", "example.com"),
        ("http://user:pw@example.org/", "example.org"),
        ("http://[::1]:80/", "[::1]:80"),
        ("android-app://com.reddit.frontpage/", "com.reddit.frontpage"),
        ("javascript:alert(1)", ""),
        ("/local", ""),
        ("", ""),
        ("https://example.com.", "example.com"),
    ],
)
def test_a_host(url: str, host: str) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("page", "referrer", "source", "channel"),
    [
        ("https://a.com/", "", "Direct", "direct"),
        ("https://a.com/", "https://a.com/other", "Direct", "direct"),
        ("https://a.com/", "https://www.google.co.kr/search", "Google", "search"),
        ("https://a.com/", "https://t.co/abc", "X", "social"),
        ("https://a.com/", "https://chatgpt.com/", "ChatGPT", "ai"),
        ("https://a.com/", "https://gemini.google.com/app", "Gemini", "ai"),
        ("https://a.com/", "https://mail.google.com/", "Gmail", "email"),
        ("https://a.com/", "https://blog.friend.org/post", "blog.friend.org", "referral"),
        ("https://a.com/?gclid=1", "https://www.google.com/", "Google", "paid"),
        ("https://a.com/?utm_source=list&utm_medium=email", "", "list", "email"),
        ("https://a.com/?utm_source=ads&utm_medium=CPC", "", "ads", "paid"),
        ("https://a.com/?utm_source=partner", "", "partner", "referral"),
        ("https://a.com/", "https://notgoogle.evil/", "notgoogle.evil", "referral"),
    ],
)
def test_source_and_channel(page: str, referrer: str, source: str, channel: str) -> None:
    came = acquire(page, referrer)
    assert (came.source, came.channel) == (source, channel)


@given(st.text(), st.text())
def test_any_text_is_classified_somehow(page: str, referrer: str) -> None:
    came = acquire(page, referrer)
    assert came.channel in {"direct", "search", "social", "referral", "email", "paid", "ai"}
    assert came.source
