# SPDX-License-Identifier: Apache-2.0
"""Replacement of ONNX operators by others that have better kernels in ONNX Runtime's CPU provider.

The file on disk stays unchanged: standard ONNX that other tools can read.
"""

from collections.abc import Mapping

import onnx

from lamp_trt.engine.backends.onnxruntime.rewrite import (
    CONTRIB_DOMAIN,
    Replacement,
    RewrittenGraph,
    attributes_of,
    groups_of,
    replace_operators,
)
from lamp_trt.engine.errors import EngineError


def use_cpu_kernels(model: onnx.ModelProto) -> dict[str, int]:
    """Replace every Attention and GroupNormalization in place; return the number of each.

    EngineError for an Attention with a mask or a cache, which the bundle's networks do not use.
    """
    return replace_operators(model, _REPLACEMENTS)


def _multi_head_attention(graph: RewrittenGraph, node: onnx.NodeProto) -> None:
    """com.microsoft's MultiHeadAttention, which works block by block.

    ONNX Runtime's CPU kernel for Attention (opset 23) materialises the scores: 6.7 GB for one first-frame
    attention at 40x64 latents. Query, key and value have shape (b, heads, tokens, head_width), and the
    operator takes (b, tokens, width); the transposes added here cancel against the exporter's own when the
    session is optimized. Keys and values that are inputs of the graph are passed unchanged.
    """
    if len([name for name in node.input if name]) > 3 or len([name for name in node.output if name]) > 1:
        raise EngineError(f"Attention {node.name} has a mask or a cache, which is not supported.")
    attributes, shapes, output = attributes_of(node), graph.shapes, node.output[0]
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
        domain=CONTRIB_DOMAIN,
        num_heads=heads,
        scale=float(attributes.get("scale", width**-0.5)),
        unidirectional=int(attributes.get("is_causal", 0)),
    )
    value_width = shapes[node.input[2]][3]
    rows = graph.reshape(attended, [batch, tokens, heads, value_width], f"{attended}_rows")
    graph.add("Transpose", [rows], output, perm=[0, 2, 1, 3])


def _layer_normalization(graph: RewrittenGraph, node: onnx.NodeProto) -> None:
    """LayerNormalization over each group.

    ONNX Runtime's CPU provider decomposes GroupNormalization into means of x and of x * x, whose difference
    loses precision if a group's mean exceeds its spread, and reads x several times. Its LayerNormalization
    sums in double precision where scales differ within a row. Measured on (2, 64, 16, 40, 64) in 32 groups,
    mean 3, spread 1: 4e-6 from the exact result before, 3e-8 now, in half the time.
    """
    output, shape = node.output[0], groups_of(graph, node)
    rows = graph.reshape(
        node.input[0], [shape.batch, shape.groups, shape.width, shape.positions], f"{output}_groups"
    )
    weights = [
        graph.reshape(name, [shape.groups, shape.width, 1], f"{output}_{name}") for name in node.input[1:]
    ]
    normalized = graph.add(
        "LayerNormalization", [rows, *weights], f"{output}_normalized", axis=2, epsilon=shape.epsilon
    )
    graph.reshape(normalized, [shape.batch, shape.channels, *shape.rest], output)


_REPLACEMENTS: Mapping[str, Replacement] = {
    "Attention": _multi_head_attention,
    "GroupNormalization": _layer_normalization,
}
