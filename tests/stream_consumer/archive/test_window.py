"""The order in which waiting records go out."""

from __future__ import annotations

import random

import pytest

from stream_consumer.archive.lines import ArchivedRecord
from stream_consumer.archive.window import LateRecord, Window
from tests.archiving import CHILD, PARENT

LATER = 1 << 60


def a_record(number: int, shard: str = PARENT, index: int | None = None, arrived: int | None = None) -> ArchivedRecord:
    return ArchivedRecord(shard, str(number), index, number if arrived is None else arrived, b"x")


def taken(window: Window, before: int = LATER) -> list[tuple[str, list[tuple[str, int | None]]]]:
    return [(shard, [(one.sequence_number, one.index) for one in found]) for shard, found in window.take(before)]


def test_a_parent_goes_before_its_child_and_each_in_the_order_of_positions_each_record_once() -> None:
    window = Window({}, 0)
    records = [a_record(number, index=index) for number in (9, 10, 11, 99, 100) for index in range(3)]
    window.add([a_record(5000, CHILD)])
    for seed in range(4):
        window.add(random.Random(seed).sample(records, len(records)))
    numbers = [(number, index) for number in ("9", "10", "11", "99", "100") for index in range(3)]
    assert taken(window) == [(PARENT, numbers), (CHILD, [("5000", None)])]
    assert taken(window) == []


def test_what_arrived_at_the_time_or_later_waits_and_what_is_behind_it_too() -> None:
    window = Window({}, 0)
    window.add([a_record(1), a_record(2, arrived=10), a_record(3)])
    assert taken(window, 10) == [(PARENT, [("1", None)])]
    window.add([a_record(4), a_record(2, arrived=10)])
    assert taken(window, 11) == [(PARENT, [("2", None), ("3", None), ("4", None)])]


def test_a_repeat_of_what_went_out_is_known_until_it_is_forgotten_and_a_late_record_never_passes() -> None:
    window = Window({}, 0)
    window.add([a_record(1), a_record(3)])
    taken(window, 5)
    window.add([a_record(1), a_record(3)])
    with pytest.raises(LateRecord, match=PARENT):
        window.add([a_record(2)])
    window.forget(4)
    window.add([a_record(1)])
    window.forget(5)
    with pytest.raises(LateRecord):
        window.add([a_record(1)])


def test_many_records_of_a_shard_go_out_in_order_from_many_objects() -> None:
    window = Window({}, 0)
    numbers = random.Random(0).sample(range(1, 5001), 5000)
    for start in range(0, 5000, 1250):
        window.add([a_record(number) for number in numbers[start : start + 1250]])
    for before, wanted in ((2000, range(1, 2000)), (LATER, range(2000, 5001))):
        assert taken(window, before) == [(PARENT, [(str(number), None) for number in wanted])]
