# SPDX-License-Identifier: Apache-2.0
"""Roofline: measured time of a network against the lower bound that its work sets.

The floor is the longer of two times: operations at the fastest matrix product measured in the same run, and
bytes at the speed of a copy. It holds for the graph's arithmetic at its own precision; an algorithm with
fewer operations may be faster, and then its share exceeds 1.
"""

from dataclasses import dataclass

from lamp_trt.benchmarks.bench.compare import RULER
from lamp_trt.benchmarks.bench.entries.ceilings import COPY
from lamp_trt.benchmarks.bench.measurement import Measurement
from lamp_trt.benchmarks.bench.result import BenchResult


@dataclass(frozen=True)
class Ceilings:
    """Limits of this machine in this run, per second."""

    flops: float
    bytes_moved: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which on arithmetic is the limit."""
        return self.flops / self.bytes_moved


@dataclass(frozen=True)
class Roof:
    """One measurement against its floor. share: floor over measured time; 1 is the machine's limit."""

    name: str
    backend: str
    seconds: float
    floor_s: float
    flops_per_s: float
    intensity: float
    bound: str

    @property
    def share(self) -> float:
        return self.floor_s / self.seconds


def ceilings(result: BenchResult) -> Ceilings | None:
    """Return the highest measured limit of either kind; None if one is missing."""
    products = [m.flops / m.median_s for m in result.measurements if m.name == RULER]
    copies = [m.bytes_moved / m.median_s for m in result.measurements if m.name == COPY]
    if not products or not copies:
        return None
    return Ceilings(max(products), max(copies))


def roofs(result: BenchResult) -> list[Roof]:
    """Return the roofline of every network and peer with counted work; empty without ceilings."""
    limits = ceilings(result)
    if limits is None:
        return []
    counted = [m for m in result.measurements if m.group in ("networks", "peers") and m.flops]
    return [_roof(m, limits) for m in counted]


def _roof(m: Measurement, limits: Ceilings) -> Roof:
    compute_s, copy_s = m.flops / limits.flops, m.bytes_moved / limits.bytes_moved
    return Roof(
        m.name,
        m.backend,
        m.median_s,
        max(compute_s, copy_s),
        m.flops / m.median_s,
        m.flops / m.bytes_moved,
        "arithmetic" if compute_s >= copy_s else "memory",
    )
