# SPDX-License-Identifier: Apache-2.0
"""A network's graph adapted for TensorRT, and its weights in memory.

The file on disk stays unchanged: standard ONNX that other tools can read.
"""

from math import prod
from typing import Any

import numpy as np

from lamp_trt.engine.backends.tensorrt.refit import PlacedTensor, PlacedWeights
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.dtypes import BY_ONNX
from lamp_trt.engine.errors import BundleError
from lamp_trt.engine.graph.model import bundle_model, external_tensors


def tensorrt_model(bundle: Bundle, network: str, motion: str | None) -> Any:
    """The network's ModelProto as TensorRT parses it; with `motion`, pointing at that motion's tensors.

    TensorRT imports Attention as one indivisible block, and fails if it has no fused kernel for it (observed:
    head width 8 in fp32). The attribute TRT_decomposable permits decomposition; other tools reject the
    attribute.
    """
    from onnx import helper

    model = bundle_model(bundle, network, motion)
    for node in model.graph.node:
        if node.op_type == "Attention" and not node.domain:
            node.attribute.append(helper.make_attribute("TRT_decomposable", 1))
    return model


def graph_weights(bundle: Bundle, network: str, motion: str | None) -> PlacedWeights:
    """All initializers of a network, including small constants of the graph, on the host."""
    return placed_weights(bundle, bundle_model(bundle, network, motion))


def placed_weights(bundle: Bundle, model: Any) -> PlacedWeights:
    """The initializers of a bundle's `model`: those in files mapped, the others copied out of it.

    BundleError if an initializer exceeds its file.
    """
    from onnx import TensorProto, numpy_helper

    external = {tensor.name: tensor for tensor in external_tensors(model)}
    files = {
        file: np.memmap(bundle.path_of(file), np.uint8, mode="r")
        for file in sorted({tensor.file for tensor in external.values()})
    }
    constants = {}
    tensors = {}
    for initializer in model.graph.initializer:
        name, count = initializer.name, prod(initializer.dims)
        if name in external:
            place = external[name]
            if place.offset < 0 or place.offset + place.length > len(files[place.file]):
                raise BundleError(
                    f"{name} lies beyond the end of {place.file} in {bundle.path}: build the bundle again."
                )
            address = files[place.file].ctypes.data + place.offset
        else:
            constants[name] = np.ascontiguousarray(numpy_helper.to_array(initializer))
            address = constants[name].ctypes.data
        dtype = BY_ONNX[TensorProto.DataType.Name(initializer.data_type)].stored
        tensors[name] = PlacedTensor(dtype, int(address), count)
    return PlacedWeights(tensors, on_device=False, owner=(files, constants))
