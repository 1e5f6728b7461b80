"""The transformation: every record is answered in its order, and none is lost without a word."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from infra.local.firehose import firehose_records
from producer.event import encode
from stream_consumer.archive import transform_handler
from stream_consumer.archive.lines import read_line
from stream_consumer.archive.transform_handler import handler
from tests.builders import NOON, a_lambda_event, an_aggregate, an_event


def an_event_of(*payloads: bytes, **metadata: Any) -> dict[str, Any]:
    """A Firehose transformation event, as its guide shows one."""
    return {
        "invocationId": "invoked123",
        "deliveryStreamArn": "arn:aws:firehose:us-east-1:123456789012:deliverystream/archive",
        "sourceKinesisStreamArn": "arn:aws:kinesis:us-east-1:123456789012:stream/events",
        "region": "us-east-1",
        "records": [
            {
                "recordId": f"record{at}",
                "approximateArrivalTimestamp": 1,
                "data": base64.b64encode(payload).decode(),
                "kinesisRecordMetadata": {
                    "shardId": "shardId-000000000000",
                    "partitionKey": "lane-0",
                    "approximateArrivalTimestamp": NOON + 7,
                    "sequenceNumber": "49546986683135544286507457936321625675700192471156785154",
                    "subsequenceNumber": "",
                }
                | metadata,
            }
            for at, payload in enumerate(payloads)
        ],
    }


def lines(answer: dict[str, list[dict[str, str]]]) -> list[bytes]:
    return [base64.b64decode(one["data"]) for one in answer["records"]]


@pytest.mark.parametrize(
    ("metadata", "index", "arrived"),
    [
        ({}, None, NOON + 7),
        ({"subsequenceNumber": None}, None, NOON + 7),
        ({"subsequenceNumber": 0}, 0, NOON + 7),
        ({"subsequenceNumber": "12"}, 12, NOON + 7),
        ({"approximateArrivalTimestamp": "2012-04-23T18:25:43.511Z"}, None, 1_335_205_543_511),
    ],
)
def test_the_line_has_the_position_that_firehose_tells(
    metadata: dict[str, Any], index: int | None, arrived: int
) -> None:
    answer = handler(an_event_of(b"{", encode(an_event()), **metadata), None)
    assert [(one["recordId"], one["result"]) for one in answer["records"]] == [("record0", "Ok"), ("record1", "Ok")]
    found = [read_line(line) for line in lines(answer)]
    assert [one.payload for one in found] == [b"{", encode(an_event())]
    assert {(one.index, one.arrived, one.sequence_number[:6]) for one in found} == {(index, arrived, "495469")}
    assert all(line.endswith(b"\n") for line in lines(answer))


def test_without_a_subsequence_number_a_record_is_whole() -> None:
    event = an_event_of(b"x")
    del event["records"][0]["kinesisRecordMetadata"]["subsequenceNumber"]
    assert read_line(lines(handler(event, None))[0]).index is None


def test_a_record_without_a_position_is_failed_alone(caplog: pytest.LogCaptureFixture) -> None:
    event = an_event_of(b"a", b"b", b"c")
    del event["records"][1]["kinesisRecordMetadata"]
    answers = handler(event, None)["records"]
    assert [one["result"] for one in answers] == ["Ok", "ProcessingFailed", "Ok"]
    assert [one["recordId"] for one in answers] == ["record0", "record1", "record2"]
    (told,) = caplog.records
    assert "it has no position" in told.why  # type: ignore[attr-defined]


def test_what_does_not_fit_into_a_response_is_failed_with_its_position_and_the_rest_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transform_handler, "MAX_RESPONSE_BYTES", 4000)
    answer = handler(an_event_of(b"a" * 200, b"b" * 3000, b"c" * 200), None)
    assert [one["result"] for one in answer["records"]] == ["Ok", "ProcessingFailed", "Ok"]
    assert len(json.dumps(answer)) < 4000
    (told,) = caplog.records
    assert "BufferSizeInMBs" in told.why  # type: ignore[attr-defined]
    assert told.where["sequenceNumber"] == "49546986683135544286507457936321625675700192471156785154"  # type: ignore[attr-defined]


def test_a_response_is_full_when_its_records_together_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transform_handler, "MAX_RESPONSE_BYTES", 4000)
    answer = handler(an_event_of(*[b"a" * 600] * 4), None)
    assert [one["result"] for one in answer["records"]] == ["Ok", "Ok", "ProcessingFailed", "ProcessingFailed"]
    assert len(json.dumps(answer)) < 4000


@pytest.mark.parametrize("payload", [b"\xff" * 400, b"\xff" * 1024 * 1024, encode(an_event())])
def test_with_the_templates_buffer_nothing_is_too_large(payload: bytes) -> None:
    """Firehose calls when it has half a megabyte; the last record may be a whole megabyte."""
    count = 512 * 1024 // len(payload) + 1
    answer = handler(an_event_of(*[payload] * count, subsequenceNumber=12), None)
    assert {one["result"] for one in answer["records"]} == {"Ok"}
    assert len(json.dumps(answer)) < transform_handler.MAX_RESPONSE_BYTES


def test_an_aggregate_that_firehose_took_apart_gives_a_line_for_each_payload() -> None:
    events = [an_event(n) for n in range(3)]
    records = list(firehose_records(a_lambda_event([an_aggregate(events), b"plain"])))
    found = [read_line(line) for line in lines(handler({"records": records}, None))]
    assert [(one.sequence_number, one.index) for one in found] == [("1", 0), ("1", 1), ("1", 2), ("2", None)]
    assert [one.payload for one in found] == [*map(encode, events), b"plain"]
    assert len({one["recordId"] for one in records}) == 4
