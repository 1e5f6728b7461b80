"""The functions' package: one zip with producer/, stream_consumer/ and what they need; same content, same bytes.

Its name is made of its content, so an unchanged package is neither uploaded nor deployed again.

What it brings along and what it leaves out:

- boto3 and botocore as locked, though Lambda's runtime has its own: that changes under the function with no deploy, and
  what was tested is what shall run. Of botocore's descriptions of services, which are 15 of its 16 MB, only those that
  the functions call.
- Not numpy, which alone is 15 MB: ``datasketches`` names it for kernels that nothing here uses
  (``stream_consumer/visitors.py`` takes the sketches from the compiled module).
- Bytecode, which halves a cold start: a function's file system is read-only, so every start would compile all modules
  anew. It belongs to one version of Python, so that version compiles it; where there is none here, the package has
  sources alone, and says so. It goes with a hash of its source: a module that is changed later is compiled anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from infra.deploy.problems import Failed
from infra.deploy.requirements import Pin, install_requires, needed, normalised, read_lock

ROOT = Path(__file__).parents[2]
#: What the templates' functions are (`Runtime`, `Architectures`), as pip names it.
PYTHON, PLATFORM = "3.13", "manylinux2014_aarch64"
#: The most that a package may weigh, in bytes.
LARGEST = 15_000_000
#: The part of a package that is bytecode of the others.
BYTECODE = "bytecode"
NO_BYTECODE = f"without bytecode, as there is no python{PYTHON} here: a cold start takes about twice as long"
#: The services that the functions call.
SERVICES = frozenset({"dynamodb"})
NOT_NEEDED = ("numpy",)
#: Directories of dependencies that only their own tests and authors read, and kinds of files that Python does not.
_IDLE_DIRECTORIES = frozenset({"__pycache__", "tests", "testing", "examples", "include", "swagger_ui"})
_IDLE_SUFFIXES = (".pyc", ".pyi", ".pyx", ".pxd", ".c", ".h", ".typed", ".md", ".rst")
#: Of a dist-info, what says which version it is, under what licence, and what it registers; the rest is installers'.
_KEPT_INFO = ("METADATA", "entry_points.txt")
_LICENCES = ("LICEN", "COPYING", "NOTICE", "AUTHORS")
#: The earliest time that a zip can tell.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class PackageFailed(Failed):
    """There is no package; the message says why and what to do."""


@dataclass(frozen=True)
class Package:
    """A zip's ``data``, the hex ``digest`` of its content, and what each of its parts weighs in it (bytes)."""

    data: bytes
    digest: str
    weights: Mapping[str, int]

    @property
    def key(self) -> str:
        """Its key in the code bucket: new content, new key, or CloudFormation would not see a change."""
        return f"functions/{self.digest[:20]}.zip"


def build(*, local: bool = False, wheels: Path | None = None) -> Package:
    """The package for Lambda; ``local``: for this machine's Python, from what is installed in it.

    ``wheels`` is the directory that keeps what was downloaded (default: build/wheels). Raises :class:`PackageFailed`.
    """
    pins = functions_pins()
    parts = {"liveinsight": project_files(ROOT)}
    if local:
        for pin in pins:
            parts[pin.name] = installed(pin)
    else:
        parts |= downloaded(pins, wheels or ROOT / "build" / "wheels")
    if python := sys.executable if local else python_of(PYTHON):
        parts[BYTECODE] = bytecode(parts.values(), python)
    return pack(parts)


def functions_pins() -> list[Pin]:
    """What the functions need, as locked. Raises :class:`PackageFailed`."""
    try:
        pins = read_lock((ROOT / "requirements.lock").read_text(encoding="utf-8"))
        return needed(pins, install_requires(ROOT / "setup.cfg"), NOT_NEEDED)
    except ValueError as problem:
        raise PackageFailed(str(problem)) from problem


def project_files(root: Path) -> dict[str, bytes]:
    """The functions' own code, by its path in the package."""
    paths = [*root.glob("producer/*.py"), *root.glob("stream_consumer/**/*.py")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths} | {
        "LICENSE": (root / "LICENSE").read_bytes()
    }


def belongs(path: PurePosixPath) -> bool:
    """Whether a dependency's file goes into the package."""
    *directories, name = path.parts
    if not directories:
        return name.endswith((".py", ".so")) or ".so." in name
    if directories[0].endswith(".dist-info"):
        return name in _KEPT_INFO or name.upper().startswith(_LICENCES)
    if directories[:2] == ["boto3", "data"]:  # of its resources; clients are made from botocore's
        return False
    if directories[:2] == ["botocore", "data"] and directories[2:]:
        return directories[2] in SERVICES and not name.startswith("examples-")
    return not _IDLE_DIRECTORIES.intersection(directories) and not name.endswith(_IDLE_SUFFIXES)


