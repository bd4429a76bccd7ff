# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule, ddim_schedule, step_coefficients
from lamp_trt.runtime.algorithm.latents import (
    STEP_ROW,
    StepMode,
    adain,
    adain_mode,
    apply_row,
    denoise_step,
    final_adain,
    guided,
    mix_noise,
    posterior_sample,
    step_table,
    with_first_frame,
)
from tests.tolerances import ADAIN_FP64_RTOL, STEP_TABLE_ATOL


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=(-2, -1), dtype=np.float64), x.std(axis=(-2, -1), dtype=np.float64)


def test_a_log_variance_that_is_not_finite_shows_in_the_sample_instead_of_being_clamped() -> None:
    mean, noise = normal(1, 4, 5, 7), normal(1, 4, 5, 7, seed=1)
    logvar = np.full_like(mean, -40)  # clamped to -30
    logvar[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    sample = posterior_sample(mean, logvar, noise, 0.5)[:, :, 0]
    assert np.isnan(sample[0, 0, 0, :3]).all()
    sound = np.isfinite(logvar)
    expected = (mean + np.exp(np.float32(-15)) * noise) * 0.5
    np.testing.assert_allclose(sample[sound], expected[sound], rtol=1e-6, atol=0)


@pytest.mark.parametrize("frames", [1, 2, 16])
def test_mixed_noise_is_one_fifth_frame_0s_noise(frames: int) -> None:
    noise, first = normal(1, 4, frames, 5, 7), normal(1, 4, 1, 5, 7, seed=1)
    mixed = mix_noise(noise, first)
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed[:, :, :1], first)
    np.testing.assert_allclose(
        mixed[:, :, 1:], 0.2 * noise[:, :, :1] + 0.8 * noise[:, :, 1:], rtol=0, atol=1e-6
    )


