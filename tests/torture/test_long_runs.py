# SPDX-License-Identifier: Apache-2.0
"""Thousands of videos and motion switches in one process: memory and file handles flat, results equal."""

import gc
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

import lamp_trt
from lamp_trt.engine.errors import BundleError
from lamp_trt.runtime.pipeline import LampPipeline
from tests.fixtures.torture import Budget, Tally

pytestmark = pytest.mark.torture
WARM_UP = 100
GROWTH = 0.02
"""Of resident memory after the warm-up. An unfreed latent of the toy would be 0.3 % in a thousand rounds, an
unfreed session 2 % in one."""


@pytest.fixture(scope="module")
def pipe(toy_bundle: Path) -> LampPipeline:
    return lamp_trt.load(toy_bundle, num_threads=1)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def repeat(
    what: str,
    action: Callable[[int], None],
    rounds: Iterable[int],
    tally: Tally,
    warm_up: int = WARM_UP,
) -> None:
    """Do `action` again and again; after `warm_up` rounds memory and handles must stay where they are."""
    start = (0, 0)
    for number in rounds:
        action(number)
        tally(what, 1)
        if number + 1 == warm_up:
            gc.collect()
            start = (resident_bytes(), open_files())
    if not start[0]:
        pytest.skip(f"the budget ended before the warm-up of {warm_up} {what}")
    gc.collect()
    grown = resident_bytes() / start[0] - 1
    tally(f"largest growth of memory over {what}, percent", 100 * grown)
    tally(f"largest growth of open files over {what}", open_files() - start[1])
    assert grown < GROWTH
    assert open_files() == start[1]


def test_a_thousand_videos_leak_nothing_and_are_all_the_same(
    pipe: LampPipeline, picture: np.ndarray, budget: Budget, tally: Tally
) -> None:
    first = pipe("a horse runs", first_frame=picture, num_inference_steps=2)

    def make(number: int) -> None:
        video = pipe("a horse runs", first_frame=picture, num_inference_steps=2)
        np.testing.assert_array_equal(video.latents, first.latents)
        np.testing.assert_array_equal(video.frames, first.frames)

    repeat("videos", make, budget.rounds(1000, 0.1), tally)


def test_a_thousand_switches_leak_nothing_and_show_the_right_motion(
    pipe: LampPipeline, picture: np.ndarray, budget: Budget, tally: Tally
) -> None:
    motions = ("rain", "horse_run")
    first = {
        motion: pipe("a", motion=motion, first_frame=picture, num_inference_steps=1).latents
        for motion in motions
    }
    assert not np.array_equal(first["rain"], first["horse_run"])

    def switch(number: int) -> None:
        motion = motions[number % 2]
        video = pipe("a", motion=motion, first_frame=picture, num_inference_steps=1)
        np.testing.assert_array_equal(video.latents, first[motion])

    repeat("motion switches", switch, budget.rounds(1000, 0.2), tally)


def test_loading_again_and_again_leaks_nothing(toy_bundle: Path, budget: Budget, tally: Tally) -> None:
    def load(number: int) -> None:
        lamp_trt.load(toy_bundle, num_threads=1)

    repeat("loads of a bundle", load, budget.rounds(60, 0.1), tally, warm_up=20)


def test_every_failure_a_thousand_times_leaks_nothing(
    pipe: LampPipeline, picture: np.ndarray, budget: Budget, tally: Tally
) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("enough")

    def fail(number: int) -> None:
        with pytest.raises(RuntimeError, match="enough"):
            pipe("a", first_frame=picture, num_inference_steps=2, callback_on_step_end=stop)
        with pytest.raises(BundleError, match="holds no motion 'unknown'"):
            pipe("a", motion="unknown", first_frame=picture)

    repeat("failed videos", fail, budget.rounds(1000, 0.05), tally)
