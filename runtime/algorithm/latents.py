# SPDX-License-Identifier: Apache-2.0
"""Operations on the latents between UNet calls: noise mixing, guidance, DDIM, AdaIN.

NumPy equivalents of kernels/noise.cu and kernels/latent_step.cu: the CPU path, and the reference for the
GPU's. Frame 0 is the clean first frame throughout; its prediction is discarded. Source: docs/algorithm.md.
"""

from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import (
    ADAIN_EPS,
    NOISE_BASE_WEIGHT,
    Adain,
    Preset,
    early_steps,
    one_of,
    whole_number,
)
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule, step_coefficients

Array = NDArray[Any]
Latents = NDArray[np.float32]


class StepMode(IntFlag):
    """Flags for the AdaIN of a step after guidance and DDIM, applied in this order; also read by
    kernels/latent_step.cu."""

    NONE = 0
    FRAME_1_TO_FRAME_0 = 1
    """AdaIN of frame 1, after its own DDIM step, to frame 0."""
    REST_TO_FRAME_1 = 2
    """AdaIN of frames 2.. to frame 1, after the flag above."""
    ALL_TO_FRAME_0 = 4
    """AdaIN of frames 1.. to frame 0."""
    FINAL_TO_FRAME_0 = 8
    """AdaIN of frames 1.. to frame 0 once more, after the last step."""
    STEP_FRAME_0 = 16
    """Denoise frame 0 too, as for SDXL's image, a loop of one frame. A video's frame 0 is given."""


STEP_ROW = np.dtype([("cx", "f4"), ("ce", "f4"), ("guidance", "f4"), ("mode", "u4")])
"""One step: x' = cx * x + ce * (u + guidance * (c - u)), then the AdaIN of the StepMode bits. `apply_row` and
kernels/latent_step.cu interpret the same rows."""


def mix_noise(noise: Array, first_frame_latents: Array, base_noise: Array | None = None) -> Array:
    """Initial latents: frame f >= 1 is 0.2 * base + 0.8 * noise[f], frame 0 is the clean first frame.

    noise                (1, 4, f, h, w)
    first_frame_latents  (1, 4, 1, h, w)
    base_noise           (1, 4, 1, h, w), drawn separately in Algorithm 1; None: the otherwise unused frame 0
                         of `noise`, as in the official code
    returns              float32 (1, 4, f, h, w); the variance of 0.68 is not normalised, as in both
    Raises InputError if shapes do not fit.
    """
    n, c, _, h, w = _video_shape("noise", noise)
    _expect_shape("first_frame_latents", first_frame_latents, (n, c, 1, h, w))
    base = noise[:, :, :1] if base_noise is None else base_noise
    _expect_shape("base_noise", base, (n, c, 1, h, w))
    mixed = NOISE_BASE_WEIGHT * base.astype(np.float32) + (1 - NOISE_BASE_WEIGHT) * noise.astype(np.float32)
    return with_first_frame(mixed, first_frame_latents)


def with_first_frame(latents: Array, first_frame_latents: Array) -> Array:
    """A float32 copy of `latents` (1, 4, f, h, w) whose frame 0 is first_frame_latents (1, 4, 1, h, w).

    Used for editing, where inverted latents replace the mixed noise.
    """
    n, c, _, h, w = _video_shape("latents", latents)
    _expect_shape("first_frame_latents", first_frame_latents, (n, c, 1, h, w))
    out = latents.astype(np.float32)
    out[:, :, 0] = first_frame_latents[:, :, 0]
    return out


def posterior_sample(mean: Array, logvar: Array, noise: Array, scaling_factor: float) -> Array:
    """First-frame latents (1, 4, 1, h, w) float32, a sample of the VAE encoder's posterior:

        (mean + exp(clamp(logvar, -30, 20) / 2) * noise) * scaling_factor

    mean, logvar, noise (1, 4, h, w). Returns NaN where logvar is not finite, which the clamp would hide.
    NumPy equivalent of kernels/noise.cu posterior_sample. Raises InputError if shapes do not fit.
    """
    if mean.ndim != 4:
        raise InputError(f"latent_mean has shape {mean.shape}; expected (1, 4, height // 8, width // 8).")
    _expect_shape("latent_logvar", logvar, mean.shape)
    _expect_shape("posterior_noise", noise, mean.shape)
    log_variance = logvar.astype(np.float32)
    deviation = np.where(
        np.isfinite(log_variance), np.exp(np.clip(log_variance, -30, 20) / 2), np.float32(np.nan)
    )
    sample = mean.astype(np.float32) + deviation * noise.astype(np.float32)
    scaled: Array = sample * np.float32(scaling_factor)
    return scaled[:, :, None]


