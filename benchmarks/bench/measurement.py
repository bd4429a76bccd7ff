# SPDX-License-Identifier: Apache-2.0
"""One row of a benchmark: its samples and their statistics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np

Group = Literal["start", "networks", "stages", "videos", "peers", "ceilings", "sweep"]
"""Kind of work of a row. `ceilings` are the machine's limits, measured in the same run."""

ClockName = Literal["wall", "stream", "own"]
"""Clock of a row: the host's, CUDA events on the stream, or seconds that the work measured itself."""

_ROBUST_SIGMA = 2 * 1.2815515655446004
"""p90 - p10 of a normal distribution, in standard deviations."""

_MEDIAN_SE = math.sqrt(math.pi / 2)
"""Standard error of the median of normal numbers over that of their mean."""


@dataclass(frozen=True)
class Measurement:
    """Samples of one row. Times are seconds of one call.

    samples_s    warm calls in order, never empty
    cold_s       the first call after set-up
    setup_s      set-up, which loads the called function's network or pipeline
    settled      the median's standard error reached SETTLED_SHARE; else the budget ended first
    process_s    median CPU time of a warm call over all threads; None if another process or a GPU works
    flops, bytes_moved   counted work of one call; 0 where it is not counted
    parts        medians by stage, for a row that consists of stages
    rel_l2       distance of the cold call's output to the reference's; None without a reference
    reference    name of that reference, "" for none
    """

    name: str
    group: Group
    backend: str
    samples_s: tuple[float, ...]
    cold_s: float
    setup_s: float
    settled: bool
    clock: ClockName = "wall"
    process_s: float | None = None
    flops: int = 0
    bytes_moved: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)
    rel_l2: float | None = None
    reference: str = ""

    def __post_init__(self) -> None:
        if not self.samples_s:
            raise ValueError(f"{self.name} of {self.backend} has no samples")
        if self.group not in get_args(Group) or self.clock not in get_args(ClockName):
            raise ValueError(f"{self.name}: unknown group {self.group!r} or clock {self.clock!r}")

    @property
    def key(self) -> tuple[str, str]:
        """Identity of the row across files."""
        return self.name, self.backend

    @property
    def median_s(self) -> float:
        return self.percentile_s(50)

    def percentile_s(self, percent: float) -> float:
        """Return a percentile of the samples, interpolated linearly."""
        return float(np.percentile(self.samples_s, percent))

    def to_json(self) -> dict[str, Any]:
        """Return the fields and, for readers that do not compute, the statistics."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "samples_s": list(self.samples_s),
            "parts": dict(self.parts),
            "median_s": self.median_s,
            **{f"p{percent}_s": self.percentile_s(percent) for percent in (10, 90, 99)},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Measurement":
        """Read the values of `to_json`; statistics are computed again. KeyError, TypeError or ValueError
        for other values."""
        known = {f.name: values[f.name] for f in fields(cls)}
        return cls(**{**known, "samples_s": tuple(map(float, values["samples_s"]))})


def sigma(samples_s: tuple[float, ...]) -> float:
    """Return the standard deviation estimated as for a normal distribution from p90 - p10. A stray slow
    call does not widen it."""
    low, high = np.percentile(samples_s, (10, 90))
    return float(high - low) / _ROBUST_SIGMA


def median_error(samples_s: tuple[float, ...]) -> float:
    """Return the standard error of the median in seconds; infinite for a single sample."""
    if len(samples_s) < 2:
        return math.inf
    return _MEDIAN_SE * sigma(samples_s) / math.sqrt(len(samples_s))
