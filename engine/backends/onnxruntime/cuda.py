# SPDX-License-Identifier: Apache-2.0
"""Networks on ONNX Runtime's CUDA provider, with bound addresses and on a given stream.

The provider captures a run into a CUDA graph of its own, after the first runs with a binding, and replays it;
so nobody else may capture it. Unproven: no GPU has run this module yet.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lamp_trt.engine.backends.contract import BaseEngine
from lamp_trt.engine.backends.onnxruntime import BACKEND
from lamp_trt.engine.backends.onnxruntime.session import import_onnxruntime, new_session
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, UnavailableError
from lamp_trt.engine.graph.model import bundle_model, motion_arrays, shared_file
from lamp_trt.engine.networks import IOTensor

PROVIDER = "CUDAExecutionProvider"


class OnnxRuntimeCudaEngine(BaseEngine):
    """One network of a bundle in an ONNX Runtime session on CUDA device `device`.

    Every node runs on the GPU, or the session is refused: neither it nor a node falls back to the CPU. Memory
    for intermediate values is the session's own. The motion's tensors are inputs in device memory, which
    `set_motion` overwrites; only a motion whose shared tensors differ takes a new session. Raises EngineError
    for a bundle in bf16, if there is no CUDA provider, or the graph does not load.

    cuda_graph    replay the provider's own graph (ONNX Runtime's enable_cuda_graph)
    prefer_nhwc   let convolutions work channels-last
    """

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        *,
        device: int,
        stream: int,
        motion: str | None = None,
        cuda_graph: bool = True,
        prefer_nhwc: bool = False,
    ) -> None:
        BACKEND.require_precision(bundle)
        record = bundle.manifest.networks[network]
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        self.scratch_bytes = 0
        self._bundle, self._network, self._device = bundle, network, device
        self._options = {
            "device_id": str(device),
            "user_compute_stream": str(stream),
            "do_copy_in_default_stream": "1",
            "enable_cuda_graph": str(int(cuda_graph)),
            "prefer_nhwc": str(int(prefer_nhwc)),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
        }
        self._stream = stream
        self._bound: dict[str, int] = {}
        self._motion: str | None = None
        self._motion_values: dict[str, Any] = {}
        self._motion_shapes: dict[str, tuple[int, ...]] = {}
        self._session: Any = None
        self._binding: Any = None
        if motion is None:
            self._session = self._new_session(None)
        else:
            self.set_motion(motion)

    def bind(self, name: str, pointer: int) -> None:
        self.require_usable()
        if self._binding is not None and self._bound.get(name) != pointer:
            raise EngineError(
                f"{self._network}: {name} cannot move once the network ran, its graph holds the address."
            )
        self._bound[name] = pointer

    def use_scratch(self, pointer: int, nbytes: int) -> None:
        """Ignored, see `scratch_bytes`."""

    def enqueue(self, stream: int) -> None:
        self.require_usable()
        if stream != self._stream:
            raise EngineError(f"{self._network} was loaded for another stream than it is enqueued on.")
        if self._session is None:
            raise EngineError(f"{self._network} has no motion because a switch failed: set a motion.")
        onnxruntime = import_onnxruntime()

        if self._binding is None:
            self._binding = self._new_binding()
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:  # ONNX Runtime's own exceptions share no other base
            raise EngineError(f"ONNX Runtime failed in {self._network}: {error}") from error

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        """Never: the provider replays a graph of its own inside `enqueue`."""
        return None

    def set_motion(self, motion: str) -> bool:
        self.require_usable()
        if motion == self._motion:
            return False
        onnxruntime = import_onnxruntime()

        shown, session = self._motion, self._session
        reloads = shown is None or shared_file(self._bundle, motion) != shared_file(self._bundle, shown)
        if reloads:
            session = self._session = self._binding = None  # one live session: not twice its memory
            session = self._new_session(motion)
        arrays = motion_arrays(self._bundle, motion, self._motion_shapes)
        self._session = self._motion = None  # until every tensor is the new motion's
        for name, array in arrays.items():
            if name in self._motion_values:
                self._motion_values[name].update_inplace(np.ascontiguousarray(array))
            else:
                make = onnxruntime.OrtValue.ortvalue_from_numpy
                self._motion_values[name] = make(np.ascontiguousarray(array), "cuda", self._device)
        self._session, self._motion = session, motion
        return reloads

    def close(self) -> None:
        self.unusable = f"{self._network} was closed."
        self._session = self._binding = None
        self._motion_values.clear()

    def _new_session(self, motion: str | None) -> Any:
        onnxruntime = import_onnxruntime()

        from lamp_trt.engine.backends.onnxruntime.cuda_graph import use_cuda_kernels
        from lamp_trt.engine.graph.locate import take_motion_as_inputs

        if PROVIDER not in onnxruntime.get_available_providers():
            raise UnavailableError(
                f"this ONNX Runtime has no {PROVIDER}: pip uninstall onnxruntime, then "
                "pip install 'lamp-trt[gpu]' (the two packages overwrite each other)."
            )
        model = bundle_model(self._bundle, self._network, motion)
        use_cuda_kernels(model)
        if motion is not None:
            self._motion_shapes = take_motion_as_inputs(model)
        session = new_session(
            self._bundle,
            self._network,
            model,
            [(PROVIDER, self._options)],
            {"session.disable_cpu_ep_fallback": "1"},
        )
        if session.get_providers()[:1] != [PROVIDER]:
            raise UnavailableError(
                f"ONNX Runtime fell back to {', '.join(session.get_providers())} for {self._network}: its "
                f"{PROVIDER} does not start. `lamp-trt doctor` checks driver, CUDA and cuDNN."
            )
        return session

    def _new_binding(self) -> Any:
        """Bind every tensor to its address."""
        binding = self._session.io_binding()
        for tensors, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for tensor in tensors:
                if tensor.name not in self._bound:
                    raise EngineError(f"{self._network}: {tensor.name} is bound to no address.")
                dtype = np.dtype(tensor.dtype)
                bind(tensor.name, "cuda", self._device, dtype, tensor.shape, self._bound[tensor.name])
        for name, value in self._motion_values.items():
            binding.bind_ortvalue_input(name, value)
        return binding
