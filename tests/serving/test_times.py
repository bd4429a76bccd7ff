# SPDX-License-Identifier: Apache-2.0
"""Estimates of the time that is left: only from measurements, and right where steps take equal time."""

import pytest

from lamp_trt.serving.jobs.store import JobRecord
from lamp_trt.serving.jobs.times import Times, steps_of
from lamp_trt.serving.pools.pool import Progress

CLIP = {"start": 0, "every": 1, "video": None}


def job(name: str, has_frame: bool = True, clip: dict[str, object] | None = None) -> JobRecord:
    options = {"num_inference_steps": 10, "first_frame_num_inference_steps": 20}
    return JobRecord(name, "x", "a", options, 8.0, has_frame, 0.0, clip=clip)


def test_steps_are_those_of_the_loops() -> None:
    assert steps_of(job("a")) == {"denoise": 10}
    assert steps_of(job("a", has_frame=False)) == {"make_first_frame": 20, "denoise": 10}
    assert steps_of(job("a", has_frame=False, clip=CLIP)) == {"invert": 10, "denoise": 10}


def test_nothing_is_estimated_before_it_was_measured() -> None:
    times = Times()
    for each in (job("a"), job("b", has_frame=False)):
        times.add(each)
    assert times.seconds_left(["a"], ["b"], 1) == {}
    times.report(Progress("a", "denoise", 1, 10, 2.0))
    assert times.seconds_left(["a"], ["b"], 1) == {"a": 18.0}  # SDXL's steps are not known yet
    times.finished("a", 23.0)
    times.add(job("c"))
    assert times.seconds_left(["a"], ["c"], 1) == {"a": pytest.approx(21.0), "c": pytest.approx(44.0)}


def test_waiting_jobs_take_the_engine_that_is_free_first() -> None:
    times = Times()
    for name in "abcde":
        times.add(job(name))
    times.report(Progress("a", "denoise", 5, 10, 1.0))
    times.report(Progress("b", "denoise", 8, 10, 1.0))
    left = times.seconds_left(["a", "b"], ["c", "d", "e"], 2)
    assert left == {"a": 5.0, "b": 2.0, "c": 12.0, "d": 15.0, "e": 22.0}
    assert set(times.seconds_left([], ["c"], 0)) == set()


def test_a_cached_inversion_is_not_waited_for() -> None:
    times = Times()
    times.add(job("a", clip=CLIP))
    times.report(Progress("a", "invert", 0, 10, 1.0))
    times.report(Progress("a", "denoise", 4, 10, 1.0))
    assert times.seconds_left(["a"], [], 1) == {"a": 6.0}
    assert times.percent("a") == 70
    times.restart("a")
    assert times.percent("a") == 0
    times.forget("a")
    assert times.seconds_left([], ["a"], 1).get("a") in (None, 0.0)
