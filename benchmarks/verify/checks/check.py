# SPDX-License-Identifier: Apache-2.0
"""One comparison of `verify`: measured figures, limits, and the problem if one is exceeded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lamp_trt.benchmarks.verify.checks.limits import (
    FP32_CLIP_EQUAL_SHARE,
    FP32_CLIP_PSNR_DB,
    YARDSTICK,
    YARDSTICK_DB,
    Limit,
)
from lamp_trt.benchmarks.verify.metrics import ClipDistance, Distance

Group = Literal["constants", "tokenizer", "weights", "networks", "steps", "clip"]
"""Groups of checks, in the order in which a fault travels: later ones are computed from earlier ones."""


@dataclass(frozen=True)
class Check:
    """One row of the report.

    name       subject of the comparison; motion: its motion, "" if it has none
    measured   figures by name; own: the yardstick's, that is PyTorch's at the bundle's precision
    limits     upper limits of the figures of the same names (lower limits for psnr_db and equal_share)
    problem    what differs and the likely cause; empty if the check passed
    """

    group: Group
    name: str
    motion: str = ""
    measured: Mapping[str, float | int | bool] = field(default_factory=dict)
    own: Mapping[str, float | int | bool] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem

    @property
    def title(self) -> str:
        return f"{self.name}, {self.motion}" if self.motion else self.name

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; null for infinity."""
        return {
            "group": self.group,
            "name": self.name,
            "motion": self.motion,
            "passed": self.passed,
            "problem": self.problem,
            "measured": finite_json(self.measured),
            "own": finite_json(self.own),
            "limits": finite_json(self.limits),
        }


def follows(checks: list[Check]) -> str:
    """Return a cause if one of the earlier `checks` failed, else ""."""
    failed = next((check for check in checks if not check.passed), None)
    return f"it follows from {failed.group}: {failed.title}" if failed else ""


def tensor_check(
    group: Group,
    name: str,
    motion: str,
    ours: Distance,
    own: Distance | None,
    fp32: Limit,
    cause: str,
    times: float = YARDSTICK,
) -> Check:
    """Compare a tensor's distance with its limit: `fp32`, or `times` the yardstick's distance `own` if
    given."""
    if own is None:
        limits = {"max_abs": fp32.max_abs * max(1.0, ours.scale), "rel_l2": fp32.rel_l2}
    else:
        limits = {"rel_l2": times * own.rel_l2}
    problem = ""
    if not ours.finite:
        problem = f"values are not finite; {cause}"
    elif own is not None and not own.finite:
        problem = "the yardstick's own result at this precision is not finite, so nothing can be compared"
    else:
        measured = {"max_abs": ours.max_abs, "rel_l2": ours.rel_l2}
        over = [key for key, limit in limits.items() if not measured[key] <= limit]
        if over:
            key = over[-1]
            problem = f"{key} {measured[key]:.1e} is past its limit {limits[key]:.1e}; {cause}"
    return Check(group, name, motion, figures(ours), {} if own is None else figures(own), limits, problem)


def clip_check(name: str, motion: str, ours: ClipDistance, own: ClipDistance | None, cause: str) -> Check:
    """Compare frames with the limits for fp32, or with PyTorch's own distance `own` if given."""
    if own is None:
        limits = {"equal_share": FP32_CLIP_EQUAL_SHARE, "psnr_db": FP32_CLIP_PSNR_DB}
    else:
        limits = {"psnr_db": own.psnr_db - YARDSTICK_DB}
    problem = ""
    if ours.psnr_db < limits["psnr_db"] or ours.equal_share < limits.get("equal_share", 0):
        problem = (
            f"{100 * ours.equal_share:.1f} % of the values are equal, the others differ by up to "
            f"{ours.max_levels} levels, PSNR {ours.psnr_db:.1f} dB; {cause}"
        )
    own_figures = {} if own is None else clip_figures(own)
    return Check("clip", name, motion, clip_figures(ours), own_figures, limits, problem)


def figures(d: Distance) -> dict[str, float | int | bool]:
    return {"max_abs": d.max_abs, "rel_l2": d.rel_l2, "cosine": d.cosine, "finite": d.finite}


def clip_figures(d: ClipDistance) -> dict[str, float | int | bool]:
    return {
        "psnr_db": d.psnr_db,
        "ssim": d.ssim,
        "max_levels": d.max_levels,
        "equal_share": d.equal_share,
    }


def finite_json(values: Mapping[str, float | int | bool]) -> dict[str, float | int | bool | None]:
    """Replace infinity by null, since JSON has none (a PSNR of equal frames, a distance to NaN)."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
