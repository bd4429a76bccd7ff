# SPDX-License-Identifier: Apache-2.0
"""What happens to the latents between two UNet calls: noise mixing, guidance, DDIM, AdaIN.

The plain twins of kernels/noise_mix.cu and kernels/latent_step.cu: the CPU path, and the specification of the
GPU's. Frame 0 is the clean first frame throughout; its prediction is discarded. Source: docs/algorithm.md.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.config import (
    ADAIN_EPS,
    NOISE_BASE_WEIGHT,
    Adain,
    Preset,
    early_steps,
    one_of,
    whole_number,
)
from lamp_trt.runtime.ddim import DDIMSchedule, step_coefficients

Array = NDArray[Any]


class AdainMode(IntEnum):
    """Which frames a step matches to which."""

    NONE = 0
    SECOND_FRAME = 1
    """Frames 2.. to frame 1, after frame 1's own DDIM step."""
    FIRST_FRAME = 2
    """Frames 1.. to frame 0."""


STEP_ROW = np.dtype(
    {
        "names": ["cx", "ce", "guidance", "next_timestep", "mode"],
        "formats": ["f4", "f4", "f4", "f4", "i4"],
        "itemsize": 32,
    }
)
"""One step for the GPU: x' = cx * x + ce * (u + guidance * (c - u)), then AdaIN by `mode`. 32 bytes, so that
rows are aligned for 16-byte loads."""


def mix_noise(noise: Array, first_frame_latents: Array, base_noise: Array | None = None) -> Array:
    """Initial latents: frame f >= 1 is 0.2 * base + 0.8 * noise[f], frame 0 is the clean first frame.

    noise (1, 4, f, h, w), first_frame_latents and base_noise (1, 4, 1, h, w); returns float32 (1, 4, f, h,
    w). base_noise None: frame 0 of `noise`, as the official code does (otherwise unused). Algorithm 1 draws
    it separately. The variance of 0.68 is not normalised, as in both. Raises InputError if shapes do not fit.
    """
    n, c, _, h, w = _video_shape("noise", noise)
    _expect_shape("first_frame_latents", first_frame_latents, (n, c, 1, h, w))
    base = noise[:, :, :1] if base_noise is None else base_noise
    _expect_shape("base_noise", base, (n, c, 1, h, w))
    mixed = NOISE_BASE_WEIGHT * base.astype(np.float32) + (1 - NOISE_BASE_WEIGHT) * noise.astype(np.float32)
    return with_first_frame(mixed, first_frame_latents)


def with_first_frame(latents: Array, first_frame_latents: Array) -> Array:
    """A float32 copy of `latents` (1, 4, f, h, w) whose frame 0 is first_frame_latents (1, 4, 1, h, w).

    This is the start of editing, where inverted latents take the place of mixed noise.
    """
    n, c, _, h, w = _video_shape("latents", latents)
    _expect_shape("first_frame_latents", first_frame_latents, (n, c, 1, h, w))
    out = latents.astype(np.float32)
    out[:, :, 0] = first_frame_latents[:, :, 0]
    return out


def adain(content: Array, style: Array, eps: float = ADAIN_EPS) -> Array:
    """`content` with the mean and deviation of `style` (AdaIN, Huang & Belongie 2017, eq. 8).

    Both (..., h, w), statistics over h*w for each leading index, `style` may broadcast. The variance is the
    unbiased one, eps is added to it before the root. Computed in float64, returned in content's shape and
    dtype. Raises InputError for a single pixel, whose variance is undefined.
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
    """Classifier-free guidance u + guidance_scale * (c - u) of noise_pred (2, ...) = [u, c], float32 (1, ...).

    guidance_scale <= 1 is no guidance: c alone, and a batch of 1 is accepted. Raises InputError for another
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


def ddim_step(
    latents: Array, noise_pred: Array, alpha_t: float, alpha_prev: float, guidance_scale: float
) -> Array:
    """Guidance and one DDIM step. latents (1, ...), noise_pred (2, ...) = [u, c]; float32 like latents.

    For SDXL's (1, 4, h, w) as for frames of a video. Equation: ddim.step_coefficients.
    """
    cx, ce = step_coefficients(alpha_t, alpha_prev)
    return cx * latents.astype(np.float32, copy=False) + ce * guided(noise_pred, guidance_scale)


