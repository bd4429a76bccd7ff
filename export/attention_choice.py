# SPDX-License-Identifier: Apache-2.0
"""Which of torch's kernels for attention suits a network on a GPU: measured on the shapes that it has."""

import itertools
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

log = logging.getLogger("lamp_trt")

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Kernels that can be preferred, by name; what none of them takes is left to plain matrix products."""

WARM_UP, RUNS = 3, 10

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class AttentionCall:
    """What a call of scaled_dot_product_attention is given; shapes (b, heads, tokens, width)."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: torch.dtype
    is_causal: bool = False


Seconds = Callable[[AttentionCall, SDPBackend], float | None]
"""How long a kernel takes for a call; None if it does not take it."""


def attention_calls(program: ExportedProgram) -> Counter[AttentionCall]:
    """The calls in a traced network, and how often each occurs."""
    calls: Counter[AttentionCall] = Counter()
    for node in program.graph.nodes:
        if node.target != _ATTENTION:
            continue
        query, key, value = (argument.meta["val"] for argument in node.args[:3])
        is_causal = node.kwargs.get("is_causal", node.args[5] if len(node.args) > 5 else False)
        query_shape, key_shape, value_shape = (tuple(map(int, x.shape)) for x in (query, key, value))
        calls[AttentionCall(query_shape, key_shape, value_shape, query.dtype, bool(is_causal))] += 1
    return calls


def fastest(calls: Mapping[AttentionCall, int], seconds: Seconds) -> str | None:
    """The kernel to prefer for all of `calls`: with it first, and the best of the others for what it does not
    take, they take least time together. None if no kernel takes any."""
    totals = dict.fromkeys(KERNELS, 0.0)
    for call, count in calls.items():
        times = {name: seconds(call, kernel) for name, kernel in KERNELS.items()}
        taken = [time for time in times.values() if time is not None]
        if not taken:
            continue
        for name, time in times.items():
            totals[name] += count * (min(taken) if time is None else time)
    if not any(totals.values()):
        return None
    told = ", ".join(f"{name} {1e3 * total:.3f} ms" for name, total in totals.items())
    log.info("attention, %d calls: %s", sum(calls.values()), told)
    return min(totals, key=lambda name: totals[name])


def cuda_seconds(device: torch.device) -> Seconds:
    """Measures on a GPU by events, the median of RUNS on random values. Unproven: no GPU has run this."""

    def seconds(call: AttentionCall, kernel: SDPBackend) -> float | None:
        query, key, value = (
            torch.randn(shape, dtype=call.dtype, device=device)
            for shape in (call.query, call.key, call.value)
        )
        marks: list[Any] = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(RUNS + 1)
        ]
        with torch.cuda.device(device), torch.no_grad(), sdpa_kernel(kernel):
            try:
                for _ in range(WARM_UP):
                    F.scaled_dot_product_attention(query, key, value, is_causal=call.is_causal)
            except RuntimeError:  # "No available kernel": how torch says that it does not take the call
                return None
            marks[0].record()
            for mark in marks[1:]:
                F.scaled_dot_product_attention(query, key, value, is_causal=call.is_causal)
                mark.record()
            torch.cuda.synchronize()
        return statistics.median(
            float(before.elapsed_time(after)) / 1e3 for before, after in itertools.pairwise(marks)
        )

    return seconds
