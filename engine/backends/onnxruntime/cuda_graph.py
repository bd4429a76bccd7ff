# SPDX-License-Identifier: Apache-2.0
"""Operators of a bundle's graph that ONNX Runtime's CUDA provider has no kernel for, as others.

A node without a CUDA kernel would go to the CPU provider, which the session refuses
(`session.disable_cpu_ep_fallback`). Found by loading every network into the CUDA provider of 1.31.1.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from lamp_trt.engine.backends.onnxruntime.rewrite import (
    Replacement,
    RewrittenGraph,
    attributes_of,
    groups_of,
    replace_operators,
)

_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def use_cuda_kernels(model: onnx.ModelProto) -> dict[str, int]:
    """Replace every GroupNormalization and every ArgMax in place; how many of each there were."""
    return replace_operators(model, _REPLACEMENTS)


def _group_normalization(graph: RewrittenGraph, node: onnx.NodeProto) -> None:
    """LayerNormalization over each group with a scale of ones, then scale and bias by channel.

    Not the CPU's form, whose scale is broadcast over positions: the CUDA kernel broadcasts leading axes only,
    and reads past the end of a smaller scale (onnxruntime#28971). Nor InstanceNormalization: its kernel is
    registered for opset 6, the graph is in opset 23.
    """
    output, shape = node.output[0], groups_of(graph, node)
    size = shape.width * shape.positions
    dtype = helper.tensor_dtype_to_np_dtype(graph.elem_types[node.input[0]])
    ones = graph.constant(f"ones_{dtype}_{size}", np.ones(size, dtype))
    rows = graph.reshape(node.input[0], [shape.batch, shape.groups, size], f"{output}_groups")
    normalized = graph.add(
        "LayerNormalization", [rows, ones], f"{output}_normalized", axis=2, epsilon=shape.epsilon
    )
    plain = graph.reshape(normalized, [shape.batch, shape.channels, *shape.rest], f"{output}_plain")
    by_channel = [shape.channels, *(1 for _ in shape.rest)]
    scale, bias = (graph.reshape(name, by_channel, f"{output}_{name}") for name in node.input[1:])
    graph.add("Add", [graph.add("Mul", [plain, scale], f"{output}_scaled"), bias], output)


def _arg_max(graph: RewrittenGraph, node: onnx.NodeProto) -> None:
    """Of integers as float32, which is exact below 2^24: they are token ids, or 0 and 1."""
    if graph.elem_types.get(node.input[0]) not in _INTEGERS:
        graph.nodes.append(node)
        return
    output = node.output[0]
    floats = graph.add("Cast", [node.input[0]], f"{output}_floats", to=TensorProto.FLOAT)
    graph.add("ArgMax", [floats], output, **attributes_of(node))


_REPLACEMENTS: Mapping[str, Replacement] = {
    "GroupNormalization": _group_normalization,
    "ArgMax": _arg_max,
}