def adain_mode(
    step: int, preset: Preset = "official", adain: Adain = "schedule", adain_switch_step: int | None = None
) -> AdainMode:
    """The AdaIN of step `step` (from 0); see config.Adain and config.EARLY_STEPS."""
    one_of("adain", adain, Adain)
    early = step < early_steps(preset, adain_switch_step)
    if adain == "none":
        return AdainMode.NONE
    return AdainMode.SECOND_FRAME if adain == "schedule" and early else AdainMode.FIRST_FRAME


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
    """Guidance, DDIM and AdaIN of step `step`. What follows the last step is `final_adain`.

    latents (1, 4, f, h, w), noise_pred (2, 4, f, h, w) = [unconditional, conditional]; returns float32 like
    latents. Raises InputError if shapes do not fit, or the step is not in the schedule.
    """
    shape = _video_shape("latents", latents)
    _expect_shape("noise_pred", noise_pred, (len(noise_pred), *shape[1:]))
    whole_number("step", step, 0, len(schedule) - 1)
    mode = adain_mode(step, preset, adain, adain_switch_step)
    out = ddim_step(latents, noise_pred, schedule.alpha_t[step], schedule.alpha_prev[step], guidance_scale)
    out[:, :, 0] = latents[:, :, 0]
    return _match_frames(out, mode, through_second=preset == "official")


def has_final_adain(preset: Preset = "official", adain: Adain = "schedule") -> bool:
    """Whether one more AdaIN to frame 0 follows the loop: in preset "official", unless adain is "none"."""
    one_of("preset", preset, Preset)
    one_of("adain", adain, Adain)
    return preset == "official" and adain != "none"


def final_adain(latents: Array, preset: Preset = "official", adain: Adain = "schedule") -> Array:
    """What is decoded: latents (1, 4, f, h, w), frames 1.. matched to frame 0 where has_final_adain."""
    if not has_final_adain(preset, adain):
        return latents
    return _match_frames(latents.copy(), AdainMode.FIRST_FRAME, through_second=False)


def step_table(
    schedule: DDIMSchedule,
    *,
    guidance_scale: float,
    preset: Preset = "official",
    adain: Adain = "schedule",
    adain_switch_step: int | None = None,
) -> NDArray[np.void]:
    """The whole loop as STEP_ROW rows (n,), computed in float64 and stored as float32.

    The final AdaIN is part of the last row: matching to frame 1 and then to frame 0 is matching to frame 0,
    up to rounding, since AdaIN is affine in each channel. Without guidance the row says 1, for equal halves
    of noise_pred. next_timestep of the last row is its own timestep. SDXL's loop is the table with adain
    "none".
    """
    n = len(schedule)
    rows = np.zeros(n, STEP_ROW)
    ends = zip(schedule.alpha_t, schedule.alpha_prev, strict=True)
    rows["cx"], rows["ce"] = np.array([step_coefficients(t, prev) for t, prev in ends]).T
    rows["guidance"] = max(guidance_scale, 1)
    rows["next_timestep"] = np.append(schedule.timesteps[1:], schedule.timesteps[-1])
    rows["mode"] = [adain_mode(i, preset, adain, adain_switch_step) for i in range(n)]
    if has_final_adain(preset, adain):
        rows["mode"][-1] = AdainMode.FIRST_FRAME
    return rows


def _match_frames(latents: Array, mode: AdainMode, *, through_second: bool) -> Array:
    """AdaIN of a step, in place. through_second: the official code matches frame 1 to frame 0, then the
    others to the updated frame 1, which equals matching all of them to frame 0 up to rounding."""
    if mode is AdainMode.NONE or latents.shape[2] == 1:
        return latents
    if mode is AdainMode.FIRST_FRAME:
        last = 2 if through_second else latents.shape[2]
        latents[:, :, 1:last] = adain(latents[:, :, 1:last], latents[:, :, :1])
    if mode is AdainMode.SECOND_FRAME or through_second:
        latents[:, :, 2:] = adain(latents[:, :, 2:], latents[:, :, 1:2])
    return latents


def _statistics(x: NDArray[np.float64], eps: float) -> tuple[Array, Array]:
    """Mean and deviation over the last two axes, kept as axes of size 1."""
    mean = x.mean(axis=(-2, -1), keepdims=True)
    return mean, np.sqrt(x.var(axis=(-2, -1), ddof=1, keepdims=True) + eps)


def _video_shape(name: str, x: Array) -> tuple[int, ...]:
    """The shape of a video tensor, or InputError if it is not (1, 4, f, h, w)."""
    if x.ndim != 5 or x.shape[:2] != (1, 4) or 0 in x.shape:
        raise InputError(f"{name} has shape {x.shape}; expected (1, 4, frames, height // 8, width // 8).")
    return x.shape


def _expect_shape(name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise InputError(f"{name} has shape {x.shape}; expected {shape}.")
