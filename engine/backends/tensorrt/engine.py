# SPDX-License-Identifier: Apache-2.0
"""Networks as TensorRT engines with bound addresses, a given stream and given scratch memory.

The engines are built ahead of time, see engine/backends/tensorrt/build.py. Unproven: no GPU has run this
module yet; tests use a test double that enforces the rules of TensorRT's documentation.
"""

import logging
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamp_trt.engine.backends.backend import Residence
from lamp_trt.engine.backends.compiled import CompiledEngine
from lamp_trt.engine.backends.contract import BaseEngine
from lamp_trt.engine.backends.cuda.calls import architecture
from lamp_trt.engine.backends.cuda.graph import capture
from lamp_trt.engine.backends.tensorrt.graph import graph_weights
from lamp_trt.engine.backends.tensorrt.key import find_engine
from lamp_trt.engine.backends.tensorrt.refit import (
    PlacedWeights,
    RefitFailed,
    motion_weights,
    restore_weights,
    show_motion,
)
from lamp_trt.engine.backends.tensorrt.trt import data_type, logger, taken_errors, tensorrt
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.dtypes import BY_NAME
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import IOTensor

log = logging.getLogger("lamp_trt")

ALIGNMENT = 256
"""Alignment of all addresses given to TensorRT, in bytes."""


