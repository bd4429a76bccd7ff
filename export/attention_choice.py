# SPDX-License-Identifier: Apache-2.0
"""Choice of torch's attention kernel for a network on a GPU, by measurement on the network's shapes and
strides."""

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

from lamp_trt.export.candidates.calls import Operand

log = logging.getLogger("lamp_trt")

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Selectable kernels by name. Calls that none of them supports use plain matrix products."""

WARM_UP, RUNS = 3, 10

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of a scaled_dot_product_attention call, (b, heads, tokens, width) in any order of memory:
    kernels read some orders directly, and others as a copy."""

    query: Operand
    key: Operand
    value: Operand
    is_causal: bool = False


Seconds = Callable[[AttentionCall, SDPBackend], float | None]
"""Duration of a call by a kernel in seconds; None if the kernel does not support the call."""


def attention_calls(program: ExportedProgram) -> Counter[AttentionCall]:
    """The attention calls of a traced network and their counts."""
    calls: Counter[AttentionCall] = Counter()
    for node in program.graph.nodes:
        if node.target != _ATTENTION:
            continue
        query, key, value = (argument.meta["val"] for argument in node.args[:3])
        is_causal = node.kwargs.get("is_causal", node.args[5] if len(node.args) > 5 else False)
        calls[AttentionCall(Operand.of(query), Operand.of(key), Operand.of(value), bool(is_causal))] += 1
    return calls


def fastest(calls: Mapping[AttentionCall, int], seconds: Seconds) -> str | None:
    """The kernel with the least total time over `calls`; None if no kernel supports any of them.

    A call that a kernel does not support counts with the time of the fastest other one.
    """
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
    measured = ", ".join(f"{name} {1e3 * total:.3f} ms" for name, total in totals.items())
    log.info("attention, %d calls: %s", sum(calls.values()), measured)
    return min(totals, key=lambda name: totals[name])


def cuda_seconds(device: torch.device) -> Seconds:
    """A timer for a GPU: median of RUNS on random values, by CUDA events. Unproven: not run on a GPU yet."""

    def seconds(call: AttentionCall, kernel: SDPBackend) -> float | None:
        query, key, value = (operand.random(device) for operand in (call.query, call.key, call.value))
        marks: list[Any] = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(RUNS + 1)
        ]
        with torch.cuda.device(device), torch.no_grad(), sdpa_kernel(kernel):
            try:
                for _ in range(WARM_UP):
                    F.scaled_dot_product_attention(query, key, value, is_causal=call.is_causal)
            except RuntimeError:  # "No available kernel": the kernel does not support the call
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
