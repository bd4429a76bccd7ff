# SPDX-License-Identifier: Apache-2.0
"""Convolutions over patches that do not overlap, as matrix products."""

from typing import Any

from lamp_trt.engine.backends.openvino.library import import_openvino
from lamp_trt.engine.backends.openvino.rewriting import integers, replace_nodes


def use_patch_products(model: Any) -> int:
    """Replace the Convolutions of an ov.Model whose stride is their kernel, in place; returns how many.

    Such a convolution (a vision transformer's first layer) is a product of every patch with the weights.
    OpenVINO's own first reorders the few channels of the picture into channels-last rows, and multiplies rows
    of that few: together more than half of the time of a small safety checker.
    """
    return replace_nodes(model, _product)


def _is_of_patches(node: Any) -> bool:
    if node.get_type_name() != "Convolution" or len(node.get_output_shape(0)) != 4:
        return False
    attributes = node.get_attributes()
    kernel = list(node.get_input_shape(1))[2:]
    size = list(node.get_input_shape(0))[2:]
    apart = kernel != [1, 1] and list(attributes["strides"]) == kernel
    whole = not any((*attributes["pads_begin"], *attributes["pads_end"])) and not any(
        extent % step for extent, step in zip(size, kernel, strict=True)
    )
    return apart and whole and list(attributes["dilations"]) == [1, 1]


def _product(node: Any) -> list[Any] | None:
    if not _is_of_patches(node):
        return None
    op = import_openvino().opset13
    picture, weights = node.input_value(0), node.input_value(1)
    batch, channels = list(node.get_input_shape(0))[:2]
    _, out, rows, columns = node.get_output_shape(0)
    height, width = list(node.get_input_shape(1))[2:]

    cut = op.reshape(picture, integers(batch, channels, rows, height, columns, width), False)
    patches = op.reshape(
        op.transpose(cut, integers(0, 2, 4, 1, 3, 5)),
        integers(batch, rows, columns, channels * height * width),
        False,
    )
    matrix = op.reshape(weights, integers(out, channels * height * width), False)
    return [op.transpose(op.matmul(patches, matrix, False, True), integers(0, 3, 1, 2)).output(0)]
