"""Read keys over tables as the template defines them."""

import hashlib
import itertools
import threading

import pytest
from botocore.exceptions import EndpointConnectionError

from query_api import read_keys
from query_api.read_keys import NoSuchKey, ReadKeys, Refused
from stream_consumer.table import Unavailable
from tests.query_api.stored import NAMES, tables

NOW = 1_700_000_000_000


@pytest.fixture(scope="module")
def dynamodb():
    with tables() as client:
        yield client


class Counted:
    """DynamoDB, its reads counted; ``down``: it cannot be reached."""

    def __init__(self, client) -> None:
        self._client = client
        self.reads = 0
        self.down = False

    def __getattr__(self, name):
        def call(**arguments):
            if self.down:
                raise EndpointConnectionError(endpoint_url="http://nowhere")
            return getattr(self._client, name)(**arguments)

        return call

    def get_item(self, **arguments):
        self.reads += 1
        return self.__getattr__("get_item")(**arguments)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def client(dynamodb):
    return Counted(dynamodb)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(client, clock):
    return ReadKeys(client, NAMES, clock)


def refused(call, *arguments):
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.status, caught.value.reason


def bearer(key):
    return f"Bearer {key}"


def test_a_key_reads_its_own_site_alone(keys) -> None:
    key = keys.create("blog", "wall")
    keys.check(bearer(key), "blog")
    assert keys.site_of(f"bEARER  {key} ") == "blog"
    assert refused(keys.check, bearer(key), "shop") == (403, "other_site")


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Basic li_x", "li_0000000000000000_00"])
def test_without_a_key(keys, client, given) -> None:
    assert refused(keys.check, given, "blog") == (401, "key_missing")
    assert client.reads == 0


def test_a_key_that_is_none_of_ours(keys, client) -> None:
    key = keys.create("blog")
    head, _, secret = key.rpartition("_")
    wrong_secret = f"{head}_{secret[:-1]}{'0' if secret[-1] != '0' else '1'}"
    unknown_id = f"li_{'0' * 16}_{secret}"
    for given in (wrong_secret, unknown_id, key.upper(), key + "0", key[:-1], "li__", "é", "li_" + "9" * 100_000):
        assert refused(keys.check, bearer(given), "blog") == (401, "key_unknown")
    assert client.reads == 2  # what is not written like a key is not looked up


def test_the_table_has_the_hash_of_the_secret_and_not_the_secret(keys, dynamodb) -> None:
    key = keys.create("blog", "wall")
    _, key_id, secret = key.split("_")
    item = dynamodb.get_item(TableName=NAMES.rollups, Key={"pk": {"S": "keys"}, "sk": {"S": key_id}})["Item"]
    assert item == {
        "pk": {"S": "keys"},
        "sk": {"S": key_id},
        "site_id": {"S": "blog"},
        "name": {"S": "wall"},
        "hash": {"B": hashlib.sha256(secret.encode()).digest()},
        "created": {"N": str(NOW)},
    }
    assert len(bytes.fromhex(secret)) * 8 >= 128


def test_each_key_is_another_and_an_id_is_never_taken_twice(client, clock, keys) -> None:
    assert len({keys.create("blog") for _ in range(20)}) == 20
    same = ReadKeys(client, NAMES, clock, token=lambda size: b"\7" * size)
    first = same.create("blog")
    with pytest.raises(Unavailable):
        same.create("shop")
    assert same.site_of(bearer(first)) == "blog"


@pytest.mark.parametrize("site", ["", "a b", "-a", "a" * 65, "a\n"])
def test_a_site_that_cannot_be(keys, site) -> None:
    with pytest.raises(ValueError, match="is no site"):
        keys.create(site)


@pytest.mark.parametrize("name", ["a\x1b[31m", "n" * 65])
def test_a_name_that_cannot_be(keys, name) -> None:
    with pytest.raises(ValueError, match="is no name"):
        keys.create("blog", name)


def test_the_listing_names_a_sites_keys_in_order(keys, clock) -> None:
    ids = []
    for number in range(3):
        clock.now = NOW - number
        ids.insert(0, keys.create("listed", f"n{number}").split("_")[1])
    keys.create("also-listed")
    found = list(keys.listing("listed"))
    assert [(key.key_id, key.name, key.created) for key in found] == [
        (ids[0], "n2", NOW - 2),
        (ids[1], "n1", NOW - 1),
        (ids[2], "n0", NOW),
    ]
    assert {"listed", "also-listed"} <= {key.site_id for key in keys.listing()}
    assert "hash" not in repr(found)


