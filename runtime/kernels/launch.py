# SPDX-License-Identifier: Apache-2.0
"""What the functions that launch kernels share: who launches, dtypes, variants, grids."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lamp_trt.runtime.kernels.arrays import DeviceArray

BYTE, COUNT, HALF, SINGLE = map(np.dtype, ("uint8", "uint32", "float16", "float32"))

SUFFIX = {HALF: "f16", SINGLE: "f32", BYTE: "u8"}
"""In kernel names."""

WARP = 32
THREADS = 256
"""Threads of a block, except latent_step's."""
VECTOR = 8
"""Values that a thread loads at once."""
DRAW = 4
"""Values of one Philox block."""

ALIGNMENT = 32
"""Bytes of VECTOR float32 values."""

PROGRESS = np.dtype(
    [("steps_done", "u4"), ("first_overflow", "u4"), ("image_not_finite", "u4"), ("unused", "u4")]
)
"""What kernels tell the host, in mapped pinned memory; begin_loop resets it. first_overflow: first step whose
latents do not fit the UNet's type, or NO_STEP. image_not_finite: 1 once a decoded image held NaN or
infinity."""

NO_STEP = 0xFFFFFFFF
"""In place of a step number: none so far."""


class Launcher(Protocol):
    """Launches a kernel by its name: device.CudaLauncher, or the tests' CPU emulator."""

    def __call__(
        self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]
    ) -> None: ...


def variant(size: int, vector: int, array: DeviceArray, *others: DeviceArray) -> str:
    """Suffix of the kernel for `array`'s dtype: the one for vectors if rows of `size` values and the
    addresses of all arrays allow it."""
    aligned = size % vector == 0 and all(a.pointer % ALIGNMENT == 0 for a in (array, *others))
    return SUFFIX[array.dtype] + ("" if aligned else "_any")


def blocks(threads: int) -> int:
    """Blocks of THREADS for so many threads."""
    return -(-threads // THREADS)


def pointer(array: DeviceArray | None) -> int:
    """Its address, or the null pointer."""
    return array.pointer if array is not None else 0
