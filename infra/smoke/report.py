"""What a run found, for people (HTML) and for programs (JSON). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from infra.smoke.checks import Result

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LiveInsight smoke: {verdict}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ border-bottom: 1px solid #8886; padding: .4rem .8rem .4rem 0; text-align: left; vertical-align: top }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
.passed {{ color: #17693b }} .failed {{ color: #b3261e; font-weight: 600 }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #111; color: #eee }} .passed {{ color: #6fd69a }} .failed {{ color: #ff8a80 }}
}}
</style>
<h1>Smoke test: <span class="{css}">{verdict}</span></h1>
<p>{began}<br>collector {collector}<br>API {api}<br>site {site}, run {run}</p>
<table>
<thead><tr><th>check<th>result<th>seconds<th>what was found</thead>
<tbody>
{rows}
</tbody>
</table>
</html>
"""


def as_json(results: Sequence[Result], about: dict[str, str], wanted: Sequence[str]) -> dict[str, Any]:
    """The report as one object. Checks ``wanted`` that were not tried are named: they have not passed."""
    tried = [one.name for one in results]
    return {
        **about,
        "ok": all(one.ok for one in results) and tried == list(wanted),
        "checks": [
            {"name": one.name, "ok": one.ok, "seconds": round(one.seconds, 3), "detail": one.detail} for one in results
        ],
        "not_tried": [name for name in wanted if name not in tried],
    }


def as_html(report: dict[str, Any]) -> str:
    """The same as a page that needs no other file."""
    rows = [
        _row(one["name"], "passed" if one["ok"] else "failed", f"{one['seconds']:.2f}", one["detail"])
        for one in report["checks"]
    ]
    rows += [_row(name, "not tried", "", "") for name in report["not_tried"]]
    told = {name: escape(str(report[name])) for name in ("began", "collector", "api", "site", "run")}
    verdict = "passed" if report["ok"] else "failed"
    return _PAGE.format(verdict=verdict, css=verdict, rows="\n".join(rows), **told)


def _row(name: str, verdict: str, seconds: str, detail: str) -> str:
    return (
        f'<tr><td>{escape(name)}<td class="{verdict.partition(" ")[0]}">{verdict}'
        f'<td class="number">{seconds}<td>{escape(detail)}'
    )
