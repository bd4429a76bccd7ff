# SPDX-License-Identifier: Apache-2.0
"""Compilation of a bundle's networks to AOTInductor packages, one per network: code without weights.

The modules are those that the ONNX graphs are exported from, with uninitialized parameters. A package gets
the bundle's weights when it is loaded (engine/backends/aotinductor/engine.py). Existing packages are kept, so
an interrupted build resumes with the network that it was compiling.
"""

import dataclasses
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.aotinductor import BACKEND, SWITCH
from lamp_trt.engine.backends.aotinductor.engine import CONSTANTS
from lamp_trt.engine.backends.aotinductor.key import cpu_name, cuda_name, package_key
from lamp_trt.engine.backends.backend import BuildRequest
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError, UnavailableError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.progress import progress
from lamp_trt.export.attention_choice import KERNELS, attention_calls, cuda_seconds, fastest
from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.calls import recorded_products
from lamp_trt.export.candidates.choice import Choice
from lamp_trt.export.candidates.packages import (
    CONSIDERED,
    FORMS,
    MEASURED,
    SETTINGS_CONSIDERED,
    SETTINGS_MEASURED,
    apply_forms,
    existing_key,
    measured_forms,
    requested_forms,
    with_flags,
)
from lamp_trt.export.candidates.settings import SettingsChoice, choose_settings
from lamp_trt.export.candidates.timing import cuda_timer, inductor_options
from lamp_trt.export.gpu_linking import linkable_driver
from lamp_trt.export.networks import exported_network
from lamp_trt.export.recipe import Recipe, recipe_from_options

log = logging.getLogger("lamp_trt")

assert BACKEND.build is not None
SUFFIX = BACKEND.build.suffix

MAX_VALUES = 4096
"""Maximum number of elements of a constant that is not a weight, such as CLIP's position ids (77). Its values
are stored in the package's metadata as JSON."""


@dataclass(frozen=True)
class AotInductorOptions:
    """Compiler options. Raises InputError for invalid combinations.

    device         "cpu", "cuda" or "cuda:N": packages run only on that kind of device of this machine
    attention      the preferred attention kernel on a GPU, used where it applies: "flash", "efficient" or
                   "cudnn"; "auto" measures them on the network's own shapes
    forms          forms of the LAMP UNet's layers: "auto" measures them on the network's own shapes on a GPU,
                   and means "default" on a CPU; or given by slot, like "gate=taps,temporal_conv=two_sided"

    None for the next three: on a GPU turned on where that is faster for the network's own convolutions and
    matrix products, off on a CPU.

    cudnn_benchmark  cuDNN times its algorithms at a package's first run; results of two processes may then
                   differ by rounding
    conv_as_mm     1x1 convolutions as matrix products
    max_autotune   benchmark candidates for every matrix product and convolution at compile time. Needs the
                   GPU and takes many times as long. Not for the CPU, where candidates pack weights at compile
                   time, which makes weights impossible to replace
    """

    device: str = "cpu"
    max_autotune: bool | None = None
    attention: str = "auto"
    forms: str = registry.AUTO
    cudnn_benchmark: bool | None = None
    conv_as_mm: bool | None = None

    def __post_init__(self) -> None:
        kind, _, ordinal = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (ordinal and not (kind == "cuda" and ordinal.isdecimal())):
            raise InputError(f"device is {self.device!r}; choose 'cpu', 'cuda' or 'cuda:N'.")
        if self.max_autotune and kind == "cpu":
            raise InputError("max_autotune is for GPUs: on a CPU it would bake the weights in. Leave it out.")
        for name in ("cudnn_benchmark", "conv_as_mm"):
            if getattr(self, name) and kind == "cpu":
                raise InputError(f"{name} is for GPUs. Leave it out.")
        requested_forms(self.forms, self.device)
        if self.attention != "auto" and (kind == "cpu" or self.attention not in KERNELS):
            raise InputError(
                f"attention is {self.attention!r}; choose 'auto', on a GPU also {', '.join(KERNELS)}."
            )

    @property
    def layout(self) -> torch.memory_format:
        """Memory format of convolution weights. On the CPU the stored one, so that they can be mapped."""
        return torch.contiguous_format if self.device == "cpu" else torch.channels_last

    @property
    def flags(self) -> dict[str, bool | str]:
        """The options that are part of a package's key."""
        layout = str(self.layout).removeprefix("torch.")
        flags: dict[str, bool | str] = {"max_autotune": False, "attention": self.attention, "layout": layout}
        forms = requested_forms(self.forms, self.device)
        if self.device != "cpu":
            flags |= {
                name: registry.AUTO if value is None else value for name, value in self.requested.items()
            }
        if self.device != "cpu" or forms != registry.DEFAULT:
            flags[FORMS] = forms
        return flags

    @property
    def requested(self) -> dict[str, bool | None]:
        """The settings by name; None: to be measured."""
        return {setting.name: getattr(self, setting.name) for setting in registry.SETTINGS}

    @property
    def settings(self) -> dict[str, bool]:
        """The settings by name; those to be measured are off."""
        return {name: bool(value) for name, value in self.requested.items()}


