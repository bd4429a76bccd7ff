# SPDX-License-Identifier: Apache-2.0
"""Forms of GroupNorm over a whole video followed by SiLU: x (b, c, f, h, w), weight and bias (c,), the number
of groups and epsilon to x's shape. Statistics are fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def native(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def folded(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """One scale and shift for each channel and video."""
    values = torch.unflatten(x.float(), 1, (groups, -1))  # (b, groups, c / groups, f, h, w)
    variance, mean = torch.var_mean(values, (2, 3, 4, 5), correction=0)
    return _scaled_silu(x, weight, bias, mean, variance, eps)


def by_channel(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Mean and variance of each channel, then of the groups: the mean of the variances plus the variance of
    the means, since channels have equally many values."""
    variances, means = torch.var_mean(x.float(), (2, 3, 4), correction=0)  # (b, c)
    means, variances = (torch.unflatten(t, 1, (groups, -1)) for t in (means, variances))
    mean = means.mean(2)
    variance = (variances + (means - mean[..., None]).square()).mean(2)
    return _scaled_silu(x, weight, bias, mean, variance, eps)


def _scaled_silu(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """mean, variance: (b, groups)."""
    of_group = x.shape[1] // mean.shape[1]
    inverse = (variance + eps).rsqrt().repeat_interleave(of_group, dim=1)  # (b, c)
    scale = weight.float() * inverse
    shift = bias.float() - mean.repeat_interleave(of_group, dim=1) * scale
    values = x.float() * scale[:, :, None, None, None] + shift[:, :, None, None, None]
    return F.silu(values).to(x.dtype)
