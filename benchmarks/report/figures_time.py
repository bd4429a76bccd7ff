# SPDX-License-Identifier: Apache-2.0
"""Figures of times: stages of a video, scatter of calls, shares of operators, changes."""

from collections.abc import Sequence

import numpy as np

from lamp_trt.benchmarks.bench.compare import Change
from lamp_trt.benchmarks.bench.measurement import Measurement
from lamp_trt.benchmarks.bench.result import BenchResult
from lamp_trt.benchmarks.report.numbers import percent, seconds
from lamp_trt.benchmarks.report.svg import (
    ROW,
    SERIES,
    WIDTH,
    Scale,
    bar,
    dot,
    figure,
    label,
    legend,
    line,
    path,
    scale,
    x_axis,
)

RIGHT = WIDTH - 20
_CLOSE, _WIDE = (0.5, 0.8, 1.0, 1.25, 2.0), (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)


def waterfall(m: Measurement) -> str:
    """Draw the stages of a video one after another, in medians."""
    total = sum(m.parts.values())
    x = Scale(0, total, 112, RIGHT - 104)
    drawn, start, y = [], 0.0, 4
    for stage, spent in m.parts.items():
        words = f"{seconds(spent)}, {percent(spent / total)}"
        drawn += [
            label(104, y + 14, stage.replace("_", " "), "end"),
            bar(x(start), y + 3, x(start + spent) - x(start), ROW - 6, "s0", f"{stage}: {words}"),
            label(WIDTH - 6, y + 14, words, "end", "value"),
        ]
        start, y = start + spent, y + ROW
    drawn += x_axis(x, 2, y + 2, seconds)
    return figure(y + 24, drawn, f"{m.name}: {', '.join(f'{s} {seconds(v)}' for s, v in m.parts.items())}")


def scatter(rows: Sequence[Measurement]) -> str:
    """Draw every call as a dot, the middle 80 % as a bar, the median as a stroke; time on a logarithmic
    axis."""
    x = scale([s for m in rows for s in m.samples_s], 8, RIGHT, log=True)
    height = 2 * ROW
    drawn, bottom = [], height * len(rows) + 4
    drawn += x_axis(x, 2, bottom, seconds)
    for number, m in enumerate(rows):
        y = height * number + 4
        low, high = m.percentile_s(10), m.percentile_s(90)
        drawn.append(label(8, y + 12, f"{m.name} · {m.backend}"))
        drawn.append(label(RIGHT + 12, y + 12, seconds(m.median_s), "end", "value"))
        drawn.append(bar(x(low), y + 19, x(high) - x(low), 10, "band"))
        heights = np.random.default_rng(0).uniform(-4, 4, len(m.samples_s))
        drawn += [dot(x(s), y + 24 + h, 1.6, "s0") for s, h in zip(m.samples_s, heights, strict=True)]
        drawn.append(line(x(m.median_s), y + 16, x(m.median_s), y + 32, "median"))
    return figure(bottom + 22, drawn, "Scatter of the calls of every row")


def operator_shares(operators: dict[str, dict[str, float]]) -> str:
    """Draw each network's time as a bar of shares by operator; the smaller ones are summed as "others"."""
    totals = {network: sum(spent.values()) for network, spent in operators.items()}
    weight: dict[str, float] = {}
    for network, spent in operators.items():
        for name, value in spent.items():
            weight[name] = weight.get(name, 0.0) + value / totals[network]
    shown = sorted(weight, key=lambda name: -weight[name])[: SERIES - 1]
    drawn, y = legend([*shown, "others"], 0)
    x = Scale(0, 1, 8, RIGHT)
    for network, spent in operators.items():
        drawn.append(label(8, y + 12, network))
        drawn.append(label(RIGHT, y + 12, seconds(totals[network]), "end", "value"))
        shares = [spent.get(name, 0.0) / totals[network] for name in shown]
        at = 0.0
        for number, (name, share) in enumerate(
            zip([*shown, "others"], [*shares, 1 - sum(shares)], strict=True)
        ):
            drawn.append(
                bar(x(at), y + 17, x(at + share) - x(at) - 1, 14, f"s{number}", f"{name}: {percent(share)}")
            )
            at += share
        y += 2 * ROW
    return figure(y, drawn, "Shares of operators in each network's time")


def changes(rows: Sequence[Change]) -> str:
    """Draw new medians over old ones: the noise as a band around 1, slower to the right, faster to the
    left."""
    ratios = [c.ratio for c in rows] + [1 + c.noise for c in rows] + [1 / (1 + c.noise) for c in rows]
    x = Scale(min(0.8, *ratios) / 1.05, max(1.25, *ratios) * 1.05, 8, RIGHT, log=True)
    height = 2 * ROW
    bottom = height * len(rows) + 4
    drawn = [
        part
        for tick in (_WIDE if x.high / x.low > 6 else _CLOSE)
        if x.low < tick < x.high
        for part in (
            line(x(tick), 2, x(tick), bottom, "grid"),
            label(x(tick), bottom + 15, f"{tick:g}x", "middle"),
        )
    ]
    kinds = {"slower": "bad", "faster": "good", "same": "neutral", "too few samples": "neutral"}
    for number, c in enumerate(rows):
        y = height * number + 4
        low, high = x(1 / (1 + c.noise)), x(1 + c.noise)
        drawn += [
            label(8, y + 12, f"{c.name} · {c.backend}"),
            label(RIGHT + 12, y + 12, f"{c.ratio:.2f}x, {c.verdict}", "end", "value"),
            bar(low, y + 19, high - low, 10, "band", f"noise ± {percent(c.noise)}"),
            dot(x(c.ratio), y + 24, 4.5, kinds[c.verdict], f"{seconds(c.old_s)} → {seconds(c.new_s)}"),
        ]
    return figure(bottom + 22, drawn, "Changes against the earlier run")


def history(result: BenchResult, names: Sequence[tuple[str, str]]) -> str:
    """Draw medians over the compared commits, each relative to its first; the last point is this run."""
    runs = [{(n, b): s for n, b, s in run["medians"]} for run in result.history]
    runs.append({m.key: m.median_s for m in result.measurements})
    commits = [run["commit"][:7] or run["date"] for run in result.history] + [
        result.machine["commit"][:7] or result.machine["date"]
    ]
    series = {key: [run.get(key) for run in runs] for key in names[:SERIES]}
    curves = {
        f"{key[0]} · {key[1]}": [(at, v / values[0]) for at, v in enumerate(values) if v is not None]
        for key, values in series.items()
        if values[0]
    }
    if not curves:
        return ""
    drawn, top = legend(list(curves), 0)
    bottom = top + 150
    x = Scale(0, max(len(runs) - 1, 1), 80, RIGHT - 30)
    y = scale([v for points in curves.values() for _, v in points] + [1.25], bottom, top)
    for tick in y.ticks():
        drawn += [line(48, y(tick), RIGHT, y(tick), "grid"), label(42, y(tick) + 4, f"{tick:g}x", "end")]
    drawn += [label(x(at), bottom + 16, commit, "middle") for at, commit in enumerate(commits)]
    for number, points in enumerate(curves.values()):
        placed = [(x(at), y(value)) for at, value in points]
        drawn.append(path(placed, f"curve c{number}"))
        drawn += [dot(*point, 3, f"s{number}") for point in placed]
    return figure(bottom + 22, drawn, "Medians over commits, relative to the first")