def installed(pin: Pin) -> dict[str, bytes]:
    """A dependency's files as this Python has them. Raises :class:`PackageFailed` if it has not just that version."""
    try:
        found = metadata.distribution(pin.name)
    except metadata.PackageNotFoundError as error:
        raise PackageFailed(f"{pin.name} is not installed here; make installs what requirements.lock says") from error
    if found.version != pin.version:
        raise PackageFailed(
            f"{pin.name} {found.version} is installed here, and {pin.version} locked; run make again to install that"
        )
    members = {}
    for file in found.files or ():
        path = PurePosixPath(file.as_posix())
        if ".." not in path.parts and belongs(path):
            members[str(path)] = Path(str(file.locate())).read_bytes()
    return members


def downloaded(pins: Sequence[Pin], directory: Path) -> dict[str, dict[str, bytes]]:
    """Every dependency's files for Lambda, from wheels whose hashes are the lock's; what is in ``directory`` already is
    not fetched again. Raises :class:`PackageFailed`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = directory / "requirements.txt"
    wanted.write_text("".join(pin.line() + "\n" for pin in pins), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--platform", PLATFORM, "--python-version", PYTHON]
    command += ["--find-links", str(directory), "--dest", str(directory), "--requirement", str(wanted)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - no shell, our own words
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise PackageFailed(
            f"the wheels for Python {PYTHON} on {PLATFORM} could not be had: {' '.join(said[-2:])}\n"
            "It needs the package index that pip is set up for; --local packs what is installed here instead, for "
            "this machine only."
        )
    return {pin.name: read_wheel(wheel_of(pin, directory)) for pin in pins}


def wheel_of(pin: Pin, directory: Path) -> Path:
    """The wheel of just that version, and one of those that the lock allows. Raises :class:`PackageFailed`."""
    for path in sorted(directory.glob("*.whl")):
        name, version, *_ = path.name.split("-")
        if (normalised(name), version) == (pin.name, pin.version):
            with path.open("rb") as file:
                if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" in pin.hashes:
                    return path
    raise PackageFailed(f"no wheel of {pin.name} {pin.version} in {directory} has a hash of requirements.lock")


def read_wheel(path: Path) -> dict[str, bytes]:
    """A wheel's files by where they are installed. What it would put beside the libraries (scripts) is left out."""
    members = {}
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            where = PurePosixPath(name)
            if where.parts[0].endswith(".data"):
                if where.parts[1] not in {"purelib", "platlib"}:
                    continue
                where = PurePosixPath(*where.parts[2:])
            if not name.endswith("/") and belongs(where):
                members[str(where)] = wheel.read(name)
    return members


def python_of(version: str) -> str | None:
    """The Python of this version (``3.13``), if there is one here."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = shutil.which(f"python{version}")
    # Some are there by name, and only say that they are not installed.
    if found and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:  # noqa: S603
        return found
    return None


def bytecode(parts: Iterable[Mapping[str, bytes]], python: str) -> dict[str, bytes]:
    """What ``python`` compiles the modules of ``parts`` to, by its path in the package; none of what it cannot."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        for members in parts:
            for path, data in members.items():
                if path.endswith(".py"):
                    (directory / path).parent.mkdir(parents=True, exist_ok=True)
                    (directory / path).write_bytes(data)
        command = [python, "-m", "compileall", "-qq", "--invalidation-mode", "checked-hash", "-s", name, name]
        # Without a seed of its own, the order of sets, and so the bytes, would be others each time.
        subprocess.run(command, check=False, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S603
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.pyc")}


def pack(parts: Mapping[str, Mapping[str, bytes]]) -> Package:
    """Put the parts' files into one zip: in order, with one time and one mode. Raises :class:`PackageFailed` if two
    parts have another file for the same place, or if they are more than LARGEST.
    """
    owners: dict[str, str] = {}
    content: dict[str, bytes] = {}
    for part, members in parts.items():
        for name, data in members.items():
            if content.setdefault(name, data) != data:
                raise PackageFailed(f"{part} and {owners[name]} both have a {name}")
            owners.setdefault(name, part)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = (0o100755 if ".so" in name else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content[name])
        weights = dict.fromkeys(parts, 0)
        for entry in archive.infolist():
            weights[owners[entry.filename]] += entry.compress_size
    heaviest_first = sorted(weights.items(), key=lambda one: (-one[1], one[0]))
    package = Package(buffer.getvalue(), digest_of(content.items()), dict(heaviest_first))
    if len(package.data) > LARGEST:
        heaviest = ", ".join(f"{name} {weight:,}" for name, weight in heaviest_first[:3])
        raise PackageFailed(
            f"the package has {len(package.data):,} bytes, more than {LARGEST:,} (most of them: {heaviest}): "
            "leave out what the functions do not load"
        )
    return package


def digest_of(content: Iterable[tuple[str, bytes]]) -> str:
    """Names the content, whatever compressed it."""
    total = hashlib.sha256()
    for name, data in sorted(content):
        total.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    return total.hexdigest()


def report(package: Package) -> list[str]:
    """What the package weighs, by part, heaviest first."""
    lines = [f"  {name:24} {weight:>10,}" for name, weight in package.weights.items()]
    lines.append(f"  {'in all, with its index':24} {len(package.data):>10,} bytes of at most {LARGEST:,}")
    if BYTECODE not in package.weights:
        lines.append(f"  {NO_BYTECODE}")
    return lines
