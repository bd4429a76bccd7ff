# SPDX-License-Identifier: Apache-2.0
"""Times of a module's operators from CUDA events around each: where the profiler sees no kernels, for want of
CUPTI. Of eager PyTorch, so kernels that a compiler would fuse are apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamp_trt.benchmarks.proof.profile.kinds import OTHER, POINTWISE, operator_kind
from lamp_trt.benchmarks.proof.profile.trace import Launch

Mark = Callable[[], Any]
"""Notes this moment of the stream."""


class OperatorMarks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, every operator's marks: its name, kind, and moments before and after."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mark = mark
        self.seen: list[tuple[str, str, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._mark()
        result = func(*args, **(kwargs or {}))
        after = self._mark()
        name = func.name().partition(".")[0]
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else () for x in args]
        kind = operator_kind(name, shapes) or POINTWISE
        if kind != OTHER:
            self.seen.append((name, kind, before, after))
        return result


def operator_launches(
    call: Callable[[], Any], mark: Mark, elapsed_us: Callable[[Any, Any], float], wait: Callable[[], None]
) -> list[Launch]:
    """The operators of one call after a warm-up. elapsed_us: between two marks, once `wait` has returned."""
    call()
    start = mark()
    with OperatorMarks(mark) as marks:
        call()
    wait()
    return [
        Launch(name, kind, elapsed_us(start, before), elapsed_us(before, after))
        for name, kind, before, after in marks.seen
    ]


def cuda_mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def cuda_elapsed_us(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) * 1e3
