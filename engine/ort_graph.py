# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime needs changed in a bundle's graph before a session takes it.

Nothing of it is written to disk: there the graph stays plain ONNX, which every other tool can read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.engine.weights import TensorRef, WeightFile

_CONTRIB_DOMAIN = "com.microsoft"


def use_multi_head_attention(model: onnx.ModelProto) -> int:
    """Replace every Attention (opset 23) by com.microsoft's MultiHeadAttention; returns how many.

    ONNX Runtime's CPU kernel for Attention materialises the scores (6.7 GB for one first-frame attention at
    40x64 latents), MultiHeadAttention works block by block. Query, key and value arrive as (b, heads, tokens,
    head_width) and are wanted as (b, tokens, width); the transposes added here cancel against the exporter's
    own when the session is optimized. Keys and values that the graph is given are taken as they are.
    """
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.value_info)
    }
    given = {value.name for value in model.graph.input}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def reshape(source: str, target_shape: list[int], output: str) -> str:
        shape = "shape_" + "_".join(map(str, target_shape))
        constants[shape] = numpy_helper.from_array(np.array(target_shape, np.int64), shape)
        return add("Reshape", [source, shape], output)

    count = 0
    for node in model.graph.node:
        if node.op_type != "Attention" or node.domain:
            nodes.append(node)
            continue
        if len([name for name in node.input if name]) > 3 or len([name for name in node.output if name]) > 1:
            raise EngineError(f"Attention {node.name} has a mask or a cache, which is not rewritten.")
        count += 1
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        batch, heads, tokens, width = shapes[node.input[0]]
        taken = list(node.input[1:3]) if given.issuperset(node.input[1:3]) else []
        packed = []
        for source in node.input[: 3 - len(taken)]:
            _, _, length, source_width = shapes[source]
            rows = add("Transpose", [source], f"{node.output[0]}_{source}_rows", perm=[0, 2, 1, 3])
            packed.append(reshape(rows, [batch, length, heads * source_width], f"{rows}_packed"))
        attended = f"{node.output[0]}_packed"
        nodes.append(
            helper.make_node(
                "MultiHeadAttention",
                [*packed, *taken],
                [attended],
                name=node.name or attended,
                domain=_CONTRIB_DOMAIN,
                num_heads=heads,
                scale=float(attributes.get("scale", width**-0.5)),
                unidirectional=int(attributes.get("is_causal", 0)),
            )
        )
        value_width = shapes[node.input[2]][3]
        rows = reshape(attended, [batch, tokens, heads, value_width], f"{attended}_rows")
        add("Transpose", [rows], node.output[0], perm=[0, 2, 1, 3])
    if count:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants.values())
        model.opset_import.append(helper.make_opsetid(_CONTRIB_DOMAIN, 1))
    return count


def point_at_motion(
    model: onnx.ModelProto, base: tuple[str, WeightFile], motion: tuple[str, WeightFile]
) -> None:
    """Point the LAMP UNet's initializers at the shared weights and then at a motion's, which may be whole.

    base, motion: (file relative to the bundle, its header). The base comes first because the graph may point
    at a motion that brought its own shared tensors.
    """
    for file, weights in (base, motion):
        relocate_initializers(model, file, weights.tensors)


def relocate_initializers(model: onnx.ModelProto, file: str, tensors: Mapping[str, TensorRef]) -> int:
    """Point every initializer named in `tensors` at `file` (relative to the bundle); returns how many."""
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
    """Make inputs of the LAMP UNet's motion tensors, so that one session shows any motion; their shapes.

    A motion's file holds the same elements, of a convolution over frames in one axis less.
    """
    moving = [tensor for tensor in model.graph.initializer if is_motion_tensor(tensor.name)]
    kept = [tensor for tensor in model.graph.initializer if not is_motion_tensor(tensor.name)]
    for tensor in moving:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(value)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return {tensor.name: tuple(tensor.dims) for tensor in moving}
