"""The writes of the thin client beside those of botocore's own: the same on the wire, and the same of what comes back."""

import datetime
import hashlib
import hmac
import json
import random
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace

import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError, NoCredentialsError, SSLError
from hypothesis import given
from hypothesis import strategies as st

from stream_consumer.items import quarantine_item, rollup_item, session_item
from stream_consumer.kinesis_batch import Poison
from stream_consumer.rollup import RollUp
from stream_consumer.session import Session
from stream_consumer.signed_writes import SignedWrites, signed_writes
from stream_consumer.stored_events import chunk_items
from tests.builders import an_event
from tests.free_ports import free_ports
from tests.scripted_server import RESET, SILENCE, answer, scripted_server

LOADER = botocore.session.Session().get_component("data_loader")
SECRET, TOKEN, REGION = "a-secret", "a-token", "eu-west-3"
ITEM = {"pk": {"S": 'blog#é"\n'}, "pos": {"S": "s=1"}, "body": {"B": b"\x00\xff"}, "expires": {"N": "17"}}
PUT = {
    "TableName": "sessions",
    "Item": ITEM,
    "ConditionExpression": "pos = :base",
    "ExpressionAttributeValues": {":base": {"S": "s=0"}},
    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
}
BATCH = {"RequestItems": {"rollups": [{"PutRequest": {"Item": ITEM}}, {"DeleteRequest": {"Key": {"pk": {"S": "x"}}}}]}}
DELETE = {"TableName": "rollups", "Key": {"pk": {"S": "x"}, "sk": {"S": "y"}}}


def a_session():
    found = botocore.session.Session()
    found.set_credentials("an-id", SECRET, TOKEN)
    # What is read of botocore's descriptions is read once.
    found.register_component("data_loader", LOADER)
    return found


@pytest.fixture
def session(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return a_session()


@pytest.fixture
def slept(monkeypatch):
    """How long was slept, at once."""
    found: list[float] = []
    for module in ("botocore.endpoint", "stream_consumer.signed_writes"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=found.append))
    return found


@pytest.fixture
def server():
    with scripted_server() as one:
        yield one


def plain(session, url, read_timeout=20.0):
    config = Config(
        connect_timeout=20,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": 4},
        parameter_validation=False,
    )
    return session.create_client("dynamodb", region_name=REGION, endpoint_url=url, config=config)


def signed(session, url, read_timeout=20.0):
    client = signed_writes(session, plain(session, url, read_timeout))
    assert isinstance(client, SignedWrites)
    return client


def failure(code: str, status: int = 400, **more) -> bytes:
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": f"said: {code}", **more}
    return answer(status, json.dumps(body).encode())


def signature_of(request) -> str:
    """AWS's Signature Version 4 of what came, by the book."""
    stated = dict(part.split("=", 1) for part in request.headers["authorization"].split(" ", 1)[1].split(", "))
    _, *scope = stated["Credential"].split("/")
    names = stated["SignedHeaders"]
    lines = "".join(f"{name}:{request.headers[name]}\n" for name in names.split(";"))
    canonical = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(request.body).hexdigest()}"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    wanted = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{'/'.join(scope)}\n{digest}"
    key = f"AWS4{SECRET}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, wanted.encode(), "sha256").hex()


@pytest.mark.parametrize(("method", "asked"), [("put_item", PUT), ("batch_write_item", BATCH), ("delete_item", DELETE)])
def test_a_request_is_botocores_and_well_signed(session, server, method, asked) -> None:
    for client in (plain(session, server.url), signed(session, server.url)):
        getattr(client, method)(**asked)
    theirs, ours = server.requests
    assert json.loads(ours.body) == json.loads(theirs.body)
    for request in (theirs, ours):
        assert request.headers["authorization"].endswith(signature_of(request))
        assert request.headers["x-amz-security-token"] == TOKEN
    of_their_own = {"authorization", "content-length", "x-amz-date", "amz-sdk-invocation-id", "user-agent"}
    without_signature = [request.headers["authorization"].rpartition(", ")[0] for request in (theirs, ours)]
    assert without_signature[0] == without_signature[1]
    assert {name: ours.headers[name] for name in ours.headers.keys() - of_their_own} == {
        name: theirs.headers[name] for name in theirs.headers.keys() - of_their_own - {"accept-encoding"}
    }
    assert ours.headers["user-agent"].startswith("Botocore/")


