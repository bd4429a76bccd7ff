# SPDX-License-Identifier: Apache-2.0
"""The calls of each slot in a network: shapes, strides and dtypes of their tensors, seen in one eager run."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
    """The arguments of a slot: operands, and numbers as they are."""

    slot: str
    arguments: tuple[Operand | int | float, ...]

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


def dominant(calls: Mapping[Call, int], slot: str, limit: int) -> Counter[Call]:
    """At most `limit` calls of a slot: those whose operands have most bytes in all, since every form is
    compiled for each of them."""
    of_slot = Counter({call: count for call, count in calls.items() if call.slot == slot})
    largest = sorted(of_slot, key=lambda call: of_slot[call] * call.nbytes, reverse=True)
    return Counter({call: of_slot[call] for call in largest[:limit]})


def _recorder(slot: str, form: Callable[..., Tensor], calls: Counter[Call]) -> Callable[..., Tensor]:
    def record(*arguments: Any) -> Tensor:
        noted = tuple(Operand.of(a) if isinstance(a, Tensor) else a for a in arguments)
        calls[Call(slot, noted)] += 1
        return form(*arguments)

    return record
