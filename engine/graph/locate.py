# SPDX-License-Identifier: Apache-2.0
"""Weight locations of a bundle's graph, changed in memory before a backend loads it.

The file on disk stays unchanged: standard ONNX that other tools can read.
"""

from collections.abc import Mapping

import onnx
from onnx import helper

from lamp_trt.engine.bundle.weights import TensorRef, WeightFile
from lamp_trt.engine.networks import is_motion_tensor


def point_at_motion(
    model: onnx.ModelProto, base: tuple[str, WeightFile], motion: tuple[str, WeightFile]
) -> None:
    """Point the LAMP UNet's initializers at the shared weights and then at a motion's, which may be complete.

    base, motion: (file relative to the bundle, its header). The base is applied first because the graph may
    point at a motion with shared tensors of its own.
    """
    for file, weights in (base, motion):
        relocate_initializers(model, file, weights.tensors)


def relocate_initializers(model: onnx.ModelProto, file: str, tensors: Mapping[str, TensorRef]) -> int:
    """Point every initializer named in `tensors` at `file` (relative to the bundle); return their number."""
    count = 0
    for initializer in model.graph.initializer:
        ref = tensors.get(initializer.name)
        if ref is None:
            continue
        del initializer.external_data[:]
        for key, value in (("location", file), ("offset", ref.offset), ("length", ref.length)):
            initializer.external_data.add(key=key, value=str(value))
        count += 1
    return count


def take_motion_as_inputs(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Turn the LAMP UNet's motion tensors into inputs, so that one session can run any motion; return their
    shapes.

    A motion's file holds the same elements; weights of convolutions over frames have one axis less there.
    """
    moving = [tensor for tensor in model.graph.initializer if is_motion_tensor(tensor.name)]
    kept = [tensor for tensor in model.graph.initializer if not is_motion_tensor(tensor.name)]
    for tensor in moving:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(value)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return {tensor.name: tuple(tensor.dims) for tensor in moving}
