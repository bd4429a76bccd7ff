# SPDX-License-Identifier: Apache-2.0
"""The temporal attention's kernel as an operator that torch.export and AOTInductor take; see attention.py."""

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from lamp_trt.export.candidates.kernels.temporal_attention import enqueue, temporal_attention_kernel


@triton_op("lamp_trt::temporal_attention", mutates_args={})
def temporal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    out = torch.empty_like(q)
    enqueue(wrap_triton(temporal_attention_kernel), q, k, v, out, heads)
    return out
