# SPDX-License-Identifier: Apache-2.0
"""Videos between OpenVINO's convolutions in the memory order of the convolutions, channels last."""

from collections.abc import Sequence, Set
from math import prod
from typing import Any

from lamp_trt.engine.backends.openvino.group_norm import group_normalized
from lamp_trt.engine.backends.openvino.library import import_openvino
from lamp_trt.engine.backends.openvino.rewriting import integers
from lamp_trt.engine.backends.openvino.views import (
    CHANNELS_LAST,
    View,
    images_view,
    plain_view,
    transposed,
)

_CHANNELS_FIRST = (0, 3, 1, 2)
_RANK_OF_VIDEOS = 5
_POINTWISE = frozenset({"Add", "Subtract", "Multiply", "Divide", "Sigmoid", "Gelu", "Convert"})


def use_channels_last(model: Any) -> int:
    """Rewrite an ov.Model of videos in place, so that Reshapes and Transposes between convolutions move
    nothing; returns how many were taken out. A model without videos stays as it is.

    OpenVINO's convolutions read and write channels last, its Reshapes work on plain values only. A video
    (b, c, f, h, w) whose frames are convolved as images (b*f, c, h, w), and then along its frames as
    (b, c, f, h*w), is reordered to plain and back for each of them: 15 % of a step in fp32. All three have
    the same memory (b, f, h, w, c). So Reshapes and Transposes only change how a value is viewed (views.py),
    operators on single values and normalizations work in the order of memory, and around convolutions there
    are transpositions that OpenVINO finds to move nothing. Other operators get plain values.
    """
    if all(
        len(output.get_shape()) < _RANK_OF_VIDEOS for node in model.get_ops() for output in node.outputs()
    ):
        return 0
    views: dict[Any, View] = {}
    fixed: set[Any] = set()
    ends: dict[Any, Any] = {}
    count = 0
    for node in model.get_ordered_ops():
        kind, values = node.get_type_name(), node.input_values()
        given = [views.get(value) for value in values]
        if kind == "ShapeOf" or (kind != "Parameter" and all(value in fixed for value in values)):
            fixed |= set(node.outputs())
            _take_plain(node, given)
            continue
        view = _view_of(node, given, fixed)
        if view is not None:
            views[node.output(0)] = view
            count += kind in ("Reshape", "Transpose")
        elif kind == "Result" and given[0] is not None:
            _end(node, given[0], ends)
        else:
            _take_plain(node, given)
    model.validate_nodes_and_infer_types()
    return count


def _view_of(node: Any, given: Sequence[View | None], fixed: Set[Any]) -> View | None:
    """The view of a node's output, whose inputs are replaced if it works on them in the order of memory.
    None for a node that takes and gives plain values. fixed: outputs that depend on constants and
    shapes only."""
    kind, shape = node.get_type_name(), tuple(node.get_output_shape(0)) if node.outputs() else ()
    first = given[0] if given else None
    if kind == "Transpose":
        return _transposition(node, first)
    if kind in ("Convolution", "GroupNormalization"):
        _take_plain(node, [None, *given[1:]])  # weights and scales
    if kind == "Convolution" and len(shape) == 4:
        return _convolved(node, first)
    if kind in _POINTWISE and any(given):
        return _pointwise(node, given, fixed)
    if first is None:
        return None
    if kind in ("Reshape", "Unsqueeze"):
        return first.reshaped(shape)
    if kind == "GroupNormalization":
        return _normalized(node, first)
    if kind == "Concat":
        return _joined(node, given)
    return None


def _take_plain(node: Any, given: Sequence[View | None]) -> None:
    for index, view in enumerate(given):
        if view is not None:
            node.input(index).replace_source_output(view.plain())


def _end(result: Any, view: View, ends: dict[Any, Any]) -> None:
    """Give a model's output its plain value, and that the names of the value that it had. ends: what such
    values became, as several outputs may have one."""
    value, plain = result.input_value(0), view.plain()
    if plain == value:
        return
    if value not in ends:
        end = import_openvino().opset13.reshape(plain, integers(*view.shape), False).output(0)
        names = value.get_names()
        value.set_names(set())
        end.set_names(names)
        ends[value] = end
    result.input(0).replace_source_output(ends[value])


def _transposition(node: Any, view: View | None) -> View | None:
    value, axes = node.input_value(0), node.input_value(1).get_node()
    if axes.get_type_name() != "Constant" or axes.data.size != len(value.get_shape()):
        return None
    return (view or plain_view(value)).transposed([int(axis) for axis in axes.data])


def _convolved(node: Any, view: View | None) -> View:
    if view is not None:
        images = view.images
        if images is None:
            images = transposed(view.in_memory(CHANNELS_LAST), _CHANNELS_FIRST)
        node.input(0).replace_source_output(images)
    return images_view(node.output(0))


def _pointwise(node: Any, given: Sequence[View | None], fixed: Set[Any]) -> View | None:
    shape = tuple(node.get_output_shape(0))
    operands = [
        (view or plain_view(value)).of_rank(len(shape))
        for value, view in zip(node.input_values(), given, strict=True)
    ]
    largest = max(operands, key=lambda operand: prod(operand.shape))
    if all(operand.images is not None or operand.source in fixed for operand in operands):
        _take_plain(node, operands)  # a bias, which becomes part of the convolution
        return images_view(node.output(0))
    if largest.lies_in(tuple(range(len(shape)))):
        return None
    for index, operand in enumerate(operands):
        node.input(index).replace_source_output(operand.in_memory(largest.memory))
    node.validate_and_infer_types()
    return View(shape, largest.memory, node.output(0))


def _normalized(node: Any, view: View) -> View | None:
    ones = [axis for axis in range(2, len(view.shape)) if view.shape[axis] == 1]
    within = [axis for axis in view.order if axis not in (0, 1)]
    memory = (0, *ones, *within, 1)
    if not view.lies_in(memory):
        return None
    normalized = group_normalized(node, view.in_memory(memory), len(memory) - 1)
    normalized.get_node().set_friendly_name(node.get_friendly_name())
    return View(view.shape, memory, normalized)


def _joined(node: Any, given: Sequence[View | None]) -> View | None:
    first, shape = given[0], tuple(node.get_output_shape(0))
    if first is None or any(view is None for view in given):
        return None
    axis = first.memory.index(node.get_attributes()["axis"] % len(shape))
    parts = [view.in_memory(first.memory) for view in given if view is not None]
    joined = import_openvino().opset13.concat(parts, axis)
    joined.set_friendly_name(node.get_friendly_name())
    return View(shape, first.memory, joined.output(0))
