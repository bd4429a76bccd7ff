# SPDX-License-Identifier: Apache-2.0
"""Networks as AOTInductor packages, on the CPU and on a CUDA device. The only backend that needs torch at run
time.

A package holds code and the expected layout of every constant, but not the weights: those are attached when
it is loaded. On the CPU they stay in the bundle's mapped files, on a GPU they are copied once. torch is
imported when an engine is made. The CUDA half is unproven: no GPU has run it yet.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lamp_trt.engine.backends.aotinductor.cudnn import CUDNN_BENCHMARK, cudnn_benchmark
from lamp_trt.engine.backends.aotinductor.key import cpu_name, cuda_name, find_package
from lamp_trt.engine.backends.contract import Array, BaseEngine, check_arrays
from lamp_trt.engine.bundle.manifest import MotionEntry
from lamp_trt.engine.bundle.paths import weights_path
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, InputError, UnavailableError
from lamp_trt.engine.families import LAMP
from lamp_trt.engine.files.links import utf8_path
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.torch_threads import torch_threads

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONSTANTS = "lamp_trt_constants"
"""The entry of a package's metadata that describes its constants: JSON, see `Constant`."""

PREFIX = "model."
"""Prefix of a package's constants before the checkpoint's tensor names (export/networks.py)."""


@dataclass(frozen=True)
class Constant:
    """A constant as the compiled code expects it. values: of constants that are not weights, such as position
    ids."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    values: Any = None


class AotInductorEngine(BaseEngine):
    """One network of a bundle as a package for this CPU.

    Weights are views of the mapped files, so they take no memory of their own, and a switch of the motion
    attaches other views. num_threads holds for this engine's runs only. Raises EngineError if there is no
    package for this bundle, torch and CPU, or it is damaged.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        *,
        motion: str | None = None,
        num_threads: int | None = None,
        engine_dir: Path | None = None,
    ) -> None:
        record = bundle.network(network)
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        package = find_package(bundle, network, cpu_name(), engine_dir)
        self._network, self._num_threads = network, num_threads
        self._model, self._constants = _load(package.path, network)
        self._weights = _Weights(bundle, network, self._constants)
        self._motion = motion
        self._attached = False
        self._attach(self._weights.all(motion), complete=True)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        self.require_usable()
        if not self._attached:
            raise EngineError(f"{self._network} has no motion because a switch failed: set a motion.")
        check_arrays(self._network, self.inputs, arrays)
        tensors = [torch.from_numpy(np.require(arrays[t.name], requirements=["C", "W"])) for t in self.inputs]
        with _explained(self._network), torch_threads(self._num_threads):
            outputs = _run(self._model, tensors)
        return {
            tensor.name: np.ascontiguousarray(value.numpy())
            for tensor, value in zip(self.outputs, outputs, strict=True)
        }

    def set_motion(self, motion: str) -> bool:
        self.require_usable()
        if motion == self._motion and self._attached:
            return False
        complete = not self._attached or self._weights.is_full(self._motion) or self._weights.is_full(motion)
        self._attach(self._weights.all(motion) if complete else self._weights.of_motion(motion), complete)
        self._motion = motion
        return False

    def close(self) -> None:
        self.unusable = f"{self._network} was closed."
        self._model = None
        self._weights.close()

    def _attach(self, values: "Mapping[str, Tensor]", complete: bool) -> None:
        """Attach `values` to the package; complete: they are all of its constants."""
        self._attached = False
        attached = {name: _laid_out(value, self._constants[name].stride) for name, value in values.items()}
        with _explained(self._network):
            self._model.load_constants(attached, check_full_update=complete, user_managed=True)
        self._attached = True


