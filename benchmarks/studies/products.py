# SPDX-License-Identifier: Apache-2.0
"""Measured rates of matrix products, the limit of a network's arithmetic."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from lamp_trt.benchmarks.bench.compare import RULER
from lamp_trt.benchmarks.bench.entries.ceilings import ceiling_entries
from lamp_trt.engine.backends.cpu import CpuPrecision

SIDES = (1024, 2048, 4096)
"""Rows and columns of PyTorch's products; the rate depends on them, and the highest is the limit."""
CALLS = 5

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def product_flops(precision: CpuPrecision) -> float:
    """The highest rate in FLOP/s, with all threads: of PyTorch, in fp32 also of those that `bench` takes."""
    rates = [_torch_rate(side, _DTYPES[precision]) for side in SIDES]
    with ExitStack() as stack:
        for entry in ceiling_entries(None):
            if precision == "fp32" and entry.name == RULER:
                rates.append(entry.flops / _fastest(stack.enter_context(entry.setup())))
    return max(rates)


def _torch_rate(side: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _fastest(lambda: torch.mm(a, b, out=out))


def _fastest(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
