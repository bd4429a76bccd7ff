# SPDX-License-Identifier: Apache-2.0
"""The preview kernel, run on the CPU, bit for bit against its NumPy twin."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_trt.engine.bundle.manifest import PreviewEntry
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.latents import step_table
from lamp_trt.runtime.algorithm.preview import clean_table, colour_table, preview_frames
from lamp_trt.runtime.kernels.preview import preview
from tests.doubles.cpu_kernels import Loop, Memory, RecordingLauncher, device, launcher

ENTRY = PreviewEntry(
    ((0.3, 0.2, -0.1, 0.05), (0.1, -0.4, 0.2, 0.0), (-0.2, 0.1, 0.3, 0.6)), (0.1, -0.05, 0.0), 0.9, "key"
)


def check(
    memory: Memory,
    shape: tuple[int, ...],
    dtype: Any,
    launch: RecordingLauncher,
    *,
    steps: int = 3,
    guidance_scale: float = 7.5,
    levels: int = 0,
    seed: int = 0,
) -> None:
    """Every step of a loop of the UNet's input shape (b, c, [f,] h, w): at most `levels` from the twin."""
    rng = np.random.default_rng(seed)
    loop = Loop(memory, shape, dtype)
    loop.latents[...] = rng.standard_normal(loop.latents.shape)
    loop.noise_pred[...] = rng.standard_normal(shape)
    frames = 1 if len(shape) == 4 else shape[2]
    shown = memory.empty((frames, *shape[-2:], 3), np.uint8)
    colours = memory.array(colour_table(ENTRY))
    schedule = ddim_schedule(steps)
    rows = step_table(schedule, guidance_scale=guidance_scale, step_frame_0=len(shape) == 4)
    clean = clean_table(schedule)
    for step in range(steps):
        preview(
            launch,
            loop.arrays,
            device(colours),
            device(shown),
            step=step,
            num_steps=steps,
            row=rows[step],
            clean=(float(clean[step, 0]), float(clean[step, 1])),
        )
        before = loop.latents_before(step, steps)
        want = preview_frames(before, loop.noise_pred, rows[step], clean[step], colour_table(ENTRY))
        assert np.abs(shown.astype(int) - want).max() <= levels
        assert len(np.unique(want)) > 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "shape",
    [(2, 4, 5, 8, 8), (2, 4, 3, 5, 7), (2, 4, 40, 64), (2, 4, 9, 11), (1, 4, 2, 16, 24), (2, 4, 1, 1, 1)],
)
def test_the_kernels_pictures_are_the_twins(memory: Memory, shape: tuple[int, ...], dtype: Any) -> None:
    launch = launcher()
    check(memory, shape, dtype, launch, guidance_scale=1.0 if shape[0] == 1 else 7.5, steps=3)
    assert launch.launched == [f"lamp_preview_f{np.dtype(dtype).itemsize * 8}"] * 3


def test_contracted_arithmetic_changes_a_level_at_most(memory: Memory) -> None:
    check(memory, (2, 4, 4, 16, 16), np.float16, launcher(fused_multiply_add=True), levels=1)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 20)] * 2),
    frames=st.integers(0, 5),
    dtype=st.sampled_from([np.float16, np.float32]),
    steps=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_pictures_of_any_size_are_the_twins(
    size: tuple[int, int], frames: int, dtype: Any, steps: int, seed: int
) -> None:
    shape = (2, 4, *([frames] if frames else []), *size)
    memory = Memory()
    if np.prod(shape) > 2 * 4:
        check(memory, shape, dtype, launcher(seed), steps=steps, seed=seed)
    memory.check()


def test_the_given_frame_is_shown_as_it_is(memory: Memory) -> None:
    """Whatever is predicted for it, also if that is not finite."""
    loop = Loop(memory, (2, 4, 2, 8, 8))
    loop.latents[...] = np.random.default_rng(0).standard_normal(loop.latents.shape)
    loop.noise_pred[...] = 0
    loop.noise_pred[:, :, 0] = np.nan
    schedule = ddim_schedule(2)
    row, clean, colours = (
        step_table(schedule, guidance_scale=2)[0],
        clean_table(schedule)[0],
        colour_table(ENTRY),
    )
    shown = memory.empty((2, 8, 8, 3), np.uint8)
    on_device = device(memory.array(colours))
    options: dict[str, Any] = {
        "step": 0,
        "num_steps": 2,
        "row": row,
        "clean": (float(clean[0]), float(clean[1])),
    }
    preview(launcher(), loop.arrays, on_device, device(shown), **options)
    before = loop.latents_before(0, 2)
    np.testing.assert_array_equal(shown, preview_frames(before, loop.noise_pred, row, clean, colours))
    still = np.rint(
        np.clip((colours[:, :4] @ before[0, :, 0].reshape(4, -1)).T + colours[:, 4], -1, 1) * 127.5 + 127.5
    )
    assert np.abs(shown[0].reshape(-1, 3) - still).max() <= 1


@pytest.mark.parametrize(("value", "level"), [(np.nan, 0), (np.inf, 255), (-np.inf, 0)])
def test_what_is_not_finite_has_a_defined_level(memory: Memory, value: float, level: int) -> None:
    loop = Loop(memory, (2, 4, 2, 4, 4))
    loop.latents[...], loop.noise_pred[...] = 0, 0
    loop.latents[:, 1, 1, 2, 3] = value
    colours = np.zeros((3, 5), np.float32)
    colours[:, 1] = 1
    schedule = ddim_schedule(2)
    row, clean = step_table(schedule, guidance_scale=2)[0], clean_table(schedule)[0]
    shown = memory.empty((2, 4, 4, 3), np.uint8)
    options: dict[str, Any] = {
        "step": 0,
        "num_steps": 2,
        "row": row,
        "clean": (float(clean[0]), float(clean[1])),
    }
    preview(launcher(), loop.arrays, device(memory.array(colours)), device(shown), **options)
    want = np.full((2, 4, 4, 3), 128, np.uint8)
    want[1, 2, 3] = level
    np.testing.assert_array_equal(shown, want)
    np.testing.assert_array_equal(
        preview_frames(loop.latents_before(0, 2), loop.noise_pred, row, clean, colours), want
    )


@pytest.mark.parametrize(
    ("shape", "frames", "step", "message"),
    [
        ((2, 4, 2, 4, 4), (2, 4, 4, 3), 2, "step is 2"),
        ((2, 4, 2, 4, 4), (1, 4, 4, 3), 0, r"frames is uint8 \(1, 4, 4, 3\); expected uint8 \(2, 4, 4, 3\)"),
        ((2, 16, 2, 4, 4), (2, 4, 4, 3), 0, "latents have 16 channels; previews are of 4"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    memory: Memory, shape: tuple[int, ...], frames: tuple[int, ...], step: int, message: str
) -> None:
    loop = Loop(memory, shape)
    colours = device(memory.array(colour_table(ENTRY)))
    schedule = ddim_schedule(2)
    row = step_table(schedule, guidance_scale=2)[0]
    with pytest.raises(InputError, match=message):
        preview(
            launcher(),
            loop.arrays,
            colours,
            device(memory.empty(frames, np.uint8)),
            step=step,
            num_steps=2,
            row=row,
            clean=(1.0, 0.0),
        )
