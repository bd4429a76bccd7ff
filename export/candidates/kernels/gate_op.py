# SPDX-License-Identifier: Apache-2.0
"""The gate's kernel as an operator that torch.export and AOTInductor take; see convolutions.py."""

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lamp_trt.export.candidates.kernels.gate import enqueue, gated_sum_kernel


@triton_op("lamp_trt::gated_sum", mutates_args={})
def gated_sum(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = torch.empty_like(z)
    enqueue(wrap_triton(gated_sum_kernel), y, z, weight, bias, out)
    return out
