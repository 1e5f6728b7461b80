"""The lock file: which of its packages a set of requirements needs, with their versions and hashes. Pure."""

from __future__ import annotations

import configparser
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)\s*(?:;\s*(?P<marker>.+?))?\s*\\?")


@dataclass(frozen=True)
class Pin:
    """One locked package. ``marker`` says where it is installed ('' for everywhere); ``needed_by`` are names."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    needed_by: frozenset[str]

    def line(self) -> str:
        """As pip reads it, without the marker."""
        return " \\\n    ".join((f"{self.name}=={self.version}", *(f"--hash={one}" for one in self.hashes)))


def normalised(name: str) -> str:
    """A package's name as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(text: str) -> list[Pin]:
    """The pins of a lock file that `make lock` wrote. Raises ``ValueError`` for a line that is none of its own."""
    pins: list[Pin] = []
    hashes: list[str] = []
    parents: set[str] = set()
    head: re.Match[str] | None = None

    def finish() -> None:
        if head:
            pins.append(
                Pin(normalised(head["name"]), head["version"], head["marker"] or "", (*hashes,), frozenset(parents))
            )
        hashes.clear()
        parents.clear()

    for line in text.splitlines():
        words = line.strip()
        if not line.startswith((" ", "#")) and words:
            finish()
            head = _PIN.fullmatch(words)
            if head is None:
                raise ValueError(f"requirements.lock: {words!r} is no pinned requirement; renew it with make lock")
        elif words.startswith("--hash="):
            hashes.append(words.removeprefix("--hash=").rstrip("\\ "))
        elif head and words.startswith("#"):
            parents.update(normalised(one) for one in words.removeprefix("#").removeprefix(" via").split())
    finish()
    return pins


def needed(pins: Collection[Pin], roots: Collection[str], without: Collection[str] = ()) -> list[Pin]:
    """The pins that ``roots`` and what they need come to, by name, less those ``without`` and what only they need.

    Raises ``ValueError`` for a root that is not locked, and for a pin that not every machine needs: which one it would
    be on another machine is not known here.
    """
    by_name: dict[str, list[Pin]] = {}
    for pin in pins:
        by_name.setdefault(pin.name, []).append(pin)
    found = {normalised(root) for root in roots}
    if missing := sorted(found - by_name.keys()):
        raise ValueError(f"requirements.lock has no {', '.join(missing)}; renew it with make lock")
    left_out = {normalised(one) for one in without}
    while True:
        more = {pin.name for pin in pins if pin.needed_by & found} - found - left_out
        if not more:
            break
        found |= more
    for name in sorted(found):
        if len(by_name[name]) > 1 or by_name[name][0].marker:
            raise ValueError(f"requirements.lock pins {name} for some machines only: {by_name[name][0].marker}")
    return [by_name[name][0] for name in sorted(found)]


def install_requires(setup_cfg: Path) -> list[str]:
    """The names of ``[options] install_requires``, without extras and versions."""
    parser = configparser.ConfigParser()
    parser.read(setup_cfg, encoding="utf-8")
    lines = parser["options"]["install_requires"].split("\n")
    return [re.split(r"[\[<>=!~;\s]", line.strip(), maxsplit=1)[0] for line in lines if line.strip()]
