# SPDX-License-Identifier: Apache-2.0
"""Networks on ONNX Runtime's CPU provider."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.engine.backends.contract import Array, BaseEngine, check_arrays
from lamp_trt.engine.backends.onnxruntime import BACKEND
from lamp_trt.engine.backends.onnxruntime.session import cpu_model, new_session
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.graph.model import motion_arrays, shared_file
from lamp_trt.engine.networks import IOTensor


class OnnxRuntimeEngine(BaseEngine):
    """One network of a bundle in an ONNX Runtime session on the CPU.

    A session's weights cannot be replaced, so the motion's tensors are inputs, fed from the mapped file: a
    switch takes milliseconds and does not slow down steps (benchmarks/studies/motion_switch.py). Only a
    motion whose shared tensors differ needs a new session; if that fails, the next `set_motion` tries again.
    EngineError for a bundle in bf16, or if the graph does not load.
    """

    def __init__(
        self, bundle: Bundle, network: str, *, motion: str | None = None, num_threads: int | None = None
    ) -> None:
        BACKEND.require_precision(bundle)
        record = bundle.manifest.networks[network]
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        self._bundle, self._network, self._num_threads = bundle, network, num_threads
        self._motion: str | None = None
        self._motion_arrays: dict[str, Array] = {}
        self._motion_shapes: dict[str, tuple[int, ...]] = {}
        self._session: Any = None
        if motion is None:
            self._session = self._new_session(None)
        else:
            self.set_motion(motion)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        self.require_usable()
        if self._session is None:
            raise EngineError(f"{self._network} has no motion because a switch failed: set a motion.")
        check_arrays(self._network, self.inputs, arrays)
        names = [tensor.name for tensor in self.outputs]
        try:
            values = self._session.run(names, {**arrays, **self._motion_arrays})
        except Exception as error:  # the only common base of ONNX Runtime's exceptions
            raise EngineError(f"ONNX Runtime failed in {self._network}: {error}") from error
        return dict(zip(names, values, strict=True))

    def set_motion(self, motion: str) -> bool:
        self.require_usable()
        if motion == self._motion:
            return False
        shown, session = self._motion, self._session
        if shown is None or shared_file(self._bundle, motion) != shared_file(self._bundle, shown):
            session = self._session = self._motion = None  # frees one UNet before loading the other
            session = self._new_session(motion)
        self._motion_arrays = motion_arrays(self._bundle, motion, self._motion_shapes)
        self._session, self._motion = session, motion
        return False

    def close(self) -> None:
        self.unusable = f"{self._network} was closed."
        self._session = None
        self._motion_arrays = {}

    def _new_session(self, motion: str | None) -> Any:
        from lamp_trt.engine.graph.locate import take_motion_as_inputs

        model = cpu_model(self._bundle, self._network, motion)
        if motion is not None:
            self._motion_shapes = take_motion_as_inputs(model)
        return new_session(
            self._bundle,
            self._network,
            model,
            ["CPUExecutionProvider"],
            num_threads=self._num_threads,
        )
