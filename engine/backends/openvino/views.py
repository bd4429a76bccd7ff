# SPDX-License-Identifier: Apache-2.0
"""Values whose axes lie in another order in memory, which strides say of arrays and OpenVINO cannot say."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from lamp_trt.engine.backends.openvino.library import import_openvino
from lamp_trt.engine.backends.openvino.rewriting import integers

CHANNELS_LAST = (0, 2, 3, 1)
"""The memory of images (n, c, h, w) in OpenVINO's convolutions."""


@dataclass(frozen=True)
class View:
    """A value of an ov.Model.

    shape   of the value, static
    memory  its axes in the order of memory
    source  an ov.Output that holds the values in this order, in any shape
    images  an ov.Output that equals the value and that OpenVINO keeps channels last, if there is one
    """

    shape: tuple[int, ...]
    memory: tuple[int, ...]
    source: Any
    images: Any = None

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of more than one element in the order of memory. The others may be anywhere."""
        return self._order_in(self.memory)

    def transposed(self, axes: Sequence[int]) -> "View":
        place = {axis: index for index, axis in enumerate(axes)}
        memory = tuple(place[axis] for axis in self.memory)
        return View(tuple(self.shape[axis] for axis in axes), memory, self.source)

    def reshaped(self, shape: tuple[int, ...]) -> "View | None":
        """The view in another shape of as many elements; None if values would have to move."""
        order = self.order
        runs: dict[int, tuple[int, ...]] = {}
        for old, new in _matching_axes(self.shape, shape):
            start = order.index(old[0])
            if order[start : start + len(old)] != old:
                return None
            runs[start] = new
        ones = [axis for axis, size in enumerate(shape) if size == 1]
        return View(shape, (*ones, *(axis for start in sorted(runs) for axis in runs[start])), self.source)

    def of_rank(self, rank: int) -> "View":
        """The view with more axes of one element in front, as operands are broadcast."""
        more = rank - len(self.shape)
        if more == 0:
            return self
        memory = (*range(more), *(axis + more for axis in self.memory))
        return View((*(1,) * more, *self.shape), memory, self.source)

    def lies_in(self, memory: tuple[int, ...]) -> bool:
        return self.order == self._order_in(memory)

    def in_memory(self, memory: tuple[int, ...]) -> Any:
        """An ov.Output with an axis for each of the value's, in the order of `memory`."""
        if self.lies_in(memory):
            return _shaped(self.source, [self.shape[axis] for axis in memory])
        return transposed(self.plain(), memory)

    def plain(self) -> Any:
        """An ov.Output that equals the value."""
        if self.images is not None:
            return self.images
        if self.lies_in(tuple(range(len(self.shape)))):
            return _shaped(self.source, self.shape)
        axes = [self.memory.index(axis) for axis in range(len(self.shape))]
        return transposed(self.in_memory(self.memory), axes)

    def _order_in(self, memory: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axis for axis in memory if self.shape[axis] > 1)


def plain_view(value: Any) -> View:
    shape = tuple(value.get_shape())
    return View(shape, tuple(range(len(shape))), value)


def images_view(images: Any) -> View:
    """The view of images (n, c, h, w) that a convolution made."""
    return View(tuple(images.get_shape()), CHANNELS_LAST, transposed(images, CHANNELS_LAST), images)


def transposed(value: Any, axes: Sequence[int]) -> Any:
    return import_openvino().opset13.transpose(value, integers(*axes)).output(0)


def _shaped(value: Any, shape: Sequence[int]) -> Any:
    if list(value.get_shape()) == list(shape):
        return value
    return import_openvino().opset13.reshape(value, integers(*shape), False).output(0)


def _matching_axes(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shortest runs of axes of both shapes that hold the same elements, without axes of one element."""
    ours, theirs = ([axis for axis, size in enumerate(shape) if size > 1] for shape in (old, new))
    runs = []
    while ours:
        left, right = [ours.pop(0)], [theirs.pop(0)]
        while (more := prod(old[axis] for axis in left) - prod(new[axis] for axis in right)) != 0:
            if more > 0:
                right.append(theirs.pop(0))
            else:
                left.append(ours.pop(0))
        runs.append((tuple(left), tuple(right)))
    return runs
