# SPDX-License-Identifier: Apache-2.0
"""Which backends there are, and an engine of any of them. A library is imported when it is chosen."""

import importlib
from pathlib import Path
from typing import Literal

from lamp_trt.engine.backend import DeviceEngine, Engine
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.errors import InputError

Device = Literal["cpu", "cuda"]

HOST_ENGINES = {
    "onnxruntime": ("backend_onnxruntime", "OnnxRuntimeEngine"),
    "aotinductor": ("backend_aotinductor", "AotInductorEngine"),
}
"""Module and class of each backend's engine for the CPU, the default one first."""

DEVICE_ENGINES = {
    "tensorrt": ("backend_tensorrt", "TensorRtEngine"),
    "onnxruntime": ("backend_onnxruntime_cuda", "OnnxRuntimeCudaEngine"),
    "aotinductor": ("backend_aotinductor", "AotInductorCudaEngine"),
}
"""Likewise for a CUDA device."""


def check_backend(device: Device, backend: str) -> str:
    """The name of a backend for `device`; "auto" is the CPU's default. InputError for any other."""
    engines = HOST_ENGINES if device == "cpu" else DEVICE_ENGINES
    if backend == "auto" and device == "cpu":
        return next(iter(HOST_ENGINES))
    if backend not in engines:
        choices = ", ".join(engines)
        raise InputError(f"backend is {backend!r}; on device {device!r} choose one of {choices}.")
    return backend


def host_engine(
    backend: str,
    bundle: Bundle,
    network: str,
    *,
    motion: str | None = None,
    num_threads: int | None = None,
    engine_dir: Path | None = None,
) -> Engine:
    """One network on the CPU. engine_dir: where compiled engines are, None for the bundle's own folder.

    Raises EngineError if it cannot be loaded.
    """
    make = _class(HOST_ENGINES[backend])
    options = {} if backend == "onnxruntime" else {"engine_dir": engine_dir}
    engine: Engine = make(bundle, network, motion=motion, num_threads=num_threads, **options)
    return engine


def device_engine(
    backend: str,
    bundle: Bundle,
    network: str,
    *,
    device: int,
    stream: int,
    motion: str | None = None,
    engine_dir: Path | None = None,
) -> DeviceEngine:
    """One network on CUDA device `device`, to be run on `stream`, a cudaStream_t. Raises as host_engine."""
    make = _class(DEVICE_ENGINES[backend])
    engine: DeviceEngine = make(
        bundle, network, device=device, stream=stream, motion=motion, engine_dir=engine_dir
    )
    return engine


def _class(place: tuple[str, str]) -> type:
    module, name = place
    found: type = getattr(importlib.import_module(f"lamp_trt.engine.{module}"), name)
    return found
