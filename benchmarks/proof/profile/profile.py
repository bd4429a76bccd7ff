# SPDX-License-Identifier: Apache-2.0
"""A step's launches and floors as figures for the report."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lamp_trt.benchmarks.proof.profile.floor import Ceilings
from lamp_trt.benchmarks.proof.profile.kinds import GAPS
from lamp_trt.benchmarks.proof.profile.trace import Launch, busy_us, span_us

TOP = 40
"""Kernels that the report lists."""


def figures(
    title: str, source: str, found: Sequence[Launch], floors_ms: Mapping[str, float], ceilings: Ceilings
) -> dict[str, Any]:
    """title: what was profiled; source: how. Times in ms; share: of the step; of_floor: floor over time."""
    step_us = span_us(found)
    times: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for launch in found:
        times[launch.kind] += launch.us
        calls[launch.kind] += 1
    times[GAPS] = step_us - busy_us(found)
    kinds = [
        _row(kind, calls[kind], us, step_us, floors_ms.get(kind))
        for kind, us in sorted(times.items(), key=lambda item: -item[1])
    ]
    unseen = [_row(kind, 0, 0.0, step_us, floor) for kind, floor in floors_ms.items() if kind not in times]
    return {
        "title": title,
        "source": source,
        "step_ms": step_us / 1e3,
        "floor_ms": sum(floors_ms.values()),
        "launches": len(found),
        "ceilings": asdict(ceilings),
        "kinds": [*kinds, *unseen],
        "kernels": _top(found, step_us),
    }


def _row(kind: str, calls: int, us: float, step_us: float, floor_ms: float | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "calls": calls,
        "ms": us / 1e3,
        "share": us / step_us if step_us else 0.0,
        "floor_ms": floor_ms,
        "of_floor": 1e3 * floor_ms / us if floor_ms is not None and us else None,
    }


def _top(found: Sequence[Launch], step_us: float) -> list[dict[str, Any]]:
    """The kernels that take most, calls of one name and kind together."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for launch in found:
        times[launch.name, launch.kind].append(launch.us)
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))[:TOP]
    return [
        {"name": name, "kind": kind, "calls": len(us), "ms": sum(us) / 1e3, "share": sum(us) / step_us}
        for (name, kind), us in ranked
    ]