HELD = json.loads(json.dumps(ITEM | {"body": {"B": "AP8="}}))
UNPROCESSED = {"UnprocessedItems": {"rollups": [{"PutRequest": {"Item": HELD}}]}}
SCRIPTS = {
    "done": [],
    "condition failed": [failure("ConditionalCheckFailedException", Item=HELD)],
    "condition failed, nothing held": [failure("ConditionalCheckFailedException")],
    "throttled, then done": [failure("ProvisionedThroughputExceededException")] * 2,
    "throttled for long": [failure("ThrottlingException")] * 9,
    "too many requests, without a word": [answer(429, b"")] * 2,
    "told when to come again": [answer(503, b"{}", x_amz_retry_after="700")],
    "broken, then done": [failure("InternalServerError", 500)] * 3,
    "broken for long": [failure("InternalServerError", 500)] * 9,
    "broken, in the words of something between": [answer(502, b"<html>", content_type="text/html")] * 9,
    "no such table": [failure("ResourceNotFoundException")],
    "an error that nobody knows": [failure("NeverHeardOfException")],
    "reset, then condition failed": [RESET, failure("ConditionalCheckFailedException", Item=HELD)],
    "reset for long": [RESET] * 9,
    "no answer, then done": [SILENCE],
    "half an answer, then done": [answer(content_length="9")[:-1]],
    "corrupt, then done": [answer(x_amz_crc32="7")],
    "corrupt for long": [answer(x_amz_crc32="7")] * 9,
    "without a checksum": [answer(x_amz_crc32="")],
    "no HTTP": [b"SSH-2.0-x\r\n\r\n"],
    "in chunks": [
        answer(
            content_length="", x_amz_crc32="", transfer_encoding="chunked", body=b"1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n"
        )
    ],
    "some left": [answer(body=json.dumps(UNPROCESSED).encode())],
    "more than was asked for": [answer(body=b'{"ConsumedCapacity": {"TableName": "t", "CapacityUnits": 1}}')],
}

UNANSWERED = {"no answer, then done", "half an answer, then done"}


def became(call, asked):
    """What a call gave or raised, as far as both clients are to agree."""
    try:
        return {name: value for name, value in call(**asked).items() if name != "ResponseMetadata"}
    except ClientError as error:
        return type(error).__name__, str(error), error.response, error.operation_name
    except HTTPClientError as error:
        return type(error)


@pytest.mark.parametrize("script", SCRIPTS)
def test_whatever_comes_back_is_taken_as_botocore_takes_it(session, server, slept, script) -> None:
    outcomes = []
    # Not so short that a busy machine's good answer comes too late.
    read_timeout = 0.5 if script in UNANSWERED else 20.0
    for make in (plain, signed):
        client = make(session, server.url, read_timeout)
        method, asked = (client.batch_write_item, BATCH) if script == "some left" else (client.put_item, PUT)
        random.seed(1)  # botocore's jitter
        slept.clear()
        server.play(SCRIPTS[script])
        found = became(method, asked)
        tries = [request.headers["amz-sdk-request"].rpartition("attempt")[2] for request in server.requests]
        for request in server.requests:
            assert request.headers["authorization"].endswith(signature_of(request))
        assert len({request.headers["amz-sdk-invocation-id"] for request in server.requests}) == 1
        outcomes.append((found, tries, slept.copy()))
    assert outcomes[1] == outcomes[0]


def test_a_value_of_bytes_comes_back_as_bytes(session, server) -> None:
    client = signed(session, server.url)
    server.play([failure("ConditionalCheckFailedException", Item=HELD)])
    with pytest.raises(client.exceptions.ConditionalCheckFailedException) as caught:
        client.put_item(**PUT)
    assert caught.value.response["Item"] == ITEM
    server.play([answer(body=json.dumps(UNPROCESSED).encode())])
    left = client.batch_write_item(**BATCH)["UnprocessedItems"]
    assert left == {"rollups": [{"PutRequest": {"Item": ITEM}}]}


def test_a_connection_is_kept_and_one_that_was_closed_meanwhile_costs_no_attempt(session, server, slept) -> None:
    client = signed(session, server.url)
    for _ in range(3):
        client.put_item(**PUT)
    assert server.connections == 1
    server.hang_up = True
    for _ in range(3):
        client.put_item(**PUT)
        assert _closed_soon(client)
    assert len(server.requests) == 6
    assert server.connections == 3
    assert slept == []


