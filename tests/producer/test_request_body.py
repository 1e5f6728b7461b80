"""What a PutRecords request carries, beside boto3's own."""

import json
import tracemalloc

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from producer.batching import MAX_CALL_BYTES
from producer.request_body import encode_at_once

RECORDS = [
    {"Data": bytes(range(256)), "PartitionKey": 'a "key" \\ \u00e9 \U0001f600', "ExplicitHashKey": str(2**128 - 1)},
    {"Data": b"\xff", "PartitionKey": "lane-1"},
    {"Data": b"", "PartitionKey": "lane-2", "ExplicitHashKey": "0"},
]


class Raw:
    """An HTTP answer's stream of bytes."""

    def __init__(self, data):
        self._data = data

    def stream(self):
        return [self._data]


@pytest.fixture
def kinesis():
    return boto3.client(
        "kinesis",
        region_name="eu-west-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(parameter_validation=False, retries={"total_max_attempts": 2}),
    )


def sent_by(kinesis, call, statuses=(200,)):
    """Each request as it is signed, and as it is sent."""
    signed, sent = [], []

    def note(request, **_):
        signed.append(request.prepare())

    def answer(request, **_):
        sent.append(request)
        return AWSResponse(request.url, statuses[len(sent) - 1], {}, Raw(b'{"FailedRecordCount": 0, "Records": []}'))

    events = kinesis.meta.events
    events.register("before-sign.kinesis", note)
    events.register("before-send.kinesis", answer)
    call()
    events.unregister("before-sign.kinesis", note)
    events.unregister("before-send.kinesis", answer)
    return signed, sent


def test_the_request_says_what_boto3s_own_does(kinesis):
    def call():
        kinesis.put_records(StreamName="s", Records=RECORDS)

    _, [own] = sent_by(kinesis, call)
    encode_at_once(kinesis)
    [signed], [sent] = sent_by(kinesis, call)
    assert json.loads(sent.body) == json.loads(own.body)
    assert sent.body != own.body, "boto3 has spaces in it"
    assert signed.body == sent.body
    assert sent.headers["Content-Length"] == str(len(sent.body))
    same = ("Content-Type", "X-Amz-Target")
    assert [sent.headers[name] for name in same] == [own.headers[name] for name in same]


def test_a_call_that_is_made_again_says_the_same(kinesis):
    encode_at_once(kinesis)
    _, sent = sent_by(kinesis, lambda: kinesis.put_records(StreamName="s", Records=RECORDS), statuses=(500, 200))
    assert len(sent) == 2
    assert sent[0].body == sent[1].body
    assert len(json.loads(sent[0].body)["Records"]) == len(RECORDS)


def test_the_callers_records_and_other_calls_stay_as_they_are(kinesis):
    encode_at_once(kinesis)
    records = list(RECORDS)
    sent_by(kinesis, lambda: kinesis.put_records(StreamName="s", Records=records))
    assert records == RECORDS
    _, [sent] = sent_by(kinesis, lambda: kinesis.put_record(StreamName="s", Data=b"d", PartitionKey="k"))
    assert json.loads(sent.body) == {"StreamName": "s", "Data": "ZA==", "PartitionKey": "k"}


def test_another_protocol_is_left_to_boto3(kinesis, monkeypatch):
    monkeypatch.setattr(type(kinesis.meta.service_model), "resolved_protocol", "smithy-rpc-v2-cbor")
    encode_at_once(kinesis)
    _, [sent] = sent_by(kinesis, lambda: kinesis.put_records(StreamName="s", Records=RECORDS))
    assert json.loads(sent.body)["Records"], "as boto3 made it"


def test_the_largest_call_takes_15_mib(kinesis):
    encode_at_once(kinesis)

    def call():
        record = MAX_CALL_BYTES // 50
        kinesis.put_records(StreamName="s", Records=[{"Data": bytes(record), "PartitionKey": "k"} for _ in range(50)])

    sent_by(kinesis, call)
    tracemalloc.start()
    try:
        sent_by(kinesis, call)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 15 * 2**20
