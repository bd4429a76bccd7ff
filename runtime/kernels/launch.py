# SPDX-License-Identifier: Apache-2.0
"""Common parts of the launch functions: the launcher interface, dtypes, kernel variants, grid sizes."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lamp_trt.runtime.kernels.arrays import DeviceArray

BYTE, COUNT, HALF, SINGLE = map(np.dtype, ("uint8", "uint32", "float16", "float32"))

SUFFIX = {HALF: "f16", SINGLE: "f32", BYTE: "u8"}
"""Dtype → its name in kernel names."""

WARP = 32
THREADS = 256
"""Threads per block, except latent_step's."""
VECTOR = 8
"""Values per vector access of a thread."""
DRAW = 4
"""Values of one Philox block."""

ALIGNMENT = 32
"""Alignment in bytes for vector access: VECTOR float32 values."""

PROGRESS = np.dtype(
    [("steps_done", "u4"), ("first_overflow", "u4"), ("image_not_finite", "u4"), ("unused", "u4")]
)
"""Status that kernels report to the host in mapped pinned memory; begin_loop resets it.

first_overflow: first step whose latents exceed the range of the UNet's type, or NO_STEP. image_not_finite: 1
after a decoded image contained NaN or infinity."""

NO_STEP = 0xFFFFFFFF
"""Value of first_overflow without an overflow."""


class Launcher(Protocol):
    """Launcher of kernels by name: device.CudaLauncher, or the tests' CPU emulator."""

    def __call__(
        self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]
    ) -> None: ...


def variant(size: int, vector: int, array: DeviceArray, *others: DeviceArray) -> str:
    """Suffix of the kernel for `array`'s dtype: the vector kernel if rows of `size` values and the addresses
    of all arrays are aligned, otherwise `_any`."""
    aligned = size % vector == 0 and all(a.pointer % ALIGNMENT == 0 for a in (array, *others))
    return SUFFIX[array.dtype] + ("" if aligned else "_any")


def blocks(threads: int) -> int:
    """Number of blocks of THREADS for this number of threads."""
    return -(-threads // THREADS)


def pointer(array: DeviceArray | None) -> int:
    """The array's address, or the null pointer for None."""
    return array.pointer if array is not None else 0
