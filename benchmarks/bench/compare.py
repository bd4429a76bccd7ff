# SPDX-License-Identifier: Apache-2.0
"""Whether something became slower: two results against the noise that both measured.

A change counts when the medians are further apart than the calls of either run scatter, and than the machine
itself changed between the runs, as the ruler shows: a fixed product of matrices, measured among the rest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lamp_trt.benchmarks.bench.measurement import Measurement, sigma
from lamp_trt.engine.errors import LampError

RULER = "matrix product"
"""Name of the measurement that tells how fast the machine is."""

LEAST_SAMPLES = 5
"""With fewer on either side the scatter is not known, and the change is shown without a verdict."""

LEAST_CHANGE = 0.03
"""Smaller changes are never flagged: another link order or page layout does that to unchanged code."""

SIGMAS = 2.5
"""A change counts beyond so many standard deviations of the calls of both runs. Medians of n calls scatter
about 1.25/sqrt(n) of one such: of ten calls of unchanged code, six times less than what is flagged."""

SMALL_SAMPLES = 3.0
"""The scatter of n calls is taken 1 + SMALL_SAMPLES / n times as large: few calls underestimate it."""

Verdict = Literal["slower", "faster", "same", "too few samples"]


class SlowerError(LampError, RuntimeError):
    """Something is slower than in the results that it was compared with."""


@dataclass(frozen=True)
class Change:
    """Of one row between two results. ratio: new median over the old one; noise: what |ratio - 1| must exceed
    to count."""

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
    """Every row that both have, in the order of `new`. Ceilings are the machine's, and not judged."""
    before = {row.key: row for row in old}
    drift = _drift(before, new)
    return [
        _change(before[row.key], row, drift) for row in new if row.key in before and row.group != "ceilings"
    ]


def require_not_slower(changes: Sequence[Change]) -> None:
    """Raise SlowerError, naming the worst, if a change is flagged as slower."""
    slower = sorted((c for c in changes if c.verdict == "slower"), key=lambda c: -c.ratio)
    if slower:
        worst = slower[0]
        raise SlowerError(
            f"{len(slower)} of {len(changes)} rows are slower than before, most {worst.name} "
            f"({worst.backend}): {worst.new_s:.4g} s, it was {worst.old_s:.4g} s; "
            f"{100 * (worst.ratio - 1):.0f} % more, and the noise is {100 * worst.noise:.0f} %."
        )


def _drift(before: Mapping[tuple[str, str], Measurement], new: Sequence[Measurement]) -> float:
    """How much the machine's own speed changed, as a share; 0 without a ruler in both."""
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
    """Standard deviation of a call as a share of the median, with room for few samples."""
    return sigma(row.samples_s) / row.median_s * (1 + SMALL_SAMPLES / len(row.samples_s))
