"""The API's description as OpenAPI 3.1, made from what its paths declare and from the types of its answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from query_api.endpoints import JSON, Endpoint
from query_api.errors import REASONS, ErrorAnswer
from query_api.parameters import Parameter

VERSION = "1.0"
_ABOUT = """\
Figures of web sites, now and over time.

Times in answers are ISO 8601 with milliseconds, in UTC where nothing else is said. Ranges (`from`, `to`) are widened
to whole quarters of an hour in UTC. Durations are in seconds, rates are fractions from 0 to 1. Parameters that a path
does not know are ignored; an empty one is an absent one. All paths take HEAD too, and the slash at their end may be
left out.

Answers are cached for a moment, those of past hours for long; ask again with `If-None-Match`, and an unchanged answer
is 304. Where read keys are on, a request carries `Authorization: Bearer li_...`.
"""
_HEADERS = {
    "ETag": ("The answer's name; the same answer has the same.", {"type": "string"}),
    "Cache-Control": ("For how long the answer is good.", {"type": "string"}),
    "LiveInsight-As-Of": (
        "The arrival of the newest event counted in it; absent if there is none.",
        {"type": "string", "format": "date-time"},
    ),
    "LiveInsight-Generation": (
        "The generation of figures that it was read from; another one after a replay was promoted.",
        {"type": "string", "pattern": "^g[1-9][0-9]*$"},
    ),
    "LiveInsight-Lag": (
        "Seconds that the consumer is behind the stream; absent where that is not known.",
        {"type": "number", "minimum": 0},
    ),
    "LiveInsight-Partial": (
        "`true` where the range is not over yet or a list is cut; else absent.",
        {"type": "string", "enum": ["true"]},
    ),
    "LiveInsight-Stale": (
        "The tables could not be read in time, and this is an old answer: since when it is, in seconds; else absent.",
        {"type": "integer", "minimum": 1},
    ),
}
#: What may go wrong on every path.
_EVERYWHERE = ("too_large", "internal")


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI document."""
    types = [*(endpoint.answer for endpoint in endpoints), ErrorAnswer]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths = {
        _template(endpoint.path): {"get": _operation(endpoint, schema)}
        for endpoint, schema in zip(endpoints, schemas, strict=False)
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LiveInsight query API",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(endpoint.group for endpoint in endpoints)],
        "paths": paths,
        "components": {
            "schemas": _in_markdown(components),
            "headers": {
                name: {"description": description, "schema": schema} for name, (description, schema) in _HEADERS.items()
            },
            "securitySchemes": {
                "readKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A site's read key (li_...), where read keys are on.",
                }
            },
        },
    }


def _operation(endpoint: Endpoint, schema: dict[str, Any]) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for reason in (*endpoint.errors, *_EVERYWHERE):
        by_status.setdefault(REASONS[reason][0], []).append(reason)
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
    content = {
        content_type: {"schema": schema if content_type == JSON else {"type": "string"}}
        for content_type in endpoint.content_types
    }
    found = {
        "operationId": re.sub(r"[^a-z]+", "_", _template(endpoint.path)).strip("_"),
        "tags": [endpoint.group],
        "summary": endpoint.title,
        "description": endpoint.description,
        "parameters": [_parameter(parameter) for parameter in endpoint.parameters],
        "responses": {
            "200": {"description": endpoint.title, "headers": headers, "content": content},
            "304": {"description": "The client has this answer already (If-None-Match)."},
            **{str(status): _error(reasons) for status, reasons in sorted(by_status.items())},
        },
    }
    if "key_missing" in endpoint.errors:
        found["security"] = [{}, {"readKey": []}]
    return found


def _parameter(parameter: Parameter) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": parameter.name,
        "in": "path" if parameter.in_path else "query",
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }
    if parameter.schema["type"] == "array":
        found |= {"style": "form", "explode": False}
    if parameter.example is not None:
        found["example"] = parameter.example
    if not parameter.in_path and parameter.may_be_empty:
        found["allowEmptyValue"] = True
    return found


def _error(reasons: Iterable[str]) -> dict[str, Any]:
    return {
        "description": "\n\n".join(f"`{reason}`: {REASONS[reason][1]}" for reason in reasons),
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}},
    }


def _template(path: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)


def _in_markdown(schemas: Any) -> Any:
    """Schemas whose descriptions, which are docstrings, are written as the rest of the document is."""
    if isinstance(schemas, dict):
        return {
            key: value.replace("``", "`") if key == "description" and isinstance(value, str) else _in_markdown(value)
            for key, value in schemas.items()
        }
    return [_in_markdown(one) for one in schemas] if isinstance(schemas, list) else schemas
