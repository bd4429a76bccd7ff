# SPDX-License-Identifier: Apache-2.0
"""A bundle's networks → AOTInductor packages, one each: compiled code without weights.

Compiled are the modules that the ONNX graphs are exported from, with parameters that hold no values; a
package takes the bundle's weights when it is loaded (engine/backends/aotinductor/engine.py). What is there
already is kept, so a build that was interrupted goes on with the network that it was at.
"""

import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor import BACKEND
from lamp_trt.engine.backends.aotinductor.engine import CONSTANTS
from lamp_trt.engine.backends.aotinductor.key import cpu_name, cuda_name, package_key
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError, UnavailableError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.progress import progress
from lamp_trt.export.attention_choice import KERNELS, attention_calls, cuda_seconds, fastest
from lamp_trt.export.gpu_linking import linkable_driver
from lamp_trt.export.networks import exported_network
from lamp_trt.export.recipe import Recipe, recipe_from_options

log = logging.getLogger("lamp_trt")

assert BACKEND.build is not None
SUFFIX = BACKEND.build.suffix

MAX_VALUES = 4096
"""Elements of a constant that is no weight, such as the position ids of CLIP (77). Its values go into the
package's metadata as JSON."""


@dataclass(frozen=True)
class AotInductorOptions:
    """How to compile. InputError for what does not go together.

    device         "cpu", "cuda" or "cuda:N": packages run on that kind of device in this machine only
    attention      the kernel that attention prefers on a GPU where it fits: "flash", "efficient" or "cudnn";
                   "auto" measures them on the network's own shapes
    max_autotune   measure candidates for every matrix product and convolution while compiling. That takes
                   the GPU and many times as long; how much it brings has to be measured. Not for the CPU,
                   where candidates pack weights when they are compiled, so that none could be exchanged
    """

    device: str = "cpu"
    max_autotune: bool = False
    attention: str = "auto"

    def __post_init__(self) -> None:
        kind, _, ordinal = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (ordinal and not (kind == "cuda" and ordinal.isdecimal())):
            raise InputError(f"device is {self.device!r}; choose 'cpu', 'cuda' or 'cuda:N'.")
        if self.max_autotune and kind == "cpu":
            raise InputError("max_autotune is for GPUs: on a CPU it would bake the weights in. Leave it out.")
        if self.attention != "auto" and (kind == "cpu" or self.attention not in KERNELS):
            raise InputError(
                f"attention is {self.attention!r}; choose 'auto', on a GPU also {', '.join(KERNELS)}."
            )

    @property
    def layout(self) -> torch.memory_format:
        """Of the weights of convolutions: as stored on the CPU, so that they can be mapped."""
        return torch.contiguous_format if self.device == "cpu" else torch.channels_last

    @property
    def flags(self) -> dict[str, bool | str]:
        """What of it is part of a package's key."""
        layout = str(self.layout).removeprefix("torch.")
        return {"max_autotune": self.max_autotune, "attention": self.attention, "layout": layout}


def build_requested(request: BuildRequest) -> list[CompiledEngine]:
    """The packages that `lamp-trt build --backend aotinductor` asks for, as the backend's record names it."""
    device = "cpu" if request.device == "auto" else request.device
    options = AotInductorOptions(device, bool(request.flags.get("max_autotune")))
    return build_packages(
        request.bundle,
        recipe_from_options(request.checkpoints),
        options,
        request.engine_dir,
        request.networks,
    )


def build_packages(
    bundle: Bundle,
    recipe: Recipe,
    options: AotInductorOptions,
    engine_dir: Path | None = None,
    networks: tuple[str, ...] = (),
) -> list[CompiledEngine]:
    """Compile what is missing of the packages of `recipe`'s networks, which `bundle` holds.

    engine_dir: None for the bundle's own folder. networks: all if empty. Raises EngineError if there is no
    compiler, the device is not there, compiling fails or the disk is full.
    """
    folder = engine_dir or bundle.engine_folder
    device = _device_name(options)
    wanted = networks or recipe.networks
    keys = {name: package_key(bundle, name, device, options.flags) for name in wanted}
    missing = [name for name, key in keys.items() if not compiled.has(folder, key)]
    if missing:
        _require_compiler()
        compiled.prepare_folder(folder)
    for name in progress(missing, "AOTInductor", unit=" packages"):
        build_package(bundle, name, exported_network(recipe, name), keys[name], options, folder)
    by_stem = {engine.path.stem: engine for engine in compiled.known(folder)}
    return [by_stem[key.stem] for key in keys.values()]


