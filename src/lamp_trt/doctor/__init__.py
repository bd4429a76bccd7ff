# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt doctor`: what is installed, what can run here, and the remedy for what is missing.

Needs only Python, so that it can report what is missing; if even the command line does not start,
`python -m lamp_trt.doctor` does. Libraries that may crash or hang are loaded in separate processes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lamp_trt.doctor.backends import backend_findings
from lamp_trt.doctor.bundles import bundle_findings
from lamp_trt.doctor.findings import PURPOSES, DiagnosisError, Finding
from lamp_trt.doctor.gpu import find_gpu, gpu_findings
from lamp_trt.doctor.machine import machine_findings
from lamp_trt.doctor.needs import need_findings
from lamp_trt.doctor.packages import package_findings
from lamp_trt.doctor.tools import tool_findings
from lamp_trt.engine.backends.probe import Purpose

__all__ = [
    "PURPOSES",
    "DiagnosisError",
    "Finding",
    "Purpose",
    "diagnose",
    "diagnosis_json",
    "diagnosis_text",
    "impossible",
    "require_possible",
]

_MARKS = {"ok": "ok", "note": "-", "problem": "!"}


def diagnose(folder: Path) -> list[Finding]:
    """Return all findings. folder: where bundles would be built."""
    gpu = find_gpu()
    parts: tuple[Callable[[], list[Finding]], ...] = (
        package_findings,
        lambda: gpu_findings(gpu),
        lambda: backend_findings(gpu),
        lambda: tool_findings(gpu),
        lambda: machine_findings(folder),
        lambda: need_findings(folder, gpu),
        lambda: bundle_findings(folder),
    )
    return [finding for part in parts for finding in part()]


def impossible(findings: Sequence[Finding]) -> dict[Purpose, list[Finding]]:
    """The purposes that cannot work here, each with the findings that prevent it."""
    reasons = {purpose: [f for f in findings if purpose in f.blocks] for purpose in PURPOSES}
    return {purpose: found for purpose, found in reasons.items() if found}


def require_possible(findings: Sequence[Finding], purposes: Sequence[Purpose]) -> None:
    """Raise DiagnosisError, with the first remedy, if one of `purposes` cannot work here."""
    blocked = impossible(findings)
    for purpose in purposes:
        if purpose in blocked:
            first = blocked[purpose][0]
            names = ", ".join(finding.name for finding in blocked[purpose])
            raise DiagnosisError(f"{purpose} cannot work here ({names}). First of all: {first.remedy}.")


def diagnosis_text(findings: Sequence[Finding]) -> str:
    """Findings as lines, problems with remedies, and at the end which purposes can work."""
    lines: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section] if lines else [section]
        lines.append(f"  {_MARKS[finding.status]:3}{finding.name:24} {finding.detail}".rstrip())
        if finding.remedy:
            lines.append(f"{'':29} → {finding.remedy}")
    lines.append("")
    blocked = impossible(findings)
    for purpose in PURPOSES:
        names = ", ".join(finding.name for finding in blocked.get(purpose, []))
        lines.append(f"{purpose} cannot work here: {names}" if names else f"{purpose} can work here")
    return "\n".join(lines)


def diagnosis_json(findings: Sequence[Finding]) -> dict[str, Any]:
    blocked = impossible(findings)
    return {
        "can": {purpose: purpose not in blocked for purpose in PURPOSES},
        "findings": [finding.to_json() for finding in findings],
    }
