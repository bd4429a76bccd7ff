# SPDX-License-Identifier: Apache-2.0
"""One denoising loop on the device: its memory, its start, its step.

Every function checks its arrays, chooses kernel and grid, and launches. It allocates nothing, never
synchronises, and is safe while a stream is captured.
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
"""Most threads of latent_step's blocks."""

LOOP_STATE = np.dtype([("step", "u4"), ("num_steps", "u4"), ("arrived", "u4"), ("first_overflow", "u4")])
"""Where the loop is, for the kernels alone."""


@dataclass(frozen=True)
class LoopArrays:
    """Memory of one denoising loop, at addresses that stay: a captured step finds everything by itself.

    sample        (b, c, f, h, w) or (b, c, h, w), float16 or float32: the UNet's input. b = 2 with guidance
                  ([unconditional, conditional]), 1 without
    noise_pred    like sample: the UNet's output
    latents       (2, c, f, h, w) or (2, c, h, w), float32: steps alternate, `final_latents` is the first
    rows          (capacity,) STEP_ROW from latents.step_table, at least num_steps of them filled
    time_table    (capacity, width): a row for each step, of float32 timesteps (width 1) or of an embedding in
                  any dtype, whole 4-byte words
    time_row      (1, width): the current step's row, which the UNet reads
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
        """Most steps that the tables hold."""
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
        """(1, c, f, h, w) or (1, c, h, w): where the last step leaves its result, whatever their number."""
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
    """Starts a loop of `num_steps` steps: initial latents, first UNet input, first time row, and the state,
    whatever an earlier loop left behind.

    noise         (1, c, f, h, w) float32, instead of drawing it from `seed` for `purpose`
    base_weight   share of the noise that frames 1.. have in common (config.NOISE_BASE_WEIGHT); 0 for none
    base_purpose  None: that noise is frame 0's of the same draw, as in preset "official". Otherwise it is
                  drawn for this purpose ("paper": PAPER_BASE), or given
    base_noise    (1, c, 1, h, w) float32
    first_frame   (1, c, 1, h, w) float32, the clean latents that take frame 0's place
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
    """The step that `loop.state` stands at: guidance, DDIM, AdaIN, the next UNet input and time row.

    Every step is launched alike, so that a captured one is replayed. After the last it does nothing.
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