class AotInductorCudaEngine(BaseEngine):
    """One network of a bundle as a package for CUDA device `device`, to be run on `stream`.

    Weights are copied to the device once, in the layout that the code expects; a switch of the motion copies
    into the same memory, so what was captured stays valid. Intermediate values live in torch's memory: while
    captured in a pool of the graph, otherwise in its caching allocator. Unproven: no GPU has run it yet.
    Raises EngineError as AotInductorEngine, and if the weights do not fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        *,
        device: int,
        stream: int,
        motion: str | None = None,
        engine_dir: Path | None = None,
    ) -> None:
        record = bundle.network(network)
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        self.scratch_bytes = 0
        import_torch()
        import torch

        if not torch.cuda.is_available():
            raise UnavailableError(
                "this torch has no CUDA, or finds no GPU: pip install a CUDA build of torch; "
                "`lamp-trt doctor` checks the GPU."
            )
        self._network, self._device = network, torch.device("cuda", device)
        self._pointer = stream
        self._stream = torch.cuda.ExternalStream(stream, device=self._device)  # type: ignore[no-untyped-call]
        capability = torch.cuda.get_device_capability(self._device)
        package = find_package(bundle, network, cuda_name(capability), engine_dir)
        self._cudnn_benchmark = bool(package.key.flags.get(CUDNN_BENCHMARK))
        self._bound: dict[str, Tensor] = {}
        self._motion = motion
        with self._on_stream():
            self._model, self._constants = _load(package.path, network, device)
            self._weights = _Weights(bundle, network, self._constants)
            self._values = self._new_values()
            self._fill(self._weights.all(motion))
            self._model.load_constants(self._values, check_full_update=True, user_managed=True)

    def bind(self, name: str, pointer: int) -> None:
        self.require_usable()
        tensor = next(t for t in (*self.inputs, *self.outputs) if t.name == name)
        self._bound[name] = _device_tensor(pointer, tensor, self._device)

    def use_scratch(self, pointer: int, nbytes: int) -> None:
        """Ignored, see `scratch_bytes`."""

    def enqueue(self, stream: int) -> None:
        self._check(stream)
        for tensor in (*self.inputs, *self.outputs):
            if tensor.name not in self._bound:
                raise EngineError(f"{self._network}: {tensor.name} is bound to no address.")
        with self._on_stream():
            outputs = _run(self._model, [self._bound[tensor.name] for tensor in self.inputs])
            for tensor, value in zip(self.outputs, outputs, strict=True):
                self._bound[tensor.name].copy_(value)

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        """Record with torch, which keeps intermediate values in a memory pool of the graph. The engine is
        unusable after a failed capture."""
        import torch

        self._check(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                self._on_stream(),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                work()
        except BaseException as error:
            self.unusable = (
                f"{self._network} failed while it was captured, which may leave torch's allocator in the "
                f"capture ({error}): load the bundle in a new process."
            )
            raise

        def replay() -> None:
            self._check(stream)
            with self._on_stream():
                graph.replay()

        return replay

    def set_motion(self, motion: str) -> bool:
        self._check(self._pointer)
        if motion == self._motion:
            return False
        complete = self._weights.is_full(self._motion) or self._weights.is_full(motion)
        values = self._weights.all(motion) if complete else self._weights.of_motion(motion)
        self.unusable = f"{self._network} has no motion because a switch failed: load it again."
        with self._on_stream():
            self._fill(values)
        self._motion, self.unusable = motion, None
        return False

    def close(self) -> None:
        import torch

        self.unusable = f"{self._network} was closed."
        self._model = None
        self._bound.clear()
        for value in self._values.values():
            value.untyped_storage().resize_(0)  # the loader never drops its references to attached tensors
        self._values.clear()
        torch.cuda.empty_cache()

    def _new_values(self) -> "dict[str, Tensor]":
        """Allocate device memory for every constant."""
        import torch

        constants = self._constants.values()
        needed = sum(prod(c.shape) * getattr(torch, c.dtype).itemsize for c in constants)
        free, _ = torch.cuda.mem_get_info(self._device)
        if needed > free:
            raise EngineError(
                f"the weights of {self._network} need {needed / 1e9:.2f} GB of GPU memory, "
                f"{free / 1e9:.2f} GB are free: close other programs on this GPU."
            )
        return {
            name: torch.empty_strided(
                constant.shape, constant.stride, dtype=getattr(torch, constant.dtype), device=self._device
            )
            for name, constant in self._constants.items()
        }

    def _fill(self, values: "Mapping[str, Tensor]") -> None:
        """Copy values to the device and wait. They are transferred as stored and laid out on the device."""
        for name, value in values.items():
            self._values[name].copy_(value.to(self._device))
        self._stream.synchronize()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        import torch

        with (
            _explained(self._network),
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream),
            cudnn_benchmark(torch, self._cudnn_benchmark),
        ):
            yield

    def _check(self, stream: int) -> None:
        self.require_usable()
        if stream != self._pointer:
            raise EngineError(f"{self._network} was loaded for another stream than it is to run on.")


class _Weights:
    """The values of a network's constants: tensors of the bundle's files, each file mapped once.

    They have the constants' shapes, so a (c, c, 3) weight is (c, c, 3, 1) here, and the stored layout.
    """

    def __init__(self, bundle: Bundle, network: str, constants: Mapping[str, Constant]) -> None:
        self._bundle, self._network, self._constants = bundle, network, constants
        self._base = weights_path(bundle.network(network).component)
        self._has_motions = bundle.network(network).component == LAMP.unet_component
        self._mapped: dict[str, dict[str, Tensor]] = {}

    def all(self, motion: str | None) -> "dict[str, Tensor]":
        """Every constant. EngineError if the files lack one."""
        import torch

        values = {
            name: torch.tensor(constant.values, dtype=getattr(torch, constant.dtype))
            for name, constant in self._constants.items()
            if constant.values is not None
        }
        values |= self._file(self._base) | self.of_motion(motion)
        for name in self._constants:
            if name not in values:
                raise EngineError(
                    f"the bundle holds no tensor {name.removeprefix(PREFIX)}, which the package of "
                    f"{self._network} needs: build it again."
                )
        return values

    def of_motion(self, motion: str | None) -> "dict[str, Tensor]":
        """The constants of a motion (None: the default one); {} if the network has no motions."""
        return self._file(self._entry(motion).file) if self._has_motions else {}

    def is_full(self, motion: str | None) -> bool:
        """Whether a motion has shared tensors of its own."""
        return self._has_motions and self._entry(motion).kind == "full"

    def close(self) -> None:
        """Drop the mapped files."""
        self._mapped.clear()

    def _entry(self, motion: str | None) -> MotionEntry:
        """The manifest's entry of a motion. BundleError if it is missing."""
        return self._bundle.motion(motion)

    def _file(self, relative: str) -> "dict[str, Tensor]":
        from safetensors import safe_open

        if relative not in self._mapped:
            with safe_open(utf8_path(self._bundle.path_of(relative)), framework="pt") as file:
                names = {PREFIX + key: key for key in file.keys()}  # noqa: SIM118 (not a mapping)
                self._mapped[relative] = {
                    name: self._shaped(file.get_tensor(key), name)
                    for name, key in names.items()
                    if name in self._constants
                }
        return self._mapped[relative]

    def _shaped(self, stored: "Tensor", name: str) -> "Tensor":
        constant = self._constants[name]
        dtype = str(stored.dtype).removeprefix("torch.")
        if dtype != constant.dtype or stored.numel() != prod(constant.shape):
            raise EngineError(
                f"{name.removeprefix(PREFIX)} is {dtype} {list(stored.shape)} in the bundle, the package of "
                f"{self._network} takes {constant.dtype} {list(constant.shape)}: build it again."
            )
        return stored.view(constant.shape)


