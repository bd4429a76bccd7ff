# SPDX-License-Identifier: Apache-2.0
"""Two toy LAMP UNets that need no training: they copy the first frame and move it, each in its own direction.

Training from random weights would take hours. Instead the weights of a few layers are set to compute

    noise_pred = (sample - sqrt(alpha) x0) / sqrt(1 - alpha),   x0 = the first frame, moved by the motion

and all other weights are a small random perturbation. In the order of the layers:

- `conv_in` copies the latents and adds constant channels: a constant larger than the signal makes a GroupNorm
  a fixed scale. Causal taps turn one constant into a mark of frame 0.
- The first temporal attention attends to this mark, which copies frame 0 into every frame: the memory.
- Along the trunk, causal taps delay the onset of a constant layer by layer: a clock, rising with the frame.
- In two of the last ResNets, conv1 holds the memory and copies of it shifted right and down. Its gate reads
  the clock, its conv1d adds shifted minus unshifted memory in the direction of the motion.
- The last ResNet divides sample and memory by functions of time: the time embedding is the constant in their
  norms.

Signals pass SiLU near its inflection point, where it is almost linear, or as silu(x) - silu(-x) = x.
"""

from typing import Any

import torch
from torch import Tensor

from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export.lamp.reference import alphas_cumprod
from lamp_trt.export.lamp.unet import LampUNet, LampUNetConfig
from lamp_trt.export.toy.layout import (
    CENTRE,
    CLOCK_CHANNEL,
    CLOCK_MOMENTS,
    CONSTANT,
    CONSTANT_MOMENTS,
    DOWN,
    FIRST_FRAME_MOMENTS,
    HELD_CLOCK,
    MARK,
    MARK_CHANNEL,
    MARK_MOMENTS,
    MEMORY,
    MEMORY_SCALE,
    RIGHT,
    SAMPLE,
    clear,
    pass_norm,
)
from lamp_trt.export.toy.moves import start_stage
from lamp_trt.export.toy.noise import start_noise, start_output, start_time
from lamp_trt.export.toy.text import vary_vectors

CONFIG = LampUNetConfig(
    block_out_channels=(16, 16, 32, 32), attention_head_dim=2, norm_num_groups=8, cross_attention_dim=32
)
DIRECTIONS = {"horse_run": RIGHT, "rain": DOWN}
MOTION_VARIATION = 0.02
"""Relative deviation of the motion tensors that the two motions could share."""
PICTURE_PATH = ("conv_in", "down_blocks.0", "up_blocks.3", "conv_out")
DAMPING, MEMORY_DAMPING = 0.05, 0.02
"""Factors of the random residual branches on PICTURE_PATH, and in the transformer that writes the memory."""
TEXT_GAIN = 3.0
CLOCK_CENTRE = 8.0
"""The frame at which the clock has risen to one half."""
STAGES = (0.3, 0.7)
"""Clock value, of 0 to 1, at which each of the two stages has moved half its way."""
SHIFT_STRENGTH = 1.25
"""Weight of shifted minus unshifted memory. 1 interpolates; more moves smooth content further."""
BALLAST, MARK_TOKEN, MARK_ATTENTION = 8.0, 4.0, 4.5
"""Values in the tokens of the memory's transformer: the constants that fix the layer norm's scale, the mark,
and the weights of query and key, large enough that the softmax selects frame 0."""


