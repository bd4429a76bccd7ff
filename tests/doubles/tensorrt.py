# SPDX-License-Identifier: Apache-2.0
"""TensorRT's runtime on the host: ONNX Runtime computes, and every documented rule is enforced.

Real TensorRT answers a broken rule with False, a wrong result or a crash; here it is False where the
documentation says so and a Violation where it says "undefined". What is enqueued runs when somebody waits
(HostStream), so that nothing passes which only works because it happens at once. Documentation, [name] below:

[refitting]  docs.nvidia.com/deeplearning/tensorrt/11.4.0/inference-library/refitting-engines.html
[Refitter]   docs.nvidia.com/deeplearning/tensorrt/api/python_api/infer/Core/Refitter.html
[context]    docs.nvidia.com/deeplearning/tensorrt/api/python_api/infer/Core/ExecutionContext.html
[engine]     docs.nvidia.com/deeplearning/tensorrt/api/python_api/infer/Core/Engine.html
[graphs]     docs.nvidia.com/deeplearning/tensorrt/11.0.0/performance/optimization.html, CUDA Graphs
[header]     include/NvInferRuntime.h, the comments of the methods named
"""

import ctypes
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from lamp_trt.engine.backends.onnxruntime.cpu_graph import use_cpu_kernels
from lamp_trt.engine.backends.onnxruntime.session import new_session
from lamp_trt.engine.bundle.paths import weights_path
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.graph.model import bundle_model
from lamp_trt.engine.networks import IOTensor, is_motion_tensor
from lamp_trt.runtime.kernels.arrays import DeviceArray
from tests.doubles.host_device import STREAMS, HostStream, values_at

__version__ = "10.16.1"
ALIGNMENT = 256


class Violation(AssertionError):
    """Something whose result TensorRT calls undefined."""


class DataType(Enum):
    FLOAT = auto()
    HALF = auto()
    INT32 = auto()
    INT64 = auto()
    BF16 = auto()


class TensorIOMode(Enum):
    INPUT = auto()
    OUTPUT = auto()


class TensorLocation(Enum):
    DEVICE = auto()
    HOST = auto()


class LayerInformationFormat(Enum):
    ONELINE = auto()
    JSON = auto()


class ExecutionContextAllocationStrategy(Enum):
    STATIC = auto()
    ON_PROFILE_CHANGE = auto()
    USER_MANAGED = auto()


_DATA_TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "int32": DataType.INT32,
    "int64": DataType.INT64,
}
_HANDLES = itertools.count(1)
_SESSIONS: dict[tuple[Path, str, bytes], Any] = {}
_NUMPY = {kind: np.dtype(name) for name, kind in _DATA_TYPES.items()}


