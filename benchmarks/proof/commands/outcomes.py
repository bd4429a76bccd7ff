# SPDX-License-Identifier: Apache-2.0
"""Ends of checks, and the report of a part: written before and after each check, so that whatever ends the
process, each check has a row."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STARTED = "started"
"""The result of a check under way; left in a file by a process that was killed."""

MEASURED = ("passed", "failed")


@dataclass(frozen=True)
class Outcome:
    """One check's end.

    result    "passed", "failed", "skipped" (the machine lacks something), "cut off" (its time was spent while
              it ran) or "not run"
    figures   what it saw, or why it has no result; one line
    detail    traceback of a failed one
    """

    claim: str
    result: str
    figures: str
    seconds: float = 0.0
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.result:8}{self.seconds:6.1f} s  {self.claim}: {self.figures}"


@dataclass
class PartReport:
    """The JSON file of one part. Rows and figures of an earlier call for the same commit are kept until this
    call has its own."""

    path: Path
    facts: Mapping[str, str]
    earlier: dict[str, Outcome] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    earlier_figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, facts: Mapping[str, str]) -> "PartReport":
        """An unreadable or foreign file counts as none."""
        report = cls(path, facts)
        written = read_report(path)
        if written and written["machine"].get("commit") == facts.get("commit"):
            for row in written["checks"]:
                outcome = Outcome(**row)
                if outcome.result == STARTED:
                    outcome = cut_off(outcome.claim)
                report.earlier[outcome.claim] = outcome
            report.earlier_figures = written["figures"]
        return report

    def started(self, claim: str, figures: Mapping[str, Any]) -> None:
        self._kept(Outcome(claim, STARTED, "the process ended before this check did"), figures)

    def ended(self, outcome: Outcome, figures: Mapping[str, Any]) -> Outcome:
        """The row that is kept."""
        return self._kept(outcome, figures)

    def _kept(self, outcome: Outcome, figures: Mapping[str, Any]) -> Outcome:
        """One without a result does not replace an earlier one that has one."""
        before = self.earlier.get(outcome.claim)
        if outcome.result not in MEASURED and before is not None and before.result in MEASURED:
            outcome = before
        self._put(outcome, figures)
        return outcome

    def _put(self, outcome: Outcome, figures: Mapping[str, Any]) -> None:
        self.outcomes[outcome.claim] = outcome
        rows = {**self.earlier, **self.outcomes}
        content = {
            "machine": dict(self.facts),
            "checks": [asdict(row) for row in rows.values()],
            "figures": merged(self.earlier_figures, figures),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(self.path)


def cut_off(claim: str, seconds: float = 0.0) -> Outcome:
    return Outcome(claim, "cut off", "its time was spent before it ended", seconds)


def merged(earlier: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by backend or subject, an earlier call's where this one has none."""
    out = dict(earlier)
    for name, value in figures.items():
        old = out.get(name)
        out[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def read_report(path: Path) -> dict[str, Any] | None:
    """A part's report; None if there is none, or it is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and {"machine", "checks", "figures"} <= content.keys()
    return content if known else None
