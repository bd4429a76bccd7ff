# SPDX-License-Identifier: Apache-2.0
"""The two ResNets of the toy LAMP UNets that move the memory."""

from typing import Any

import torch
import torch.nn.functional as F

from lamp_trt.export.toy.layout import (
    CENTRE,
    CLOCK_MOMENTS,
    CONSTANT,
    CONSTANT_MOMENTS,
    DOWN,
    HELD_CLOCK,
    MARK_CHANNEL,
    MARK_MOMENTS,
    MEMORY,
    MEMORY_MOMENTS,
    RIGHT,
    SAMPLE,
    SAMPLE_MOMENTS,
    SILU_CENTRE,
    SILU_SLOPE,
    SILU_VALUE,
    clear,
    pass_norm,
)

STAGE_SLOPE = 8.0
"""Slope of the logistic function of the clock with which a stage starts."""


def start_stage(resnet: Any, first: int, clock: int, stage: float) -> None:
    """Set a ResNet's weights to move the memory.

    first    first channel of the memory, which has every second one of the input's 32 channels
    clock    the clock's channel
    stage    clock value at which the memory has moved half its way
    """
    memory = range(first, first + 8, 2)
    moments = dict.fromkeys(range(1, 32, 2), CONSTANT_MOMENTS) | dict.fromkeys(memory, MEMORY_MOMENTS)
    moments |= {clock: CLOCK_MOMENTS, clock ^ 2: CONSTANT_MOMENTS}
    if first >= 16:
        moments |= {16 + c: SAMPLE_MOMENTS for c in SAMPLE} | {16 + MARK_CHANNEL: MARK_MOMENTS}
        moments |= dict.fromkeys(range(1, 12, 2), (0.0, 0.1))  # the lower block passes no constants
    pass_norm(resnet.norm1, moments, offset=SILU_CENTRE)

    conv = clear(resnet.conv1).conv2d
    offset = (
        SILU_VALUE / F.silu(torch.tensor(CONSTANT + SILU_CENTRE)).item()
    )  # of the constant next to the memory
    for k, channel in enumerate(memory):
        for target, tap in ((SAMPLE[k], CENTRE), (RIGHT[k], (1, 0)), (DOWN[k], (0, 1))):
            conv.weight[target, channel, *tap] += 1 / SILU_SLOPE
            # From a constant by the same tap: zero padding then removes signal and offset alike.
            conv.weight[target, first + 1, *tap] -= offset / SILU_SLOPE
    conv.bias[[1, 3, 5, 7]] = CONSTANT
    conv.weight[7] = 0
    conv.weight[7, clock, *CENTRE] = 0.5 / SILU_SLOPE
    conv.bias[7] -= 0.5 * SILU_VALUE / SILU_SLOPE
    gate = clear(resnet.conv1.conv_gate)
    gate.weight[0, 7, *CENTRE] = 2 * STAGE_SLOPE / CONSTANT
    gate.bias[0] = -2 * STAGE_SLOPE - STAGE_SLOPE * stage
    clear(resnet.time_emb_proj)

    constants = dict.fromkeys((1, 3, 5), CONSTANT_MOMENTS) | {7: (1.25 * CONSTANT, 1.6 * CONSTANT**2)}
    pass_norm(
        resnet.norm2, constants | dict.fromkeys((*SAMPLE, *RIGHT, *DOWN), MEMORY_MOMENTS), offset=SILU_CENTRE
    )
    conv = clear(resnet.conv2).conv2d
    for source, target in zip(SAMPLE, MEMORY, strict=True):
        conv.weight[target, source, *CENTRE] = 1 / SILU_SLOPE
        conv.bias[target] = -SILU_VALUE / SILU_SLOPE
    _keep_constants(resnet.conv_shortcut)


def _keep_constants(shortcut: Any) -> None:
    """Put constants into the odd channels except the clock's; keep the lower block's first even channels."""
    kept = [*SAMPLE, HELD_CLOCK]
    weight, taps = shortcut.conv2d.weight[kept].clone(), shortcut.conv1d.weight[HELD_CLOCK].clone()
    clear(shortcut)
    shortcut.conv2d.bias[1::2] = CONSTANT
    weight[:4, 17::2] = 0
    shortcut.conv2d.weight[kept], shortcut.conv1d.weight[HELD_CLOCK] = weight, taps
    shortcut.conv2d.bias[HELD_CLOCK] = 0
