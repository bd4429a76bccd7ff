# SPDX-License-Identifier: Apache-2.0
"""Device memory for the kernels, held by torch tensors."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.latents import STEP_ROW, step_table
from lamp_trt.runtime.kernels.arrays import DeviceArray, device_array
from lamp_trt.runtime.kernels.device import CudaLauncher
from lamp_trt.runtime.kernels.frames import HISTOGRAM_PARTS, HistogramArrays
from lamp_trt.runtime.kernels.latent_loop import LOOP_STATE, LoopArrays
from lamp_trt.runtime.kernels.launch import PROGRESS


def launcher() -> CudaLauncher:
    """Return a launcher for torch's current stream."""
    return CudaLauncher(torch.cuda.current_stream())


def raw(shape: Sequence[int], dtype: Any, *, mapped: bool = False) -> DeviceArray:
    """Return zeroed memory of a dtype that torch may not know, on the device or (mapped) in pinned host
    memory."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    storage = torch.zeros(size, dtype=torch.uint8, device="cpu" if mapped else "cuda", pin_memory=mapped)
    return DeviceArray(storage.data_ptr(), tuple(shape), dtype, owner=storage)


def upload(array: DeviceArray, values: np.ndarray[Any, Any]) -> None:
    """Write `values` to the first bytes of memory made by `raw`."""
    data = torch.from_numpy(np.frombuffer(values.tobytes(), np.uint8).copy())
    assert isinstance(array.owner, Tensor)
    array.owner[: len(data)].copy_(data)


def download(array: DeviceArray) -> np.ndarray[Any, Any]:
    """Return the values of memory made by `raw`."""
    assert isinstance(array.owner, Tensor)
    return array.owner.cpu().numpy().view(array.dtype).reshape(array.shape)


class DeviceLoop:
    """Memory of one denoising loop: torch tensors where tests and benchmarks write, raw memory elsewhere."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype = torch.float16, capacity: int = 50) -> None:
        """shape (b, c, f, h, w) or (b, c, h, w)."""
        self.sample = torch.zeros(*shape, dtype=dtype, device="cuda")
        self.noise_pred = torch.zeros_like(self.sample)
        self.latents = torch.zeros(2, *shape[1:], device="cuda")
        self.time_table = torch.zeros(capacity, 1, device="cuda")
        self.time_row = torch.zeros(1, 1, device="cuda")
        self.arrays = LoopArrays(
            sample=device_array(self.sample),
            noise_pred=device_array(self.noise_pred),
            latents=device_array(self.latents),
            rows=raw((capacity,), STEP_ROW),
            time_table=device_array(self.time_table),
            time_row=device_array(self.time_row),
            state=raw((1,), LOOP_STATE),
            progress=raw((1,), PROGRESS, mapped=True),
        )

    def fill_tables(self, num_steps: int, **options: Any) -> None:
        """Fill the tables for `num_steps` steps; options as latents.step_table's."""
        schedule = ddim_schedule(num_steps)
        upload(self.arrays.rows, step_table(schedule, **options))
        self.time_table[:num_steps, 0] = torch.from_numpy(schedule.timesteps.astype(np.float32))

    def progress(self) -> np.void:
        """Return the PROGRESS record that the kernels write to the host."""
        assert self.arrays.progress is not None
        record: np.void = download(self.arrays.progress)[0]
        return record


class DeviceVideo:
    """Memory of a video's histogram matching."""

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.frames = torch.zeros(frames, height, width, 3, dtype=torch.uint8, device="cuda")
        self.arrays = HistogramArrays(
            frames=device_array(self.frames),
            counts=raw((frames, HISTOGRAM_PARTS, 3, 256), np.uint32),
            lut=raw((frames, 3, 256), np.uint8),
            progress=raw((1,), PROGRESS, mapped=True),
        )