def build_package(
    bundle: Bundle, name: str, module: nn.Module, key: CompiledKey, options: AotInductorOptions, folder: Path
) -> CompiledEngine:
    """Compile `module`, whose parameters may hold anything, as the bundle's network `name`."""
    start = time.monotonic()
    log.info("compiling %s for %s%s", name, key.device, ", with autotuning" * options.max_autotune)
    with tempfile.TemporaryDirectory(prefix="lamp-trt-") as scratch:
        package = Path(scratch) / f"{name}.{SUFFIX}"
        attention = compile_module(module, bundle.network(name).inputs, package, options)

        def write(file: BinaryIO) -> None:
            with package.open("rb") as made:
                shutil.copyfileobj(made, file)

        seconds = round(time.monotonic() - start, 1)
        extra: dict[str, str | float] = {
            "bundle": bundle.digest,
            "seconds": seconds,
            "attention": attention,
        }
        engine = compiled.store(folder, key, SUFFIX, extra, write)
    log.info("compiled %s in %.0f s", name, seconds)
    return engine


def compile_module(
    module: nn.Module, inputs: tuple[IOTensor, ...], path: Path, options: AotInductorOptions
) -> str:
    """Write `module` at the static shapes of `inputs` as a package; the kernel that its attention prefers, or
    "auto" for torch's own order. EngineError if the compiler fails.

    Its parameters are replaced by memory on the device that is never written to. They are all exchangeable
    constants of the package: the compiler would bake small ones in if it was not told otherwise.
    """
    device = torch.device(options.device)
    _move_empty(module, device, options.layout)
    arguments = tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype), device=device) for t in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, arguments, strict=False)
            attention = _attention(program, options, device)
            others = {**dict(module.named_buffers()), **program.constants}
            settings = {
                "aot_inductor.package_constants_in_so": False,
                "always_keep_tensor_constants": True,
                "aot_inductor.metadata": {CONSTANTS: _described(dict(module.named_parameters()), others)},
                "cpp.dynamic_threads": True,
                "max_autotune": options.max_autotune,
            }
            linking = nullcontext() if device.type == "cpu" else linkable_driver()
            with _preferred_attention(attention), linking:
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(path), inductor_configs=settings
                )
        except RuntimeError as error:
            raise EngineError(f"the compiler failed ({path.stem}): {error}") from error
    return attention


def _attention(
    program: torch.export.ExportedProgram, options: AotInductorOptions, device: torch.device
) -> str:
    """The kernel to prefer; "auto" where there is no choice."""
    if options.attention != "auto" or device.type == "cpu":
        return options.attention
    return fastest(attention_calls(program), cuda_seconds(device)) or "auto"


def _preferred_attention(name: str) -> AbstractContextManager[None]:
    """While a network is compiled, the order in which kernels for attention are tried."""
    if name == "auto":
        return nullcontext()
    preferred = KERNELS[name]
    others = [kernel for kernel in (*KERNELS.values(), SDPBackend.MATH) if kernel != preferred]
    order: AbstractContextManager[None] = sdpa_kernel([preferred, *others], set_priority=True)
    return order


def _move_empty(module: nn.Module, device: torch.device, layout: torch.memory_format) -> None:
    """Give every parameter new memory on `device`, those of 2-D convolutions in `layout`; move buffers."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            memory_format = layout if parameter.ndim == 4 else torch.contiguous_format
            empty = torch.empty(
                parameter.shape, dtype=parameter.dtype, device=device, memory_format=memory_format
            )
            setattr(owner, name, nn.Parameter(empty, requires_grad=False))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, buffer.to(device))


def _described(parameters: Mapping[str, Tensor], others: Mapping[str, Any]) -> str:
    """JSON of what a loader has to attach by name: shape, strides and dtype, and values of `others`."""

    def record(tensor: Tensor) -> dict[str, Any]:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return {"shape": list(tensor.shape), "stride": list(tensor.stride()), "dtype": dtype}

    described = {name: record(tensor) for name, tensor in parameters.items()}
    for name, tensor in others.items():
        if tensor.numel() > MAX_VALUES:
            raise EngineError(f"{name} is a constant of {tensor.numel()} values, and no weight.")
        described[name] = {**record(tensor.contiguous()), "values": tensor.tolist()}
    return json.dumps(described)


def _device_name(options: AotInductorOptions) -> str:
    """EngineError if the device is not there."""
    if options.device == "cpu":
        return cpu_name()
    if not torch.cuda.is_available():
        raise UnavailableError(
            f"packages for {options.device} are compiled on a machine with that GPU, and torch finds none "
            "here. `lamp-trt doctor` checks the GPU."
        )
    return cuda_name(torch.cuda.get_device_capability(torch.device(options.device)))


def _require_compiler() -> None:
    """EngineError if the C++ compiler that torch would call is not there."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise UnavailableError(
            f"AOTInductor compiles C++, and there is no {compiler}: install one (apt install g++), or name "
            "yours in the environment variable CXX. The backend onnxruntime needs none."
        )
