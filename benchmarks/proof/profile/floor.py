# SPDX-License-Identifier: Apache-2.0
"""The least time of each kind of work in a graph, on a machine of measured ceilings.

Of products the longer of arithmetic and traffic, node by node; of norms the traffic. Copies and elementwise
work have none: a compiler may fuse them into what stands around them.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from lamp_trt.benchmarks.bench.flops import PRODUCTS, node_costs
from lamp_trt.benchmarks.proof.profile.kinds import NORM, node_kind


@dataclass(frozen=True)
class Ceilings:
    """Of a GPU, measured in the same run: operations per second of a large product of matrices, and bytes
    read and written per second by a large copy."""

    flops_per_s: float
    bytes_per_s: float


def floors_ms(model: onnx.ModelProto, ceilings: Ceilings) -> dict[str, float]:
    """Milliseconds by kind. InputError if the graph's shapes are not static."""
    costs = {cost.name: cost for cost in node_costs(model)}
    shapes = _shapes(model)
    floors: dict[str, float] = defaultdict(float)
    for node in model.graph.node:
        cost = costs[node.name or node.output[0]]
        kind = node_kind(node.op_type, [shapes.get(name, ()) for name in node.input])
        if node.op_type not in PRODUCTS and kind != NORM:
            continue
        traffic = (cost.weight_bytes + cost.activation_bytes) / ceilings.bytes_per_s
        floors[kind] += 1e3 * max(cost.flops / ceilings.flops_per_s, traffic)
    return dict(floors)


def _shapes(model: onnx.ModelProto) -> Mapping[str, tuple[int, ...]]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        found[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    return found