def test_the_listing_follows_pages(keys, client, dynamodb) -> None:
    for _ in range(3):
        keys.create("paged")
    client.query = lambda **arguments: dynamodb.query(**arguments, Limit=2)
    assert len(list(keys.listing("paged"))) == 3


def test_a_revoked_key_ends_within_a_minute(keys, client, clock) -> None:
    key = keys.create("blog")
    keys.check(bearer(key), "blog")
    ReadKeys(client, NAMES, clock).revoke(key.split("_")[1])
    clock.now += read_keys.KNOWN_MS - 1
    keys.check(bearer(key), "blog")
    clock.now += 1
    assert refused(keys.check, bearer(key), "blog") == (401, "key_unknown")


def test_one_may_revoke_by_the_key_itself_but_nothing_that_is_not_there(keys) -> None:
    key, other = keys.create("blog"), keys.create("blog")
    keys.revoke(key)
    for gone in (key, key.split("_")[1], "nonsense"):
        with pytest.raises(NoSuchKey):
            keys.revoke(gone)
    keys.check(bearer(other), "blog")


def test_a_known_key_is_looked_up_once_a_minute(keys, client, clock) -> None:
    key = keys.create("blog")
    for _ in range(10):
        keys.check(bearer(key), "blog")
        assert refused(keys.check, bearer(key[:-1] + ("0" if key[-1] != "0" else "1")), "blog") == (401, "key_unknown")
    assert client.reads == 1
    clock.now += read_keys.KNOWN_MS
    keys.check(bearer(key), "blog")
    assert client.reads == 2


def test_an_unknown_id_is_looked_up_once_in_five_seconds(keys, client, clock) -> None:
    guess = bearer(f"li_{'a' * 16}_{'b' * 48}")
    for reads in (1, 2):
        for _ in range(5):
            assert refused(keys.check, guess, "blog") == (401, "key_unknown")
        assert client.reads == reads
        clock.now += read_keys.UNKNOWN_MS


def test_guessing_fills_no_memory_and_forgets_no_key(keys, client, monkeypatch) -> None:
    monkeypatch.setattr(read_keys, "_UNKNOWN_IDS", 5)
    key = keys.create("blog")
    keys.check(bearer(key), "blog")
    guesses = [bearer(f"li_{number:016x}_{'b' * 48}") for number in range(7)]
    for guess in guesses:
        refused(keys.check, guess, "blog")
    client.reads = 0
    for guess in guesses[2:]:
        refused(keys.check, guess, "blog")
    keys.check(bearer(key), "blog")
    assert client.reads == 0  # the newest five are remembered ...
    refused(keys.check, guesses[0], "blog")
    assert client.reads == 1  # ... and no others


def test_a_known_key_does_for_an_hour_while_dynamodb_cannot_be_read(keys, client, clock) -> None:
    key = keys.create("blog")
    keys.check(bearer(key), "blog")
    client.down = True
    clock.now += read_keys.KNOWN_MS
    client.reads = 0
    for _ in range(5):
        keys.check(bearer(key), "blog")
    assert client.reads == 1  # a failing table is left alone for a while, too
    with pytest.raises(Unavailable, match="try again"):
        keys.check(bearer(f"li_{'c' * 16}_{'b' * 48}"), "blog")
    clock.now = NOW + read_keys.KNOWN_UNREAD_MS - 1
    keys.check(bearer(key), "blog")
    clock.now = NOW + read_keys.KNOWN_UNREAD_MS + read_keys.UNKNOWN_MS
    with pytest.raises(Unavailable):
        keys.check(bearer(key), "blog")
    client.down = False
    keys.check(bearer(key), "blog")


def test_while_one_looks_a_key_up_again_the_others_go_on_with_the_old_entry(keys, client, clock) -> None:
    key = keys.create("blog")
    keys.check(bearer(key), "blog")
    clock.now += read_keys.KNOWN_MS
    asked, may_answer = threading.Event(), threading.Event()
    read = client.get_item

    def slow(**arguments):
        asked.set()
        assert may_answer.wait(10)
        return read(**arguments)

    client.get_item = slow
    looking = threading.Thread(target=keys.check, args=(bearer(key), "blog"))
    looking.start()
    try:
        assert asked.wait(10)
        keys.check(bearer(key), "blog")
    finally:
        may_answer.set()
        looking.join(10)
    assert client.reads == 2


def test_many_who_come_with_a_new_key_at_once_look_it_up_once(keys, client) -> None:
    key = keys.create("blog")
    gate = threading.Barrier(8)
    passed = itertools.count()

    def ask() -> None:
        gate.wait(10)
        keys.check(bearer(key), "blog")
        next(passed)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (next(passed), client.reads) == (8, 1)
