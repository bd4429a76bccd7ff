# SPDX-License-Identifier: Apache-2.0
"""All parts' reports below a folder, with a row for every part that has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.proof.commands.outcomes import (
    MEASURED,
    STARTED,
    Outcome,
    cut_off,
    merged,
    read_report,
)
from lamp_trt.benchmarks.proof.names import REPORT_SUFFIX

PARTS = (
    "prepare",
    "kernels",
    "unet",
    "profile",
    "candidates",
    "peers",
    "sdxl",
    "hoists",
    "tensorrt",
    "pipeline",
)
"""As in parts.py, which imports what a report does not need."""

NOT_MEASURED = ("skipped", "cut off", "not run")


@dataclass(frozen=True)
class PartResult:
    """One part of one GPU, from all of its files."""

    part: str
    machine: Mapping[str, str]
    outcomes: tuple[Outcome, ...]
    figures: Mapping[str, Any]


def gathered(folder: Path) -> list[PartResult]:
    """Of every part of PARTS, in that order; a part without a file has one outcome, which says so."""
    results = []
    for part in PARTS:
        files = sorted(folder.rglob(f"{part}{REPORT_SUFFIX}*.json"))
        reports = [report for report in map(read_report, files) if report]
        if not reports:
            nothing = Outcome(part, "not run", "the part was not started, or left no report")
            results.append(PartResult(part, {}, (nothing,), {}))
            continue
        outcomes: list[Outcome] = []
        figures: dict[str, Any] = {}
        for report in reports:
            rows = [Outcome(**row) for row in report["checks"]]
            outcomes += [cut_off(row.claim) if row.result == STARTED else row for row in rows]
            figures = merged(figures, report["figures"])
        results.append(PartResult(part, reports[-1]["machine"], tuple(outcomes), figures))
    return results


def counted(results: list[PartResult]) -> dict[str, int]:
    """How many checks ended how."""
    ends = [outcome.result for result in results for outcome in result.outcomes]
    return {name: ends.count(name) for name in (*MEASURED, *NOT_MEASURED) if name in ends}
