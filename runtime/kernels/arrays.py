# SPDX-License-Identifier: Apache-2.0
"""Contiguous arrays in device memory, the arguments of kernels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from lamp_trt.engine.errors import InputError


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array at `pointer`. It does not own the memory; `owner` keeps the owner alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> "DeviceArray":
        """A view of entries start..stop-1 of the first axis."""
        if not 0 <= start < stop <= self.shape[0]:
            raise InputError(f"rows {start}..{stop - 1} of an array of shape {self.shape} do not exist.")
        row_bytes = self.nbytes // self.shape[0]
        return replace(self, pointer=self.pointer + start * row_bytes, shape=(stop - start, *self.shape[1:]))

    def __getitem__(self, index: int) -> "DeviceArray":
        """A view of one entry of the first axis, without that axis."""
        row = self.rows(index, index + 1)
        return replace(row, shape=row.shape[1:])


def device_array(x: Any) -> DeviceArray:
    """`x` if it is a DeviceArray, otherwise a view by __cuda_array_interface__, as of torch's CUDA tensors.

    Raises InputError if x is not on a CUDA device, or not contiguous.
    """
    if isinstance(x, DeviceArray):
        return x
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is None:
        raise InputError(f"{type(x).__name__} is not a CUDA array; expected a DeviceArray or a CUDA tensor.")
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != contiguous_strides(shape, dtype.itemsize):
        raise InputError(f"a CUDA array of shape {shape} has strides {strides}; make it contiguous.")
    return DeviceArray(interface["data"][0], shape, dtype, owner=x)


def contiguous_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a C-contiguous array."""
    return tuple(itemsize * prod(shape[i + 1 :]) for i in range(len(shape)))


def expect(name: str, array: DeviceArray, shape: Sequence[int], *dtypes: np.dtype[Any]) -> None:
    """Raise InputError unless `array` has this shape and one of the dtypes."""
    if array.shape != tuple(shape) or array.dtype not in dtypes:
        wanted = " or ".join(dtype.name for dtype in dtypes)
        raise InputError(f"{name} is {array.dtype.name} {array.shape}; expected {wanted} {tuple(shape)}.")
