"""A template's parameters: from the stage's file, from what a deploy makes, from stacks deployed before it. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from infra.deploy.problems import Failed

#: The order of the stacks: each needs only those before it. A template that is not there is passed over.
ORDER = ("data", "archive", "consumer", "compaction", "web", "edge", "monitoring")
#: Kept as the stack has it if nobody says otherwise, though the template may have a default: what runs, runs on.
_KEPT = frozenset({"Image"})
_CLOUDFRONT_REGION = "us-east-1"


def of_stage(directory: Path, stage: str) -> dict[str, dict[str, str]]:
    """``stages/<stage>.json``: parameters by template, for example ``{"data": {"RetentionHours": "168"}}``; nothing
    where there is no such file. Raises :class:`Failed` if it has another shape, or names no template.
    """
    path = directory / "stages" / f"{stage}.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Failed(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise Failed(f'{path}: parameters by template are wanted, as in {{"data": {{"RetentionHours": "168"}}}}')
    if unknown := sorted(found.keys() - set(ORDER)):
        raise Failed(f"{path} names {', '.join(unknown)}; templates are {', '.join(ORDER)}")
    return {template: {name: _text(value) for name, value in given.items()} for template, given in found.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)


def resolve(
    template: Mapping[str, Any],
    made: Mapping[str, str],
    given: Mapping[str, str],
    outputs: Mapping[str, str],
    existing: Collection[str],
) -> list[dict[str, Any]]:
    """A change set's parameters: what this deploy has ``made``, else what the stage's file has ``given``, else the
    output of that name of a stack before. What is left has its default; without one, the stack's ``existing`` value.

    Raises :class:`Failed` for a parameter that the template does not know, or that has no value at all.
    """
    declared: Mapping[str, Mapping[str, Any]] = template.get("Parameters", {})
    if unknown := sorted(given.keys() - declared.keys()):
        raise Failed(f"the stage's file sets {', '.join(unknown)}, which the template does not know")
    found: list[dict[str, Any]] = []
    missing = []
    for name, parameter in declared.items():
        for values in (made, given, outputs):
            if name in values:
                found.append({"ParameterKey": name, "ParameterValue": values[name]})
                break
        else:
            if name in existing and (name in _KEPT or "Default" not in parameter):
                found.append({"ParameterKey": name, "UsePreviousValue": True})
            elif "Default" not in parameter:
                missing.append(name)
    if missing:
        image = " --image-tag gives Image." if "Image" in missing else ""
        raise Failed(f"there is no value for {', '.join(missing)}: name it in the stage's file.{image}")
    return found


def image(tag: str, given: str, account: str, region: str) -> str:
    """The image with ``tag``: of the repository of the stage's file's image (``given``, '' for none), else of this
    account's repository ``liveinsight``.
    """
    repository = given.partition("@")[0] or f"{account}.dkr.ecr.{region}.amazonaws.com/liveinsight"
    head, _, last = repository.rpartition("/")
    return f"{head}/{last.partition(':')[0]}:{tag}"


def region_of(template: Mapping[str, Any], region: str) -> str:
    """Where a template's stack is: what CloudFront uses (a web ACL of its scope) can be in one region only."""
    for resource in template.get("Resources", {}).values():
        if resource.get("Properties", {}).get("Scope") == "CLOUDFRONT":
            return _CLOUDFRONT_REGION
    return region
