"""DynamoDB's writes at a fraction of what botocore takes for one, and by botocore's rules.

Nine tenths of a write go into layers that serve every service and every call. Here one is encoded, signed and sent in
a few steps. What makes it right is botocore's own: the canonical form and the signature (SigV4Auth), the credentials
and their renewal, when to retry and how long to wait (the handlers of the client's events, with their quota), what an
error is and says, and which authorities to trust. What wraps the client's calls does not see them: in X-Ray a batch's
writes are part of its segment, without segments of their own.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec
from botocore.auth import SIGV4_TIMESTAMP, SigV4Auth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.compat import get_current_datetime
from botocore.endpoint import convert_to_response_dict
from botocore.exceptions import ConnectionError as UnreachableError
from botocore.exceptions import HTTPClientError, NoCredentialsError
from botocore.hooks import first_non_none_response
from botocore.httpsession import get_cert_path
from botocore.parsers import create_parser
from botocore.utils import get_environ_proxies

from stream_consumer.kept_connections import Answer, KeptConnections

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials
    from botocore.session import Session
    from mypy_boto3_dynamodb import DynamoDBClient

#: Answers that say only that all is done.
_DONE = frozenset({b"{}", b'{"UnprocessedItems":{}}'})


def signed_writes(session: Session, client: DynamoDBClient) -> DynamoDBClient:
    """The client of ``session`` with cheap writes; just the client, where a proxy is between it and its endpoint."""
    url, config = client.meta.endpoint_url, cast("Any", client.meta.config)
    if urlsplit(url).scheme in (config.proxies or get_environ_proxies(url)):
        return client
    # Where botocore looks itself, for a client that was made without `verify`.
    authorities: Any = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True
    writes = SignedWrites(client, session.get_credentials(), str(get_cert_path(authorities)))
    return cast("DynamoDBClient", writes)


class SignedWrites:
    """A client of DynamoDB whose PutItem, DeleteItem and BatchWriteItem are its own; all else is ``client``'s.

    ``client`` retries in botocore's mode "standard", with ``total_max_attempts``. The writes take what its methods
    take, and do not check it; they raise what those raise, and answer what those answer, but for ``ResponseMetadata``
    where there is nothing else to say. ``authorities`` is the path of the certificates to trust. Threads may write at
    once. Handlers of botocore's event ``before-send`` see the requests, and may answer them.
    """

    def __init__(self, client: Any, credentials: Credentials | None, authorities: str) -> None:
        self._client = client
        self._credentials = credentials
        config = client.meta.config
        self._attempts = config.retries["total_max_attempts"]
        self._connections = KeptConnections(
            client.meta.endpoint_url,
            connect_timeout=config.connect_timeout,
            read_timeout=config.read_timeout,
            authorities=authorities,
        )
        self._put, self._delete, self._batch = (
            _Operation(client, name) for name in ("PutItem", "DeleteItem", "BatchWriteItem")
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_item(self, **asked: Any) -> Any:
        return self._call(self._put, asked)

    def delete_item(self, **asked: Any) -> Any:
        return self._call(self._delete, asked)

    def batch_write_item(self, **asked: Any) -> Any:
        return self._call(self._batch, asked)

    def _call(self, operation: _Operation, asked: Mapping[str, Any]) -> Any:
        """Attempts until one is answered well, or botocore's handlers say that it is enough."""
        events = self._client.meta.events
        body = msgspec.json.encode(asked)  # bytes become base64, as values of type B are to
        invocation = str(uuid.uuid4())
        context: dict[str, Any] = {}  # where the handlers note what they took of the quota
        attempt = 1
        while True:
            answer: Answer | None = None
            parsed: Any = {}
            failure: UnreachableError | HTTPClientError | None = None
            try:
                answer = self._attempt(operation, body, attempt, invocation)
            except (UnreachableError, HTTPClientError) as error:
                failure = error
            else:
                if answer.status_code == HTTPStatus.OK and answer.content in _DONE and answer.is_whole:
                    break
                parsed = operation.parse(answer)
            verdicts = events.emit(
                operation.needs_retry,
                response=None if answer is None else (answer, parsed),
                endpoint=None,
                operation=operation.model,
                attempts=attempt,
                caught_exception=failure,
                request_dict={"context": context},
            )
            wait = first_non_none_response(verdicts)
            if wait is None or wait is False:
                break
            time.sleep(wait)
            attempt += 1
        if failure:
            raise failure
        events.emit(operation.after_call, http_response=answer, parsed=parsed, model=operation.model, context=context)
        if "Error" in parsed:
            parsed["ResponseMetadata"]["RetryAttempts"] = attempt - 1
            raise self._client.exceptions.from_code(parsed["Error"]["Code"])(parsed, operation.name)
        return parsed

    def _attempt(self, operation: _Operation, body: bytes, attempt: int, invocation: str) -> Answer:
        if self._credentials is None:
            raise NoCredentialsError
        # They are renewed by this where they are about to expire; and are one set, whatever other threads renew.
        headers = operation.headers(self._credentials.get_frozen_credentials(), body)
        headers["amz-sdk-invocation-id"] = invocation
        headers["amz-sdk-request"] = f"attempt={attempt}; max={self._attempts}"
        request = AWSPreparedRequest("POST", operation.url, cast("Any", headers), body, stream_output=False)
        taken = first_non_none_response(self._client.meta.events.emit(operation.before_send, request=request))
        if taken is not None:
            return Answer(taken.status_code, {name.lower(): it for name, it in taken.headers.items()}, taken.content)
        return self._connections.post(headers, body)


