# SPDX-License-Identifier: Apache-2.0
"""Forms of the two convolutions that LAMP adds to every trunk convolution.

Gate: y (b*f, c, h, w) images, z (b, c, f, h*w), weight (1, c, 3, 3), bias (1,) to
y + sigmoid(conv(y)) z as (b, c, f, h*w).

Temporal: y (b, c, f, h*w), weight (c, c, 3, 1), bias (c,) to z of y's shape:
z[f] = W0 y[f-2] + W1 y[f-1] + W2 y[f] + bias, zeros before frame 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TENSOR_CORE_CHANNELS = 8
"""Output channels below which matrix units are not used."""

TAPS_CHANNELS = 16
"""Nine maps, padded to a multiple of TENSOR_CORE_CHANNELS."""


def gate_convolution(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gated_sum(y, z, F.conv2d(y, weight, bias, padding=1))


def gate_padded(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Seven more output channels of zeros."""
    more = TENSOR_CORE_CHANNELS - 1
    wide = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, more))
    return gated_sum(y, z, F.conv2d(y, wide, F.pad(bias, (0, more)), padding=1)[:, :1])


def gate_taps(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution to a map for each of the nine taps, then the sum of the shifted maps in fp32."""
    height, width = y.shape[2:]
    taps = weight[0].permute(1, 2, 0).reshape(9, -1, 1, 1)
    maps = F.conv2d(y, F.pad(taps, (0, 0, 0, 0, 0, 0, 0, TAPS_CHANNELS - 9)))
    around = F.pad(maps[:, :9].float(), (1, 1, 1, 1))
    logits = bias.float().reshape(1, 1, 1, 1)
    for tap in range(9):
        row, column = divmod(tap, 3)
        logits = logits + around[:, tap : tap + 1, row : row + height, column : column + width]
    return gated_sum(y, z, logits)


def gate_reduction(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Products of all taps in fp32, summed over channels."""
    height, width = y.shape[2:]
    around, taps = F.pad(y, (1, 1, 1, 1)), weight.float()
    products = torch.zeros((), dtype=torch.float32, device=y.device)
    for tap in range(9):
        row, column = divmod(tap, 3)
        shifted = around[:, :, row : row + height, column : column + width]
        products = products + shifted.float() * taps[:, :, row, column, None, None]
    return gated_sum(y, z, products.sum(1, keepdim=True) + bias.float())


def gated_sum(y: Tensor, z: Tensor, logits: Tensor) -> Tensor:
    """y + sigmoid(logits) z in z's dtype; logits (b*f, 1, h, w)."""
    num_frames = z.shape[2]
    gate = logits.sigmoid().to(z.dtype).reshape(-1, 1, num_frames, z.shape[3])
    images = torch.unflatten(y, 0, (-1, num_frames)).transpose(1, 2)
    return images.flatten(3) + gate * z


def temporal_padded(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.pad(y, (0, 0, 2, 0)), weight, bias)  # two zero frames in front


def temporal_two_sided(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution pads both ends itself; the last two outputs are not causal and are dropped."""
    return F.conv2d(y, weight, bias, padding=(2, 0))[:, :, : y.shape[2]]


def temporal_unpadded(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Frames 0 and 1 by their one and two taps, the others by a convolution without padding."""
    frames = y.shape[2]
    starts = [
        F.conv2d(y[:, :, : count + 1], weight[:, :, 2 - count :], bias) for count in range(min(frames, 2))
    ]
    return torch.cat([*starts, F.conv2d(y, weight, bias)] if frames > 2 else starts, dim=2)


def temporal_shifted(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One product for each tap, added in fp32."""
    return _shifted_sum([F.conv2d(y, weight[:, :, tap : tap + 1]) for tap in range(3)], bias)


def temporal_one_product(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The products of the three taps as one of three times the width, added in fp32."""
    wide = weight.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(-1)  # (3c, c, 1, 1)
    return _shifted_sum(list(F.conv2d(y, wide).chunk(3, dim=1)), bias)


def _shifted_sum(products: list[Tensor], bias: Tensor) -> Tensor:
    """products: of tap 0, 1 and 2 with every frame."""
    two_back, one_back, own = (product.float() for product in products)
    frames = own.shape[2]
    z = own + bias.float()[:, None, None]
    z = z + F.pad(one_back, (0, 0, 1, 0))[:, :, :frames]
    z = z + F.pad(two_back, (0, 0, 2, 0))[:, :, :frames]
    return z.to(products[0].dtype)
