"""What tests of several directories share; and what is printed at the end of a run: how much was simulated.
(Here, not in simulation/: with several processes, only the conftest of the tests' root is loaded where the summary is
printed.)
"""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from infra.deploy import package

# How long an example takes, or the making of one, says how busy the machine is, and nothing of what is promised.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium (a playwright ``Browser``), one for each process: tests make contexts of their own in it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def local_package(tmp_path_factory: pytest.TempPathFactory) -> package.Package:
    """The functions' package for this machine, which takes seconds to make: made once for all processes of a run."""
    directory = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        directory = directory.parent
    kept = directory / "package"
    with (directory / "package.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(package.build(local=True)))
    return pickle.loads(kept.read_bytes())


def pytest_collection_modifyitems(items: list[Any]) -> None:
    if not os.environ.get("LIVEINSIGHT_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: make test-long"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    totals = {"schedules": 0, "faults": 0, "wrong": 0, "planted": 0, "caught": 0}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name in totals:
                totals[name] += value
    if totals["schedules"]:
        terminalreporter.write_line(
            f"simulated {totals['schedules']:,} schedules of small logs with {totals['faults']:,} faults: "
            f"{totals['wrong']} lost or doubled anything"
        )
    if totals["planted"]:
        terminalreporter.write_line(f"planted {totals['planted']} faults into the consumer: {totals['caught']} caught")
