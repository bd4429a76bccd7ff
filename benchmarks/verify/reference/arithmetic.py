# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of the PyTorch reference: exact, or at the bundle's precision."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from lamp_trt.engine.dtypes import Precision
from lamp_trt.export.convert import DTYPES

_TF32_DROPPED_BITS = 13
"""Mantissa bits that TF32 drops: float32 has 23, TF32 10."""

_OPERANDS: Mapping[Callable[..., Any], int] = {
    F.linear: 2,
    F.conv1d: 2,
    F.conv2d: 2,
    F.conv3d: 2,
    torch.matmul: 2,
    torch.bmm: 2,
    torch.Tensor.matmul: 2,
    torch.Tensor.__matmul__: 2,
    torch.Tensor.bmm: 2,
    F.scaled_dot_product_attention: 3,
}
"""Products, and the number of arguments that are multiplied with each other."""


@dataclass(frozen=True)
class Arithmetic:
    """dtype of weights and activations; tf32: products of float32 round their operands to TF32, as GPUs do
    by default."""

    dtype: torch.dtype = torch.float32
    tf32: bool = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Round the operands of products inside the block if `tf32`, and never let PyTorch's convolutions
        on a GPU do so by themselves. The caller sets the dtype."""
        rounded = _RoundedOperands() if self.tf32 else nullcontext()
        with rounded, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield


EXACT = Arithmetic()
"""Arithmetic of the reference: fp32."""


def yardstick(precision: Precision, on_gpu: bool) -> Arithmetic | None:
    """Return PyTorch's arithmetic at a bundle's precision; None if the bundle is as exact as EXACT and
    only the order of its sums differs."""
    if precision == "fp32" and not on_gpu:
        return None
    return Arithmetic(DTYPES[precision], tf32=on_gpu)


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Round float32 to TF32's 10 bits of mantissa, halves away from zero."""
    half = 1 << (_TF32_DROPPED_BITS - 1)
    bits = x.contiguous().view(torch.int32)
    return ((bits + half) & -(1 << _TF32_DROPPED_BITS)).view(torch.float32)


class _RoundedOperands(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        count = _OPERANDS.get(func, 0)
        rounded = [
            to_tf32(x) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x
            for x in args[:count]
        ]
        return func(*rounded, *args[count:], **(kwargs or {}))
