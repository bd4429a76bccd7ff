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
from tests.export.candidates.test_forms import SIZES, arguments

LARGER = ((1, 24, 5, 3, 11), (2, 136, 2, 2, 3))
"""More than one tile of pixels, and of channels."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    for sizes in (*SIZES, *LARGER):
        for dtype in DTYPES:
            for channels_last in (True, False):
                values = arguments(slot, sizes, dtype, channels_last=channels_last)
                kernel = registry.find(slot, "triton")
                reason = choice.disagreement(kernel, values, result_of(slot, values))
                assert not reason, (sizes, dtype, channels_last, reason)
                print(sizes, dtype, channels_last)


if __name__ == "__main__":
    main(sys.argv[1])
