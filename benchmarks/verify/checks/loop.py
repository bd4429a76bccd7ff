# SPDX-License-Identifier: Apache-2.0
"""Checks of a denoising loop: its inputs, every step, and its results."""

from collections.abc import Callable
from functools import partial

from lamp_trt.benchmarks.verify.checks.check import Check, clip_check, tensor_check
from lamp_trt.benchmarks.verify.checks.limits import (
    FP32_FREE_RUNNING,
    FP32_NETWORK,
    FP32_TEACHER_FORCED,
    Limit,
)
from lamp_trt.benchmarks.verify.metrics import Array, Distance, clip_distance, distance
from lamp_trt.benchmarks.verify.reference.traces import LoopTrace
from lamp_trt.benchmarks.verify.report import StepFigures

Traces = tuple[LoopTrace, LoopTrace, LoopTrace | None]
"""Traces of PyTorch in fp32, of the bundle, and of PyTorch in the bundle's precision if that is a lower
one."""


def step_figures(traces: Traces) -> list[StepFigures]:
    """Return the distances to the first of `traces` after every step."""
    exact, ours, own = traces
    assert ours.forced is not None
    rows = []
    for step, latents in enumerate(exact.steps):
        own_free = own_forced = None
        if own is not None and own.forced is not None:
            own_free, own_forced = distance(own.steps[step], latents), distance(own.forced[step], latents)
        rows.append(
            StepFigures(
                step,
                exact.timesteps[step],
                distance(ours.steps[step], latents),
                distance(ours.forced[step], latents),
                own_free,
                own_forced,
            )
        )
    return rows


def loop_checks(name: str, motion: str, traces: Traces, steps: list[StepFigures], cause: str) -> list[Check]:
    """Compare the loop's inputs, the worst step of each kind, the final latents, and the frames.

    name: prefix of the checks' names, "" for videos.
    """
    exact, ours, own = traces

    def check(what: str, of: Callable[[LoopTrace], Array], limit: Limit) -> Check:
        own_distance = distance(of(own), of(exact)) if own else None
        ours_distance = distance(of(ours), of(exact))
        return tensor_check("steps", f"{name}{what}", motion, ours_distance, own_distance, limit, cause)

    def worst_step(
        what: str, of: Callable[[StepFigures], tuple[Distance, Distance | None]], limit: Limit
    ) -> Check:
        row = max(steps, key=lambda row: of(row)[0].rel_l2)
        own_distances = [d for d in (of(row)[1] for row in steps) if d is not None]
        own_worst = max(own_distances, key=lambda d: d.rel_l2) if own_distances else None
        title = f"{name}{what}, worst: {row.step}"
        return tensor_check("steps", title, motion, of(row)[0], own_worst, limit, cause)

    return [
        *(check(what, partial(_entering, what), FP32_NETWORK) for what in exact.entering),
        worst_step("single steps", lambda row: (row.forced, row.own_forced), FP32_TEACHER_FORCED),
        worst_step("free running", lambda row: (row.free, row.own_free), FP32_FREE_RUNNING),
        check("final latents", lambda trace: trace.final, FP32_FREE_RUNNING),
        clip_check(
            f"{name}frames",
            motion,
            clip_distance(ours.frames, exact.frames),
            clip_distance(own.frames, exact.frames) if own else None,
            cause,
        ),
    ]


def _entering(what: str, trace: LoopTrace) -> Array:
    return trace.entering[what]
