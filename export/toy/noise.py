# SPDX-License-Identifier: Apache-2.0
"""Last layers of the toy UNets: predicted noise from the noisy sample and the memory, a clean estimate.

Requires 16 channels in 8 norm groups: a signal in each even channel, a constant in each odd one.
"""

from typing import Any

import torch
from torch import Tensor

from lamp_trt.export.toy.layout import (
    CENTRE,
    CONSTANT,
    CONSTANT_MOMENTS,
    MEMORY,
    MEMORY_MOMENTS,
    MEMORY_SCALE,
    SAMPLE,
    SAMPLE_MOMENTS,
    SILU_CENTRE,
    SILU_SLOPE,
    SILU_VALUE,
    Moments,
    clear,
    fit_time,
    pass_norm,
    plane,
)

TIME_GAIN = 4.0
NOISE_SCALE = 5.0
"""Divisor of the predicted noise inside the last ResNet, which keeps it where SiLU is almost linear."""
MIN_SIGMA = 0.1
"""Lower limit of sqrt(1 - alpha) in the division."""
MEMORY_PASS = 0.25
"""Scale of the signals in the first SiLU."""


def start_time(unet: Any) -> None:
    """Make the time embedding smooth: scale the slow sinusoids up and the fast ones down."""
    weight = unet.time_embedding.linear_1.weight
    half = weight.shape[1] // 2
    slow = torch.arange(half) >= half // 2
    weight *= torch.where(slow, TIME_GAIN, TIME_GAIN / 100).repeat(2)
    unet.time_embedding.linear_1.bias.mul_(TIME_GAIN)
    unet.time_embedding.linear_2.weight.mul_(2)


def start_noise(
    resnet: Any, unet: Any, memory_share: Tensor, alphas: Tensor, moments: dict[int, Moments]
) -> None:
    """Make the last ResNet compute (sample - memory_share * memory) / sigma, and its negative.

    Its input is the lower block's output, with the memory, and conv_in's skip tensor, with the sample.
    memory_share, alphas   (1000,), one per timestep
    moments                moments of input channels that are neither sample, memory nor constant
    """
    sample = [16 + c for c in SAMPLE]
    usual = dict.fromkeys(range(1, 32, 2), CONSTANT_MOMENTS) | dict.fromkeys(MEMORY, MEMORY_MOMENTS)
    usual |= dict.fromkeys(sample, SAMPLE_MOMENTS)
    pass_norm(resnet.norm1, usual | moments, scale=MEMORY_PASS, offset=SILU_CENTRE)
    conv = plane(clear(resnet.conv1))
    for k in range(4):
        for target, source, scale in ((SAMPLE[k], sample[k], 1.0), (MEMORY[k], MEMORY[k], MEMORY_SCALE)):
            conv.weight[target, source, *CENTRE] = 1 / (MEMORY_PASS * scale * SILU_SLOPE)
            conv.bias[target] = -SILU_VALUE / (MEMORY_PASS * scale * SILU_SLOPE)

    sigma = (1 - alphas).sqrt().clamp(min=MIN_SIGMA)
    projection = clear(resnet.time_emb_proj)
    for channels, divisor in ((range(1, 8, 2), sigma), (range(9, 16, 2), sigma / memory_share)):
        weight, bias = fit_time(unet, 2 * NOISE_SCALE * divisor)
        for channel in channels:
            projection.weight[channel], projection.bias[channel] = weight, bias
    # A group (x, T) with |x| < T has mean T/2 and deviation T/2: x becomes 2x/T - 1 and T becomes 1.
    resnet.norm2.weight.fill_(1)
    resnet.norm2.bias[0::2], resnet.norm2.bias[1::2] = 1 + SILU_CENTRE, 0

    conv = plane(clear(resnet.conv2))
    for k in range(4):
        for target, sign in ((SAMPLE[k], 1), (MEMORY[k], -1)):
            conv.weight[target, SAMPLE[k], *CENTRE] = sign * NOISE_SCALE / SILU_SLOPE
            conv.weight[target, MEMORY[k], *CENTRE] = -sign * NOISE_SCALE / SILU_SLOPE
    plane(clear(resnet.conv_shortcut)).bias[1::2] = CONSTANT


def start_output(unet: Any) -> None:
    """Make conv_out return the noise as silu(x) - silu(-x) = x."""
    noise = dict.fromkeys((*SAMPLE, *MEMORY), SAMPLE_MOMENTS)
    pass_norm(unet.conv_norm_out, noise | dict.fromkeys(range(1, 16, 2), CONSTANT_MOMENTS))
    conv = plane(clear(unet.conv_out))
    for k in range(4):
        conv.weight[k, SAMPLE[k], *CENTRE], conv.weight[k, MEMORY[k], *CENTRE] = 1, -1