def adain(content: Array, style: Array, eps: float = ADAIN_EPS) -> Array:
    """`content` with the mean and standard deviation of `style` (AdaIN, Huang & Belongie 2017, eq. 8).

    Both (..., h, w), statistics over h*w for each leading index, `style` may broadcast. eps is added to the
    unbiased variance before the square root. Computed in float64, returned in content's shape and dtype.
    Raises InputError for a single pixel, whose variance is undefined.
    """
    if content.shape[-1] * content.shape[-2] < 2:
        raise InputError(
            f"AdaIN needs at least 2 latent pixels per channel, got {content.shape}; use a larger video."
        )
    x = content.astype(np.float64)
    mean, std = _statistics(x, eps)
    style_mean, style_std = _statistics(style.astype(np.float64), eps)
    return ((x - mean) / std * style_std + style_mean).astype(content.dtype)


def guided(noise_pred: Array, guidance_scale: float) -> Array:
    """Classifier-free guidance: u + guidance_scale * (c - u), (1, ...), from noise_pred (2, ...) = [u, c].

    guidance_scale <= 1 disables guidance: returns c, also for a batch of 1. Raises InputError for another
    batch.
    """
    pred = noise_pred.astype(np.float32, copy=False)
    if guidance_scale <= 1 and len(pred) in (1, 2):
        return pred[-1:]
    if len(pred) != 2:
        raise InputError(
            f"noise_pred has batch {len(pred)}; guidance_scale {guidance_scale} needs "
            "[unconditional, conditional], a batch of 2."
        )
    return pred[:1] + float(guidance_scale) * (pred[1:] - pred[:1])


def adain_mode(
    step: int, preset: Preset = "official", adain: Adain = "schedule", adain_switch_step: int | None = None
) -> StepMode:
    """The AdaIN flags of step `step` (from 0); see config.Adain and config.EARLY_STEPS.

    To match all frames to frame 0, the official code matches frame 1 to it, and then the others to the
    updated frame 1, which is the same up to rounding.
    """
    one_of("adain", adain, Adain)
    early = step < early_steps(preset, adain_switch_step)
    if adain == "none":
        return StepMode.NONE
    if adain == "schedule" and early:
        return StepMode.REST_TO_FRAME_1
    if preset == "official":
        return StepMode.FRAME_1_TO_FRAME_0 | StepMode.REST_TO_FRAME_1
    return StepMode.ALL_TO_FRAME_0


def denoise_step(
    latents: Array,
    noise_pred: Array,
    step: int,
    schedule: DDIMSchedule,
    *,
    guidance_scale: float,
    preset: Preset = "official",
    adain: Adain = "schedule",
    adain_switch_step: int | None = None,
) -> Array:
    """Guidance, DDIM and AdaIN of step `step`; the last step is followed by `final_adain`.

    latents (1, 4, f, h, w), noise_pred (2, 4, f, h, w) = [unconditional, conditional]; returns float32 of
    latents' shape. Raises InputError if shapes do not fit, or the step is not in the schedule.
    """
    shape = _video_shape("latents", latents)
    _expect_shape("noise_pred", noise_pred, (len(noise_pred), *shape[1:]))
    whole_number("step", step, 0, len(schedule) - 1)
    mode = adain_mode(step, preset, adain, adain_switch_step)
    return apply_row(latents, noise_pred, _row(schedule, step, guidance_scale, mode)[0])


