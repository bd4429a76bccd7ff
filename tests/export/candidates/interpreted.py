# SPDX-License-Identifier: Apache-2.0
"""Runs a slot's Triton kernel under the interpreter on every size, and compares it with its plain form.

python -m tests.export.candidates.interpreted SLOT, with TRITON_INTERPRET=1: chosen when Triton is imported.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from lamp_trt.export.candidates import choice, registry
from lamp_trt.export.candidates.kernels import gate, temporal_attention
from tests.export.candidates.test_forms import arguments

SIZES = ((1, 8, 1, 1, 1), (1, 8, 16, 1, 3), (2, 24, 3, 2, 9), (1, 136, 2, 1, 3))
"""Few, since an interpreted program takes tens of milliseconds; the last two have more than one tile of
pixels and of channels."""

KINDS = ((torch.float32, True), (torch.float32, False), (torch.float16, True), (torch.bfloat16, True))
"""Dtype, and whether channels are last."""


def result_of(slot: str, values: tuple[Any, ...]) -> Tensor:
    """The kernel's, written over NaN."""
    if slot == registry.GATE:
        result = torch.full_like(values[1], torch.nan)
        gate.enqueue(gate.gated_sum_kernel, *values, result)
        return result
    *tensors, heads = values
    result = torch.full_like(values[0], torch.nan)
    temporal_attention.enqueue(temporal_attention.temporal_attention_kernel, *tensors, result, heads)
    return result


def main(slot: str) -> None:
    torch.set_num_threads(1)
    for sizes in SIZES:
        for dtype, channels_last in KINDS:
            values = arguments(slot, sizes, dtype, channels_last=channels_last)
            kernel, default = registry.find(slot, "triton"), registry.default_of(slot).load()
            reason = choice.disagreement(default, values, result_of(slot, values), kernel.fp32_rel_l2)
            assert not reason, (sizes, dtype, channels_last, reason)
            print(sizes, dtype, channels_last, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