def import_torch() -> ModuleType:
    """torch. EngineError if it cannot be imported."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise UnavailableError(
            f"AOTInductor packages need torch, which does not import ({error}): "
            "pip install 'lamp-trt[aotinductor]'."
        ) from error


def _load(path: Path, network: str, device: int = -1) -> tuple[Any, dict[str, Constant]]:
    """A package's model, and its constants by name.

    Loaded single-threaded: CUDA graph capture does not allow the multi-threaded logic.
    """
    import_torch()
    import torch

    with _explained(network):
        model = torch._inductor.aoti_load_package(
            utf8_path(path), run_single_threaded=True, device_index=device
        )
        known = json.loads(model.get_metadata()[CONSTANTS])
        return model, {name: _constant(known[name]) for name in model.get_constant_fqns()}


def _constant(record: dict[str, Any]) -> Constant:
    return Constant(tuple(record["shape"]), tuple(record["stride"]), record["dtype"], record.get("values"))


def _run(model: Any, tensors: "Sequence[Tensor]") -> "tuple[Tensor, ...]":
    outputs = model(*tensors)
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _laid_out(value: "Tensor", stride: tuple[int, ...]) -> "Tensor":
    """`value` with the strides that compiled code expects: itself, another view of it, or a copy."""
    import torch

    if value.stride() == stride:
        return value
    axes = zip(value.shape, value.stride(), stride, strict=True)
    if all(size == 1 or has == wanted for size, has, wanted in axes):
        return value.as_strided(value.shape, stride)
    return torch.empty_strided(value.shape, stride, dtype=value.dtype).copy_(value)


def _device_tensor(pointer: int, tensor: IOTensor, device: "torch.device") -> "Tensor":
    """View bound memory as a torch tensor, through the CUDA array interface, without a copy."""
    import torch

    interface = {
        "data": (pointer, False),
        "shape": tensor.shape,
        "typestr": np.dtype(tensor.dtype).str,
        "strides": None,
        "version": 3,
    }
    memory = SimpleNamespace(__cuda_array_interface__=interface)
    view = torch.as_tensor(memory, device=device)
    if view.data_ptr() != pointer:
        raise InputError(f"{tensor.name}: {pointer:#x} is no address on {device}.")
    return view


@contextmanager
def _explained(network: str) -> Iterator[None]:
    """Turn torch's errors into EngineErrors."""
    try:
        yield
    except (EngineError, InputError):
        raise
    except (RuntimeError, KeyError, ValueError) as error:
        raise EngineError(f"AOTInductor failed in {network}: {error}") from error