def apply_row(latents: Array, noise_pred: Array, row: np.void) -> Array:
    """Guidance, DDIM and AdaIN of one row of `step_table`; NumPy equivalent of kernels/latent_step.cu.

    latents (1, c, f, h, w) or (1, c, h, w); noise_pred of the same shape with batch 2 = [unconditional,
    conditional], or 1 if the row's guidance is 1. Returns float32 of latents' shape.
    """
    mode = StepMode(int(row["mode"]))
    out: Array = row["cx"] * latents.astype(np.float32, copy=False)
    out = out + row["ce"] * guided(noise_pred, row["guidance"])
    if StepMode.STEP_FRAME_0 not in mode:
        out[:, :, 0] = latents[:, :, 0]
    return _match_frames(out, mode)


def has_final_adain(preset: Preset = "official", adain: Adain = "schedule") -> bool:
    """Whether another AdaIN to frame 0 follows the loop: in preset "official", unless adain is "none"."""
    one_of("preset", preset, Preset)
    one_of("adain", adain, Adain)
    return preset == "official" and adain != "none"


def final_adain(latents: Array, preset: Preset = "official", adain: Adain = "schedule") -> Array:
    """The latents to decode, (1, 4, f, h, w): frames 1.. are matched to frame 0 if `has_final_adain`."""
    if not has_final_adain(preset, adain):
        return latents
    return _match_frames(latents.copy(), StepMode.FINAL_TO_FRAME_0)


def step_table(
    schedule: DDIMSchedule,
    *,
    guidance_scale: float,
    preset: Preset = "official",
    adain: Adain = "schedule",
    adain_switch_step: int | None = None,
    step_frame_0: bool = False,
) -> NDArray[np.void]:
    """The rows of a loop for host and device, STEP_ROW (n,), computed in float64 and stored as float32.

    The final AdaIN is part of the last row's mode. Without guidance a row's guidance is 1, for equal halves
    of noise_pred. SDXL's loop uses adain "none" and step_frame_0.
    """
    n = len(schedule)
    modes = [adain_mode(i, preset, adain, adain_switch_step) for i in range(n)]
    if has_final_adain(preset, adain):
        modes[-1] |= StepMode.FINAL_TO_FRAME_0
    frame_0 = StepMode.STEP_FRAME_0 if step_frame_0 else StepMode.NONE
    rows = [_row(schedule, i, guidance_scale, mode | frame_0) for i, mode in enumerate(modes)]
    return np.concatenate(rows)


def _row(schedule: DDIMSchedule, step: int, guidance_scale: float, mode: StepMode) -> NDArray[np.void]:
    """One STEP_ROW (1,)."""
    cx, ce = step_coefficients(schedule.alpha_t[step], schedule.alpha_prev[step])
    return np.array([(cx, ce, max(guidance_scale, 1), mode)], STEP_ROW)


def _match_frames(latents: Array, mode: StepMode) -> Array:
    """Apply the AdaIN of `mode` in place, in the order of its flags. Does nothing for a single image."""
    if latents.ndim == 4 or latents.shape[2] == 1:
        return latents
    frame_0, frame_1 = latents[:, :, :1], latents[:, :, 1:2]
    rest, others = latents[:, :, 2:], latents[:, :, 1:]
    if StepMode.FRAME_1_TO_FRAME_0 in mode:
        frame_1[:] = adain(frame_1, frame_0)
    if StepMode.REST_TO_FRAME_1 in mode:
        rest[:] = adain(rest, frame_1)
    if StepMode.ALL_TO_FRAME_0 in mode:
        others[:] = adain(others, frame_0)
    if StepMode.FINAL_TO_FRAME_0 in mode:
        others[:] = adain(others, frame_0)
    return latents


def _statistics(x: NDArray[np.float64], eps: float) -> tuple[Array, Array]:
    """Mean and standard deviation over the last two axes, which are kept with size 1."""
    mean = x.mean(axis=(-2, -1), keepdims=True)
    return mean, np.sqrt(x.var(axis=(-2, -1), ddof=1, keepdims=True) + eps)


def _video_shape(name: str, x: Array) -> tuple[int, ...]:
    """The shape of a video tensor. Raises InputError if it is not (1, 4, f, h, w)."""
    if x.ndim != 5 or x.shape[:2] != (1, 4) or 0 in x.shape:
        raise InputError(f"{name} has shape {x.shape}; expected (1, 4, frames, height // 8, width // 8).")
    return x.shape


def _expect_shape(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise InputError(f"{name} has shape {x.shape}; expected {shape}.")
