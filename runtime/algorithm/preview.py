# SPDX-License-Identifier: Apache-2.0
"""Pictures of a running loop: the clean latents that a step estimates, mapped linearly to colours.

NumPy equivalent of kernels/preview.cu. The map is fitted at build time (export/preview_map.py).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import PreviewEntry
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule
from lamp_trt.runtime.algorithm.latents import StepMode, guided

CHANNELS = 4
"""Channels of latents that have a preview."""


def clean_table(schedule: DDIMSchedule) -> NDArray[np.float32]:
    """Coefficients of each step's estimate of clean latents, float32 (n, 2), from float64:

    x0 = table[i, 0] * x + table[i, 1] * noise_pred = (x - sqrt(1 - alpha_t) noise_pred) / sqrt(alpha_t)
    """
    alpha = schedule.alpha_t.astype(np.float64)
    return np.stack([alpha**-0.5, -((1 - alpha) ** 0.5) * alpha**-0.5], axis=1).astype(np.float32)


def colour_table(entry: PreviewEntry) -> NDArray[np.float32]:
    """The map as float32 (3, 5): weights, then the bias."""
    return np.column_stack([entry.weights, entry.bias]).astype(np.float32)


def preview_frames(
    latents: NDArray[Any],
    noise_pred: NDArray[Any],
    row: np.void,
    clean: NDArray[np.float32],
    colours: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """The estimate of one step as uint8 RGB (f, h, w, 3), of the latents' size.

    latents     (1, 4, f, h, w) or (1, 4, h, w) before the step; noise_pred the UNet's output for them
    row, clean  the step's STEP_ROW, and its row of `clean_table`
    colours     from `colour_table`
    Frame 0 of a video is given, and shown as it is. NaN becomes 0.
    """
    x = latents.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # of the prediction for frame 0, which is discarded
        estimate = clean[0] * x + clean[1] * guided(noise_pred, row["guidance"])
    if StepMode.STEP_FRAME_0 not in StepMode(int(row["mode"])):
        estimate[:, :, 0] = x[:, :, 0]
    channels = estimate[0] if estimate.ndim == 5 else estimate[0][:, None]
    frames = np.empty((*channels.shape[1:], 3), np.uint8)
    for colour, (*weights, bias) in enumerate(colours):
        value = np.full(channels.shape[1:], bias, np.float32)
        for weight, channel in zip(weights, channels, strict=True):
            value += weight * channel
        unit = np.fmin(np.fmax(value / 2 + np.float32(0.5), np.float32(0)), np.float32(1))
        frames[..., colour] = np.rint(unit * np.float32(255))
    return frames
