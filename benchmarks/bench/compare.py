# SPDX-License-Identifier: Apache-2.0
"""Comparison of two benchmark results: which rows became slower, beyond the noise of both runs.

A change counts if the medians differ by more than the scatter of the calls of both runs plus the change of
the machine's own speed. The latter is read from the ruler, a matrix product of fixed size in every run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lamp_trt.benchmarks.bench.measurement import Measurement, sigma
from lamp_trt.engine.errors import LampError

RULER = "matrix product"
"""Name of the measurement of the machine's speed."""

LEAST_SAMPLES = 5
"""Calls needed on both sides. With fewer the scatter is unknown, and no verdict is given."""

LEAST_CHANGE = 0.03
"""Smallest change that is flagged. Link order or page layout alone cause smaller ones."""

SIGMAS = 2.5
"""Threshold in standard deviations of single calls, of both runs combined. A median of n calls has a
standard error of about 1.25/sqrt(n) of one: for ten calls of unchanged code, a sixth of the threshold."""

SMALL_SAMPLES = 3.0
"""The scatter of n calls is multiplied by 1 + SMALL_SAMPLES / n, because few calls underestimate it."""

Verdict = Literal["slower", "faster", "same", "too few samples"]


class SlowerError(LampError, RuntimeError):
    """A row is slower than in the earlier result."""


@dataclass(frozen=True)
class Change:
    """Change of one row between two results. ratio: new median over the old one; noise: |ratio - 1| must
    exceed it to count."""

    name: str
    backend: str
    old_s: float
    new_s: float
    noise: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        return self.new_s / self.old_s

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(old: Sequence[Measurement], new: Sequence[Measurement]) -> list[Change]:
    """Compare every row that both results have, in the order of `new`. Ceilings describe the machine and
    are skipped."""
    before = {row.key: row for row in old}
    drift = _drift(before, new)
    return [
        _change(before[row.key], row, drift) for row in new if row.key in before and row.group != "ceilings"
    ]


def require_not_slower(changes: Sequence[Change]) -> None:
    """Raise SlowerError, naming the largest slow-down, if a row is flagged as slower."""
    slower = sorted((c for c in changes if c.verdict == "slower"), key=lambda c: -c.ratio)
    if slower:
        worst = slower[0]
        raise SlowerError(
            f"{len(slower)} of {len(changes)} rows are slower than before, most {worst.name} "
            f"({worst.backend}): {worst.new_s:.4g} s, it was {worst.old_s:.4g} s; "
            f"{100 * (worst.ratio - 1):.0f} % more, and the noise is {100 * worst.noise:.0f} %."
        )


def _drift(before: Mapping[tuple[str, str], Measurement], new: Sequence[Measurement]) -> float:
    """Return the relative change of the machine's speed; 0 unless both results have the ruler."""
    for row in new:
        if row.name == RULER and row.key in before:
            ratio = row.median_s / before[row.key].median_s
            return max(ratio, 1 / ratio) - 1
    return 0.0


def _change(old: Measurement, new: Measurement, drift: float) -> Change:
    scatter = math.hypot(_scatter(old), _scatter(new))
    noise = max(LEAST_CHANGE, SIGMAS * scatter + drift)
    ratio = new.median_s / old.median_s
    verdict: Verdict = "same"
    if min(len(old.samples_s), len(new.samples_s)) < LEAST_SAMPLES:
        verdict = "too few samples"
    elif ratio > 1 + noise:
        verdict = "slower"
    elif ratio < 1 / (1 + noise):
        verdict = "faster"
    return Change(new.name, new.backend, old.median_s, new.median_s, noise, verdict)


def _scatter(row: Measurement) -> float:
    """Return the standard deviation of a call as a share of the median, widened for few samples."""
    return sigma(row.samples_s) / row.median_s * (1 + SMALL_SAMPLES / len(row.samples_s))
