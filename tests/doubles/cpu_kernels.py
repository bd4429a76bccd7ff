# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on NumPy arrays: compiled against tests/doubles/emu for the CPU, or on a GPU if there is
one."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamp_trt.runtime.algorithm.latents import STEP_ROW
from lamp_trt.runtime.kernels import SIGNATURES
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.latent_loop import LOOP_STATE, LoopArrays
from lamp_trt.runtime.kernels.launch import PROGRESS
from tests.system_tools import require_cxx_compiler

EMULATOR = Path(__file__).parent / "emu"
KERNELS = Path(os.environ.get("LAMP_TRT_KERNELS", Path(__file__).parents[2] / "runtime" / "kernels"))
"""LAMP_TRT_KERNELS: another copy of the .cu files (mutate_kernels.py)."""

ON_GPU = bool(os.environ.get("LAMP_TRT_TEST_GPU"))
"""Run the same tests on a GPU (benchmarks/proof/kernels/checks.py)."""

GUARD = 256
"""Bytes on either side of an array that no kernel may touch, and the alignment of the array."""


def cuda_include() -> Path | None:
    """The folder with cuda_fp16.h: of an installed CUDA toolkit, or of NVIDIA's wheels. None without one."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    roots += [str(Path(nvcc).resolve().parents[1])] if nvcc else []
    wheels = importlib.util.find_spec("nvidia")
    roots += [f"{folder}/cu13" for folder in (wheels and wheels.submodule_search_locations) or ()]
    folders = [Path(root, "include") for root in roots if root]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


def kernel_tools() -> tuple[Path, str]:
    """(folder of the CUDA headers, C++ compiler) that build the kernels for the CPU. Skips without them."""
    compiler = require_cxx_compiler("the kernels on the CPU")
    include = cuda_include()
    if include is None:
        pytest.skip("the kernels on the CPU: need cuda_fp16.h, see pip install 'lamp-trt[dev]'")
    return include, compiler


def fma_flags() -> list[str]:
    """What makes the compiler use the processor's fused multiply-add. Skips where there is none."""
    if platform.machine() != "x86_64":
        return []
    if " fma " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no fused multiply-add")
    return ["-mfma"]


@functools.cache
def library(*, fused_multiply_add: bool = False) -> ctypes.CDLL:
    """The kernels as a shared library, cached by content. fused_multiply_add: contracted, as nvcc does."""
    include, cxx = kernel_tools()
    contraction = [*fma_flags(), "-ffp-contract=fast"] if fused_multiply_add else ["-ffp-contract=off"]
    command = [cxx, "-std=c++20", "-O2", "-fno-strict-aliasing", "-w", "-shared", "-fPIC", *contraction]
    digest = hashlib.sha256(repr(command).encode())
    for path in [*sorted(EMULATOR.iterdir()), *sorted(KERNELS.glob("*.cu*"))]:
        digest.update(path.read_bytes())
    out = Path(tempfile.gettempdir(), f"lamp-kernels-{os.getuid()}-{digest.hexdigest()[:16]}.so")
    if not out.exists():
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            built = Path(folder, "kernels.so")
            paths = ["-isystem", str(include), "-I", str(KERNELS), "-o", str(built)]
            subprocess.run([*command, *paths, str(EMULATOR / "kernels_emu.cpp")], check=True)
            built.rename(out)
    return ctypes.CDLL(str(out))


class RecordingLauncher:
    """What the functions of runtime.kernels launch with. `launched`: the kernels so far, in order."""

    def __init__(self) -> None:
        self.launched: list[str] = []

    def __call__(
        self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]
    ) -> None:
        self.launched.append(kernel)
        self.run(kernel, grid, threads, arguments)

    def run(self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]) -> None:
        raise NotImplementedError


