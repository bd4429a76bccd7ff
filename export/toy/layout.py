# SPDX-License-Identifier: Apache-2.0
"""Channel assignment of the toy LAMP UNets, and layers that pass these channels unchanged."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE = (0, 2, 4, 6)
MEMORY = (8, 10, 12, 14)
MARK_CHANNEL, CLOCK_CHANNEL = 13, 15
HELD_CLOCK = 1
"""The clock's channel from up_blocks.3.resnets.0 on."""
RIGHT, DOWN = (8, 9, 10, 11), (12, 13, 14, 15)
"""Channels of the shifted copies of the memory, used only inside the two stages."""

CONSTANT = 4.0
"""Value of the odd channels, which fixes the scale of the norms."""
MARK = 1.0
"""Value of the mark in frame 0. The neighbouring channel holds half of it, so their norm marks frame 0."""
MEMORY_SCALE = 0.5
LEAK = 0.03
"""Factor of the random weights that `clear` keeps, so that every tensor has a small effect."""

Moments = tuple[float, float]
"""Mean and mean square of a channel over a video."""
CONSTANT_MOMENTS: Moments = (CONSTANT, CONSTANT**2)
CLOCK_MOMENTS: Moments = (CONSTANT / 2, 0.4 * CONSTANT**2)
MARK_MOMENTS: Moments = (MARK / 16, MARK**2 / 16)
SAMPLE_MOMENTS: Moments = (0.0, 1.0)
FIRST_FRAME_MOMENTS: Moments = (0.0, 0.2)
MEMORY_MOMENTS: Moments = (0.0, 0.3 * MEMORY_SCALE**2)

CENTRE = (1, 1)
"""The middle tap of a 3x3 convolution."""
SILU_CENTRE, SILU_SLOPE, SILU_VALUE = 2.3994, 1.09984, 2.19928
"""The inflection point of SiLU, where it is almost a straight line; its slope and value there."""
RIDGE = 1e-5
"""Ridge term that keeps the weights of `fit_time` small; features and values are of order 1."""


def plane(layer: Any) -> Any:
    """The 2-D convolution of an inflated convolution; any other layer itself."""
    return getattr(layer, "conv2d", layer)


def clear(layer: Any) -> Any:
    """Scale the random weights by LEAK and set biases to zero; returns the layer.

    A convolution also ignores constant inputs. The gate of an inflated convolution stays random.
    """
    for part in (plane(layer), getattr(layer, "conv1d", None)):
        if part is None:
            continue
        part.weight.mul_(LEAK)
        if part.weight.ndim == 4:
            part.weight[:, 1::2] = 0
            part.weight.sub_(part.weight.mean((1, 2, 3), keepdim=True))
        if part.bias is not None:
            part.bias.zero_()
    return layer


def pass_norm(
    norm: nn.GroupNorm, moments: dict[int, Moments], *, scale: float = 1.0, offset: float = 0.0
) -> None:
    """Make `norm` return scale * x + offset where channels have these means and mean squares (else 0, 0)."""
    width = norm.num_channels // norm.num_groups
    for first in range(0, norm.num_channels, width):
        group = [moments.get(c, (0.0, 0.0)) for c in range(first, first + width)]
        mean = sum(m for m, _ in group) / width
        variance = sum(s for _, s in group) / width - mean**2
        norm.weight[first : first + width] = scale * (variance + norm.eps) ** 0.5
        norm.bias[first : first + width] = scale * mean + offset


def fit_time(unet: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (64,) and bias with which a ResNet's time_emb_proj gives `values` (1000,), one per timestep.

    Fitted by least squares of the relative errors.
    """
    timesteps = torch.arange(len(values), dtype=torch.float32)
    features = F.silu(unet.time_embedding(unet.time_proj(timesteps)))
    columns = torch.cat([features, torch.ones(len(values), 1)], dim=1).double() / values.double().unsqueeze(1)
    ridge = RIDGE * torch.eye(columns.shape[1], dtype=torch.float64)
    right = columns.T @ torch.ones(len(values), dtype=torch.float64)
    solution = torch.linalg.solve(columns.T @ columns + ridge, right).float()
    return solution[:-1], solution[-1]
