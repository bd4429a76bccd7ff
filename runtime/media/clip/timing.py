# SPDX-License-Identifier: Apache-2.0
"""Which frames of a clip are taken: every Nth, by number, or by time if the frame rate varies."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")

_TOLERANCE = 0.1
"""Part of the median interval by which others may differ at a constant rate."""


@dataclass(frozen=True)
class Timing:
    """Times of a clip's frames.

    count     number of frames; at a variable rate, of those on the grid
    interval  median time between frames in seconds; 0 if unknown
    varies    whether intervals differ by more than the container's rounding
    start     time of the first frame in seconds
    shortest, longest  interval in seconds
    """

    count: int
    interval: float = 0.0
    varies: bool = False
    start: float = 0.0
    shortest: float = 0.0
    longest: float = 0.0

    @property
    def fps(self) -> float:
        return 1 / self.interval if self.interval else 0.0


def timing_of(times: Sequence[float], tick: float) -> Timing:
    """The timing of frames at `times`, in seconds and any order. tick: the unit to which the container
    rounds them."""
    ordered = sorted(times)
    gaps = [after - before for before, after in itertools.pairwise(ordered)]
    middle = median(gaps) if gaps else 0.0
    if middle <= 0:
        return Timing(len(ordered))
    allowed = max(1.5 * tick, _TOLERANCE * middle)
    if all(abs(gap - middle) <= allowed for gap in gaps):
        mean = (ordered[-1] - ordered[0]) / len(gaps)
        return Timing(len(ordered), mean, False, ordered[0], min(gaps), max(gaps))
    count = int((ordered[-1] - ordered[0]) / middle + 0.5) + 1
    return Timing(count, middle, True, ordered[0], min(gaps), max(gaps))


def taken(
    frames: Iterable[tuple[float | None, T]], timing: Timing, start: int, every: int, count: int
) -> Iterator[T]:
    """Yield at most `count` of `frames` (time, frame): number `start` and every `every`-th after it.

    At a variable rate, numbers are those of a grid of the median interval: a frame is shown until the next
    one begins, so long frames are taken more than once and short ones may be left out.
    """
    if not timing.varies:
        yield from itertools.islice(
            (frame for _, frame in frames), start, start + every * (count - 1) + 1, every
        )
        return
    numbers = iter(range(start, min(start + every * count, timing.count), every))
    number = next(numbers, None)
    shown: T | None = None
    for time, frame in frames:
        while number is not None and shown is not None and time is not None:
            if time <= timing.start + (number + 0.5) * timing.interval:
                break
            yield shown
            number = next(numbers, None)
        if number is None:
            return
        shown = frame
    while number is not None and shown is not None:
        yield shown
        number = next(numbers, None)
