# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CUDA provider as far as it decides what it runs: its kernels by operator and version.

Read off onnxruntime-gpu 1.31.1: its provider library was loaded over CUDA libraries whose functions do
nothing, and given each network. A kernel holds for one version of an operator, not for later ones.
"""

import onnx
from onnx import TensorProto, defs, helper

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}

KERNELS: dict[str, int] = {
    "Add": 14,
    "ArgMax": 13,
    "Attention": 23,
    "Cast": 23,
    "Concat": 13,
    "Conv": 22,
    "Cos": 22,
    "Div": 14,
    "Equal": 19,
    "Expand": 13,
    "Gather": 13,
    "GatherND": 13,
    "Gelu": 20,
    "Gemm": 13,
    "InstanceNormalization": 6,
    "LayerNormalization": 17,
    "MatMul": 13,
    "Mul": 14,
    "Reshape": 23,
    "Resize": 19,
    "Sigmoid": 13,
    "Sin": 22,
    "Slice": 13,
    "Split": 18,
    "Sub": 14,
    "Transpose": 23,
    "Unsqueeze": 23,
}
"""Operator → the version that there is a kernel for."""

SHAPE_ARITHMETIC = ("Shape", "Size", "ConstantOfShape", "Range", "NonZero")
"""What has a kernel, and is moved to the CPU with all that is computed from it."""

CONTRIB_KERNELS = ("QuickGelu", "SkipLayerNormalization", "BiasGelu", "FusedMatMul")


def on_the_cpu(model: onnx.ModelProto) -> list[str]:
    """The nodes that would be left for the CPU provider, or give a wrong result on the GPU, and why.

    model: as a session has optimized it. Types and shapes are inferred.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    types, shapes = _tensors(inferred)
    problems = []
    for node in inferred.graph.node:
        name = f"{node.op_type} ({node.name})"
        if node.domain:
            if node.op_type not in CONTRIB_KERNELS:
                problems.append(f"{name}: no kernel in {node.domain}")
            continue
        since = defs.get_schema(node.op_type, versions[""], "").since_version
        if node.op_type in SHAPE_ARITHMETIC:
            problems.append(f"{name}: shape arithmetic")
        elif KERNELS.get(node.op_type) != since:
            problems.append(f"{name}: no kernel for version {since}")
        elif node.op_type == "ArgMax" and types[node.input[0]] not in FLOATS:
            problems.append(f"{name}: no kernel for integers")
        elif node.op_type == "LayerNormalization":
            problems += _narrow_scale(node, name, shapes)
    return problems


def _narrow_scale(node: onnx.NodeProto, name: str, shapes: dict[str, list[int]]) -> list[str]:
    """Its kernel reads as many values of the scale as a row has, whatever the scale's own size is."""
    axis = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), -1)
    rows, scale = shapes[node.input[0]][axis:], shapes[node.input[1]]
    return [] if scale == rows else [f"{name}: a scale of {scale} for rows of {rows}"]


def _tensors(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, list[int]]]:
    graph = model.graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        types[value.name] = kind.elem_type
        shapes[value.name] = [axis.dim_value for axis in kind.shape.dim]
    return types, shapes