class _Operation:
    """What is the same in all calls of one operation."""

    def __init__(self, client: Any, name: str) -> None:
        service = client.meta.service_model
        self.name = name
        self.model = service.operation_model(name)
        self.url = (
            client.meta.endpoint_url if urlsplit(client.meta.endpoint_url).path else f"{client.meta.endpoint_url}/"
        )
        event = f"{service.service_id.hyphenize()}.{name}"
        self.before_send, self.needs_retry, self.after_call = (
            f"{when}.{event}" for when in ("before-send", "needs-retry", "after-call")
        )
        self._signing = service.signing_name, client.meta.region_name
        self._headers = {
            "Host": SigV4Auth(cast("Any", None), "", "").headers_to_sign(AWSRequest("POST", self.url))["host"],
            "X-Amz-Target": f"{service.metadata['targetPrefix']}.{name}",
            "Content-Type": f"application/x-amz-json-{service.metadata['jsonVersion']}",
            "User-Agent": client.meta.config.user_agent,
        }
        self._with_token, self._without_token = (
            self._canonical({"X-Amz-Date": "{date}", **token}) for token in ({"X-Amz-Security-Token": "{token}"}, {})
        )
        self._parser = create_parser("json")

    def headers(self, credentials: ReadOnlyCredentials, body: bytes) -> dict[str, str]:
        """The headers of a request with this body, signed as of now."""
        date = get_current_datetime().strftime(SIGV4_TIMESTAMP)
        headers = {**self._headers, "X-Amz-Date": date}
        form, signed = self._without_token
        if credentials.token:
            headers["X-Amz-Security-Token"] = credentials.token
            form, signed = self._with_token
        canonical = form.format(date=date, token=credentials.token) + sha256(body).hexdigest()
        signer = SigV4Auth(credentials, *self._signing)
        request: Any = SimpleNamespace(context={"timestamp": date})
        signature = signer.signature(signer.string_to_sign(request, canonical), request)
        credential = signer.scope(request)
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}"
        )
        return headers

    def parse(self, answer: Answer) -> Any:
        """The answer as botocore's client would give it; of an error, with what belongs to its kind."""
        response: Any = convert_to_response_dict(cast("Any", answer), self.model)
        parsed = self._parser.parse(response, self.model.output_shape)
        if "Error" in parsed:
            kind = self.model.service_model.shape_for_error_code(parsed["Error"]["Code"])
            if kind is not None:
                parsed.update(self._parser.parse(response, kind))
        return parsed

    def _canonical(self, more: Mapping[str, str]) -> tuple[str, str]:
        """A request's canonical form up to the hash of its body, by botocore, with the places of what differs; and the
        names of the headers in it. (To make it anew for each request is most of what signing takes.)
        """
        signer = SigV4Auth(cast("Any", None), *self._signing)
        request: Any = AWSRequest("POST", self.url, headers={**self._headers, **more})
        form, end, _ = signer.canonical_request(request).rpartition("\n")
        return form + end, signer.signed_headers(signer.headers_to_sign(request))
