# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: how much of the suite was skipped and why, and the command that installs what is missing."""

import pytest

from tests.system_tools import REMEDY, lacks_system_package

LACKING = pytest.StashKey[int]()
"""Number of tests skipped for want of a system package."""


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    lacking = sum(lacks_system_package(skip_reason(report)) for report in skipped)
    terminalreporter.config.stash[LACKING] = lacking
    if skipped:
        ran = sum(
            len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "xfailed", "error")
        )
        total = len(skipped) + ran
        terminalreporter.write_line(
            f"skipped: {len(skipped)} of {total} tests ({len(skipped) / total:.0%}), "
            f"{lacking} of them for want of a system package"
        )


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's own last line."""
    if config.stash.get(LACKING, 0):
        print(f"To run the {config.stash[LACKING]} tests that lack a system package: {REMEDY}", flush=True)
