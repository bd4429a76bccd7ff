# SPDX-License-Identifier: Apache-2.0
"""Arrays and launch functions of one denoising loop on the device: begin_loop and latent_step.

Every function checks its arrays, selects kernel and grid, and launches. None allocates or synchronises, so
all may be called during stream capture.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import ADAIN_EPS, MAX_SEED, whole_number
from lamp_trt.runtime.algorithm.latents import STEP_ROW
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.kernels.arrays import DeviceArray, expect
from lamp_trt.runtime.kernels.launch import (
    DRAW,
    HALF,
    PROGRESS,
    SINGLE,
    THREADS,
    VECTOR,
    WARP,
    Launcher,
    blocks,
    pointer,
    variant,
)

STEP_THREADS = 512
"""Maximum number of threads of latent_step's blocks."""

LOOP_STATE = np.dtype([("step", "u4"), ("num_steps", "u4"), ("arrived", "u4"), ("first_overflow", "u4")])
"""State of the loop, used only by the kernels."""


@dataclass(frozen=True)
class LoopArrays:
    """Arrays of one denoising loop, at fixed addresses, so that a captured step needs no arguments.

    sample        (b, c, f, h, w) or (b, c, h, w), float16 or float32: the UNet's input. b = 2 with guidance
                  ([unconditional, conditional]), 1 without
    noise_pred    like sample: the UNet's output
    latents       (2, c, f, h, w) or (2, c, h, w), float32: two buffers that alternate; the first is final
    rows          (capacity,) STEP_ROW from latents.step_table, at least num_steps of them filled
    time_table    (capacity, width): one row per step, float32 timesteps (width 1) or an embedding in any
                  dtype; a row must be a multiple of 4 bytes
    time_row      (1, width): the current step's row, read by the UNet
    state         (1,) LOOP_STATE
    progress      (1,) PROGRESS in mapped host memory, or None
    """

    sample: DeviceArray
    noise_pred: DeviceArray
    latents: DeviceArray
    rows: DeviceArray
    time_table: DeviceArray
    time_row: DeviceArray
    state: DeviceArray
    progress: DeviceArray | None = None

    def __post_init__(self) -> None:
        shape, width = self.sample.shape, self.time_table.shape[1:]
        if len(shape) not in (4, 5) or shape[0] not in (1, 2) or 0 in shape:
            raise InputError(f"sample has shape {shape}; expected (1 or 2, c, [frames,] h, w).")
        expect("sample", self.sample, shape, HALF, SINGLE)
        expect("noise_pred", self.noise_pred, shape, self.sample.dtype)
        expect("latents", self.latents, (2, *shape[1:]), SINGLE)
        expect("rows", self.rows, (self.capacity,), STEP_ROW)
        expect("time_table", self.time_table, (self.capacity, *width), self.time_row.dtype)
        expect("time_row", self.time_row, (1, *width), self.time_table.dtype)
        if self.time_row.nbytes % 4:
            raise InputError(
                f"a row of the time table has {self.time_row.nbytes} bytes; expected whole 4-byte words."
            )
        expect("state", self.state, (1,), LOOP_STATE)
        if self.progress is not None:
            expect("progress", self.progress, (1,), PROGRESS)

    @property
    def capacity(self) -> int:
        """Maximum number of steps of the tables."""
        return self.rows.shape[0]

    @property
    def frames(self) -> int:
        return self.sample.shape[2] if len(self.sample.shape) == 5 else 1

    @property
    def channels(self) -> int:
        return self.sample.shape[1]

    @property
    def area(self) -> int:
        """h * w."""
        return prod(self.sample.shape[-2:])

    @property
    def final_latents(self) -> DeviceArray:
        """The result of the last step, for any number of steps: (1, c, f, h, w) or (1, c, h, w)."""
        return self.latents.rows(0, 1)


def begin_loop(
    launch: Launcher,
    loop: LoopArrays,
    num_steps: int,
    *,
    seed: int,
    purpose: Purpose,
    noise: DeviceArray | None = None,
    base_weight: float = 0.0,
    base_purpose: Purpose | None = None,
    base_noise: DeviceArray | None = None,
    first_frame: DeviceArray | None = None,
) -> None:
    """Start a loop of `num_steps` steps: set initial latents, first UNet input, first time row and state.

    noise         (1, c, f, h, w) float32; None: drawn from `seed` for `purpose`
    base_weight   weight of the noise shared by frames 1.. (config.NOISE_BASE_WEIGHT); 0 for none
    base_purpose  purpose for which the shared noise is drawn ("paper": PAPER_BASE); None: frame 0 of the same
                  draw, as in preset "official"
    base_noise    (1, c, 1, h, w) float32: the shared noise, instead of a draw
    first_frame   (1, c, 1, h, w) float32: the clean latents of frame 0
    """
    whole_number("num_steps", num_steps, 1, loop.capacity)
    whole_number("seed", seed, 0, MAX_SEED)
    shape = loop.sample.shape[1:]
    one_frame = (1, shape[0], 1, *shape[-2:]) if len(shape) == 4 else (1, *shape)
    if noise is not None:
        expect("noise", noise, (1, *shape), SINGLE)
    if base_noise is not None:
        expect("base_noise", base_noise, one_frame, SINGLE)
    if first_frame is not None:
        expect("first_frame", first_frame, one_frame, SINGLE)
    base, base_frames = base_noise, 1
    if base is None and base_purpose is None:
        base, base_frames = noise, loop.frames
    inputs = [a for a in (noise, base_noise, first_frame) if a is not None]
    launch(
        f"lamp_begin_loop_{variant(loop.area, DRAW, loop.sample, loop.latents, *inputs)}",
        (blocks(-(-loop.channels * loop.area // DRAW)), loop.frames, 1),
        THREADS,
        [
            pointer(noise),
            pointer(base),
            pointer(first_frame),
            loop.latents.pointer,
            loop.sample.pointer,
            loop.state.pointer,
            pointer(loop.progress),
            loop.time_table.pointer,
            loop.time_row.pointer,
            loop.time_row.nbytes // 4,
            seed,
            purpose,
            purpose if base_purpose is None else base_purpose,
            base_weight,
            base_frames,
            num_steps,
            loop.channels,
            loop.area,
            loop.sample.shape[0],
        ],
    )


def latent_step(launch: Launcher, loop: LoopArrays) -> None:
    """Run the current step of `loop.state`: guidance, DDIM, AdaIN, the next UNet input and time row.

    The launch is the same for every step, so it can be captured and replayed. After the last step it does
    nothing.
    """
    suffix = variant(loop.area, VECTOR, loop.sample, loop.noise_pred, loop.latents)
    vectors = loop.area if suffix.endswith("_any") else loop.area // VECTOR
    launch(
        f"lamp_latent_step_{suffix}",
        (loop.frames, loop.channels, 1),
        min(STEP_THREADS, -(-vectors // WARP) * WARP),
        [
            loop.noise_pred.pointer,
            loop.latents.pointer,
            loop.sample.pointer,
            loop.rows.pointer,
            loop.state.pointer,
            pointer(loop.progress),
            loop.time_table.pointer,
            loop.time_row.pointer,
            loop.time_row.nbytes // 4,
            loop.area,
            loop.sample.shape[0],
            ADAIN_EPS,
        ],
    )