def test_a_separate_base_takes_frame_0s_place() -> None:
    noise, first, base = normal(1, 4, 3, 4, 4), normal(1, 4, 1, 4, 4, seed=1), normal(1, 4, 1, 4, 4, seed=2)
    mixed = mix_noise(noise, first, base)
    np.testing.assert_allclose(mixed[:, :, 1:], 0.2 * base + 0.8 * noise[:, :, 1:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(mixed[:, :, :1], first)


def test_mixing_keeps_its_inputs() -> None:
    noise, first = normal(1, 4, 3, 4, 4), normal(1, 4, 1, 4, 4, seed=1)
    copy = noise.copy()
    with_first_frame(noise, first)
    mix_noise(noise, first)
    np.testing.assert_array_equal(noise, copy)


def test_adain_gives_the_content_the_styles_statistics() -> None:
    content, style = normal(2, 4, 9, 5), 3 * normal(2, 4, 9, 5, seed=1) + 2
    out = adain(content, style)
    for got, want in zip(statistics(out), statistics(style), strict=True):
        np.testing.assert_allclose(got, want, rtol=ADAIN_FP64_RTOL)
    assert out.dtype == np.float32


def test_adain_of_a_constant_channel_is_the_styles_mean() -> None:
    out = adain(np.full((1, 1, 4, 4), 5, np.float32), normal(1, 1, 4, 4))
    np.testing.assert_allclose(out, normal(1, 1, 4, 4).mean(), rtol=1e-6)


def test_adain_of_one_pixel_is_refused() -> None:
    with pytest.raises(InputError, match="2 latent pixels"):
        adain(normal(1, 4, 1, 1), normal(1, 4, 1, 1))


LATE = {
    "official": StepMode.FRAME_1_TO_FRAME_0 | StepMode.REST_TO_FRAME_1,
    "paper": StepMode.ALL_TO_FRAME_0,
}


@pytest.mark.parametrize(
    ("preset", "last_early"), [("official", 30), ("paper", 28)], ids=["official", "paper"]
)
def test_the_schedule_matches_to_the_second_frame_first(preset: Any, last_early: int) -> None:
    assert adain_mode(last_early, preset) == StepMode.REST_TO_FRAME_1
    assert adain_mode(last_early + 1, preset) == LATE[preset]


def test_the_switch_step_and_the_ablations_choose_the_mode() -> None:
    assert adain_mode(0, adain_switch_step=0) == LATE["official"]
    assert adain_mode(40, adain_switch_step=41) == StepMode.REST_TO_FRAME_1
    assert adain_mode(0, adain="first_frame") == LATE["official"]
    assert {adain_mode(i, adain="none") for i in range(50)} == {StepMode.NONE}


def official_step(
    latents: np.ndarray, noise_pred: np.ndarray, step: int, schedule: DDIMSchedule, guidance: float
) -> np.ndarray:
    """The official step in float64, frame by frame with its snapshot, as docs/algorithm.md states it."""
    x, pred = latents[0].astype(np.float64), noise_pred.astype(np.float64)
    e = pred[0] + guidance * (pred[1] - pred[0])
    a, b = float(schedule.alpha_t[step]), float(schedule.alpha_prev[step])
    x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
    x[:, 1:] = (b**0.5 * x0 + (1 - b) ** 0.5 * e)[:, 1:]
    for f in range(1, x.shape[1]):
        snapshot = x.copy()
        if step > 30:
            x[:, f] = adain(snapshot[:, f], snapshot[:, 0])
        if f > 1:
            x[:, f] = adain(snapshot[:, f], snapshot[:, 1])
    return x[None]


@pytest.mark.parametrize("frames", [1, 2, 3, 16])
@pytest.mark.parametrize("step", [0, 30, 31, 49])
def test_a_step_is_the_official_step(frames: int, step: int) -> None:
    schedule = ddim_schedule(50)
    latents, noise_pred = normal(1, 4, frames, 5, 7), normal(2, 4, frames, 5, 7, seed=1)
    before = latents.copy()
    got = denoise_step(latents, noise_pred, step, schedule, guidance_scale=12.5)
    want = official_step(latents, noise_pred, step, schedule, 12.5)
    np.testing.assert_allclose(got, want, rtol=0, atol=STEP_TABLE_ATOL * np.abs(want).max())
    np.testing.assert_array_equal(got[:, :, 0], latents[:, :, 0])
    np.testing.assert_array_equal(latents, before)
    assert got.dtype == np.float32


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_without_guidance_the_conditional_prediction_is_used_alone(scale: float) -> None:
    pred = normal(2, 4, 3, 4, 4)
    np.testing.assert_array_equal(guided(pred, scale), pred[1:])
    np.testing.assert_array_equal(guided(pred[1:], scale), pred[1:])


def test_guidance_needs_both_halves() -> None:
    with pytest.raises(InputError, match="batch of 2"):
        guided(normal(1, 4, 3, 4, 4), 12.5)


def test_half_precision_predictions_are_computed_in_float32() -> None:
    pred = normal(2, 4, 3, 4, 4).astype(np.float16)
    np.testing.assert_array_equal(guided(pred, np.float64(7.5)), guided(pred.astype(np.float32), 7.5))  # type: ignore[arg-type]
    assert guided(pred, 7.5).dtype == np.float32


def test_a_step_of_an_image_is_guidance_and_ddim() -> None:
    latents, pred = normal(1, 4, 5, 7), normal(2, 4, 5, 7, seed=1)
    schedule = ddim_schedule(3)
    row = step_table(schedule, guidance_scale=5, adain="none", step_frame_0=True)[1]
    cx, ce = step_coefficients(schedule.alpha_t[1], schedule.alpha_prev[1])
    want = cx * latents + ce * (pred[:1] + 5 * (pred[1:] - pred[:1]))
    np.testing.assert_allclose(apply_row(latents, pred, row), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("ablation", ["none", "first_frame", "schedule"])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 50])
def test_the_step_table_reproduces_the_loop(n: int, preset: Any, ablation: Any) -> None:
    """One row per step is all a device needs: the table in float32 against denoise_step and final_adain."""
    schedule, frames = ddim_schedule(n), 4
    table = step_table(schedule, guidance_scale=12.5, preset=preset, adain=ablation)
    by_steps = by_table = normal(1, 4, frames, 4, 6)
    for i, row in enumerate(table):
        pred = normal(2, 4, frames, 4, 6, seed=i + 1)
        by_steps = denoise_step(
            by_steps, pred, i, schedule, guidance_scale=12.5, preset=preset, adain=ablation
        )
        x = row["cx"] * by_table + row["ce"] * (pred[:1] + row["guidance"] * (pred[1:] - pred[:1]))
        x[:, :, 0] = by_table[:, :, 0]
        if row["mode"] & StepMode.FRAME_1_TO_FRAME_0:
            x[:, :, 1:2] = adain(x[:, :, 1:2], x[:, :, :1])
        if row["mode"] & StepMode.REST_TO_FRAME_1:
            x[:, :, 2:] = adain(x[:, :, 2:], x[:, :, 1:2])
        for flag in (StepMode.ALL_TO_FRAME_0, StepMode.FINAL_TO_FRAME_0):
            if row["mode"] & flag:
                x[:, :, 1:] = adain(x[:, :, 1:], x[:, :, :1])
        by_table = x
    want = final_adain(by_steps, preset, ablation)
    np.testing.assert_allclose(by_table, want, rtol=0, atol=n * STEP_TABLE_ATOL * np.abs(want).max())


def test_the_step_table_has_the_kernels_layout() -> None:
    table = step_table(ddim_schedule(3), guidance_scale=0.5, adain="none", step_frame_0=True)
    assert (STEP_ROW.itemsize, table.dtype) == (16, STEP_ROW)
    np.testing.assert_array_equal(table["guidance"], 1)
    np.testing.assert_array_equal(table["mode"], 16)


def test_the_final_adain_belongs_to_the_official_preset_only() -> None:
    latents = normal(1, 4, 3, 4, 4)
    matched = final_adain(latents)
    np.testing.assert_allclose(statistics(matched[:, :, 2])[1], statistics(latents[:, :, 0])[1], rtol=1e-6)
    np.testing.assert_array_equal(final_adain(latents, "paper"), latents)
    np.testing.assert_array_equal(final_adain(latents, "official", "none"), latents)


def test_shapes_that_do_not_fit_are_refused() -> None:
    schedule = ddim_schedule(2)
    with pytest.raises(InputError, match=r"noise has shape \(4, 3, 4, 4\)"):
        mix_noise(normal(4, 3, 4, 4), normal(1, 4, 1, 4, 4))
    with pytest.raises(InputError, match=r"first_frame_latents has shape .*expected \(1, 4, 1, 4, 4\)"):
        mix_noise(normal(1, 4, 3, 4, 4), normal(1, 4, 1, 4, 5))
    with pytest.raises(InputError, match="noise_pred has shape"):
        denoise_step(normal(1, 4, 3, 4, 4), normal(2, 4, 2, 4, 4), 0, schedule, guidance_scale=2)
    with pytest.raises(InputError, match="step is 2"):
        denoise_step(normal(1, 4, 3, 4, 4), normal(2, 4, 3, 4, 4), 2, schedule, guidance_scale=2)
    with pytest.raises(InputError, match="preset is 'best'"):
        final_adain(normal(1, 4, 3, 4, 4), "best")  # type: ignore[arg-type]
