import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stream_consumer.session import Session
from tests.builders import NOON, an_event

encode = msgspec.msgpack.Encoder(order="deterministic").encode


def folded(events) -> Session:
    session = Session("blog", "s1")
    for event in events:
        session.apply(event)
    return session


@st.composite
def visits(draw):
    kinds = ["page_view", "click", "conversion", "heartbeat", "scroll", "signup"]
    return [
        an_event(
            number,
            event_type=draw(st.sampled_from(kinds)),
            timestamp=NOON + draw(st.integers(0, 5)) * 1000,
            page_url=draw(st.sampled_from(["/a", "/b?utm_source=x", "https://example.com/c"])),
            user_id=draw(st.sampled_from(["", "ann", "bob"])),
            conversion_value=draw(st.sampled_from([0.0, 0.1, 19.99])),
            conversion_currency=draw(st.sampled_from(["EUR", "KRW"])),
            properties={"depth": draw(st.sampled_from([25, 50, "x"]))},
            **draw(st.sampled_from([{}, {"seq": number + 1, "source": "tab"}])),
        )
        for number in range(draw(st.integers(1, 7)))
    ]


@given(visits(), st.randoms())
def test_any_order_and_any_repeats_give_the_same_bytes(events, random) -> None:
    shuffled = events + random.sample(events, random.randint(0, len(events)))
    random.shuffle(shuffled)
    assert encode(folded(shuffled)) == encode(folded(events))


@given(visits())
def test_a_stored_session_folds_on_as_if_it_had_never_been_stored(events) -> None:
    session = Session("blog", "s1")
    for event in events:
        session.apply(event)
        session = msgspec.msgpack.decode(encode(session), type=Session)
    assert encode(session) == encode(folded(events))


def test_what_a_visit_tells() -> None:
    session = folded(
        [
            an_event(2, event_type="click", element_id="buy"),
            an_event(3, page_url="https://example.com/thanks", title="Thanks"),
            an_event(
                1,
                page_url="https://example.com/shoes?utm_campaign=spring",
                referrer="https://www.google.com/",
                user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 "
                "(KHTML, like Gecko) Version/17.0 Mobile/15E148 Safari/604.1",
                country="KR",
                language="ko",
                user_id="ann",
            ),
            an_event(4, event_type="conversion", conversion_type="order", conversion_value=19.99),
            an_event(9, event_type="heartbeat"),
        ]
    )
    assert (session.entry_page, session.exit_page) == ("/shoes", "/thanks")
    assert session.landing.acquisition.source == "Google"
    assert session.landing.acquisition.utm_campaign == "spring"
    assert (session.landing.agent.device, session.landing.agent.os) == ("mobile", "iOS")
    assert (session.landing.country, session.landing.language, session.user_id) == ("KR", "ko", "ann")
    assert (session.events, session.page_views, session.interactions, session.conversions) == (5, 2, 2, 1)
    assert session.values == {"": 19_990_000}
    assert session.duration == 8000
    assert not session.bounced


def test_one_page_read_and_left_is_a_bounce_and_a_click_on_it_is_none() -> None:
    reading = [an_event(1), an_event(2, event_type="scroll"), an_event(3, event_type="page_exit")]
    assert folded(reading).bounced
    assert not folded([*reading, an_event(4, event_type="click")]).bounced
    assert not folded([*reading, an_event(4)]).bounced


def test_a_session_without_page_views_has_no_entry_page_but_a_landing() -> None:
    session = folded([an_event(1, event_type="order_paid", page_url="https://example.com/api")])
    assert (session.entry_page, session.exit_page) == ("", "")
    assert session.landing.page_url == "https://example.com/api"


def test_scroll_depth_is_the_deepest_and_ignores_what_is_no_depth() -> None:
    depths = [25, "deep", True, None, 75, 50, -4]
    session = folded(an_event(n, event_type="scroll", properties={"depth": d}) for n, d in enumerate(depths))
    assert session.scroll_depth == 75
    assert folded([an_event(1, event_type="scroll", properties={"depth": 900})]).scroll_depth == 100


def test_money_adds_up_exactly_and_never_overflows() -> None:
    session = folded(an_event(n, event_type="conversion", conversion_value=0.1) for n in range(10))
    assert session.values == {"": 1_000_000}
    rich = Session("blog", "s1", values={"": 2**63 - 2})
    rich.apply(an_event(1, event_type="conversion", conversion_value=1e9))
    assert encode(rich)
