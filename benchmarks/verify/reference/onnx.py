# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs computed in fp32: the reference where no checkpoint is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lamp_trt.engine.backends.contract import Array, BaseEngine
from lamp_trt.engine.backends.onnxruntime.session import cpu_model, new_session
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.bundle.weights import read_weight_file
from lamp_trt.engine.graph.model import external_tensors
from lamp_trt.engine.networks import IOTensor


class Fp32OnnxEngine(BaseEngine):
    """A network of an fp32 or fp16 bundle on ONNX Runtime's CPU provider, all values in fp32.

    Takes the inputs of the bundle's network and returns float32. fp16 weights are held in fp32, at twice
    their size.
    """

    def __init__(
        self, bundle: Bundle, network: str, *, motion: str | None = None, num_threads: int | None = None
    ) -> None:
        record = bundle.network(network)
        self.inputs: tuple[IOTensor, ...] = record.inputs
        self.outputs: tuple[IOTensor, ...] = record.outputs
        self._bundle, self._network, self._num_threads = bundle, network, num_threads
        self._session: Any = None
        self._weights: dict[str, Array] = {}
        self._load(motion)

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        self.require_usable()
        values = {name: _widened(array) for name, array in arrays.items()}
        names = [tensor.name for tensor in self.outputs]
        outputs = self._session.run(names, {**values, **self._weights})
        return dict(zip(names, outputs, strict=True))

    def set_motion(self, motion: str) -> bool:
        self.require_usable()
        self._load(motion)
        return False

    def close(self) -> None:
        self.unusable = f"{self._network} was closed."
        self._session = None
        self._weights = {}

    def _load(self, motion: str | None) -> None:
        model = cpu_model(self._bundle, self._network, motion)
        self._weights = _widen(model, self._bundle)
        providers = ["CPUExecutionProvider"]
        self._session = new_session(
            self._bundle, self._network, model, providers, num_threads=self._num_threads
        )


def _widen(model: Any, bundle: Bundle) -> dict[str, Array]:
    """Turn every FLOAT16 in `model` into FLOAT. Weights in files become inputs; returns their widened
    values."""
    from onnx import TensorProto, helper, numpy_helper

    graph, half, single = model.graph, TensorProto.FLOAT16, TensorProto.FLOAT
    files = {tensor.name: tensor.file for tensor in external_tensors(model)}
    arrays = {file: read_weight_file(bundle.path_of(file)).arrays() for file in set(files.values())}
    weights: dict[str, Array] = {}
    kept = []
    for initializer in graph.initializer:
        name = initializer.name
        if initializer.data_type != half:
            kept.append(initializer)
        elif name in files:
            weights[name] = _widened(arrays[files[name]][name]).reshape(tuple(initializer.dims))
            graph.input.append(helper.make_tensor_value_info(name, single, list(initializer.dims)))
        else:
            kept.append(numpy_helper.from_array(_widened(numpy_helper.to_array(initializer)), name))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == half:
                attribute.i = single
            elif attribute.HasField("t") and attribute.t.data_type == half:
                attribute.t.CopyFrom(numpy_helper.from_array(_widened(numpy_helper.to_array(attribute.t))))
    return weights


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array
