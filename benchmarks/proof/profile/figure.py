# SPDX-License-Identifier: Apache-2.0
"""A profile as a picture: a bar for each kind, its floor as a darker bar inside."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.benchmarks.report.numbers import percent
from lamp_trt.benchmarks.report.svg import ROW, WIDTH, Scale, bar, figure, label, legend, x_axis

LEFT, RIGHT = 180, WIDTH - 112


def profile_figure(profile: Mapping[str, Any]) -> str:
    """Kinds that took time or have a floor, those that take most first."""
    rows = [row for row in profile["kinds"] if row["ms"] or row["floor_ms"]]
    longest = max((max(row["ms"], row["floor_ms"] or 0.0) for row in rows), default=0.0)
    x = Scale(0.0, longest * 1.05 or 1.0, LEFT, RIGHT)
    drawn, y = legend(["measured", "floor"], 0)
    bottom = y + ROW * len(rows) + 2
    drawn += x_axis(x, y, bottom, lambda ms: f"{ms:g} ms")
    for row in rows:
        floor = row["floor_ms"]
        words = f"{row['ms']:.2f} ms, {percent(row['share'])}"
        tip = words if floor is None else f"{words}; floor {floor:.2f} ms"
        drawn += [
            label(LEFT - 6, y + 14, row["kind"], "end"),
            bar(LEFT, y + 3, x(row["ms"]) - LEFT, ROW - 6, "s0", tip),
            label(WIDTH - 4, y + 14, words, "end", "value"),
        ]
        if floor is not None:
            drawn.append(bar(LEFT, y + 7, x(floor) - LEFT, ROW - 14, "s1", tip))
        y += ROW
    return figure(bottom + 22, drawn, f"Time by kind: {profile['title']}")
