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
    channels.
    """
    return replace_nodes(model, _normalized)


def _is_worth_it(node: Any) -> bool:
    if node.get_type_name() != "GroupNormalization":
        return False
    shape = list(node.get_output_shape(0))
    return len(shape) == 4 and prod(shape) >= _WORTH_ELEMENTS


def _normalized(node: Any) -> list[Any] | None:
    return [group_normalized(node, node.input_value(0), 1)] if _is_worth_it(node) else None


def group_normalized(node: Any, x: Any, channel_axis: int) -> Any:
    """The output of a GroupNormalization for `x`, which is its input, or that with channels on the last axis.

    OpenVINO adds channels-last values one after another: over the 40960 pixels of a video that is an error of
    5e-6, over its axes in turn 5e-8. Reductions of neighbouring axes are kept apart by a Reshape, without
    which OpenVINO makes them one.
    """
    op = import_openvino().opset13
    scale, bias, attributes = node.input_value(1), node.input_value(2), node.get_attributes()
    groups, shape = attributes["num_groups"], list(x.get_shape())
    batch, channels = shape[0], shape[channel_axis]
    row = [channels if axis == channel_axis else 1 for axis in range(len(shape))]

    def group_mean(value: Any) -> Any:
        rows = op.reshape(channel_means(value), integers(batch, groups, channels // groups), False)
        mean = op.broadcast(
            op.reduce_mean(rows, integers(2), keep_dims=True), integers(batch, groups, channels // groups)
        )
        return op.reshape(mean, integers(batch, *row[1:]), False)

    def channel_means(value: Any) -> Any:
        if channel_axis == 1:
            return op.reduce_mean(value, integers(*range(2, len(shape))), keep_dims=True)
        for rest in range(len(shape) - 2, 0, -1):
            value = op.reduce_mean(value, integers(rest), keep_dims=True)
            value = op.reshape(value, integers(*shape[:rest], channels), False)
        return value

    def per_channel(value: Any) -> Any:
        return op.reshape(value, integers(*row), False)

    element_type = x.get_element_type()
    centred = op.subtract(x, group_mean(x))
    variance = group_mean(op.multiply(centred, centred))
    epsilon = op.constant(np.array(attributes["epsilon"], np.float32)).output(0)
    if element_type != epsilon.get_element_type():
        epsilon = op.convert(epsilon, element_type).output(0)
    deviation = op.sqrt(op.add(variance, epsilon))
    scaled = op.multiply(centred, op.divide(per_channel(scale), deviation))
    return op.add(scaled, per_channel(bias)).output(0)
