# SPDX-License-Identifier: Apache-2.0
"""A profile as tables of text."""

from collections.abc import Iterator, Mapping
from typing import Any

from lamp_trt.benchmarks.report.numbers import percent
from lamp_trt.benchmarks.report.tables import Table

NAME_WIDTH = 100
"""Characters of a kernel's name."""


def profile_tables(profile: Mapping[str, Any]) -> Iterator[Table]:
    """By kind, then the kernels that take most."""
    ceilings = profile["ceilings"]
    note = (
        f"{profile['source']}. {profile['step_ms']:.2f} ms in {profile['launches']} launches, floor "
        f"{profile['floor_ms']:.2f} ms at {ceilings['flops_per_s'] / 1e12:.0f} TFLOP/s and "
        f"{ceilings['bytes_per_s'] / 1e9:.0f} GB/s, measured here."
    )
    kinds = [
        (
            row["kind"],
            str(row["calls"]),
            f"{row['ms']:.3f}",
            percent(row["share"]),
            "" if row["floor_ms"] is None else f"{row['floor_ms']:.3f}",
            "" if row["of_floor"] is None else percent(row["of_floor"]),
        )
        for row in profile["kinds"]
    ]
    header = ("kind", "launches", "ms", "of the step", "floor, ms", "floor over time")
    yield Table(f"Time by kind: {profile['title']}", header, kinds, note, frozenset({0}))
    kernels = [
        (
            row["name"][:NAME_WIDTH],
            row["kind"],
            str(row["calls"]),
            f"{row['ms']:.3f}",
            f"{1e3 * row['ms'] / row['calls']:.1f}",
            percent(row["share"]),
        )
        for row in profile["kernels"]
    ]
    header = ("kernel", "kind", "launches", "ms", "us each", "of the step")
    yield Table(f"Kernels: {profile['title']}", header, kernels, left=frozenset({0, 1}))
