# SPDX-License-Identifier: Apache-2.0
"""FLOPs and memory traffic of an ONNX graph, counted exactly from its static shapes.

    python -m lamp_trt.benchmarks.bench.flops BUNDLE/lamp_unet.onnx

A multiply-add is two operations. Convolutions, matrix products and the two products of attention are counted,
including taps on zero padding. Norms, activations, softmax, elementwise operations and copies are not. Weight
files are not read and may be missing.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import helper

from lamp_trt.engine.errors import InputError

PRODUCTS = ("Conv", "MatMul", "Gemm", "Attention", "MultiHeadAttention")
"""Operators whose FLOPs are counted."""

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Constant", "Shape")
"""Operators that reinterpret memory and move none."""

_FOLLOWED = ("Transpose", "Cast", *VIEWS)
"""Operators that may stand between a weight and the product that uses it."""


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...]
    item_bytes: float

    @property
    def nbytes(self) -> int:
        return int(prod(self.shape) * self.item_bytes)


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node in isolation.

    weight             initializer that a product multiplies with, "" if both operands are computed
    weight_bytes       bytes of the initializers that the node reads
    activation_bytes   bytes of computed tensors, each input read once and each output written once. A
                       compiler that fuses nodes moves less between them; a single kernel moves at least this
    """

    name: str
    op: str
    weight: str
    flops: int
    weight_bytes: int
    activation_bytes: int


def node_costs(model: onnx.ModelProto) -> list[NodeCost]:
    """Return the cost of every node, in graph order. InputError if a shape is unknown or not static."""
    tensors = _tensors(model)
    weights = {initializer.name for initializer in model.graph.initializer}
    origin = {name: name for name in weights}
    costs = []
    for node in model.graph.node:
        if node.op_type in _FOLLOWED and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        read, written = ([n for n in names if n] for names in (node.input, node.output))
        moved = (
            [] if node.op_type in VIEWS else [*dict.fromkeys(n for n in read if n not in origin), *written]
        )
        if all(name in origin for name in read):
            moved = []  # computed from weights alone, once
        multiplied = next((origin[n] for n in read[:2] if n in origin and node.op_type in PRODUCTS), "")
        costs.append(
            NodeCost(
                node.name or written[0],
                node.op_type,
                multiplied,
                _flops(node, tensors),
                sum(
                    _known(tensors, origin[n]).nbytes
                    for n in {*read} & {*origin}
                    if node.op_type not in _FOLLOWED
                ),
                sum(_known(tensors, name).nbytes for name in moved),
            )
        )
    return costs


def graph_flops(model: onnx.ModelProto) -> dict[str, int]:
    """Return FLOPs by operator, for the operators of PRODUCTS in the graph. InputError as node_costs."""
    flops: dict[str, int] = defaultdict(int)
    for cost in node_costs(model):
        if cost.op in PRODUCTS:
            flops[cost.op] += cost.flops
    return dict(flops)


def graph_bytes(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return (weight bytes, activation bytes) by operator, see NodeCost. InputError as node_costs."""
    moved: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for cost in node_costs(model):
        weights, activations = moved[cost.op]
        moved[cost.op] = (weights + cost.weight_bytes, activations + cost.activation_bytes)
    return {op: both for op, both in moved.items() if any(both)}


def _flops(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int:
    def shape(name: str) -> tuple[int, ...]:
        return _known(tensors, name).shape

    match node.op_type:
        case "Conv":  # a weight is (outputs, inputs / groups, *kernel)
            return 2 * prod(shape(node.output[0])) * prod(shape(node.input[1])[1:])
        case "MatMul":
            return 2 * prod(shape(node.output[0])) * shape(node.input[0])[-1]
        case "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            return 2 * prod(shape(node.output[0])) * shape(node.input[0])[0 if transposed else 1]
        case "Attention" | "MultiHeadAttention":
            query, key, value = (shape(name) for name in node.input[:3])
            if len(query) == 3:  # (b, tokens, heads * width): counted as one head, with the same result
                query, key, value = ((b, 1, tokens, width) for b, tokens, width in (query, key, value))
            b, heads, tokens, width = query
            return 2 * b * heads * tokens * key[-2] * (width + value[-1])
    return 0


def _tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Return every tensor of the graph by name; shapes that the graph omits are inferred."""
    graph = model.graph
    stated = {value.name for value in (*graph.value_info, *graph.output)}
    if any(name and name not in stated for node in graph.node for name in node.output):
        graph = onnx.shape_inference.infer_shapes(model).graph
    tensors = {
        initializer.name: Tensor(tuple(initializer.dims), _item_bytes(initializer.data_type))
        for initializer in graph.initializer
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            shape = tuple(axis.dim_value for axis in kind.shape.dim)
            tensors[value.name] = Tensor(shape, _item_bytes(kind.elem_type))
    return tensors


def _item_bytes(elem_type: int) -> float:
    return float(helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


def _known(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise InputError(f"the graph's tensor {name!r} has no static shape; export it at fixed sizes.")
    return tensors[name]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lamp_trt.benchmarks.bench.flops", description=__doc__)
    parser.add_argument("graph", type=Path)
    model = onnx.load(parser.parse_args().graph, load_external_data=False)
    flops, moved = graph_flops(model), graph_bytes(model)
    print(f"{'operator':20} {'GFLOP':>12} {'weights GB':>12} {'activations GB':>15}")
    for op in sorted(moved, key=lambda op: -flops.get(op, 0)):
        weights, activations = moved[op]
        print(f"{op:20} {flops.get(op, 0) / 1e9:12.1f} {weights / 1e9:12.3f} {activations / 1e9:15.3f}")
    print(f"{'all':20} {sum(flops.values()) / 1e9:12.1f}")


if __name__ == "__main__":
    main()
