# SPDX-License-Identifier: Apache-2.0
"""How PyTorch computes what a bundle is compared with: exactly, or as roughly as the bundle does."""

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
"""Of float32's 23 bits of mantissa TF32 keeps 10."""

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
"""Products, and how many of their arguments are multiplied with each other."""


@dataclass(frozen=True)
class Arithmetic:
    """dtype of weights and activations; tf32: products of float32 round their operands to TF32, as GPUs do
    unless they are told otherwise."""

    dtype: torch.dtype = torch.float32
    tf32: bool = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, products are so rounded, or on a GPU not rounded as PyTorch's convolutions are by default.
        What the dtype is, is the caller's doing."""
        rounded = _RoundedOperands() if self.tf32 else nullcontext()
        with rounded, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield


EXACT = Arithmetic()
"""The reference: fp32 on the CPU."""


def yardstick(precision: Precision, on_gpu: bool) -> Arithmetic | None:
    """PyTorch computing as roughly as a bundle of `precision` does; None where a bundle is as exact as EXACT
    and only the order of its sums differs."""
    if precision == "fp32" and not on_gpu:
        return None
    return Arithmetic(DTYPES[precision], tf32=on_gpu)


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """float32 rounded to TF32's 10 bits of mantissa, halves away from zero."""
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
