# SPDX-License-Identifier: Apache-2.0
"""The toy autoencoder: initialised to 8x8 averaging and smooth upsampling, then trained briefly.

The initial weights are a linear map through the whole network. Each signal has its own channels s, -s, +c, -c
in a group of every GroupNorm; the constant c is much larger than s, so the norm is nearly a fixed scale.
silu(s) - silu(-s) = s passes the output's activation. All residual branches are scaled down by DAMPING.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lamp_trt.export.toy.images import draw_images
from lamp_trt.export.toy.training import Report, train

BLOCK_CHANNELS = (16, 16, 32, 32)
NUM_GROUPS = 4
SCALING_FACTOR = 0.18215
CARRIER = 3.0
DAMPING = 0.1
LATENT_GAIN = 2.5
"""Initial ratio of scaled latents to image values: gives photographs about unit standard deviation."""
TRAINING_STEPS, BATCH, IMAGE_SIZE, LEARNING_RATE = 250, 4, 64, 2e-3
LATENT_NOISE = 0.05
"""Standard deviation of the noise added to scaled latents in training, which keeps the decoder smooth."""


def make_vae(generator: torch.Generator, steps: int, report: Report) -> Any:
    """A trained AutoencoderKL of Stable Diffusion's layout; random weights from torch's global generator."""
    vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=BLOCK_CHANNELS,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=NUM_GROUPS,
        scaling_factor=SCALING_FACTOR,
    )
    _start_linear(vae)
    images = draw_images(192, IMAGE_SIZE, IMAGE_SIZE, generator)

    def loss(_: int) -> Tensor:
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)]
        mean, logvar = vae.quant_conv(vae.encoder(batch)).chunk(2, dim=1)
        latents = mean * SCALING_FACTOR
        noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        decoded = vae.decoder(vae.post_quant_conv(noisy / SCALING_FACTOR))
        spread = (latents.std((0, 2, 3)) - 1).square().mean() + latents.mean((0, 2, 3)).square().mean()
        error = F.l1_loss(decoded, batch) + F.mse_loss(decoded, batch)
        total: Tensor = error + 0.03 * spread + 1e-4 * (logvar + 8).square().mean()
        return total

    train(loss, [*vae.parameters()], steps=steps, learning_rate=LEARNING_RATE, report=report, what="VAE")
    return vae.requires_grad_(False).eval()


def encode(vae: Any, images: Tensor) -> Tensor:
    """Scaled posterior means (n, 4, h, w) of images (n, 3, 8h, 8w)."""
    with torch.no_grad():
        means = [vae.quant_conv(vae.encoder(image[None]))[:, :4] for image in images]
    latents: Tensor = torch.cat(means) * SCALING_FACTOR
    return latents


def carriers(channels: int, num_groups: int = NUM_GROUPS) -> list[tuple[int, int, int, int]]:
    """The channels of s, -s, +c and -c for each signal: the first four of each norm group."""
    width = channels // num_groups
    return [(k * width, k * width + 1, k * width + 2, k * width + 3) for k in range(num_groups)]


@torch.no_grad()
def _start_linear(vae: Any) -> None:
    ramp = torch.tensor([0.25, 0.5, 0.25])
    mean_2x2 = F.pad(torch.full((2, 2), 0.25), (0, 1, 0, 1))  # the encoder pads right and below
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            module.weight *= DAMPING
            module.bias *= DAMPING
        elif name.endswith("conv_shortcut"):
            _carry(module, torch.ones(1, 1))
        elif name.endswith("downsamplers.0.conv"):
            _carry(module, mean_2x2)
        elif name.endswith("upsamplers.0.conv"):
            _carry(module, torch.outer(ramp, ramp))

    colours = torch.zeros(NUM_GROUPS, 3)
    colours[:3] = torch.eye(3)
    _enter(vae.encoder.conv_in, colours)
    _leave(vae.encoder.conv_out, vae.encoder.conv_norm_out, NUM_GROUPS)
    _enter(vae.decoder.conv_in, torch.eye(4))
    _leave(vae.decoder.conv_out, vae.decoder.conv_norm_out, 3)
    gain = LATENT_GAIN / SCALING_FACTOR
    _start_diagonal(vae.quant_conv, gain)
    _start_diagonal(vae.post_quant_conv, 1 / gain)
    vae.quant_conv.bias[4:] = -6.0  # log-variance


def _carry(conv: Any, taps: Tensor) -> None:
    """Make `conv` pass all carriers, filtered by `taps` (k, k)."""
    pairs = zip(carriers(conv.in_channels), carriers(conv.out_channels), strict=True)
    for source, target in (
        (s, t) for sources, targets in pairs for s, t in zip(sources, targets, strict=True)
    ):
        conv.weight[target] = 0
        conv.weight[target, source] = taps
        conv.bias[target] = 0


def _enter(conv: Any, mixing: Tensor) -> None:
    """Make `conv` set signal k to row k of `mixing` (signals, inputs) times the inputs."""
    for (plus, minus, high, low), row in zip(carriers(conv.out_channels), mixing, strict=True):
        conv.weight[[plus, minus, high, low]] = 0
        conv.weight[plus, :, 1, 1], conv.weight[minus, :, 1, 1] = row, -row
        conv.bias[[plus, minus]] = 0
        conv.bias[high], conv.bias[low] = CARRIER, -CARRIER


def _leave(conv: Any, norm: nn.GroupNorm, num_outputs: int) -> None:
    """Make `conv` return signal k as output k, multiplied by the deviation by which the norm divided it."""
    conv.weight *= DAMPING
    deviation = CARRIER * (2 * norm.num_groups / norm.num_channels) ** 0.5
    for k, (plus, minus, _, _) in enumerate(carriers(conv.in_channels)[:num_outputs]):
        conv.weight[k] = 0
        conv.weight[k, plus, 1, 1], conv.weight[k, minus, 1, 1] = deviation, -deviation
        conv.bias[k] = 0


def _start_diagonal(conv: Any, gain: float) -> None:
    conv.weight *= DAMPING
    conv.bias *= DAMPING
    conv.weight[:4] = 0
    for k in range(4):
        conv.weight[k, k] = gain
