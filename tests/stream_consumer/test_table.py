import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from stream_consumer.items import quarantine_item, read_session, rollup_item, session_item, site_item
from stream_consumer.kinesis_batch import Poison
from stream_consumer.rollup import RollUp
from stream_consumer.session import Session
from stream_consumer.table import Conflict, TableNames, Tables, Unavailable
from tests.builders import NOON, an_event

NAMES = TableNames("sessions", "session-events", "rollups", "quarantine")


@pytest.fixture
def client(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-1")
        for table, sorted_too in [
            ("sessions", False),
            ("session-events", True),
            ("rollups", True),
            ("quarantine", True),
        ]:
            keys = ["pk", "sk"] if sorted_too else ["pk"]
            client.create_table(
                TableName=table,
                BillingMode="PAY_PER_REQUEST",
                AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
                KeySchema=[
                    {"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ["HASH", "RANGE"], strict=False)
                ],
            )
        yield client


def a_session(number: int = 1, name: str = "s1") -> Session:
    session = Session("blog", name)
    session.apply(an_event(number, session_id=name))
    return session


def test_a_session_is_saved_only_over_what_it_was_computed_from(client) -> None:
    tables = Tables(client, NAMES)
    at = {"shard": "0011.000000"}
    tables.save_session(session_item(a_session(), at), None)
    stored = tables.load_sessions([("blog", "s1"), ("blog", "none")])
    assert stored[("blog", "s1")].session == a_session()
    assert list(stored) == [("blog", "s1")]
    further = {"shard": "0012.000000"}
    with pytest.raises(Conflict):
        tables.save_session(session_item(a_session(2), further), None)
    with pytest.raises(Conflict):
        tables.save_session(session_item(a_session(2), further), {"shard": "0010.000000"})
    tables.save_session(session_item(a_session(2), further), at)
    assert tables.load_sessions([("blog", "s1")])[("blog", "s1")].positions == further


def test_a_save_that_meets_itself_has_landed(client) -> None:
    tables = Tables(client, NAMES)
    item = session_item(a_session(), {"shard": "0011.000000"})
    tables.save_session(item, None)
    tables.save_session(item, None)
    assert read_session(client.get_item(TableName="sessions", Key={"pk": item["pk"]})["Item"]).session == a_session()


def test_more_keys_and_items_than_one_call_takes(client) -> None:
    tables = Tables(client, NAMES)
    names = [("blog", f"s{number}") for number in range(230)]
    saves = [session_item(a_session(1, name), {"shard": "0011.0"}) for _, name in names]
    assert tables.each(lambda item: tables.save_session(item, None), saves) == [None] * len(saves)
    assert set(tables.load_sessions(names)) == set(names)
    tables.put_quarantine(
        [quarantine_item(Poison(str(n), str(n), 0, "not_json", "", b"{"), "shard") for n in range(60)]
    )
    assert client.scan(TableName="quarantine", Select="COUNT")["Count"] == 60


def test_roll_ups_and_the_list_of_sites_share_a_table(client) -> None:
    tables = Tables(client, NAMES)
    tables.save_rollup(rollup_item(RollUp("blog", NOON, "shard"), "0011.0"), None)
    tables.put_sites([site_item("blog")])
    stored = tables.load_rollups([("blog", NOON, "shard"), ("blog", 0, "shard")])
    assert list(stored) == [("blog", NOON, "shard")]
    with pytest.raises(Conflict):
        tables.save_rollup(rollup_item(RollUp("blog", NOON, "shard"), "0012.0"), "0010.0")


class Flaky:
    """A client that leaves part of every batch unprocessed, or fails."""

    def __init__(self, client, error: Exception | None = None) -> None:
        self._client, self._error = client, error

    def batch_get_item(self, RequestItems):
        if self._error:
            raise self._error
        (table, wanted), *_ = RequestItems.items()
        answer = self._client.batch_get_item(RequestItems={table: {**wanted, "Keys": wanted["Keys"][:40]}})
        rest = wanted["Keys"][40:]
        return {**answer, "UnprocessedKeys": {table: {**wanted, "Keys": rest}} if rest else {}}

    def batch_write_item(self, RequestItems):
        if self._error:
            raise self._error
        self._client.batch_write_item(RequestItems={table: items[:5] for table, items in RequestItems.items()})
        return {"UnprocessedItems": {table: items[5:] for table, items in RequestItems.items() if items[5:]}}

    def put_item(self, **_):
        raise self._error


def test_what_dynamodb_left_unprocessed_is_asked_for_again(client) -> None:
    tables = Tables(Flaky(client), NAMES)
    some = [{"pk": {"S": "x"}, "sk": {"S": str(n)}} for n in range(25)]
    tables.put_events(some, some[:7])
    assert client.scan(TableName="session-events", Select="COUNT")["Count"] == 25
    assert client.scan(TableName="rollups", Select="COUNT")["Count"] == 7
    names = [("blog", f"s{number}") for number in range(90)]
    for _, name in names:
        client.put_item(TableName="sessions", Item=session_item(a_session(1, name), {}))
    assert len(tables.load_sessions(names)) == 90


def test_every_failure_of_the_table_is_unavailable_and_says_where() -> None:
    throttled = ClientError({"Error": {"Code": "ProvisionedThroughputExceededException"}}, "PutItem")
    tables = Tables(Flaky(None, throttled), NAMES)
    with pytest.raises(Unavailable, match="sessions"):
        tables.save_session(session_item(a_session(), {}), None)
    with pytest.raises(Unavailable, match="sessions"):
        tables.load_sessions([("blog", "s1")])
    with pytest.raises(Unavailable, match="quarantine"):
        tables.put_quarantine([{"pk": {"S": "x"}, "sk": {"S": "y"}}])
    assert [type(failure) for failure in tables.each(lambda item: tables.save_rollup(item, None), [{}])] == [
        Unavailable
    ]


@pytest.mark.parametrize("writers", [1, 4])
def test_what_became_of_each_is_told_in_order_and_any_other_error_ends_all(writers) -> None:
    tables = Tables(None, NAMES, writers=writers)
    done = []

    def work(value: int) -> None:
        if value % 3 == 0:
            raise Conflict(str(value))
        if value % 7 == 0:
            raise Unavailable(str(value))
        done.append(value)

    became = tables.each(work, range(100))
    assert [str(failure or "") for failure in became] == [
        str(n) if n % 3 == 0 or n % 7 == 0 else "" for n in range(100)
    ]
    assert sorted(done) == [n for n in range(100) if n % 3 and n % 7]
    assert tables.each(work, []) == []

    done.clear()

    def fail(value: int) -> None:
        done.append(value)
        raise IndexError(value)

    with pytest.raises(IndexError):
        tables.each(fail, range(100_000))
    assert len(done) <= writers
