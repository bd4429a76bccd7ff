# SPDX-License-Identifier: Apache-2.0
"""The linear layer of a gated unit as two layers, so that its output need not be taken apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.openvino.library import import_openvino, shared_constant
from lamp_trt.engine.backends.openvino.rewriting import replace_nodes

Weights = Mapping[str, NDArray[np.uint8]]
"""Bytes of mapped weights by name, which is also the name of an ov.Constant over them."""


def use_layers_of_halves(model: Any, weights: Weights) -> int:
    """Replace each Split in two of a linear layer's output in an ov.Model in place; returns how many.

    OpenVINO's Split copies both halves, and what follows reads them again: a third of a feed-forward with a
    gate in fp32, a tenth in bf16. The rows of weights that make one half are one piece of the mapped file, so
    nothing is copied; the caller keeps `weights` alive while the model is used.
    """

    def halves(node: Any) -> list[Any] | None:
        if not _is_in_two_along_the_last_axis(node):
            return None
        added = node.input_value(0).get_node()
        if added.get_type_name() != "Add":
            return None
        product, bias = (added.input_value(index) for index in range(2))
        if product.get_node().get_type_name() != "MatMul":
            return None
        return _layers(product.get_node(), bias, weights)

    return replace_nodes(model, halves)


def _is_in_two_along_the_last_axis(node: Any) -> bool:
    if node.get_type_name() != "Split" or node.get_attributes()["num_splits"] != 2:
        return False
    axis = node.input_value(1).get_node()
    rank = len(node.get_input_shape(0))
    return axis.get_type_name() == "Constant" and int(axis.data) % rank == rank - 1


def _layers(product: Any, bias: Any, weights: Weights) -> list[Any] | None:
    op = import_openvino().opset13
    attributes = product.get_attributes()
    x, matrix = (product.input_value(index) for index in range(2))
    rows_first = attributes["transpose_b"]
    if len(matrix.get_shape()) != 2 or len(bias.get_shape()) != 1:
        return None
    if matrix.get_node().get_type_name() == "Transpose" and not rows_first:
        matrix, rows_first = matrix.get_node().input_value(0), True
    matrices, biases = _halves(matrix, weights), _halves(bias, weights)
    if attributes["transpose_a"] or not rows_first or matrices is None or biases is None:
        return None
    return [
        op.add(op.matmul(x, rows, False, True), added).output(0)
        for rows, added in zip(matrices, biases, strict=True)
    ]


def _halves(value: Any, weights: Weights) -> list[Any] | None:
    """Both halves of mapped weights, or of what they are converted to, along the first axis; None for
    anything else and for an odd number of rows."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        halves = _halves(node.input_value(0), weights)
        convert = import_openvino().opset13.convert
        return halves and [convert(half, value.get_element_type()) for half in halves]
    name, shape = node.get_friendly_name(), list(value.get_shape())
    if node.get_type_name() != "Constant" or name not in weights or shape[0] % 2:
        return None
    shape[0] //= 2
    return [
        shared_constant(f"{name}.{number}", data, shape, value.get_element_type())
        for number, data in enumerate(np.split(weights[name], 2))
    ]
