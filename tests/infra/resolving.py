"""A template as CloudFormation would resolve it, as far as that can be known without AWS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from infra.local.stacks import load_template

PSEUDO = {"AWS::Partition": "aws", "AWS::Region": "us-east-1", "AWS::AccountId": "123456789012"}
_NOTHING = object()


@cache
def declared(path: Path) -> dict[str, Any]:
    """The template as it is written; not to be changed."""
    return load_template(path)


class Resolved:
    """The template at ``path`` with these parameters, and defaults for the others; parameters without one are named by
    themselves in angle brackets. A resource is its logical id, an attribute ``Id.Attribute``.
    """

    def __init__(self, path: Path, parameters: Mapping[str, str] | None = None) -> None:
        self.template = declared(path)
        given = parameters or {}
        self._values: dict[str, Any] = {**PSEUDO, **{name: name for name in self.template["Resources"]}}
        for name, parameter in self.template.get("Parameters", {}).items():
            self._values[name] = str(given.get(name, parameter.get("Default", f"<{name}>")))
        self.resources: dict[str, dict[str, Any]] = {
            name: {"Type": one["Type"], "Properties": self.value(one.get("Properties", {}))}
            for name, one in self.template["Resources"].items()
            if "Condition" not in one or self._condition(one["Condition"])
        }
        self.outputs: dict[str, Any] = {
            name: self.value(one["Value"]) for name, one in self.template.get("Outputs", {}).items()
        }

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """The properties of the resources of a kind, by logical id."""
        return {name: one["Properties"] for name, one in self.resources.items() if one["Type"] == kind}

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [one for one in map(self.value, value) if one is not _NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name == "Ref":
                return _NOTHING if argument == "AWS::NoValue" else self._values[argument]
            if name.startswith("Fn::"):
                return self._function(name[4:], argument)
        found = {name: self.value(one) for name, one in value.items()}
        return {name: one for name, one in found.items() if one is not _NOTHING}

    def _function(self, name: str, argument: Any) -> Any:
        if name == "If":
            condition, yes, no = argument
            return self.value(yes if self._condition(condition) else no)
        if name == "Sub":
            text, more = (argument, {}) if isinstance(argument, str) else argument
            known = {**self._values, **{key: self.value(one) for key, one in more.items()}}
            return re.sub(r"\$\{([^}!]+)\}", lambda m: str(known[m[1]] if "." not in m[1] else m[1]), text)
        if name == "GetAtt":
            return ".".join(argument)
        if name == "FindInMap":
            table, row, column = map(self.value, argument)
            return self.template["Mappings"][table][row][column]
        if name == "GetAZs":
            return ["a", "b", "c"]
        if name == "Select":
            index, choices = argument
            return self.value(choices)[int(index)]
        raise ValueError(f"Fn::{name} is not known here")

    def _condition(self, name: Any) -> bool:
        if isinstance(name, str):
            return self._condition(self.template["Conditions"][name])
        ((function, argument),) = name.items()
        if function == "Condition":
            return self._condition(argument)
        if function == "Fn::Not":
            return not self._condition(argument[0])
        if function == "Fn::And":
            return all(map(self._condition, argument))
        assert function == "Fn::Equals", function
        one, other = map(self.value, argument)
        return str(one) == str(other)