class ILogger:
    """Base of what takes the messages."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class Weights:
    """Values at an address, or the type and number of them that an engine takes."""

    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        self.dtype, self.pointer, self.size = type, ptr, count

    def values(self) -> np.ndarray:
        dtype = _NUMPY[self.dtype]
        memory = (ctypes.c_uint8 * (self.size * dtype.itemsize)).from_address(self.pointer)
        return np.ctypeslib.as_array(memory).view(dtype).copy()


def plan(bundle: Bundle, network: str, motion: str | None = None, **options: Any) -> bytes:
    """A plan that `Runtime` takes: of a network, with the weights of `motion` baked in or, by `refit`,
    replaceable. Options and their defaults:

    refit, stripped    what it was built for; a stripped one has no weights until it is given them
    scratch            bytes
    extra_refittable   names of tensors that can be replaced besides
    fused_with         names that must be given when any is
    """
    document = {"bundle": str(bundle.path), "network": network, "motion": motion}
    defaults = {"refit": False, "stripped": False, "scratch": 5000, "extra_refittable": [], "fused_with": []}
    assert options.keys() <= defaults.keys()
    return json.dumps({**document, **defaults, **options}).encode()


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        if not isinstance(logger, ILogger):
            raise TypeError("logger")
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        """[Runtime] "The ICudaEngine, or None if it could not be deserialized"."""
        try:
            return ICudaEngine(json.loads(bytes(serialized_engine)))
        except ValueError:
            return None


class ICudaEngine:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._bundle = Bundle.open(document["bundle"], verify="none")
        self._network, self.document = document["network"], document
        record = self._bundle.network(self._network)
        self.tensors: dict[str, tuple[TensorIOMode, IOTensor]] = {
            tensor.name: (mode, tensor)
            for mode, tensors in (
                (TensorIOMode.INPUT, record.inputs),
                (TensorIOMode.OUTPUT, record.outputs),
            )
            for tensor in tensors
        }
        self._contexts = 0
        self._budget = 0
        self._runs_on: set[HostStream] = set()
        self.refits = 0
        self.weights: dict[str, np.ndarray] = {}
        if document["motion"] is not None:
            self.weights = _arrays(self._bundle.motion_path(document["motion"]))
        if document["stripped"]:
            stored = _arrays(self._bundle.path_of(weights_path(record.component)))
            used = {
                tensor.name for tensor in bundle_model(self._bundle, self._network, None).graph.initializer
            }
            self.weights = {name: array for name, array in stored.items() if name in used}
        self.absent = set(self.weights) if document["stripped"] else set()
        self.refittable_names = list(self.absent)
        if document["refit"]:
            self.refittable_names += [*filter(is_motion_tensor, self.weights), *document["extra_refittable"]]

    @property
    def refittable(self) -> bool:
        return bool(self.document["refit"] or self.document["stripped"])

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def device_memory_size_v2(self) -> int:
        """[engine] changes with the weight streaming budget."""
        return int(self.document["scratch"]) + self._budget

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        """[header] setWeightStreamingBudgetV2: not while there are execution contexts."""
        if self._contexts:
            raise Violation("the weight streaming budget was set while there is an execution context")
        self._budget = budget

    def get_weight_streaming_automatic_budget(self) -> int:
        return 1024

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DATA_TYPES[self.tensors[name][1].dtype]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_engine_inspector(self) -> "EngineInspector":
        return EngineInspector(self)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> "IExecutionContext":
        self._contexts += 1
        return IExecutionContext(self, strategy)

    def compute(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One run with the weights as they are now."""
        if self.absent:
            raise Violation("an engine from a stripped plan runs before it was given its weights")
        session = self._session()
        outputs = [name for name, (mode, _) in self.tensors.items() if mode is TensorIOMode.OUTPUT]
        return dict(zip(outputs, session.run(outputs, dict(arrays)), strict=True))

    def _session(self) -> Any:
        """One with the weights as they are now; sessions are kept, for they take long to make."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(self.weights[name])
        key = (self._bundle.path, self._network, digest.digest())
        if key not in _SESSIONS:
            model = bundle_model(self._bundle, self._network, None)
            for initializer in model.graph.initializer:
                if initializer.name in self.weights:
                    array = self.weights[initializer.name].reshape(initializer.dims)
                    initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
            use_cpu_kernels(model)
            providers = ["CPUExecutionProvider"]
            _SESSIONS[key] = new_session(self._bundle, self._network, model, providers, num_threads=1)
        return _SESSIONS[key]

    def replace_weights(self, values: Mapping[str, np.ndarray]) -> None:
        """[Refitter] "The behavior is undefined if the engine has pending enqueued work"."""
        if not all(stream.idle for stream in self._runs_on):
            raise Violation("weights are replaced while work is pending")
        self.weights.update(values)
        self.absent -= values.keys()
        self.refits += 1


class EngineInspector:
    """[engine] Layers by name, or in detail for a plan that was built so."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        nodes = bundle_model(self._engine._bundle, self._engine._network, None).graph.node
        return json.dumps({"Layers": [node.name for node in nodes], "Bindings": [*self._engine.tensors]})


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self.engine = engine
        self._memory: tuple[int, int] | None = None
        if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            self._memory = (0, engine.device_memory_size_v2)
        self._addresses: dict[str, int] = {}
        self._shaped: set[str] = set()
        self._settled = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """[header] setInputShape: false for a name that is no input, or a shape outside the profile."""
        mode, tensor = self.engine.tensors.get(name, (None, None))
        if mode is not TensorIOMode.INPUT or tensor is None or tuple(shape) != tensor.shape:
            return False
        self._shaped.add(name)
        self._settled = False
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """[header] setTensorAddress: false for a name that is no tensor; "at least 256-byte alignment"."""
        if name not in self.engine.tensors:
            return False
        if memory % ALIGNMENT:
            raise Violation(f"{name} is not aligned to {ALIGNMENT} bytes")
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        """[context] "256-byte aligned device memory", "at least as large as" what the engine says."""
        if memory % ALIGNMENT:
            raise Violation(f"scratch is not aligned to {ALIGNMENT} bytes")
        if size < self.engine.device_memory_size_v2:
            raise Violation(f"scratch of {size} bytes, needed are {self.engine.device_memory_size_v2}")
        self._memory = (memory, size)

    def array(self, name: str) -> DeviceArray:
        tensor = self.engine.tensors[name][1]
        return DeviceArray(self._addresses[name], tensor.shape, np.dtype(tensor.dtype))

    def execute_async_v3(self, stream_handle: int) -> bool:
        """[header] enqueueV3: false unless every tensor has an address and every input a shape.

        [graphs] "Call enqueueV3() once after an input shape change to update internal state", before capture.
        """
        engine = self.engine
        if engine.tensors.keys() - self._addresses.keys():
            return False
        if {name for name, (mode, _) in engine.tensors.items() if mode is TensorIOMode.INPUT} - self._shaped:
            return False
        if self._memory is None:
            raise Violation("a context with user-managed memory was enqueued without any")
        stream = STREAMS[stream_handle]
        if stream.recording and not self._settled:
            raise Violation("captured before a first run")
        arrays = {name: self.array(name) for name in engine.tensors}
        memory, refits = self._memory, engine.refits

        def run() -> None:
            if engine.refits != refits:
                raise Violation("a graph was replayed that was captured before the weights were replaced")
            inputs = {
                name: values_at(arrays[name]).copy()
                for name, (mode, _) in engine.tensors.items()
                if mode is TensorIOMode.INPUT
            }
            for name, values in engine.compute(inputs).items():
                values_at(arrays[name])[...] = values
            if memory[0]:
                values_at(DeviceArray(memory[0], (memory[1],), np.dtype(np.uint8)))[...] = 0xA7

        engine._runs_on.add(stream)
        stream.put(run)
        self._settled = True
        return True


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in read_weight_file(path).arrays().items()}


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        if not engine.refittable:
            raise Violation("a Refitter of an engine that was not built to be refitted")
        self.engine = engine
        self._given: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return list(self.engine.refittable_names)

    def get_missing_weights(self) -> list[str]:
        """[Refitter] "if the engine was optimized in a way that combines weights, any unsupplied Weights in
        the combination are considered missing"; and every weight of a stripped plan."""
        needed = [*self.engine.absent, *(self.engine.document["fused_with"] if self._given else [])]
        return [name for name in needed if name not in self._given]

    def get_weights_prototype(self, weights_name: str) -> Weights:
        """[Refitter] size -1 for a name that cannot be refitted."""
        if weights_name not in self.engine.refittable_names:
            return Weights(DataType.FLOAT, 0, -1)
        array = self.engine.weights[weights_name]
        return Weights(_DATA_TYPES[array.dtype.name], 0, array.size)

    def set_named_weights(
        self, name: str, weights: Weights, location: TensorLocation = TensorLocation.HOST
    ) -> bool:
        """[refitting] false for "a wrong weights name or a change in the weights count", or of the dtype."""
        prototype = self.get_weights_prototype(name)
        if (prototype.size, prototype.dtype) != (weights.size, weights.dtype):
            return False
        self._given[name] = weights
        return True

    def refit_cuda_engine(self) -> bool:
        """[Refitter] "Failure occurs if get_missing_weights() != 0 before the call"."""
        engine = self.engine
        if self.get_missing_weights():
            return False
        values = {
            name: weights.values().reshape(engine.weights[name].shape)
            for name, weights in self._given.items()
        }
        engine.replace_weights(values)
        return True


