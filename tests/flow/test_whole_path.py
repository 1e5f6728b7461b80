"""From a visitor's click to the dashboard, through everything that `make run` starts."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stream_consumer.visitors import RELATIVE_STANDARD_ERROR
from tests.flow.load import post
from tests.flow.log_figures import figures
from tests.flow.running import ROOT, Running, running

LOG = ROOT.parent / "shared" / "data" / "access.log.gz"
LOG_RANGE = "site=blog&from=2015-05-17&to=2015-05-21"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with running(tmp_path_factory.mktemp("liveinsight")) as system:
        yield system
        assert system.stop() == 0, "\n".join(system.lines)


def test_a_posted_event_is_an_active_session_within_three_seconds(system: Running) -> None:
    answer = system.post({"event_type": "page_view", "page_url": "https://example.com/hello", "user_id": "ann"})
    assert set(answer) >= {"message", "event_id", "session_id"}
    _, took = system.until(
        lambda: [session["session_id"] for session in system.get("/api/sessions/active/")],
        lambda sessions: answer["session_id"] in sessions,
        seconds=3,
    )
    print(f"active after {took:.2f} s")
    (event,) = system.get(f"/api/sessions/{answer['session_id']}/events/")
    assert event["event_id"] == answer["event_id"]
    assert system.status("/api/sessions/none/") == 404


def test_the_figures_of_a_log_are_exact_and_a_second_import_adds_nothing(system: Running) -> None:
    if not LOG.exists():
        pytest.skip(f"needs the sample log {LOG.name}, which is not part of the project")
    expected = figures(LOG)
    for _ in range(2):
        began = time.monotonic()
        imported(system, "--json")
        assert time.monotonic() - began < 60
        summary, _ = system.until(
            lambda: system.get(f"/api/statistics/summary/?{LOG_RANGE}"),
            lambda summary: summary["total_events"] >= expected["page_views"],
            seconds=60,
        )
        settle(system)
        summary = system.get(f"/api/statistics/summary/?{LOG_RANGE}")
        assert summary["page_views"] == summary["total_events"] == expected["page_views"]
        assert summary["total_sessions"] == expected["sessions"]
        assert summary["bounce_rate"] == pytest.approx(expected["bounces"] / expected["sessions"])
        # Requests of one second keep their order by milliseconds, so a session's time is right to a second.
        assert summary["avg_session_time"] == pytest.approx(expected["seconds"] / expected["sessions"], abs=1)
        assert summary["visitors"] == pytest.approx(expected["visitors"], rel=3 * RELATIVE_STANDARD_ERROR)
        pages = system.get(f"/api/statistics/pages/?{LOG_RANGE}&limit=10")
        top = sorted(expected["pages"].items(), key=lambda page: (-page[1], page[0]))[:10]
        assert [(page["page"], page["views"]) for page in pages] == top
        referrers = system.get(f"/api/statistics/referrers/?{LOG_RANGE}&limit=1000")
        assert dict(zip(referrers["labels"], referrers["data"], strict=True)) == expected["referrers"]


def imported(system: Running, *options: str) -> dict:
    """Import the sample log as an operator would: the CLI finds the running system by its port."""
    done = subprocess.run(
        [sys.executable, "-m", "producer", "import", str(LOG), "--site", "blog", *options],
        cwd=ROOT,
        env=system.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def settle(system: Running) -> None:
    """Wait until all that is on the stream now is counted: what is put behind it is, and lanes share shards."""
    for number in range(16):
        marker = system.post(
            {"event_type": "page_view", "site_id": "marker", "session_id": f"m{number}-{uuid.uuid4().hex}"}
        )
        system.until(
            lambda marker=marker: system.status(f"/api/sessions/{marker['session_id']}/?site=marker"),
            lambda s: s == 200,
            60,
        )
    time.sleep(2.5)  # what the API may have cached


def test_under_load_every_acknowledged_event_is_counted(system: Running) -> None:
    """A thousand events a second in batches of ten; `make load` does it for 30 s."""
    site = f"load-{uuid.uuid4().hex[:8]}"
    load = post(system.collector, site, rate=1000, seconds=float(os.environ.get("LOAD_SECONDS", "3")))
    assert load.refused == 0
    summary, _ = system.until(
        lambda: system.get(f"/api/statistics/summary/?site={site}"),
        lambda summary: summary["total_events"] >= load.acknowledged,
        seconds=120,
    )
    assert summary["total_events"] == load.acknowledged == 1000 * int(os.environ.get("LOAD_SECONDS", "3"))
    assert summary["total_sessions"] == len(load.sessions)
    assert summary["page_views"] == load.page_views


@contextmanager
def serving(html: str) -> Iterator[str]:
    """A site of which every page is ``html``, but for an empty one at /bye; its origin."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"" if self.path == "/bye" else html.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.mark.browser