class CpuLauncher(RecordingLauncher):
    """Under the emulator. `seed` draws the order in which blocks and threads run."""

    def __init__(self, seed: int, *, fused_multiply_add: bool) -> None:
        super().__init__()
        self.seed = seed
        self.library = library(fused_multiply_add=fused_multiply_add)

    def run(self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]) -> None:
        values = [t(a) for t, a in zip(SIGNATURES[kernel], arguments, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        error = ctypes.create_string_buffer(300)
        failed = getattr(self.library, f"emu_{kernel}")(
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(threads, 1, 1),
            pointers,
            ctypes.c_uint(self.seed),
            error,
            ctypes.c_size_t(len(error)),
        )
        self.seed += 1
        if failed:
            raise RuntimeError(f"{kernel}: {error.value.decode()}")


class GpuLauncher(RecordingLauncher):
    """On the GPU, one kernel at a time. It reaches the tests' arrays in pinned host memory."""

    def __init__(self) -> None:
        super().__init__()
        from cuda.core import Device

        from lamp_trt.runtime.kernels.device import CudaLauncher

        device = Device()
        device.set_current()
        self.stream = device.create_stream()
        self.launch = CudaLauncher(self.stream)

    def run(self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]) -> None:
        self.launch(kernel, grid, threads, arguments)
        self.stream.sync()


def launcher(seed: int = 0, *, fused_multiply_add: bool = False) -> RecordingLauncher:
    """The emulator with its options, or the GPU where LAMP_TRT_TEST_GPU is set."""
    return GpuLauncher() if ON_GPU else CpuLauncher(seed, fused_multiply_add=fused_multiply_add)


def host_bytes(size: int) -> np.ndarray:
    """Memory that the launcher's kernels can reach."""
    if not ON_GPU:
        return np.empty(size, np.uint8)
    import torch

    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()


class Memory:
    """Arrays between guard bytes, in place of device memory. Fresh arrays hold 0xff bytes (NaN)."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        block = host_bytes(size + 3 * GUARD)
        block[:] = 0xA5
        start = GUARD + -block.ctypes.data % GUARD
        block[start : start + size] = 0xFF
        self._blocks.append(block)
        array = block[start : start + size].view(dtype).reshape(shape)
        self._blocks.append(np.r_[start, start + size])
        return array

    def array(self, values: Any, dtype: Any = None) -> np.ndarray:
        values = np.asarray(values, dtype)
        out = self.empty(values.shape, values.dtype)
        out[...] = values
        return out

    def check(self) -> None:
        """Fails if a guard byte was written."""
        for block, (start, stop) in zip(self._blocks[::2], self._blocks[1::2], strict=True):
            assert (block[:start] == 0xA5).all(), "a kernel wrote before an array"
            assert (block[stop:] == 0xA5).all(), "a kernel wrote beyond an array"


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The kernels' Philox4x32-10 of one counter uint32 (4,) and key uint32 (2,)."""
    out = np.zeros(4, np.uint32)
    library().emu_philox(*(ctypes.c_void_p(a.ctypes.data) for a in (counter, key, out)))
    return out


def device(array: np.ndarray) -> DeviceArray:
    assert array.flags.c_contiguous
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, owner=array)


class Loop:
    """One denoising loop in `memory`: its arrays by name, `arrays` as the kernels take them."""

    def __init__(
        self,
        memory: Memory,
        shape: Sequence[int],
        dtype: Any = np.float32,
        capacity: int = 50,
        width: int = 1,
    ) -> None:
        """shape (b, c, f, h, w) or (b, c, h, w)."""
        self.sample = memory.empty(shape, dtype)
        self.noise_pred = memory.empty(shape, dtype)
        self.latents = memory.empty((2, *shape[1:]), np.float32)
        self.rows = memory.empty((capacity,), STEP_ROW)
        self.time_table = memory.empty((capacity, width), np.float32)
        self.time_row = memory.empty((1, width), np.float32)
        self.state = memory.empty((1,), LOOP_STATE)
        self.progress = memory.empty((1,), PROGRESS)
        self.arrays = LoopArrays(**{name: device(array) for name, array in vars(self).items()})

    def latents_before(self, step: int, num_steps: int) -> np.ndarray:
        """The latents that this step reads, (1, c, f, h, w); latents_before(n, n) are the last step's."""
        parity = (num_steps - step) % 2
        return self.latents[parity : parity + 1]