def make_motions(generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    """The official state dict of each motion, by name; initial weights come from torch's global generator.

    The motions differ in every motion tensor, as trained ones do, and share the others.
    """
    unet = LampUNet(CONFIG)
    _start(unet)
    motions = {}
    for motion, direction in DIRECTIONS.items():
        tensors = {name: p.detach().clone() for name, p in unet.named_parameters()}
        _move(tensors, direction)
        for name in filter(is_motion_tensor, tensors):
            spread = MOTION_VARIATION * tensors[name].abs().mean().clamp(min=0.01)
            tensors[name] += spread * torch.randn(tensors[name].shape, generator=generator)
        motions[motion] = {name: tensors[name] for name in unet.state_dict()}
    return motions


@torch.no_grad()
def _start(unet: Any) -> None:
    """Give `unet` (a LampUNet) the weights described above, without a motion."""
    _damp(unet)
    start_time(unet)
    _start_input(unet.conv_in)
    _start_memory(unet.down_blocks[0].attentions[0])
    clock_path = _clock_path(unet)
    for conv, source, target in clock_path:
        delay_clock(conv, source, target, CLOCK_CENTRE / len(clock_path))
    first, second, last = unet.up_blocks[3].resnets
    start_stage(first, 16 + MEMORY[0], CLOCK_CHANNEL, STAGES[0])
    delay_clock(second.conv_shortcut, HELD_CLOCK, HELD_CLOCK, 0.0)
    start_stage(second, MEMORY[0], HELD_CLOCK, STAGES[1])
    alphas = alphas_cumprod()
    unusual = {HELD_CLOCK: CLOCK_MOMENTS, 16 + MARK_CHANNEL: MARK_MOMENTS}
    start_noise(last, unet, alphas.sqrt(), alphas, unusual)
    start_output(unet)


def _move(tensors: dict[str, Tensor], direction: tuple[int, ...]) -> None:
    """Make the two stages move the memory in `direction`: RIGHT or DOWN (channels of the shifted copies)."""
    for j in range(len(STAGES)):
        weight = tensors[f"up_blocks.3.resnets.{j}.conv1.conv1d.weight"]
        for target, copy in zip(SAMPLE, direction, strict=True):
            weight[target, copy, -1] += SHIFT_STRENGTH
            weight[target, target, -1] -= SHIFT_STRENGTH


def _damp(unet: LampUNet) -> None:
    """Scale residual branches on PICTURE_PATH down, and move norms and biases off their constant start."""
    vary_vectors(unet)
    for name, parameter in unet.named_parameters():
        module = name.rpartition(".")[0]
        if "norm_temp" in name:  # not trained by LAMP
            parameter.fill_(float(name.endswith("weight")))
        elif name.startswith("down_blocks.0.attentions.0") and module.endswith(("to_out.0", "ff.net.2")):
            parameter.mul_(MEMORY_DAMPING)
        elif name.startswith(PICTURE_PATH) and module.endswith(
            ("conv2.conv2d", "conv1d", "conv_gate", "proj_out")
        ):
            parameter.mul_(DAMPING)
        elif module.endswith("attn2.to_out.0"):
            parameter.mul_(TEXT_GAIN)


def _start_input(conv_in: Any) -> None:
    conv, taps = clear(conv_in).conv2d, conv_in.conv1d
    for k, channel in enumerate(SAMPLE):
        conv.weight[channel, k, *CENTRE] = 1
    conv.bias[1::2] = CONSTANT
    conv.bias[MARK_CHANNEL - 1], conv.bias[MARK_CHANNEL] = MARK / 2, MARK
    taps.weight[MARK_CHANNEL, MARK_CHANNEL, 1] = -2  # halved by the gate: zero after frame 0


def _start_memory(transformer: Any) -> None:
    """Tokens: sample in 0, 2, 4, 6, BALLAST in 1, 3, 5, 7, mark in 9 and 11, memory in 8, 10, 12, 14."""
    block = transformer.transformer_blocks[0]
    moments = dict.fromkeys(SAMPLE, FIRST_FRAME_MOMENTS) | dict.fromkeys(range(1, 16, 2), CONSTANT_MOMENTS)
    moments |= {MARK_CHANNEL - 1: (MARK / 2, MARK**2 / 4), MARK_CHANNEL: (MARK, MARK**2)}
    pass_norm(transformer.norm, moments)

    conv = clear(transformer.proj_in)
    for channel in SAMPLE:
        conv.weight[channel, channel] = 1
    conv.bias[[1, 3]], conv.bias[[5, 7]] = BALLAST, -BALLAST
    for channel, height in ((9, MARK_TOKEN), (11, -MARK_TOKEN)):
        conv.weight[channel, MARK_CHANNEL] = 2 * height / MARK  # MARK in frame 0, MARK / 2 in the others
        conv.bias[channel] = -height

    attention, deviation = block.attn_temp, BALLAST / 2  # of a token, in its layer norm
    for linear in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
        clear(linear)
    for row in (0, 8):  # the first dimension of each head
        attention.to_q.weight[row, 1] = MARK_ATTENTION
        attention.to_k.weight[row, 9] = MARK_ATTENTION
    for k, channel in enumerate(SAMPLE):
        attention.to_v.weight[k, list(SAMPLE)] = deviation / 12  # restores the mean that the norm subtracts
        attention.to_v.weight[k, channel] += deviation
        attention.to_out[0].weight[MEMORY[k], k] = 1

    for channel in MEMORY:
        transformer.proj_out.weight[channel] = 0
        transformer.proj_out.weight[channel, channel] = MEMORY_SCALE
        transformer.proj_out.bias[channel] = 0
    transformer.proj_out.bias[MARK_CHANNEL - 1] = -MARK / 2


def _clock_path(unet: Any) -> list[tuple[Any, int, int]]:
    """The trunk's convolutions up to the last up block, with the clock's channel before and after each.

    Sets all other weights of the clock's channel to zero.
    """
    convs = [unet.conv_in]
    stages = [*unet.down_blocks, *list(unet.up_blocks)[:-1]]
    for block in stages:
        convs += [r.conv_shortcut for r in block.resnets if r.conv_shortcut is not None]
        convs += [s.conv for s in getattr(block, "downsamplers", ()) or getattr(block, "upsamplers", ())]
    for block in [*stages, unet.mid_block, unet.up_blocks[3]]:
        clock = HELD_CLOCK if block is unet.up_blocks[3] else CLOCK_CHANNEL
        for resnet in block.resnets:
            resnet.conv2.conv2d.weight[clock], resnet.conv2.conv2d.bias[clock] = 0, 0
            resnet.conv2.conv1d.weight[clock], resnet.conv2.conv1d.bias[clock] = 0, 0
        for transformer in block.attentions:
            transformer.proj_out.weight[clock], transformer.proj_out.bias[clock] = 0, 0
    last = convs[-1].conv2d  # the neighbours of the clock in the next norm
    last.weight[12:15], last.bias[12:15] = 0, torch.tensor([0.0, CONSTANT, 0.0])
    convs[-1].conv1d.weight[12:15], convs[-1].conv1d.bias[12:15] = 0, 0
    path = [(conv, CLOCK_CHANNEL, CLOCK_CHANNEL) for conv in convs]
    return [*path, (unet.up_blocks[3].resnets[0].conv_shortcut, CLOCK_CHANNEL, HELD_CLOCK)]


def delay_clock(conv: Any, source: int, target: int, delay: float) -> None:
    """Copy channel source to target, `delay` frames later on average: equal shares of the last two frames."""
    if conv.conv2d.in_channels > 4:
        conv.conv2d.weight[target], conv.conv2d.bias[target] = 0, 0
        conv.conv2d.weight[target, source, *(s // 2 for s in conv.conv2d.kernel_size)] = 1
    share = delay / 3  # a frame late and two frames late
    conv.conv1d.weight[target], conv.conv1d.bias[target] = 0, 0
    conv.conv1d.weight[target, target] = torch.tensor([share, share, -2 * share]) * 2  # the gate halves
