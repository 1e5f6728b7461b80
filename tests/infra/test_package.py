"""The functions' package: what is in it, that it is the same each time, and that it runs on nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path, PurePosixPath

import pytest

from infra.__main__ import main
from infra.deploy import package
from infra.deploy.requirements import Pin, install_requires, needed, read_lock
from infra.local import stacks
from producer.event import encode
from tests.builders import a_lambda_event, an_event

HEAVY = {"small": 10, "big": 4_000, "middling": 500}
LOCK = """\
# made by a tool
outer==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
inner-part==2.0 \\
    --hash=sha256:cc
    # via
    #   another
    #   outer
some==1 ; python_full_version < '3.12' \\
    --hash=sha256:dd
    # via inner-part
web==3 \\
    --hash=sha256:ee
"""


@pytest.fixture(scope="module")
def unpacked(local_package: package.Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("task")
    with zipfile.ZipFile(BytesIO(local_package.data)) as archive:
        archive.extractall(directory)
    return directory


def names(data: bytes) -> list[str]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return archive.namelist()


def run(unpacked: Path, code: str, given: str = "") -> str:
    """What a fresh process prints that sees the package alone (-S: nothing of what is installed here)."""
    environ = {"PYTHONPATH": str(unpacked), "PYTHONDONTWRITEBYTECODE": "1", "AWS_REGION": "us-east-1"}
    environ["AWS_DEFAULT_REGION"] = "us-east-1"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        input=given,
        env=environ,
        cwd=unpacked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_same_bytes_whenever_it_is_made_and_says_what_each_part_weighs(
    tmp_path: Path,
    local_package: package.Package,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "deep" / "f.zip"
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Seoul")
        time.tzset()
        assert main(["package", "--local", "--output", str(output)]) == 0
    time.tzset()
    assert output.read_bytes() == local_package.data
    assert len(local_package.data) < package.LARGEST == 15_000_000
    said = capsys.readouterr().out
    for part in ("liveinsight", "botocore", "datasketches"):
        assert f"  {part} " in said
    assert f"{len(local_package.data):,} bytes of at most 15,000,000" in said
    with zipfile.ZipFile(BytesIO(local_package.data)) as archive:
        entries = archive.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert all(entry.external_attr >> 16 & 0o444 == 0o444 for entry in entries), "Lambda's user must read it"


def test_its_name_follows_its_content_and_not_what_compressed_it() -> None:
    one = package.pack({"a": {"x.py": b"1", "y.py": b"2"}})
    assert package.pack({"b": {"y.py": b"2"}, "c": {"x.py": b"1"}}).key == one.key
    assert package.pack({"a": {"x.py": b"1", "y.py": b"3"}}).key != one.key
    with pytest.raises(package.PackageFailed, match=r"b and a both have a x\.py"):
        package.pack({"a": {"x.py": b"1"}, "b": {"x.py": b"2"}})


def test_a_package_beyond_the_bound_is_refused_and_names_what_is_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: {f"{name}.py": random.Random(name).randbytes(size)} for name, size in HEAVY.items()}
    weighs = len(package.pack(parts).data)
    monkeypatch.setattr(package, "LARGEST", weighs)
    assert len(package.pack(parts).data) == weighs
    monkeypatch.setattr(package, "LARGEST", weighs - 1)
    with pytest.raises(package.PackageFailed, match=rf"more than {weighs - 1:,} \(most of them: big [0-9,]+, middling"):
        package.pack(parts)


def test_it_holds_the_functions_code_and_nothing_of_the_other_stages(local_package: package.Package) -> None:
    found = names(local_package.data)
    tops = {PurePosixPath(name).parts[0] for name in found}
    assert {"producer", "stream_consumer", "boto3", "botocore", "msgspec", "ua_parser", "LICENSE"} <= tops
    assert not tops & {"query_api", "infra", "tests", "numpy", "flask", "moto"}
    for template in stacks.TEMPLATES.glob("*.yaml"):
        for resource in stacks.load_template(template)["Resources"].values():
            if resource["Type"] == stacks.FUNCTION:
                module, _ = resource["Properties"]["Handler"].rsplit(".", 1)
                assert module.replace(".", "/") + ".py" in found
    assert not [name for name in found if name.endswith(".pyi")]
    assert not [name for name in found if name.startswith("producer/tracker/")]
    assert not [name for name in found if "/tests/" in name or "RECORD" in name or "direct_url" in name]
    services = {PurePosixPath(name).parts[2] for name in found if name.startswith("botocore/data/")}
    assert {name for name in services if "." not in name} == package.SERVICES
    assert [name for name in found if name.startswith("datasketches-") and "LICEN" in name.upper()], "licences travel"


def test_what_a_start_loads_comes_compiled_and_a_module_that_was_changed_is_compiled_anew(
    local_package: package.Package, unpacked: Path
) -> None:
    start = "import stream_consumer.lambda_handler as handler, sys; handler._client()"
    told = run(unpacked, f"{start}; print(*(getattr(one, '__cached__', 0) for one in list(sys.modules.values())))")
    loaded = {Path(path).relative_to(unpacked).as_posix() for path in told.split() if path.startswith(str(unpacked))}
    assert len(loaded) > 100
    assert loaded <= set(names(local_package.data))

    source = unpacked / "stream_consumer" / "durations.py"
    before = source.read_bytes()
    source.write_bytes(before + b"\nCHANGED = True\n")
    try:
        assert run(unpacked, "import stream_consumer.durations as changed; print(changed.CHANGED)") == "True\n"
    finally:
        source.write_bytes(before)


def test_without_the_functions_python_there_are_sources_alone_and_it_says_so(
    local_package: package.Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert package.python_of("9.9") is None
    bare = package.pack({"liveinsight": package.project_files(package.ROOT)})
    assert "without bytecode, as there is no python3.13 here" in package.report(bare)[-1]
    assert "without bytecode" not in "".join(package.report(local_package))


def test_the_wheels_are_for_the_python_and_the_processor_of_every_function() -> None:
    for template in stacks.TEMPLATES.glob("*.yaml"):
        for resource in stacks.load_template(template)["Resources"].values():
            if resource["Type"] == stacks.FUNCTION:
                assert resource["Properties"]["Runtime"] == f"python{package.PYTHON}"
                assert resource["Properties"]["Architectures"] == ["arm64"]
    assert package.PLATFORM.endswith("_aarch64")


def test_unpacked_it_consumes_a_batch_with_more_visitors_than_are_counted_exactly(unpacked: Path) -> None:
    events = [encode(an_event(n, session_id=f"s{n}", user_id=f"u{n}", user_agent="Mozilla/5.0")) for n in range(300)]
    fake = Path(__file__).parents[1] / "fake_dynamodb.py"
    code = f"""
