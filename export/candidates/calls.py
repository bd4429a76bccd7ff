# SPDX-License-Identifier: Apache-2.0
"""The calls of each slot in a network, and its convolutions and matrix products: shapes, strides and dtypes
of their tensors, seen in one eager run."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lamp_trt.export.candidates import registry
from lamp_trt.export.lamp.lean_unet import use_forms


@dataclass(frozen=True)
class Operand:
    """A tensor's shape, strides and dtype."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Operand":
        return cls(tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride())), tensor.dtype)

    def random(self, device: torch.device) -> Tensor:
        """Normal values in memory of this layout; expanded axes stay expanded."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        values = torch.randn(extent, device=device).to(self.dtype)
        return values.as_strided(self.shape, self.stride)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Call:
    """The arguments of a slot or of one of PRODUCTS: operands, and other values as they are."""

    slot: str
    arguments: tuple[Operand | int | float | tuple[int, ...] | None, ...]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arguments if isinstance(a, Operand))

    def values(self, device: torch.device) -> tuple[Any, ...]:
        """Random arguments. Weights, the operands after the first video or the first two, are scaled so that
        results are of order 1."""
        made: list[Any] = []
        for argument in self.arguments:
            if not isinstance(argument, Operand):
                made.append(argument)
                continue
            value = argument.random(device)
            weight = len(argument.shape) == 4 and argument.shape[2:] in ((3, 3), (3, 1))
            made.append(value * torch.Size(argument.shape[1:]).numel() ** -0.5 if weight else value)
        return tuple(made)


def recorded_calls(module: nn.Module, arguments: tuple[Tensor, ...]) -> Counter[Call]:
    """The calls of all slots in one run of `module`, with their counts, in the order of their slots' first
    calls. The module has its default forms afterwards; a network without slots is not run."""
    defaults = {slot: registry.default_of(slot).load() for slot in registry.SLOTS}
    slots = [slot for slot in registry.SLOTS if any(hasattr(type(layer), slot) for layer in module.modules())]
    calls: Counter[Call] = Counter()
    if not slots:
        return calls
    use_forms(module, {slot: _recorder(slot, defaults[slot], calls) for slot in slots})
    try:
        with torch.no_grad():
            module(*arguments)
    finally:
        forget_forms(module, slots)
    return calls


def forget_forms(module: nn.Module, slots: list[str]) -> None:
    """Undo `use_forms`."""
    for layer in module.modules():
        for slot in slots:
            vars(layer).pop(slot, None)


PRODUCTS: Mapping[str, Callable[..., Any]] = {
    "convolution": torch.ops.aten.convolution.default,
    "addmm": torch.ops.aten.addmm.default,
    "mm": torch.ops.aten.mm.default,
    "bmm": torch.ops.aten.bmm.default,
}
"""Operators of which settings change the kernel."""


def recorded_products(module: nn.Module, arguments: tuple[Tensor, ...]) -> Counter[Call]:
    """The calls of PRODUCTS in one run of `module`, with their counts."""
    products = _Products()
    with torch.no_grad(), products:
        module(*arguments)
    return products.calls


def dominant(calls: Mapping[Call, int], slot: str, limit: int) -> Counter[Call]:
    """At most `limit` calls of a slot, the `largest`."""
    return largest({call: count for call, count in calls.items() if call.slot == slot}, limit)


def largest(calls: Mapping[Call, int], limit: int) -> Counter[Call]:
    """At most `limit` calls: those whose operands have most bytes in all, since every form is compiled for
    each of them."""
    ordered = sorted(calls, key=lambda call: calls[call] * call.nbytes, reverse=True)
    return Counter({call: calls[call] for call in ordered[:limit]})


def _recorder(slot: str, form: Callable[..., Tensor], calls: Counter[Call]) -> Callable[..., Tensor]:
    def record(*arguments: Any) -> Tensor:
        calls[Call(slot, _noted(arguments))] += 1
        return form(*arguments)

    return record


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of PRODUCTS while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Call] = Counter()
        self._names = {operator: name for name, operator in PRODUCTS.items()}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if operator in self._names and not kwargs:
            self.calls[Call(self._names[operator], _noted(args))] += 1
        return operator(*args, **(kwargs or {}))


def _noted(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments as a Call holds them."""
    return tuple(
        Operand.of(a) if isinstance(a, Tensor) else tuple(a) if isinstance(a, list) else a for a in arguments
    )
