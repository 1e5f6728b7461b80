"""Prints, at the end of a run, how much was simulated. (Here, not in simulation/: with several processes, only
the conftest of the tests' root is loaded where the summary is printed.)
"""

from __future__ import annotations

from typing import Any


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
