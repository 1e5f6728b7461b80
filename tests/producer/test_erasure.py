"""Erasures and events are told apart by their bytes."""

import json

import pytest

from producer import erasure
from producer.erasure import Erasure
from producer.event import Rejected, decode, encode
from tests.builders import an_erasure, an_event

SOUND = {"site_id": "blog", "session_id": "s1", "erased_at": 1}


def test_an_erasure_comes_back_as_it_was_and_is_no_event() -> None:
    one = an_erasure("s-42")
    assert erasure.decode(erasure.encode(one)) == one
    assert isinstance(decode(erasure.encode(one)), Rejected)


def test_an_event_is_no_erasure() -> None:
    assert erasure.decode(encode(an_event(1))) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"erase": {}}',
        b'{"erase":' * 2000,
        *(
            json.dumps({"erase": SOUND | wrong}).encode()
            for wrong in (
                {"site_id": ""},
                {"site_id": "a#b"},
                {"session_id": "a b"},
                {"session_id": "x" * 129},
                {"erased_at": 0},
                {"erased_at": "1"},
                {"erased_at": 10**18},
            )
        ),
        json.dumps({"erase": SOUND, "event_id": "e1"}).encode(),
    ],
)
def test_whatever_else_is_no_erasure(data: bytes) -> None:
    assert erasure.decode(json.dumps({"erase": SOUND}).encode()) == Erasure(**SOUND)
    assert erasure.decode(data) is None
