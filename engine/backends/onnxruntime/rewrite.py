# SPDX-License-Identifier: Apache-2.0
"""Replacing operators of a bundle's graph by others that an ONNX Runtime provider has kernels for.

Nothing of it is written to disk: there the graph stays plain ONNX, which every other tool can read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

CONTRIB_DOMAIN = "com.microsoft"


class RewrittenGraph:
    """A graph that is written again node by node. shapes, elem_types: of inputs and intermediate values, by
    name; elem_types also of weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        graph = model.graph
        values = (*graph.input, *graph.value_info)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs = {value.name for value in graph.input}
        self.shapes: Mapping[str, list[int]] = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
        }
        self.elem_types: Mapping[str, int] = {
            **{value.name: value.type.tensor_type.elem_type for value in values},
            **{weight.name: weight.data_type for weight in graph.initializer},
        }
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        node = helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """An initializer; equal names are equal values."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(values, name)
        return name

    def reshape(self, source: str, target_shape: list[int], output: str) -> str:
        name = "shape_" + "_".join(map(str, target_shape))
        return self.add("Reshape", [source, self.constant(name, np.array(target_shape, np.int64))], output)

    def finish(self) -> None:
        """Put the new nodes and constants into the model."""
        graph = self._model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self._constants.values())
        if any(node.domain == CONTRIB_DOMAIN for node in self.nodes):
            self._model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))


Replacement = Callable[[RewrittenGraph, onnx.NodeProto], None]
"""Adds what computes the node's outputs, or the node itself."""


def replace_operators(model: onnx.ModelProto, replacements: Mapping[str, Replacement]) -> dict[str, int]:
    """Replace every node of these operators in place; how many of each there were."""
    graph = RewrittenGraph(model)
    counts = dict.fromkeys(replacements, 0)
    for node in model.graph.node:
        if node.domain or node.op_type not in replacements:
            graph.nodes.append(node)
        else:
            replacements[node.op_type](graph, node)
            counts[node.op_type] += 1
    graph.finish()
    return counts


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@dataclass(frozen=True)
class Groups:
    """A GroupNormalization of x (batch, channels, *rest) in groups of `width` channels."""

    batch: int
    channels: int
    rest: list[int]
    groups: int
    epsilon: float

    @property
    def width(self) -> int:
        return self.channels // self.groups

    @property
    def positions(self) -> int:
        """Elements of a channel."""
        return prod(self.rest)


def groups_of(graph: RewrittenGraph, node: onnx.NodeProto) -> Groups:
    attributes = attributes_of(node)
    batch, channels, *rest = graph.shapes[node.input[0]]
    epsilon = float(attributes.get("epsilon", 1e-5))
    return Groups(batch, channels, rest, int(attributes["num_groups"]), epsilon)