def build_requested(request: BuildRequest) -> list[CompiledEngine]:
    """Build the packages of `lamp-trt build --backend aotinductor`; called through the backend's record."""
    device = "cpu" if request.device == "auto" else request.device
    flags = request.flags
    settings: dict[str, Any] = {
        setting.name: _switch(setting.name, flags.get(setting.name)) for setting in registry.SETTINGS
    }
    options = AotInductorOptions(device, forms=str(flags.get(FORMS) or registry.AUTO), **settings)
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
    """Compile the missing packages of `recipe`'s networks, which `bundle` must hold; returns all of them.

    engine_dir: None for the bundle's own folder. networks: all if empty. Raises EngineError if there is no
    compiler, the device is not there, compiling fails or the disk is full.
    """
    folder = engine_dir or bundle.engine_folder
    device = _device_name(options)
    wanted = networks or recipe.networks
    requested = {name: package_key(bundle, name, device, options.flags) for name in wanted}
    keys = {name: existing_key(folder, key) for name, key in requested.items()}
    missing = [name for name, key in keys.items() if key is None]
    if missing:
        _require_compiler()
        compiled.prepare_folder(folder)
    for name in progress(missing, "AOTInductor", unit=" packages"):
        module = exported_network(recipe, name)
        keys[name] = build_package(bundle, name, module, requested[name], options, folder).key
    by_stem = {engine.path.stem: engine for engine in compiled.known(folder)}
    return [by_stem[key.stem] for key in keys.values() if key is not None]


def build_package(
    bundle: Bundle, name: str, module: nn.Module, key: CompiledKey, options: AotInductorOptions, folder: Path
) -> CompiledEngine:
    """Compile `module` as the bundle's network `name`; the values of its parameters are not used.

    key: of the request. The package's own has the forms and settings that were chosen.
    """
    start = time.monotonic()
    inputs = bundle.network(name).inputs
    key, measured = _with_forms(module, inputs, key, options)
    key, options, timed = _with_settings(module, inputs, key, options)
    measured |= timed
    log.info("compiling %s for %s%s", name, key.device, ", with autotuning" * bool(options.max_autotune))
    with tempfile.TemporaryDirectory(prefix="lamp-trt-") as scratch:
        package = Path(scratch) / f"{name}.{SUFFIX}"
        attention = compile_module(module, inputs, package, options)

        def write(file: BinaryIO) -> None:
            with package.open("rb") as made:
                shutil.copyfileobj(made, file)

        seconds = round(time.monotonic() - start, 1)
        extra: dict[str, str | float] = {
            "bundle": bundle.digest,
            "seconds": seconds,
            "attention": attention,
            **measured,
        }
        engine = compiled.store(folder, key, SUFFIX, extra, write)
    log.info("compiled %s in %.0f s", name, seconds)
    return engine


def compile_module(
    module: nn.Module, inputs: tuple[IOTensor, ...], path: Path, options: AotInductorOptions
) -> str:
    """Compile `module` at the static shapes of `inputs` into the package `path`.

    Returns the preferred attention kernel, or "auto" for torch's own order. Raises EngineError if the
    compiler fails. Parameters are replaced by uninitialized memory on the device. All of them become
    replaceable constants of the package; by default the compiler would inline small ones.
    """
    device = torch.device(options.device)
    _move_empty(module, device, options.layout)
    arguments = _zeros(inputs, device)
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
                **inductor_options(options.settings),
            }
            linking = nullcontext() if device.type == "cpu" else linkable_driver()
            with _preferred_attention(attention), linking:
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(path), inductor_configs=settings
                )
        except RuntimeError as error:
            raise EngineError(f"the compiler failed ({path.stem}): {error}") from error
    return attention


def _with_forms(
    module: nn.Module, inputs: tuple[IOTensor, ...], key: CompiledKey, options: AotInductorOptions
) -> tuple[CompiledKey, dict[str, str]]:
    """Set the forms of `module`'s layers; returns the key with them, and the sidecar's entries of the choice.

    Measured forms are timed on the GPU first.
    """
    measured: dict[str, str] = {}
    if key.flags.get(FORMS) == registry.AUTO:
        choice = _measured(module, inputs, options)
        key = with_flags(key, {FORMS: choice.text})
        measured = {CONSIDERED: registry.considered(), MEASURED: choice.measurements}
    apply_forms(module, str(key.flags.get(FORMS, registry.DEFAULT)))
    return key, measured


