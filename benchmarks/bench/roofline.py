# SPDX-License-Identifier: Apache-2.0
"""How far a network is from what the machine could do: measured time over the floor that its work sets.

The floor is the longer of two times: operations at the fastest product of matrices that was measured in the
same run, and bytes at the speed of a copy. It is a floor for the graph's arithmetic at its own precision;
another algorithm with fewer operations may pass below it, and then the share is more than 1.
"""

from dataclasses import dataclass

from lamp_trt.benchmarks.bench.compare import RULER
from lamp_trt.benchmarks.bench.entries.ceilings import COPY
from lamp_trt.benchmarks.bench.measurement import Measurement
from lamp_trt.benchmarks.bench.result import BenchResult


@dataclass(frozen=True)
class Ceilings:
    """Of this machine in this run, per second."""

    flops: float
    bytes_moved: float

    @property
    def ridge(self) -> float:
        """Operations per byte from which on arithmetic is what limits."""
        return self.flops / self.bytes_moved


@dataclass(frozen=True)
class Roof:
    """One measurement under the roof. share: floor over measured time, 1 is the machine's limit."""

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
    """The best that was measured of either kind; None if one is missing."""
    products = [m.flops / m.median_s for m in result.measurements if m.name == RULER]
    copies = [m.bytes_moved / m.median_s for m in result.measurements if m.name == COPY]
    if not products or not copies:
        return None
    return Ceilings(max(products), max(copies))


def roofs(result: BenchResult) -> list[Roof]:
    """Every network and peer whose work is counted; empty without ceilings."""
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
