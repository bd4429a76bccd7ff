# SPDX-License-Identifier: Apache-2.0
"""GroupNormalization in operators that keep the memory layout of OpenVINO's convolutions."""

from math import prod
from typing import Any

import numpy as np

from lamp_trt.engine.backends.openvino.library import import_openvino
from lamp_trt.engine.backends.openvino.rewriting import integers, replace_nodes

_WORTH_ELEMENTS = 1 << 18
"""1 MB in fp32. Smaller values stay in the cache, and each rewritten node takes 10 ms more to compile."""


def use_channel_statistics(model: Any) -> int:
    """Replace the GroupNormalizations of an ov.Model behind 2-D convolutions in place; returns how many.

    OpenVINO's own works on rows of groups, which convolutions' channels-last values have to be reordered into
    and back: a third of the time of a VAE in fp32. Sums over each channel work in either layout: means of the
    channels give the group's, the mean square around it the variance, and what is left scales and shifts
    channels. Axes are summed one after another, which keeps partial sums short and so exact. Values of video
    (rank 5) are reordered anyway.
    """
    return replace_nodes(model, _is_worth_it, _normalized)


def _is_worth_it(node: Any) -> bool:
    if node.get_type_name() != "GroupNormalization":
        return False
    shape = list(node.get_output_shape(0))
    return len(shape) == 4 and prod(shape) >= _WORTH_ELEMENTS


def _normalized(node: Any) -> Any:
    op = import_openvino().opset13
    x, scale, bias = (node.input_value(index) for index in range(3))
    attributes = node.get_attributes()
    batch, channels, *rest = x.get_shape()
    groups, ones = attributes["num_groups"], [1] * len(rest)

    def group_mean(value: Any) -> Any:
        for axis in reversed(range(2, 2 + len(rest))):
            value = op.reduce_mean(value, integers(axis), keep_dims=True)
        rows = op.reshape(value, integers(batch, groups, channels // groups), False)
        mean = op.broadcast(
            op.reduce_mean(rows, integers(2), keep_dims=True), integers(batch, groups, channels // groups)
        )
        return op.reshape(mean, integers(batch, channels, *ones), False)

    def per_channel(value: Any) -> Any:
        return op.reshape(value, integers(1, channels, *ones), False)

    element_type = x.get_element_type()
    centred = op.subtract(x, group_mean(x))
    variance = group_mean(op.multiply(centred, centred))
    epsilon = op.constant(np.array(attributes["epsilon"], np.float32)).output(0)
    if element_type != epsilon.get_element_type():
        epsilon = op.convert(epsilon, element_type).output(0)
    deviation = op.sqrt(op.add(variance, epsilon))
    return op.add(op.multiply(centred, op.divide(per_channel(scale), deviation)), per_channel(bias))
