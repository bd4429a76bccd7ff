# SPDX-License-Identifier: Apache-2.0
"""Report of `verify`, as JSON for programs and as a table for people."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamp_trt.benchmarks.verify.checks.check import Check, figures, finite_json
from lamp_trt.benchmarks.verify.metrics import Distance, Frames
from lamp_trt.engine.errors import LampError

REPORT_VERSION = 1


class VerificationError(LampError, RuntimeError):
    """A check of a bundle failed."""


@dataclass(frozen=True)
class StepFigures:
    """Distances of one denoising step to PyTorch in fp32.

    free     latents when each side continues from its own
    forced   latents when the step starts from the reference's
    own_*    the same of PyTorch at the bundle's precision, None for fp32
    """

    step: int
    timestep: int
    free: Distance
    forced: Distance
    own_free: Distance | None = None
    own_forced: Distance | None = None

    def to_json(self) -> dict[str, Any]:
        distances = {
            "free_running": self.free,
            "teacher_forced": self.forced,
            "own_free_running": self.own_free,
            "own_teacher_forced": self.own_forced,
        }
        return {
            "step": self.step,
            "timestep": self.timestep,
            **{name: finite_json(figures(d)) for name, d in distances.items() if d is not None},
        }


@dataclass
class Report:
    """Report of one run.

    subject       bundle, device, backend and versions
    settings      of the loops
    clips         by loop, PyTorch's frames in fp32 and the bundle's, uint8 (f, h, w, 3); not in the JSON
    not_verified  parts of the bundle without a comparison, each with the missing option
    """

    subject: Mapping[str, Any]
    settings: Mapping[str, Any]
    checks: list[Check] = field(default_factory=list)
    steps: dict[str, list[StepFigures]] = field(default_factory=dict)
    clips: dict[str, tuple[Frames, Frames]] = field(default_factory=dict)
    not_verified: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        return {
            "report_version": REPORT_VERSION,
            "passed": not self.failed,
            **self.subject,
            "settings": dict(self.settings),
            "checks": [check.to_json() for check in self.checks],
            "steps": {loop: [row.to_json() for row in rows] for loop, rows in self.steps.items()},
            "not_verified": self.not_verified,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def require_passed(report: Report) -> None:
    """Raise VerificationError, naming the first failure, unless every check passed."""
    if report.failed:
        first = report.failed[0]
        raise VerificationError(
            f"{len(report.failed)} of {len(report.checks)} checks failed, first of {first.group}: "
            f"{first.title}: {first.problem}."
        )


def report_text(report: Report) -> str:
    """Return the report as lines of at most about 110 characters."""
    subject, settings = report.subject, report.settings
    sizes = subject["sizes"]
    lines = [
        f"bundle {subject['bundle'][:16]}…  {'/'.join(subject['precisions'])}, "
        f"{sizes['width']}x{sizes['height']}, {sizes['num_frames']} frames, "
        f"{subject['backend']} on {subject['device']}",
        f"PyTorch {subject['versions']['torch']} in fp32 is the reference; "
        f"{settings['num_inference_steps']} steps, seed {settings['seed']}, prompt {settings['prompt']!r}",
        "",
    ]
    width = max(len(_title(check)) for check in report.checks) + 2
    lines.append(
        f"{'':6}{'check':{width}}{'max abs':>8}{'rel L2':>9}{'cosine':>12}{'limit':>9}{'yardstick':>11}"
    )
    lines += [_check_line(check, width) for check in report.checks]
    for loop, rows in report.steps.items():
        lines += ["", *_step_lines(loop, rows)]
    if report.not_verified:
        lines += ["", *(f"not verified: {what}" for what in report.not_verified)]
    lines += ["", f"{sum(report.seconds.values()):.0f} s, at most {report.peak_memory_bytes / 2**30:.2f} GiB"]
    for check in report.failed:
        lines += ["", f"FAILED {check.group}: {check.title}", f"  {check.problem}"]
    passed = len(report.checks) - len(report.failed)
    lines += ["", f"{passed} of {len(report.checks)} checks passed"]
    return "\n".join(line.rstrip() for line in lines)


def _title(check: Check) -> str:
    return f"{check.group:10} {check.title}"


def _check_line(check: Check, width: int) -> str:
    line = f"{'ok' if check.passed else 'FAIL':6}{_title(check):{width}}"
    m = check.measured
    if "rel_l2" in m:
        own = _number(check.own["rel_l2"]) if check.own else ""
        limit = _number(check.limits["rel_l2"])
        return (
            f"{line}{_number(m['max_abs']):>8}{_number(m['rel_l2']):>9}{m['cosine']:12.8f}{limit:>9}{own:>11}"
        )
    if "psnr_db" in m:
        own = f", PyTorch {_decibel(check.own['psnr_db'])}" if check.own else ""
        return (
            f"{line}PSNR {_decibel(m['psnr_db'])} (limit {_decibel(check.limits['psnr_db'])}{own}), "
            f"SSIM {m['ssim']:.5f}, {100 * m['equal_share']:.2f} % equal"
        )
    counts = (f"{value:,} {name.removesuffix('s') if value == 1 else name}" for name, value in m.items())
    return line + ", ".join(counts)


def _step_lines(loop: str, rows: list[StepFigures]) -> list[str]:
    own = rows[0].own_free is not None
    lines = [
        f"{loop}: relative L2 and cosine of the latents after each step",
        f"{'step':>6}{'timestep':>10}{'free running':>15}{'cosine':>12}{'one step':>12}{'cosine':>12}"
        + (f"{'PyTorch free':>15}{'one step':>12}" if own else ""),
    ]
    for row in rows:
        line = (
            f"{row.step:6}{row.timestep:10}{_number(row.free.rel_l2):>15}{row.free.cosine:12.8f}"
            f"{_number(row.forced.rel_l2):>12}{row.forced.cosine:12.8f}"
        )
        if row.own_free is not None and row.own_forced is not None:
            line += f"{_number(row.own_free.rel_l2):>15}{_number(row.own_forced.rel_l2):>12}"
        lines.append(line)
    return lines


def _number(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "nan"


def _decibel(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "infinite"
