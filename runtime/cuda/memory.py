# SPDX-License-Identifier: Apache-2.0
"""Estimate of the GPU memory that networks need, before any of them is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.bundle.paths import weights_path
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.families import LAMP
from lamp_trt.runtime.kernels.arrays import DeviceArray


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on the device that are known beforehand.

    weights  weights of the networks, with one motion
    arrays   inputs and outputs of the networks
    Scratch memory is not included: an engine's is known only after loading.
    """

    weights: int
    arrays: int

    @property
    def total(self) -> int:
        return self.weights + self.arrays

    def __str__(self) -> str:
        parts = f"weights {self.weights / 1e9:.2f}, arrays {self.arrays / 1e9:.2f}"
        return f"{self.total / 1e9:.2f} GB ({parts}) and scratch"


def memory_need(manifest: Manifest, networks: Iterable[str]) -> MemoryNeed:
    """The memory that these networks need together. A component's weight file counts once: a VAE's two
    networks hold half of it each."""
    chosen = {name: manifest.networks[name] for name in networks}
    files = {weights_path(network.component) for network in chosen.values()}
    if LAMP.unet in chosen and manifest.default_motion is not None:
        files.add(manifest.motions[manifest.default_motion].file)
    tensors = [tensor for network in chosen.values() for tensor in (*network.inputs, *network.outputs)]
    arrays = sum(DeviceArray(0, tensor.shape, np.dtype(tensor.dtype)).nbytes for tensor in tensors)
    return MemoryNeed(sum(manifest.files[file].size for file in files), arrays)


def require_memory(need: MemoryNeed, free: int, what: str) -> None:
    """Raise EngineError, naming both values, if less memory is free than needed. what: the purpose."""
    if need.total > free:
        raise EngineError(
            f"{what} needs {need} on the GPU, {free / 1e9:.2f} GB are free. Close other programs on this "
            "GPU, build a smaller video (--height, --width, --frames) or in fp16 or bf16, or make first "
            "frames in another process (lamp-trt image)."
        )
