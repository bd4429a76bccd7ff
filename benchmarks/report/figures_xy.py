# SPDX-License-Identifier: Apache-2.0
"""Figures of one quantity over another: roofline, error by step, growth."""

from collections.abc import Mapping, Sequence
from typing import Any

from lamp_trt.benchmarks.bench.roofline import Ceilings, Roof
from lamp_trt.benchmarks.report.numbers import amount, percent, seconds
from lamp_trt.benchmarks.report.svg import (
    ROW,
    SERIES,
    WIDTH,
    Scale,
    dot,
    figure,
    label,
    legend,
    line,
    path,
    scale,
    x_axis,
    y_axis,
)

LEFT, RIGHT, HEIGHT = 62, WIDTH - 16, 220


def roofline(roofs: Sequence[Roof], limits: Ceilings) -> str:
    """Draw speed over operations per byte, below the limits of copy and arithmetic, with a numbered list."""
    top, bottom = 10, HEIGHT
    intensities = [roof.intensity for roof in roofs] + [limits.ridge]
    speeds = [roof.flops_per_s for roof in roofs] + [limits.flops]
    x = scale([min(intensities) / 2, max(intensities) * 2], LEFT, RIGHT, log=True)
    y = scale([min(speeds) / 2, max(speeds)], bottom, top, log=True)
    roof_line = [
        (x(at), y(max(min(limits.flops, at * limits.bytes_moved), y.low)))
        for at in (x.low, limits.ridge, x.high)
    ]
    drawn = [
        *x_axis(x, top, bottom, lambda tick: f"{tick:g}"),
        *y_axis(y, LEFT, RIGHT, lambda tick: amount(tick, "")),
        label(RIGHT, bottom + 31, "FLOP per byte", "end"),
        label(LEFT, bottom + 31, "FLOP/s (upwards)"),
        path(roof_line, "roof"),
    ]
    row = bottom + 40
    for number, roof in enumerate(roofs):
        at = x(roof.intensity), y(roof.flops_per_s)
        words = f"{roof.name} · {roof.backend}: {amount(roof.flops_per_s, 'FLOP/s')}, {percent(roof.share)}"
        drawn += [dot(*at, 8, "s0", words), label(at[0], at[1] + 4, str(number + 1), "middle", "inside")]
        drawn.append(label(8, row + 14, f"{number + 1}  {words} of the limit"))
        row += ROW
    return figure(row + 6, drawn, "Roofline: speed over operations per byte")


def step_errors(steps: Sequence[Mapping[str, Any]]) -> str:
    """Draw the relative L2 of the latents to PyTorch's in fp32 after every step, on a logarithmic axis."""
    kinds = {
        "free_running": "each from its own latents",
        "teacher_forced": "one step from PyTorch's",
        "own_free_running": "PyTorch itself at this precision",
        "own_teacher_forced": "the same, one step",
    }
    curves = {
        words: [(int(row["step"]), row[kind]["rel_l2"]) for row in steps if row[kind]["rel_l2"]]
        for kind, words in kinds.items()
        if kind in steps[0]
    }
    curves = {words: points for words, points in curves.items() if points}
    if not curves:
        return ""
    drawn, top = legend(list(curves), 0)
    bottom = top + 170
    x = Scale(0, max(len(steps) - 1, 1), LEFT, RIGHT)
    y = scale([value for points in curves.values() for _, value in points], bottom, top, log=True)
    drawn += y_axis(y, LEFT, RIGHT, lambda tick: f"{tick:.0e}")
    for step in range(0, len(steps), max(1, len(steps) // 10)):
        drawn.append(label(x(step), bottom + 15, str(step), "middle"))
    drawn.append(label(RIGHT, bottom + 31, "step", "end"))
    for number, points in enumerate(curves.values()):
        placed = [(x(step), y(value)) for step, value in points]
        drawn.append(path(placed, f"curve c{number}"))
        drawn += [dot(*point, 2.5, f"s{number}") for point in placed]
    return figure(bottom + 36, drawn, "Relative error of the latents after every step")


def growth(points: Sequence[Mapping[str, Any]]) -> str:
    """Draw seconds and peak memory over the work of a step, from 0: a straight line is proportional
    growth."""
    x = scale([p["flops"] for p in points], LEFT, RIGHT)
    axes = sorted({p["axis"] for p in points})
    drawn, top = legend(axes, 0)
    for kind, words in (("seconds", seconds), ("peak_bytes", lambda v: amount(v, "B"))):
        bottom = top + 120
        y = scale([p[kind] for p in points], bottom, top + 8)
        drawn += y_axis(y, LEFT, RIGHT, words)
        drawn.append(line(LEFT, bottom, RIGHT, bottom, "grid"))
        for number, axis in enumerate(axes):
            own = sorted((p for p in points if p["axis"] == axis), key=lambda p: p["flops"])
            placed = [(x(p["flops"]), y(p[kind])) for p in own]
            drawn.append(path(placed, f"curve c{number % SERIES}"))
            drawn += [
                dot(*at, 3, f"s{number % SERIES}", f"{p['label']}: {words(p[kind])}")
                for at, p in zip(placed, own, strict=True)
            ]
        top = bottom + 14
    drawn += [label(x(tick), top + 4, amount(tick, "FLOP"), "middle") for tick in x.ticks()[1:]]
    return figure(top + 14, drawn, "Time and peak memory of a step over its work")
