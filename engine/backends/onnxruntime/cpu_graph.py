# SPDX-License-Identifier: Apache-2.0
"""Replacement of ONNX operators by others that have better kernels in ONNX Runtime's CPU provider.

The file on disk stays unchanged: standard ONNX that other tools can read.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lamp_trt.engine.errors import EngineError

_CONTRIB_DOMAIN = "com.microsoft"


def use_cpu_kernels(model: onnx.ModelProto) -> dict[str, int]:
    """Replace every Attention and GroupNormalization in place; return the number of each.

    EngineError for an Attention with a mask or a cache, which the bundle's networks do not use.
    """
    graph = _Graph(model)
    counts = dict.fromkeys(_REPLACEMENTS, 0)
    for node in model.graph.node:
        if node.domain or node.op_type not in _REPLACEMENTS:
            graph.nodes.append(node)
        else:
            _REPLACEMENTS[node.op_type](graph, node)
            counts[node.op_type] += 1
    graph.finish()
    return counts


class _Graph:
    """A graph under reconstruction, node by node. shapes: of inputs and intermediate values, by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.nodes: list[onnx.NodeProto] = []
        self.inputs = {value.name for value in model.graph.input}
        self.shapes: Mapping[str, list[int]] = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.value_info)
        }
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        node = helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes)
        self.nodes.append(node)
        return output

    def reshape(self, source: str, target_shape: list[int], output: str) -> str:
        shape = "shape_" + "_".join(map(str, target_shape))
        self._constants[shape] = numpy_helper.from_array(np.array(target_shape, np.int64), shape)
        return self.add("Reshape", [source, shape], output)

    def finish(self) -> None:
        """Put the new nodes and constants into the model."""
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self._constants.values())
        self._model.opset_import.append(helper.make_opsetid(_CONTRIB_DOMAIN, 1))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _multi_head_attention(graph: _Graph, node: onnx.NodeProto) -> None:
    """com.microsoft's MultiHeadAttention, which works block by block.

    ONNX Runtime's CPU kernel for Attention (opset 23) materialises the scores: 6.7 GB for one first-frame
    attention at 40x64 latents. Query, key and value have shape (b, heads, tokens, head_width), and the
    operator takes (b, tokens, width); the transposes added here cancel against the exporter's own when the
    session is optimized. Keys and values that are inputs of the graph are passed unchanged.
    """
    if len([name for name in node.input if name]) > 3 or len([name for name in node.output if name]) > 1:
        raise EngineError(f"Attention {node.name} has a mask or a cache, which is not supported.")
    attributes, shapes, output = _attributes(node), graph.shapes, node.output[0]
    batch, heads, tokens, width = shapes[node.input[0]]
    taken = list(node.input[1:3]) if graph.inputs.issuperset(node.input[1:3]) else []
    packed = []
    for source in node.input[: 3 - len(taken)]:
        _, _, length, source_width = shapes[source]
        rows = graph.add("Transpose", [source], f"{output}_{source}_rows", perm=[0, 2, 1, 3])
        packed.append(graph.reshape(rows, [batch, length, heads * source_width], f"{rows}_packed"))
    attended = graph.add(
        "MultiHeadAttention",
        [*packed, *taken],
        f"{output}_packed",
        domain=_CONTRIB_DOMAIN,
        num_heads=heads,
        scale=float(attributes.get("scale", width**-0.5)),
        unidirectional=int(attributes.get("is_causal", 0)),
    )
    value_width = shapes[node.input[2]][3]
    rows = graph.reshape(attended, [batch, tokens, heads, value_width], f"{attended}_rows")
    graph.add("Transpose", [rows], output, perm=[0, 2, 1, 3])


def _layer_normalization(graph: _Graph, node: onnx.NodeProto) -> None:
    """LayerNormalization over each group.

    ONNX Runtime's CPU provider decomposes GroupNormalization into means of x and of x * x, whose difference
    loses precision if a group's mean exceeds its spread, and reads x several times. Its LayerNormalization
    sums in double precision where scales differ within a row. Measured on (2, 64, 16, 40, 64) in 32 groups,
    mean 3, spread 1: 4e-6 from the exact result before, 3e-8 now, in half the time.
    """
    attributes, output = _attributes(node), node.output[0]
    batch, channels, *rest = graph.shapes[node.input[0]]
    groups = int(attributes["num_groups"])
    width = channels // groups
    rows = graph.reshape(node.input[0], [batch, groups, width, prod(rest)], f"{output}_groups")
    weights = [graph.reshape(name, [groups, width, 1], f"{output}_{name}") for name in node.input[1:]]
    normalized = graph.add(
        "LayerNormalization",
        [rows, *weights],
        f"{output}_normalized",
        axis=2,
        epsilon=float(attributes.get("epsilon", 1e-5)),
    )
    graph.reshape(normalized, [batch, channels, *rest], output)


_REPLACEMENTS: Mapping[str, Callable[[_Graph, onnx.NodeProto], None]] = {
    "Attention": _multi_head_attention,
    "GroupNormalization": _layer_normalization,
}
