# SPDX-License-Identifier: Apache-2.0
"""Synthetic training images of the toy checkpoints: flat ellipses on smooth backgrounds."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND = ((2, 0.45), (5, 0.3), (12, 0.12), (24, 0.06))
"""Waves per 64 pixels and amplitude of each octave of the background."""
NUM_ELLIPSES = 6
SATURATION = 1.0
"""Standard deviation of the colour offsets relative to that of the grey values."""


def draw_images(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random images, float32 (count, 3, height, width) in [-1, 1]."""
    images = torch.zeros(count, 3, height, width)
    for waves, amplitude in BACKGROUND:
        size = (max(2, waves * height // 64), max(2, waves * width // 64))
        octave = F.interpolate(_colours(count, size, generator), (height, width), mode="bicubic")
        images += amplitude * octave

    y, x = torch.arange(height).unsqueeze(1), torch.arange(width)
    for _ in range(NUM_ELLIPSES):
        u, v, angle, log_a, log_b, log_edge = torch.rand(6, count, 1, 1, generator=generator)
        dx, dy, angle = x - u * width, y - v * height, angle * math.pi
        a, b = torch.exp(0.7 + 2.9 * log_a), torch.exp(0.7 + 2.9 * log_b)  # semi-axes, 2 to 37 pixels
        along = (dx * angle.cos() + dy * angle.sin()) / a
        across = (dy * angle.cos() - dx * angle.sin()) / b
        inside = (1 - (along.square() + across.square() + 1e-6).sqrt()) * torch.minimum(a, b)  # pixels
        mask = torch.sigmoid(inside * torch.exp(1.7 * log_edge - 0.7)).unsqueeze(1)
        images = torch.lerp(images, 0.5 * _colours(count, (1, 1), generator), mask)
    return images.clamp(-1, 1)


def _colours(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random colours, (count, 3, *size): a common grey value plus an offset per channel."""
    draw = torch.randn(count, 4, *size, generator=generator)
    return 0.8 * (draw[:, :1] + SATURATION * draw[:, 1:])