def _measured(module: nn.Module, inputs: tuple[IOTensor, ...], options: AotInductorOptions) -> Choice:
    device = torch.device(options.device)
    with _measuring():
        _move_empty(module, device, options.layout)
        return measured_forms(module, _zeros(inputs, device), device, cuda_timer(device, options.settings))


def _with_settings(
    module: nn.Module, inputs: tuple[IOTensor, ...], key: CompiledKey, options: AotInductorOptions
) -> tuple[CompiledKey, AotInductorOptions, dict[str, str]]:
    """Choose the settings that are to be measured, on a module that has its forms; returns the key and the
    options with them, and the sidecar's entries of the choice."""
    unknown = [name for name, value in options.requested.items() if value is None]
    if options.device == "cpu" or not unknown:
        return key, options, {}
    choice = _measured_settings(module, inputs, options)
    measured = {SETTINGS_CONSIDERED: " ".join(unknown), SETTINGS_MEASURED: choice.measurements}
    chosen: dict[str, Any] = dict(choice.values)
    return with_flags(key, chosen), dataclasses.replace(options, **chosen), measured


def _measured_settings(
    module: nn.Module, inputs: tuple[IOTensor, ...], options: AotInductorOptions
) -> SettingsChoice:
    device = torch.device(options.device)
    with _measuring():
        _move_empty(module, device, options.layout)
        products = recorded_products(module, _zeros(inputs, device))
        return choose_settings(products, options.requested, partial(cuda_timer, device), device)


@contextmanager
def _measuring() -> Iterator[None]:
    """Turn torch's errors, such as too little memory, into EngineError."""
    try:
        yield
    except RuntimeError as error:
        settings = " ".join(f"--{setting.name.replace('_', '-')} off" for setting in registry.SETTINGS)
        raise EngineError(
            f"the layers could not be run to be measured ({error}); --forms default {settings} measures "
            "nothing."
        ) from error


def _switch(name: str, value: Any) -> bool | None:
    """A setting of a build request: True, False, or None for "auto". InputError for anything else."""
    known = {None: None, registry.AUTO: None, "on": True, "off": False, True: True, False: False}
    if value not in known:
        raise InputError(f"{name} is {value!r}; choose {', '.join(SWITCH)}.")
    return known[value]


def _zeros(inputs: tuple[IOTensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(t.shape, dtype=getattr(torch, t.dtype), device=device) for t in inputs)


def _attention(
    program: torch.export.ExportedProgram, options: AotInductorOptions, device: torch.device
) -> str:
    """The preferred attention kernel; "auto" on the CPU and for a network without attention."""
    if options.attention != "auto" or device.type == "cpu":
        return options.attention
    return fastest(attention_calls(program), cuda_seconds(device)) or "auto"


def _preferred_attention(name: str) -> AbstractContextManager[None]:
    """A context that makes torch try the attention kernel `name` first while it compiles a network."""
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
    """JSON of the constants that a loader attaches by name: shape, strides, dtype, and values of `others`."""

    def record(tensor: Tensor) -> dict[str, Any]:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return {"shape": list(tensor.shape), "stride": list(tensor.stride()), "dtype": dtype}

    described = {name: record(tensor) for name, tensor in parameters.items()}
    for name, tensor in others.items():
        if tensor.numel() > MAX_VALUES:
            raise EngineError(
                f"constant {name} is not a weight and has {tensor.numel()} values; at most {MAX_VALUES} are "
                "supported."
            )
        described[name] = {**record(tensor.contiguous()), "values": tensor.tolist()}
    return json.dumps(described)


def _device_name(options: AotInductorOptions) -> str:
    """The device's name in a package's key. Raises EngineError if the device is missing."""
    if options.device == "cpu":
        return cpu_name()
    if not torch.cuda.is_available():
        raise UnavailableError(
            f"packages for {options.device} are compiled on a machine with that GPU, but torch finds none "
            "here. `lamp-trt doctor` checks the GPU."
        )
    return cuda_name(torch.cuda.get_device_capability(torch.device(options.device)))


def _require_compiler() -> None:
    """Raise EngineError if the C++ compiler that torch calls is missing."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise UnavailableError(
            f"AOTInductor compiles C++, but {compiler} is not installed: install one (apt install g++), or "
            "set the environment variable CXX to yours. The backend onnxruntime needs none."
        )
