# SPDX-License-Identifier: Apache-2.0
"""Which backends there are, and an engine of any of them. A library is imported when it is chosen."""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor.key import cpu_name
from lamp_trt.engine.backends.compiled import CompiledKey
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.engine.families import LAMP

if TYPE_CHECKING:
    from lamp_trt.engine.backends.contract import DeviceEngine, Engine
    from lamp_trt.engine.bundle.reader import Bundle

Residence = Literal["mapped", "pinned", "device"]
"""Where a motion waits to be shown: in its mapped file, in page-locked host memory, or on the device."""

HOST_ENGINES = {
    "onnxruntime": ("onnxruntime.cpu", "OnnxRuntimeEngine"),
    "aotinductor": ("aotinductor.engine", "AotInductorEngine"),
}
"""Module and class of each backend's engine for the CPU, the default one first."""

DEVICE_ENGINES = {
    "tensorrt": ("tensorrt.engine", "TensorRtEngine"),
    "aotinductor": ("aotinductor.engine", "AotInductorCudaEngine"),
    "onnxruntime": ("onnxruntime.cuda", "OnnxRuntimeCudaEngine"),
}
"""Likewise for a CUDA device; "auto" takes the first that has engines for the bundle, or needs none."""

ENGINE_SUFFIX = {"tensorrt": ".plan", "aotinductor": ".pt2"}
"""Of the files that a backend compiles for a network beforehand."""


def parse_device(device: str) -> int | None:
    """The ordinal of "cuda" or "cuda:N", None for "cpu" and, until a GPU has proven the rest, for "auto".

    InputError for anything else.
    """
    if device in ("auto", "cpu"):
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if match is None:
        raise InputError(f"device is {device!r}; choose 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    return int(match[1] or 0)


def choose_backend(
    ordinal: int | None, backend: str, bundle: "Bundle", engine_dir: Path | None = None
) -> str:
    """The backend to use, for "auto" by the bundle's precision, what is in `engine_dir` (None: the bundle's
    own folder) and what is installed.

    InputError for an unknown one, EngineError if nothing is there for this GPU, or for ONNX Runtime and a
    bundle in bf16.
    """
    engines = HOST_ENGINES if ordinal is None else DEVICE_ENGINES
    if backend != "auto" and backend not in engines:
        where = "the CPU" if ordinal is None else "a GPU"
        raise InputError(f"backend is {backend!r}; on {where} choose 'auto', {', '.join(engines)}.")
    if backend == "auto":
        choose = _host_backend if ordinal is None else _device_backend
        backend = choose(bundle, engine_dir or bundle.engine_folder)
    if backend == "onnxruntime":
        refuse_bfloat16(bundle)
    return backend


def in_bfloat16(bundle: "Bundle") -> bool:
    """Whether any network of the bundle is."""
    return any(network.precision == "bf16" for network in bundle.manifest.networks.values())


def refuse_bfloat16(bundle: "Bundle") -> None:
    """EngineError if the bundle is in bf16: ONNX Runtime's CPU provider has no convolution for it."""
    if in_bfloat16(bundle):
        raise EngineError(
            f"{bundle.path} is in precision bf16, which ONNX Runtime does not run. Compile and run it with "
            "--backend aotinductor or, on a GPU, --backend tensorrt (lamp-trt build --precision bf16 "
            f"--backend … --out {bundle.path}), or build a bundle with --precision fp32, for GPUs also fp16."
        )


def _host_backend(bundle: "Bundle", engine_dir: Path) -> str:
    """ONNX Runtime, but for a bundle in bf16 what there are engines of for this CPU."""
    if in_bfloat16(bundle):
        keys = [engine.key for engine in compiled.known(engine_dir)]
        if any(key.backend == "aotinductor" and key.device == cpu_name() for key in keys):
            return "aotinductor"
    return "onnxruntime"


def _device_backend(bundle: "Bundle", engine_dir: Path) -> str:
    """The first of DEVICE_ENGINES with an engine of the LAMP UNet, or that needs none."""
    for name in DEVICE_ENGINES:
        if name in ENGINE_SUFFIX:
            keys = [engine.key for engine in compiled.known(engine_dir)]
            if any(k.network == LAMP.unet and k.backend.startswith(name) and _for_gpu(k) for k in keys):
                return name
        elif importlib.util.find_spec(name):
            return name
    raise EngineError(
        f"nothing runs this bundle on a GPU: {engine_dir} holds no engines, ONNX Runtime is not installed. "
        "Build engines (lamp-trt build --backend tensorrt) or pip install 'lamp-trt[gpu]'."
    )


def _for_gpu(key: CompiledKey) -> bool:
    """Whether an engine is for a GPU; AOTInductor's may be for a CPU."""
    return key.backend != "aotinductor" or key.device.startswith("sm_")


def host_engine(
    backend: str,
    bundle: "Bundle",
    network: str,
    *,
    motion: str | None = None,
    num_threads: int | None = None,
    engine_dir: Path | None = None,
) -> "Engine":
    """One network on the CPU. engine_dir: where compiled engines are, None for the bundle's own folder.

    Raises EngineError if it cannot be loaded.
    """
    compiled = {"engine_dir": engine_dir} if backend in ENGINE_SUFFIX else {}
    make = _class(HOST_ENGINES[backend])
    engine: Engine = make(bundle, network, motion=motion, num_threads=num_threads, **compiled)
    return engine


def device_engine(
    backend: str,
    bundle: "Bundle",
    network: str,
    *,
    device: int,
    stream: int,
    motion: str | None = None,
    engine_dir: Path | None = None,
    resident_motions: Residence = "mapped",
) -> "DeviceEngine":
    """One network on CUDA device `device`, to be run on `stream`, a cudaStream_t. resident_motions: where
    TensorRT's motions wait to be shown. Raises as host_engine."""
    options: dict[str, Any] = {"engine_dir": engine_dir} if backend in ENGINE_SUFFIX else {}
    if backend == "tensorrt":
        options["resident_motions"] = resident_motions
    make = _class(DEVICE_ENGINES[backend])
    engine: DeviceEngine = make(bundle, network, device=device, stream=stream, motion=motion, **options)
    return engine


def _class(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(importlib.import_module(f"lamp_trt.engine.backends.{module}"), name)
