"""The API's description: that it is sound, says what is served, and that what it says is true."""

import json
import re
from html.parser import HTMLParser

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from openapi_spec_validator import validate
from schemathesis.generation import GenerationMode

from query_api.answers import Values
from query_api.app import create_app
from query_api.definitions import DIMENSIONS, METRICS
from query_api.errors import REASONS
from query_api.parameters import COUNTS
from query_api.routes import ENDPOINTS
from query_api.settings import ApiSettings
from stream_consumer.rollup import MINUTE_MS
from tests.builders import NOON, an_event
from tests.query_api.fake_reader import FakeReader
from tests.query_api.test_app import NAMES

NOW = NOON + 20 * MINUTE_MS


def application():
    events = [
        an_event(
            number,
            site_id="blog",
            session_id=f"s{number % 7}",
            user_id="u-1001",
            referrer="https://news.ycombinator.com/item",
            event_type="conversion" if number % 5 == 0 else "page_view",
            conversion_type="order",
            conversion_value=2.5,
            conversion_currency="EUR",
        )
        for number in range(60)
    ]
    # Nothing is kept: each request is computed.
    return create_app(
        FakeReader(lambda: NOW, events), ApiSettings(NAMES, live_lifetime=0, recent_lifetime=0), lambda: NOW
    )


APP = application()
SCHEMA = schemathesis.openapi.from_wsgi("/openapi.json", APP)


def what_no_schema_says(path, query) -> None:
    """Have parameters that are each as described also go with each other."""
    query.pop("cursor", None)
    for name, value in query.items():
        if isinstance(value, float) and value.is_integer():
            query[name] = int(value)  # JSON Schema's integers may be written 1.0; in a URL they may not
    for name, good in {
        "from": "2023-11-14T20:00:00Z",
        "to": str(NOW),
        "tz": "Asia/Seoul",
        "hour": "2023-11-14",
    }.items():
        if name in query:
            query[name] = good
    metrics = query.get("metrics") or []
    metrics = metrics.split(",") if isinstance(metrics, str) else metrics
    dimension = query.get("dimension")
    if path.endswith("breakdown/"):
        metrics = [name for name in metrics if name in DIMENSIONS[dimension].metrics]
        if metrics and metrics[0] not in COUNTS:
            metrics = []
    elif "label" in query or dimension:
        query |= {"dimension": dimension or "source", "label": query.get("label", "")}
        metrics = []
        query.pop("interval", None)
    if query.get("interval") in {"minute", "5m"}:
        metrics = [name for name in metrics if not METRICS[name].by_quarter]
    if "metrics" in query:
        query["metrics"] = ",".join(metrics)


@SCHEMA.exclude(path_regex="stream|(sources|channels|devices|browsers|countries)/$").parametrize()
@settings(max_examples=12, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_requests_and_answers_are_as_described(case) -> None:
    if case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE:
        what_no_schema_says(case.path, case.query)
    case.call_and_validate()


def described():
    return json.loads(APP.test_client().get("/openapi.json").data)


def test_the_document_is_openapi() -> None:
    document = described()
    assert document["openapi"].startswith("3.1")
    validate(document)


def template(rule) -> str:
    return re.sub(r"<(?:any_text:)?(\w+)>", r"{\1}", rule)


def test_every_path_that_is_served_is_described() -> None:
    served = {template(rule.rule) for rule in APP.url_map.iter_rules() if rule.rule.startswith(("/api/", "/health"))}
    paths = set(described()["paths"])
    assert {path.rstrip("/") for path in served} == {path.rstrip("/") for path in paths}
    assert {template(endpoint.path) for endpoint in ENDPOINTS} == paths


def test_every_parameter_is_explained_with_an_example_that_its_schema_allows() -> None:
    from jsonschema import Draft202012Validator

    for path, methods in described()["paths"].items():
        for parameter in methods["get"]["parameters"]:
            assert len(parameter["description"]) > 10, (path, parameter["name"])
            if "example" in parameter:
                Draft202012Validator(parameter["schema"]).validate(parameter["example"])
            elif parameter["required"]:
                raise AssertionError((path, parameter["name"]))


def test_every_example_of_the_page_is_answered() -> None:
    page = APP.test_client().get("/docs/").text
    commands = re.findall(r"curl &#39;http://127\.0\.0\.1:8000([^\s]+)&#39;", page)
    assert len(commands) == len(ENDPOINTS)
    for command in commands:
        if "stream" not in command:
            answer = APP.test_client().get(command.replace("&amp;", "&"))
            assert answer.status_code == 200, (command, answer.data)


def test_metrics_in_answers_are_those_that_are_defined() -> None:
    assert Values.__struct_fields__ == tuple(METRICS)
    for name in METRICS:
        assert described()["components"]["schemas"]["Values"]["properties"][name]["description"]


@pytest.mark.parametrize("path", ["/openapi.json", "/docs/", "/docs", "/docs/docs.css"])
def test_the_documentation_is_served_and_revalidated(path) -> None:
    client = APP.test_client()
    answer = client.get(path)
    assert answer.status_code == 200
    again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["Content-Security-Policy"].startswith("default-src 'self'")


class Page(HTMLParser):
    """What a page refers to."""

    def __init__(self, html) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)


def test_the_page_stands_by_itself_and_its_links_lead_somewhere() -> None:
    client = APP.test_client()
    text = client.get("/docs/").text
    page = Page(text)
    assert not {"script", "style", "img", "iframe"} & page.tags
    assert not {name for name in page.attributes if name == "style" or name.startswith("on")}
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for link in {link for link in page.links if link.startswith("/")} - {"/", "/dashboard/favicon.svg"}:
        assert client.get(link).status_code == 200
    for words in (*METRICS, *DIMENSIONS, *(endpoint.title for endpoint in ENDPOINTS)):
        assert words in text


def test_every_reason_is_explained() -> None:
    text = APP.test_client().get("/docs/").text
    for reason in set(REASONS) - {"no_such_path", "method_not_allowed"}:
        assert f"<code>{reason}</code>" in text, reason
