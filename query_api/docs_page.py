"""The API's documentation: /openapi.json, and the page that is rendered from it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from query_api import representation
from query_api.caching import Answer, make_answer
from query_api.openapi import describe
from query_api.routes import ENDPOINTS

DIRECTORY = Path(__file__).parent / "documentation"
_SERVER = "http://127.0.0.1:8000"


@cache
def document() -> Answer:
    """The OpenAPI document, encoded."""
    return make_answer(msgspec.json.encode(describe(ENDPOINTS)), {"Content-Type": "application/json"})


@cache
def page() -> Answer:
    """The documentation page."""
    environment = Environment(
        loader=FileSystemLoader(DIRECTORY),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": _prose, "kind": _kind}
    described = describe(ENDPOINTS)
    html = environment.get_template("docs.html").render(
        about=described["info"],
        groups=_groups(described),
        headers=described["components"]["headers"],
        schemas={name: one for name, one in described["components"]["schemas"].items() if one["type"] == "object"},
        definitions=representation.definitions(),
    )
    return make_answer(html.encode(), {"Content-Type": "text/html; charset=utf-8"})


def _groups(described: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in described["tags"]}
    for path, methods in described["paths"].items():
        operation = methods["get"]
        groups[operation["tags"][0]].append(operation | {"path": path, "example": _example(path, operation)})
    return groups


def _example(path: str, operation: dict[str, Any]) -> str:
    """A curl command with the parameters that must be given, and the site."""
    query = []
    for parameter in operation["parameters"]:
        example = parameter.get("example")
        value = ",".join(example) if isinstance(example, list) else str(example)
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(value))
        elif parameter["required"] or parameter["name"] in {"site", "metrics"}:
            query.append(f"{parameter['name']}={quote(value, safe='/:,')}")
    return f"curl '{_SERVER}{path}{'?' if query else ''}{'&'.join(query)}'"


def _prose(text: str) -> Markup:
    """Text of the document, with its paragraphs and `code`."""
    paragraphs = [re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(one))) for one in text.strip().split("\n\n")]
    return Markup("".join(f"<p>{one}</p>" for one in paragraphs if one))  # noqa: S704 - escaped above


def _kind(schema: dict[str, Any]) -> Markup:
    """The type that a schema describes, its named types linked."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#type-{0}">{0}</a>').format(name)
    if "anyOf" in schema:
        return Markup(" or ").join(_kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return Markup("list of ") + _kind(schema["items"])
    if isinstance(values := schema.get("additionalProperties"), dict):
        return Markup("object of ") + _kind(values)
    if "enum" in schema:
        return Markup(", ").join(Markup("<code>{}</code>").format(one) for one in schema["enum"])
    kind = str(schema.get("type", "any"))
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return escape(" ".join([kind, *bounds]))
