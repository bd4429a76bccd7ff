# SPDX-License-Identifier: Apache-2.0
"""Launch function of the preview kernel. It neither allocates nor synchronises."""

from math import prod

import numpy as np

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import whole_number
from lamp_trt.runtime.algorithm.latents import StepMode
from lamp_trt.runtime.algorithm.preview import CHANNELS
from lamp_trt.runtime.kernels.arrays import DeviceArray, expect
from lamp_trt.runtime.kernels.latent_loop import LoopArrays
from lamp_trt.runtime.kernels.launch import BYTE, SINGLE, SUFFIX, THREADS, Launcher, blocks


def preview(
    launch: Launcher,
    loop: LoopArrays,
    colours: DeviceArray,
    frames: DeviceArray,
    *,
    step: int,
    num_steps: int,
    row: np.void,
    clean: tuple[float, float],
) -> None:
    """Draw the estimate of step `step` of `num_steps`, to be launched after that step and before the next.

    It reads the latents that the step started from, which the loop's other buffer still holds, and the UNet's
    output. colours (3, 5) float32 from preview.colour_table; frames (f, h, w, 3) uint8; row, clean: the
    step's STEP_ROW, and its row of preview.clean_table.
    """
    whole_number("step", step, 0, num_steps - 1)
    if loop.channels != CHANNELS:
        raise InputError(f"latents have {loop.channels} channels; previews are of {CHANNELS}.")
    size = loop.sample.shape[-2:]
    expect("colours", colours, (3, CHANNELS + 1), SINGLE)
    expect("frames", frames, (loop.frames, *size, 3), BYTE)
    if frames.pointer % 4:
        raise InputError(f"frames are at {frames.pointer:#x}; expected a multiple of 4 bytes.")
    buffer = (num_steps - step) % 2
    keep, remove = clean
    launch(
        f"lamp_preview_{SUFFIX[loop.sample.dtype]}",
        (blocks(loop.frames * prod(size)), 1, 1),
        THREADS,
        [
            loop.latents.rows(buffer, buffer + 1).pointer,
            loop.noise_pred.pointer,
            colours.pointer,
            frames.pointer,
            keep,
            remove,
            float(row["guidance"]),
            0 if int(row["mode"]) & StepMode.STEP_FRAME_0 else 1,
            loop.frames,
            loop.area,
            loop.sample.shape[0],
        ],
    )
