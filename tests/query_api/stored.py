"""Tables as the template defines them, filled by the consumer itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import boto3
from moto import mock_aws

from infra.local.stacks import DATA, load_template
from producer.erasure import Erasure
from producer.event import Event
from stream_consumer.consume import consume
from stream_consumer.table import TableNames, Tables
from tests.builders import a_batch

NAMES = TableNames("sessions", "session-events", "rollups", "quarantine")
_RESOURCES = {
    "SessionsTable": NAMES.sessions,
    "SessionEventsTable": NAMES.session_events,
    "RollUpsTable": NAMES.rollups,
    "QuarantineTable": NAMES.quarantine,
}


@contextmanager
def tables() -> Iterator[Any]:
    """A client of a moto that has the four tables."""
    credentials = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with mock.patch.dict(os.environ, credentials), mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-1")
        for resource, name in _RESOURCES.items():
            properties = load_template(DATA)["Resources"][resource]["Properties"]
            wanted = ("BillingMode", "AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes")
            client.create_table(TableName=name, **{key: properties[key] for key in wanted if key in properties})
        yield client


class Consumer:
    """Consumes events into the tables, each batch after those before it."""

    def __init__(self, client: Any) -> None:
        self._tables = Tables(client, NAMES, writers=1)
        self._next = 1

    def consume(self, events: Sequence[Event | Erasure], shard_id: str = "shardId-000000000000") -> None:
        """One batch."""
        outcome = consume(a_batch(events, self._next, shard_id), self._tables)
        assert outcome.failed_from is None, outcome.failure
        assert outcome.applied == sum(isinstance(event, Event) for event in events)
        self._next += len(events)