class TensorRtEngine(BaseEngine):
    """One network of a bundle as a TensorRT engine on CUDA device `device`, the calling thread's current one.

    engine_dir        folder of its plan; None: the bundle's own
    resident_motions  where inactive motions are kept ("mapped": in their files)

    EngineError if there is no plan for this bundle, TensorRT and GPU (the message names the difference), or
    it does not load.
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
        resident_motions: Residence = "mapped",
    ) -> None:
        record = bundle.network(network)
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        self._bundle, self._network = bundle, network
        self._folder, self._residence = engine_dir, resident_motions
        self._trt = tensorrt()
        self._logger = logger(self._trt)
        self._architecture = architecture(device)
        self._motions: dict[str, PlacedWeights] = {}
        self._bound: dict[str, int] = {}
        self._scratch = (0, 0)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._load(self._find(motion), motion)

    @property
    def scratch_bytes(self) -> int:
        self.require_usable()
        return -(-int(self._engine.device_memory_size_v2) // ALIGNMENT) * ALIGNMENT

    def bind(self, name: str, pointer: int) -> None:
        self.require_usable()
        if pointer % ALIGNMENT:
            raise EngineError(f"{self._network}: {name} is at {pointer:#x}, not a multiple of {ALIGNMENT}.")
        if not self._context.set_tensor_address(name, pointer):
            raise EngineError(f"{self._network} has no tensor {name!r}. {taken_errors(self._trt)}")
        self._bound[name], self._warm = pointer, False

    def use_scratch(self, pointer: int, nbytes: int) -> None:
        if pointer % ALIGNMENT or nbytes < self.scratch_bytes:
            raise EngineError(
                f"{self._network} needs {self.scratch_bytes} bytes of scratch at a multiple of {ALIGNMENT}; "
                f"it was given {nbytes} at {pointer:#x}."
            )
        self._context.set_device_memory(pointer, nbytes)
        self._scratch, self._warm = (pointer, nbytes), False

    def enqueue(self, stream: int) -> None:
        self.require_usable()
        if unbound := [t.name for t in (*self.inputs, *self.outputs) if t.name not in self._bound]:
            raise EngineError(f"{self._network}: {unbound[0]} is bound to no address.")
        if self._scratch[1] < self.scratch_bytes:
            raise EngineError(f"{self._network}: no scratch of {self.scratch_bytes} bytes was given.")
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"TensorRT could not enqueue {self._network}: {taken_errors(self._trt)}")
        self._warm = True

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        self.require_usable()
        if not self._warm:
            raise EngineError(
                f"{self._network} must run once before it is captured: the first run finishes what a new "
                "address or motion needs."
            )
        return capture(stream, work)

    def set_motion(self, motion: str) -> bool:
        """See DeviceEngine; if True is returned, the engine may need more scratch memory."""
        self.require_usable()
        if motion == self._motion:
            return False
        if self._refittable and self._bundle.motion(motion).kind == "motion":
            self._show(motion)
        else:
            self._replace_plan(self._find(motion), motion)
        return True

    def close(self) -> None:
        self._context = self._engine = None
        self._motions.clear()
        self.unusable = f"{self._network} was closed."

    def _find(self, motion: str | None) -> CompiledEngine:
        """Find the plan for this bundle and GPU with `motion` built in, or refittable to it."""
        return find_engine(
            self._bundle,
            self._network,
            self._trt,
            self._architecture,
            motion=motion,
            engine_dir=self._folder,
        )

    def _load(self, plan: CompiledEngine, motion: str | None) -> None:
        """Deserialize and prepare a plan, including stripped weights and the motion."""
        trt = self._trt
        runtime, engine = deserialize(trt, plan)
        self._check_tensors(engine, plan.path)
        if plan.extra.get("stripped"):
            restore_weights(trt, engine, self._logger, graph_weights(self._bundle, self._network, motion))
        if plan.extra.get("weight_streaming"):
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError(f"TensorRT cannot run {self._network}: {taken_errors(trt)}")
        for tensor in self.inputs:
            if not context.set_input_shape(tensor.name, tensor.shape):
                raise EngineError(f"{plan.path} does not take {tensor.name} of shape {tensor.shape}.")
        self._runtime, self._engine, self._context = runtime, engine, context
        self._warm, self.unusable = False, None
        self._refittable = motion is not None and not plan.key.motion
        self._motion = None if self._refittable else motion
        if motion is not None and self._refittable:
            self._show(motion)
        log.debug("%s: %.2f GB scratch, from %s", self._network, self.scratch_bytes / 1e9, plan.path.name)

    def _check_tensors(self, engine: Any, plan: Path) -> None:
        """EngineError unless the plan's inputs and outputs are the bundle's and on the device."""
        trt = self._trt
        wanted = {
            tensor.name: (mode, data_type(trt, BY_NAME[tensor.dtype]), trt.TensorLocation.DEVICE)
            for mode, tensors in (
                (trt.TensorIOMode.INPUT, self.inputs),
                (trt.TensorIOMode.OUTPUT, self.outputs),
            )
            for tensor in tensors
        }
        facts = (engine.get_tensor_mode, engine.get_tensor_dtype, engine.get_tensor_location)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: tuple(fact(name) for fact in facts) for name in names}
        for name in sorted({*wanted, *found}):
            if found.get(name) != wanted.get(name):
                raise EngineError(
                    f"{plan} has tensor {name} as {found.get(name)}, the bundle as {wanted.get(name)}: build "
                    "it again."
                )

    def _show(self, motion: str) -> None:
        """Write a motion into the engine; a failure during the refit leaves it unusable."""
        if motion not in self._motions:
            file = read_weight_file(self._bundle.motion_path(motion))
            self._motions[motion] = motion_weights(file, self._residence)
        try:
            show_motion(self._trt, self._engine, self._logger, self._motions[motion])
        except RefitFailed as error:
            self.unusable = f"{error} {taken_errors(self._trt)} Load the bundle again."
            raise EngineError(self.unusable) from error
        self._motion, self._warm = motion, False

    def _replace_plan(self, plan: CompiledEngine, motion: str) -> None:
        """Replace this plan by another, freeing it first, so that only one UNet is in memory.

        The new one may need more scratch memory, to be given before it runs.
        """
        log.info("%s: motion %s has its own engine, which is loaded now", self._network, motion)
        self._context = self._engine = None
        self.unusable = f"{self._network} has no engine because a switch failed: load the bundle again."
        self._load(plan, motion)
        for name, pointer in self._bound.items():
            self.bind(name, pointer)
        if self._scratch[1] >= self.scratch_bytes:
            self.use_scratch(*self._scratch)


def deserialize(trt: Any, plan: CompiledEngine) -> tuple[Any, Any]:
    """Load a plan on the current device: (Runtime, ICudaEngine). EngineError if TensorRT refuses it."""
    runtime = trt.Runtime(logger(trt))
    runtime.engine_host_code_allowed = bool(plan.key.flags.get("version_compatible"))
    with plan.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"TensorRT does not load {plan.path}: {taken_errors(trt)}")
    return runtime, engine
