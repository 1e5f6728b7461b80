"""The smoke test finds what is broken, and nothing where nothing is; its report says so to people and programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from infra.__main__ import main
from infra.smoke import checks
from infra.smoke.checks import CHECKS, READ_KEY, Result
from infra.smoke.report import as_html, as_json
from tests.infra.smoke_stand_in import PATHS, Deployment, serving

SMALL = ("--events", "30", "--rate", "200", "--seconds", "0.2", "--within", "0.4")


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.setattr(checks, "_CACHED", 0.0)  # the stand-in caches nothing
    monkeypatch.delenv(READ_KEY, raising=False)
    return Deployment()


@pytest.fixture
def address(deployment: Deployment) -> Iterator[str]:
    with serving(deployment) as address:
        yield address


def smoke(address: str, report: Path, *options: str) -> tuple[int, dict[str, dict]]:
    """The exit status, and what the report says of each check."""
    status = main(["smoke", "--api", address, "--collector", address, "--report", str(report), *SMALL, *options])
    found = json.loads((report / "smoke.json").read_text())
    assert found["ok"] == (status == 0)
    return status, {one["name"]: one for one in found["checks"]}


def test_a_sound_deployment_passes_every_check(
    deployment: Deployment, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = smoke(address, tmp_path / "report")
    assert status == 0, found
    assert list(found) == list(CHECKS)
    assert all(one["ok"] and one["seconds"] >= 0 for one in found.values())
    assert f"{len(PATHS)} paths answer 200" in found["API"]["detail"]
    assert "40 events" in found["load"]["detail"]
    assert deployment.posted == 1 + 1 + 30 + 10 + 40, "end to end, CORS, events, a third of them again, load"
    assert capsys.readouterr().out.count("  ok ") == len(CHECKS)
    assert smoke(address, tmp_path)[0] == 0, "again, on top of what is there"


@pytest.mark.parametrize(
    ("fault", "failing", "said"),
    [
        ("loses events", {"consistency", "load"}, "could be read within"),
        ("counts twice", {"consistency", "load"}, "hold other events than were posted, or one twice"),
        ("repeats rows", {"pagination"}, "more than one page"),
        ("no CORS", {"CORS"}, "no Access-Control-Allow-Origin for https://shop.example"),
        ("path fails", {"API"}, "/api/statistics/breakdown/: 500"),
    ],
)
def test_what_is_broken_is_found_and_named(
    deployment: Deployment,
    address: str,
    tmp_path: Path,
    fault: str,
    failing: set[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deployment.faults.add(fault)
    status, found = smoke(address, tmp_path)
    assert status == 1
    assert {name for name, one in found.items() if not one["ok"]} == failing
    assert any(said in found[name]["detail"] for name in failing)
    assert f"smoke: failed: {', '.join(name for name in CHECKS if name in failing)}" in capsys.readouterr().err


def test_where_nobody_answers_the_rest_is_not_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = smoke("http://127.0.0.1:1", tmp_path)
    assert (status, list(found)) == (1, ["reachable"])
    assert "does not answer" in found["reachable"]["detail"]
    assert json.loads((tmp_path / "smoke.json").read_text())["not_tried"] == list(CHECKS)[1:]
    assert "FAILED reachable" in capsys.readouterr().out


def test_the_read_key_goes_to_the_api_alone_and_is_printed_nowhere(
    deployment: Deployment,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(READ_KEY, "li_secret")
    smoke(address, tmp_path)
    sent = {(method, headers.get("Authorization")) for method, path, headers in deployment.asked if path != "/health"}
    assert sent == {("GET", "Bearer li_secret"), ("POST", None)}
    shown = capsys.readouterr()
    assert "li_secret" not in shown.out + shown.err
    assert all("li_secret" not in file.read_text() for file in tmp_path.iterdir())


def test_without_a_key_that_is_wanted_it_says_where_to_get_one(
    deployment: Deployment, address: str, tmp_path: Path
) -> None:
    deployment.faults.add("wants a key")
    status, found = smoke(address, tmp_path)
    assert (status, list(found)) == (1, ["reachable"])
    assert f"wanted in {READ_KEY}: python -m query_api keys create" in found["reachable"]["detail"]


def test_a_redirect_is_no_health_and_takes_the_key_nowhere(
    deployment: Deployment, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(READ_KEY, "li_secret")
    deployment.faults.add("redirects")
    status, found = smoke(address, tmp_path)
    assert (status, list(found)) == (1, ["reachable"])
    assert ": 301 " in found["reachable"]["detail"]
    assert [path for _, path, _ in deployment.asked] == ["/health"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--rate", "100", "--seconds", "61"], "0 to 6,000 events"),
        (["--rate", "-1"], "0 to 6,000 events"),
        (["--events", "0"], "--events"),
        (["--api", "ftp://x"], "no address like"),
        (["--collector", "https://user:secret@x"], "no address like"),
    ],
)
def test_a_load_beyond_its_bound_and_other_nonsense_are_refused(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["smoke", "--api", "http://127.0.0.1:1", "--collector", "http://127.0.0.1:1", *options])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_page_of_the_report_is_whole_and_shows_what_servers_say_as_text() -> None:
    results = [Result("reachable", True, 0.01, "fine"), Result("end to end", False, 2.0, "<script>alert(1)</script>")]
    about = {
        "began": "2026-01-31T00:00:00+00:00",
        "collector": "https://c",
        "api": "https://a",
        "site": "s",
        "run": "r",
    }
    report = as_json(results, about, [*(one.name for one in results), "load"])
    assert (report["ok"], report["not_tried"]) == (False, ["load"])
    page = as_html(report)
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Reader().feed(page)
    assert "script" not in tags
    assert "&lt;script&gt;" in page
    assert (tags.count("tr"), tags.count("td")) == (4, 12), "a head, and a row for each check"
    assert "not tried" in page
