# SPDX-License-Identifier: Apache-2.0
"""Progress of running jobs, and estimates of the time that is left, from what this server has measured."""

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.serving.jobs.store import JobRecord
from lamp_trt.serving.pools.pool import Progress

STAGES = ("make_first_frame", "invert", "denoise")
"""Loops of a job, in order; most jobs have some of them."""

NEW_WEIGHT = 0.3
"""Weight of a new measurement in a mean."""


def steps_of(job: JobRecord) -> Mapping[str, int]:
    """Steps of each loop of a job, in order."""
    config = GenerationConfig(**job.options)
    first = {} if job.has_frame or job.clip else {"make_first_frame": config.first_frame_num_inference_steps}
    inversion = {"invert": config.num_inference_steps} if job.clip else {}
    return {**first, **inversion, "denoise": config.num_inference_steps}


class Times:
    """Where jobs are, and how long they take. Knows the jobs between `add` and `forget`.

    Nothing is estimated before it was measured: a loop's step by the first steps of any job since the
    server's start; the rest of a job (texts, decoding, writing) by the first finished one, 0 until then.
    """

    def __init__(self) -> None:
        self._steps: dict[str, Mapping[str, int]] = {}
        self._at: dict[str, tuple[str, int, int]] = {}
        self._step_seconds: dict[str, float] = {}
        self._rest_seconds: float | None = None

    def add(self, job: JobRecord) -> None:
        self._steps[job.id] = steps_of(job)

    def forget(self, job: str) -> None:
        self._steps.pop(job, None)
        self._at.pop(job, None)

    def restart(self, job: str) -> None:
        """The job is at its beginning again."""
        self._at.pop(job, None)

    def report(self, event: Progress) -> None:
        if event.step_seconds is not None:
            known = self._step_seconds.get(event.stage)
            self._step_seconds[event.stage] = _mean(known, event.step_seconds)
        if event.job in self._steps:
            self._at[event.job] = (event.stage, event.done, event.total)

    def finished(self, job: str, seconds: float) -> None:
        """The job became a video, `seconds` after its start."""
        loops = self._loops_left(job, from_start=True)
        if loops is not None:
            self._rest_seconds = _mean(self._rest_seconds, max(0.0, seconds - loops))

    def at(self, job: str) -> Mapping[str, Any]:
        """The loop that a job is in, as `stage`, `step` and `steps`; nothing before its first report."""
        return dict(zip(("stage", "step", "steps"), self._at.get(job, ()), strict=False))

    def percent(self, job: str) -> int:
        """Percent of a job's steps, at most 99."""
        steps = self._steps.get(job)
        if steps is None or job not in self._at:
            return 0
        stage, done, _ = self._at[job]
        before = sum(count for name, count in steps.items() if _order(name) < _order(stage))
        return min(99, 100 * (before + done) // max(sum(steps.values()), 1))

    def seconds_left(self, running: Iterable[str], waiting: Iterable[str], engines: int) -> dict[str, float]:
        """Seconds until each job will be finished, of those for which it can be said. engines: that run."""
        left: dict[str, float] = {}
        free = [0.0] * max(engines, 1)
        for place, job in enumerate(running):
            own = self._work_left(job)
            if own is None:
                return left
            left[job] = own
            free[place % len(free)] += own
        heapq.heapify(free)
        for job in waiting:
            own = self._work_left(job)
            if own is None or not engines:
                break
            left[job] = heapq.heappop(free) + own
            heapq.heappush(free, left[job])
        return left

    def _work_left(self, job: str) -> float | None:
        loops = self._loops_left(job)
        return None if loops is None else loops + (self._rest_seconds or 0.0)

    def _loops_left(self, job: str, from_start: bool = False) -> float | None:
        stage, done, _ = ("", 0, 0) if from_start else self._at.get(job, ("", 0, 0))
        total = 0.0
        for name, count in self._steps.get(job, {}).items():
            if _order(name) < _order(stage):
                continue
            if name not in self._step_seconds:
                return None
            total += (count - done if name == stage else count) * self._step_seconds[name]
        return total


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else -1


def _mean(known: float | None, new: float) -> float:
    return new if known is None else known + NEW_WEIGHT * (new - known)
