# SPDX-License-Identifier: Apache-2.0
"""Engines from plans of TensorRT's double, between arrays of a HostDevice, and what ONNX Runtime computes."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from lamp_trt.engine.backends import compiled
from lamp_trt.engine.backends.onnxruntime.session import cpu_model, new_session
from lamp_trt.engine.backends.tensorrt.engine import TensorRtEngine
from lamp_trt.engine.backends.tensorrt.key import engine_key
from lamp_trt.engine.bundle.reader import Bundle
from tests.doubles import tensorrt as double
from tests.doubles.host_device import HostDevice, values_at

UNET = "lamp_unet"
Arrays = dict[str, np.ndarray]


def keep_plan(
    bundle: Bundle,
    folder: Path,
    network: str,
    motion: str | None = None,
    *,
    refit: bool = False,
    **options: Any,
) -> Path:
    """A plan of the double where `find_engine` looks for it."""
    key = engine_key(bundle, network, double, "sm_90", motion=motion, refittable=refit)
    flags = {name: True for name in ("version_compatible",) if options.pop(name, False)}
    extra = {"stripped": bool(options.get("stripped")), "weight_streaming": options.pop("streaming", False)}
    data = double.plan(bundle, network, motion, refit=refit, **options)
    key = dataclasses.replace(key, flags=flags)
    return compiled.store(folder, key, "plan", extra, writing(data)).path


def writing(data: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


class Bound:
    """An engine between arrays of a HostDevice."""

    def __init__(self, engine: TensorRtEngine, device: HostDevice) -> None:
        self.engine, self.device = engine, device
        self.arrays = {t.name: device.empty(t.shape, t.dtype) for t in (*engine.inputs, *engine.outputs)}
        for name, array in self.arrays.items():
            engine.bind(name, array.pointer)
        self.give_scratch()

    def give_scratch(self) -> None:
        self.scratch = self.device.empty((self.engine.scratch_bytes,), np.uint8)
        self.engine.use_scratch(self.scratch.pointer, self.scratch.nbytes)

    def put(self, inputs: Arrays) -> None:
        for name, values in inputs.items():
            values_at(self.arrays[name])[...] = values

    def outputs(self) -> Arrays:
        return {t.name: values_at(self.arrays[t.name]).copy() for t in self.engine.outputs}

    def run(self, inputs: Arrays) -> Arrays:
        self.put(inputs)
        self.engine.enqueue(self.device.stream)
        self.device.synchronize()
        return self.outputs()


def inputs_of(bundle: Bundle, network: str, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        t.name: (rng.integers(1, 40, t.shape) if t.dtype == "int64" else rng.standard_normal(t.shape)).astype(
            t.dtype
        )
        for t in bundle.network(network).inputs
    }


def expected(bundle: Bundle, network: str, inputs: Arrays, motion: str | None = None) -> Arrays:
    """ONNX Runtime's own result, with the weights where the bundle has them."""
    names = [tensor.name for tensor in bundle.network(network).outputs]
    return dict(zip(names, ort_session(bundle.path, network, motion).run(names, inputs), strict=True))


@functools.cache
def ort_session(path: Path, network: str, motion: str | None) -> Any:
    bundle = Bundle.open(path)
    model = cpu_model(bundle, network, motion)
    return new_session(bundle, network, model, ["CPUExecutionProvider"], num_threads=1)


def assert_equal(ours: Arrays, theirs: Arrays) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def enterprise(version: str) -> ModuleType:
    """TensorRT's module as far as decisions depend on it."""
    module = ModuleType("tensorrt")
    module.__dict__["__version__"] = version
    return module