import importlib.util, json, sys
from types import SimpleNamespace
from stream_consumer import lambda_handler, compaction_handler
from stream_consumer.archive import transform_handler
from stream_consumer.table import TableNames
assert lambda_handler.__file__.startswith({str(unpacked)!r})
spec = importlib.util.spec_from_file_location("fake", {str(fake)!r})
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
dynamo = fake.FakeDynamo()
names = lambda_handler._settings().tables
dynamo.tables = {{table: {{}} for table in (names.sessions, names.session_events, names.rollups, names.quarantine)}}
lambda_handler._client = lambda: dynamo
context = SimpleNamespace(
    function_name="f", memory_limit_in_mb=1, invoked_function_arn="arn:aws:lambda:r:1:function:f:live", aws_request_id="1"
)
print(json.dumps(lambda_handler.handler(json.load(sys.stdin), context)))
print(len(dynamo.tables[names.sessions]), "numpy" in sys.modules, "_datasketches" in sys.modules)
"""
    *_, answer, stored = run(unpacked, code, json.dumps(a_lambda_event(events))).splitlines()
    assert json.loads(answer) == {"batchItemFailures": []}
    assert stored == "300 False True"


def test_the_lock_is_read_with_what_needs_what() -> None:
    pins = read_lock(LOCK)
    assert [pin.name for pin in pins] == ["outer", "inner-part", "some", "web"]
    assert pins[0] == Pin("outer", "1.0", "", ("sha256:aa", "sha256:bb"), frozenset())
    assert pins[1].needed_by == {"another", "outer"}
    assert pins[2].marker == "python_full_version < '3.12'"
    assert [pin.name for pin in needed(pins, ["Outer"], ["some"])] == ["inner-part", "outer"]
    assert pins[0].line() == "outer==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb"
    with pytest.raises(ValueError, match="pins some for some machines only"):
        needed(pins, ["outer"])
    with pytest.raises(ValueError, match="has no absent; renew it with make lock"):
        needed(pins, ["absent"])
    with pytest.raises(ValueError, match="no pinned requirement"):
        read_lock("loose>=1\n")


def test_what_the_functions_need_is_all_locked_for_every_machine() -> None:
    roots = install_requires(package.ROOT / "setup.cfg")
    assert "aws-lambda-powertools" in roots
    found = {pin.name for pin in package.functions_pins()}
    assert found > set(roots)
    assert not found & {"numpy", "moto", "flask"}


def test_a_wheel_counts_only_with_a_hash_of_the_lock(tmp_path: Path) -> None:
    wheel = tmp_path / "inner_part-2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ("inner_part/a.py", "inner_part/tests/t.py", "inner_part-2.0.data/purelib/b.py"):
            file.writestr(name, name)
        file.writestr("inner_part-2.0.data/scripts/tool", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pin = Pin("inner-part", "2.0", "", (f"sha256:{digest}",), frozenset())
    assert sorted(package.read_wheel(package.wheel_of(pin, tmp_path))) == ["b.py", "inner_part/a.py"]
    with pytest.raises(package.PackageFailed, match="has a hash of"):
        package.wheel_of(Pin("inner-part", "2.0", "", ("sha256:00",), frozenset()), tmp_path)


@pytest.mark.skipif(not os.environ.get("WHEELS"), reason="fetches wheels from a package index: WHEELS=1 runs it")
def test_for_lambda_it_is_of_the_locked_wheels(tmp_path: Path) -> None:
    first = package.build(wheels=tmp_path)
    assert package.build(wheels=tmp_path).data == first.data
    libraries = [name for name in names(first.data) if ".so" in name]
    assert libraries
    assert all("x86_64" not in name for name in libraries)
    assert len(first.data) < package.LARGEST