def test_a_visit_in_a_real_browser_shows_in_the_session_and_on_the_dashboard(system: Running, chromium: Any) -> None:
    page_html = f"""<!doctype html><title>Shoes</title>
        <script async src="{system.collector}/liveinsight.js" data-site="shop"></script>
        <a id="more" href="#more">More</a> <button id="buy">Buy</button>"""
    with serving(page_html) as shop:
        visitor = chromium.new_page()
        visitor.goto(f"{shop}/shoes")
        visitor.wait_for_function("!!(window.LiveInsight && LiveInsight.track)")
        visitor.evaluate("history.pushState({}, '', '/shoes/red')")
        visitor.click("#buy")
        visitor.evaluate("LiveInsight.trackConversion('order', 49.5)")
        # Not by closing the tab: Chromium gives a page half a second to say good-bye then, which a busy machine takes.
        visitor.goto(f"{shop}/bye")
        session, _ = system.until(
            lambda: system.get("/api/sessions/active/?site=shop"),
            lambda sessions: bool(sessions) and sessions[0]["conversions"] == 1,
            seconds=15,
        )
        session_id = session[0]["session_id"]
        kinds, _ = system.until(
            lambda: [event["event_type"] for event in system.get(f"/api/sessions/{session_id}/events/?site=shop")],
            lambda kinds: "page_exit" in kinds,
            seconds=15,
        )
        assert kinds.count("page_view") == 2
        assert {"click", "conversion", "page_exit"} <= set(kinds)
        assert session[0]["page_views"] == 2
        assert session[0]["current_page"].endswith("/shoes/red")

        visitor.close()
        dashboard = chromium.new_page()
        errors: list[str] = []
        dashboard.on("pageerror", lambda error: errors.append(str(error)))
        dashboard.goto(f"{system.api}/?site=shop")
        dashboard.get_by_text("/shoes/red").first.wait_for(timeout=10_000)
        assert errors == []
        dashboard.close()


@pytest.mark.long
def test_a_stop_loses_nothing_that_was_acknowledged_and_a_start_has_it_again(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        first.post([{"event_type": "page_view", "site_id": "kept", "session_id": f"s{n}"} for n in range(500)])
        assert first.stop() == 0, "\n".join(first.lines)
    with running(tmp_path) as second:
        summary = second.get("/api/statistics/summary/?site=kept")
        assert (summary["total_events"], summary["total_sessions"]) == (500, 500)
        second.post({"event_type": "click", "site_id": "kept", "session_id": "s1"})
        second.until(
            lambda: second.get("/api/statistics/summary/?site=kept"), lambda summary: summary["total_events"] == 501, 10
        )


def test_the_smoke_test_passes_on_a_running_system_and_fails_where_half_of_it_is_missing(
    system: Running, tmp_path: Path
) -> None:
    addresses = ["--api", system.api, "--collector", system.collector, "--report", str(tmp_path), "--site", "smoke"]
    environ = {**system.environ, "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-m", "infra", "smoke", *addresses, "--rate", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "smoke.json").read_text())
    assert all(check["ok"] for check in report["checks"])
    assert "passed" in (tmp_path / "smoke.html").read_text()

    command[command.index("--api") + 1] = system.collector
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAILED" in done.stdout