class CudaDouble:
    """The functions of cuda.bindings.runtime that engines call, on host streams and host memory."""

    def __init__(self) -> None:
        from cuda.bindings.runtime import cudaDeviceAttr, cudaError_t

        self.success, self.failure = cudaError_t.cudaSuccess, cudaError_t.cudaErrorStreamCaptureInvalidated
        major = cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        self._attribute = lambda attribute: 9 if attribute == major else 0
        self.memory: dict[int, np.ndarray] = {}
        self.modes: list[Any] = []
        self.graphs: dict[int, list[Callable[[], None]]] = {}

    def install(self, monkeypatch: Any) -> None:
        for name in dir(self):
            if name.startswith("cuda"):
                monkeypatch.setattr(f"cuda.bindings.runtime.{name}", getattr(self, name))

    def cudaDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Any, int]:
        return self.success, self._attribute(attribute)

    def cudaSetDevice(self, device: int) -> tuple[Any]:
        return (self.success,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        self.modes.append(mode)
        STREAMS[stream].begin_recording()
        return (self.success,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int]:
        handle = next(_HANDLES)
        self.graphs[handle] = STREAMS[stream].end_recording()
        return self.success, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, int]:
        handle = next(_HANDLES)
        self.graphs[handle] = list(self.graphs[graph])
        return self.success, handle

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any]:
        for work in self.graphs[executable]:
            STREAMS[stream].put(work)
        return (self.success,)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any]:
        return (self.success if self.graphs.pop(graph, None) is not None else self.failure,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaMalloc(self, nbytes: int) -> tuple[Any, int]:
        array = np.full(nbytes, 0xFF, np.uint8)
        self.memory[array.ctypes.data] = array
        return self.success, array.ctypes.data

    cudaMallocHost = cudaMalloc

    def cudaFree(self, pointer: int) -> tuple[Any]:
        return (self.success if self.memory.pop(pointer, None) is not None else self.failure,)

    cudaFreeHost = cudaFree

    def cudaMemcpy(self, target: int, source: int, nbytes: int, kind: Any) -> tuple[Any]:
        ctypes.memmove(target, source, nbytes)
        return (self.success,)