def _closed_soon(client) -> bool:
    """Whether the end of the connection arrives here, within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not all(connection.is_quiet for connection in client._connections._idle):
            return True
    return False


def test_connections_that_are_told_to_close_are_closed(session, server) -> None:
    server.then = answer(connection="close")
    client = signed(session, server.url)
    for _ in range(3):
        client.put_item(**PUT)
    assert server.connections == 3


def test_retries_of_reads_and_writes_share_one_quota(session, server, slept) -> None:
    client = signed(session, server.url)
    server.then = failure("InternalServerError", 500)
    for _ in range(20):  # at 14 of 500 for each retry
        with pytest.raises(ClientError):
            client.put_item(**PUT)
    assert len(server.requests) < 60
    before = len(server.requests)
    with pytest.raises(ClientError):
        client.query(TableName="t", KeyConditionExpression="x")
    assert len(server.requests) == before + 1, "nothing is left to retry with"
    assert server.requests[-1].headers["x-amz-target"] == "DynamoDB_20120810.Query"
    server.then = answer()
    for _ in range(14):  # each gives one back
        client.put_item(**PUT)
    server.play([failure("InternalServerError", 500)])
    client.put_item(**PUT)
    assert len(server.requests) == 2


def test_nobody_listens(session, slept) -> None:
    (port,) = free_ports(1)
    with pytest.raises(EndpointConnectionError):
        signed(session, f"http://127.0.0.1:{port}").put_item(**PUT)
    assert len(slept) == 3


def test_credentials_are_renewed_before_they_expire(session, server) -> None:
    now = datetime.datetime.now(datetime.UTC)
    renewed = []

    def renew():
        renewed.append(1)
        expiry = now + datetime.timedelta(hours=1) * len(renewed)
        return {
            "access_key": f"id{len(renewed)}",
            "secret_key": SECRET,
            "token": f"token{len(renewed)}",
            "expiry_time": expiry.isoformat(),
        }

    credentials = RefreshableCredentials("id0", SECRET, "token0", now, renew, "test")
    client = SignedWrites(plain(session, server.url), credentials, "")
    client.put_item(**PUT)
    client.put_item(**PUT)
    assert [request.headers["x-amz-security-token"] for request in server.requests] == ["token1", "token1"]
    assert "Credential=id1/" in server.requests[0].headers["authorization"]
    assert all(request.headers["authorization"].endswith(signature_of(request)) for request in server.requests)


def test_credentials_without_a_token_and_none(session, server) -> None:
    session.set_credentials("an-id", SECRET)
    signed(session, server.url).put_item(**PUT)
    (request,) = server.requests
    assert "x-amz-security-token" not in request.headers
    assert request.headers["authorization"].endswith(signature_of(request))
    with pytest.raises(NoCredentialsError):
        SignedWrites(plain(session, server.url), None, "").put_item(**PUT)


def test_threads_get_each_the_answer_to_its_own(session, server) -> None:
    server.then = lambda request: failure("ConditionalCheckFailedException", Item=json.loads(request.body)["Item"])
    client = signed(session, server.url)

    def put(number: int) -> bool:
        item = {"pk": {"S": str(number)}}
        with pytest.raises(ClientError) as caught:
            client.put_item(TableName="t", Item=item)
        return caught.value.response["Item"] == item

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(put, range(200)))
    assert server.connections <= 8


def test_a_host_is_trusted_as_botocore_trusts_it(session, slept, tmp_path, monkeypatch) -> None:
    certificate, context = a_certificate(tmp_path)
    with scripted_server(context) as server:
        for make in (plain, signed):
            with pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):
                make(session, server.url).put_item(**PUT)
        assert server.requests == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        signed(session, server.url).put_item(**PUT)
        session.set_config_variable("ca_bundle", str(certificate))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
        signed(session, server.url).put_item(**PUT)
        assert len(server.requests) == 2
        with pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):  # it is not that host's
            signed(session, server.url.replace("localhost", "127.0.0.1")).put_item(**PUT)


def a_certificate(directory):
    """(the file of a certificate of localhost, a server's context with it)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file, secret = directory / "certificate.pem", directory / "key.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, secret)
    return file, context


def test_behind_a_proxy_writes_are_botocores_own(session, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    client = plain(session, "https://dynamodb.eu-west-3.amazonaws.com")
    assert signed_writes(session, client) is client
    monkeypatch.setenv("NO_PROXY", "amazonaws.com")
    assert signed_writes(session, client) is not client


texts = st.text(st.characters(exclude_categories=["Cs"]))
items = st.one_of(
    st.builds(
        lambda user, page, at: session_item(
            _session_of(an_event(1, user_id=user, page_url=page, timestamp=at)), {"shard": "1"}
        ),
        texts,
        texts,
        st.integers(0, 2**42),
    ),
    st.builds(lambda data: chunk_items("blog#s1", "1", [("shard=0011.000000", data)])[0], st.binary()),
    st.builds(
        lambda reason, data: quarantine_item(Poison("1.0", "1", 0, reason, reason, data), "shard"), texts, st.binary()
    ),
    st.builds(lambda site: rollup_item(RollUp(site, 0, "shard"), "1"), texts),
)


def _session_of(event) -> Session:
    session = Session("blog", "s1")
    session.apply(event)
    return session


def _bodies():
    """Both clients' put_item, and the bodies that they would have sent."""
    session = a_session()
    client = plain(session, "https://dynamodb.example")
    bodies: list[bytes] = []

    def take(request, **_):
        bodies.append(request.body)
        return AWSResponse(request.url, 200, {}, _Raw(b"{}"))

    client.meta.events.register("before-send.dynamodb", take)
    return client, SignedWrites(client, session.get_credentials(), ""), bodies


class _Raw(BytesIO):
    def stream(self):
        yield self.read()


CLIENTS = _bodies()


@given(items)
def test_every_item_is_the_same_json_value_as_botocore_makes_of_it(item) -> None:
    theirs, ours, bodies = CLIENTS
    bodies.clear()
    for client in (theirs, ours):
        client.put_item(TableName="t", Item=item)
    assert json.loads(bodies[1]) == json.loads(bodies[0])
