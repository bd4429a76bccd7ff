# SPDX-License-Identifier: Apache-2.0
"""Tables of the study's results."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.benchmarks.report.numbers import amount, seconds, small
from lamp_trt.benchmarks.report.tables import Table
from lamp_trt.benchmarks.studies.cpu_peers import TWO_VIDEOS, VIDEO

Values = Mapping[str, Any]


def networks_table(values: Values, subject: str) -> Table:
    """Every network by every way; the fastest of one arithmetic is 1.00x."""
    return _table(values, subject, [w for w in values["subjects"][subject] if w not in (VIDEO, TWO_VIDEOS)])


def videos_table(values: Values, subject: str) -> Table:
    return _table(values, subject, [w for w in values["subjects"][subject] if w in (VIDEO, TWO_VIDEOS)])


def _table(values: Values, subject: str, parts: list[str]) -> Table:
    rows = []
    for part in parts:
        ways = values["subjects"][subject][part]
        exact = [figures["cpu_s"] for way, figures in ways.items() if "cpu_s" in figures and not _bf16(way)]
        for way, figures in ways.items():
            rows.append(
                [part, way, *(_cells(figures, min(exact)) if "cpu_s" in figures else _failed(figures))]
            )
    note = (
        f"fp32 except where bf16 is named, on {values['machine']['cpu_threads']} threads of "
        f"{values['machine']['cpu']}. In turns; medians. CPU: of all threads, compared with the least "
        "in fp32. Distance: relative L2 to PyTorch eager in fp32."
    )
    header = ("", "by", "time", "CPU", "to the best", "first call", "loading", "peak", "distance")
    return Table(f"{subject}, every way on a CPU", header, rows, note)


def _cells(figures: Mapping[str, Any], best: float) -> list[str]:
    return [
        seconds(figures["wall_s"]),
        seconds(figures["cpu_s"]),
        f"{figures['cpu_s'] / best:.2f}x",
        seconds(figures["first_s"]),
        seconds(figures["load_s"]),
        amount(figures["peak_bytes"], "B"),
        small(figures["rel_l2"]) if "rel_l2" in figures else "",
    ]


def _failed(figures: Mapping[str, Any]) -> list[str]:
    return [str(figures["failed"]), *[""] * 6]


def _bf16(way: str) -> bool:
    return way.endswith(", bf16")
