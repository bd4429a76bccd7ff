# SPDX-License-Identifier: Apache-2.0
"""PyTorch forms of each kernel's operation, which the kernels are timed against.

Plain forms are the best straightforward PyTorch, a few vectorised operations; `official_step` is the
published per-frame loop, written from its description in docs/algorithm.md. They run on any device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lamp_trt.runtime.algorithm.config import ADAIN_EPS, NOISE_BASE_WEIGHT

DDIM = tuple[float, float]
"""(cx, ce) of ddim.step_coefficients."""


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Match the statistics of the last two axes."""
    std, mean = torch.var_mean(content, dim=(-2, -1), keepdim=True)
    style_std, style_mean = torch.var_mean(style, dim=(-2, -1), keepdim=True)
    scale = ((style_std + ADAIN_EPS) / (std + ADAIN_EPS)).sqrt()
    return (content - mean) * scale + style_mean


def step(latents: Tensor, noise_pred: Tensor, ddim: DDIM, guidance_scale: float) -> tuple[Tensor, Tensor]:
    """Do a late step of preset "official", all frames to frame 0: (latents, both halves of the next sample).

    latents (4, f, h, w) float32, noise_pred (2, 4, f, h, w).
    """
    uncond, cond = noise_pred.float()
    stepped = ddim[0] * latents + ddim[1] * (uncond + guidance_scale * (cond - uncond))
    first = latents[:, :1]
    matched = torch.cat([first, adain(stepped[:, 1:], first)], dim=1)
    return matched, matched.to(noise_pred.dtype).expand(2, -1, -1, -1, -1).contiguous()


def official_step(
    latents: Tensor, noise_pred: Tensor, ddim: DDIM, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """Do such a step as the published code does: everything in the UNet's precision, AdaIN frame by frame
    on snapshots, frame 1 to frame 0 and the others to frame 1."""
    latents = latents.to(noise_pred.dtype)
    uncond, cond = noise_pred
    guided = uncond + guidance_scale * (cond - uncond)
    stepped = latents.clone()
    stepped[:, 1:] = ddim[0] * latents[:, 1:] + ddim[1] * guided[:, 1:]
    for f in range(1, latents.shape[1]):
        snapshot = stepped.clone()
        stepped[:, f] = adain(snapshot[:, f], snapshot[:, 0])
        if f > 1:
            stepped[:, f] = adain(snapshot[:, f], snapshot[:, 1])
    return stepped, torch.stack([stepped] * 2)


def noise(first_frame: Tensor, frames: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return drawn and mixed initial latents (4, f, h, w) float32, and both halves of the first sample."""
    shape = (first_frame.shape[0], frames, *first_frame.shape[2:])
    drawn = torch.randn(shape, device=first_frame.device)
    mixed = NOISE_BASE_WEIGHT * drawn[:, :1] + (1 - NOISE_BASE_WEIGHT) * drawn
    latents = torch.cat([first_frame, mixed[:, 1:]], dim=1)
    return latents, latents.to(dtype).expand(2, -1, -1, -1, -1).contiguous()


def uint8_frames(images: Tensor) -> Tensor:
    """Convert images (f, 3, h, w) in [-1, 1] to uint8 (f, h, w, 3), truncated."""
    levels = (images.float() / 2 + 0.5).clamp(0, 1) * 255
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def histogram_match(images: Tensor) -> Tensor:
    """Convert decoded images (f, 3, h, w) to bytes (f, h, w, 3), frames 1.. matched to frame 0 by exact
    CDFs."""
    frames = uint8_frames(images)
    f, h, w, _ = frames.shape
    planes = frames.permute(0, 3, 1, 2).reshape(f * 3, h * w).long()
    counts = torch.zeros(f * 3, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, planes, torch.ones_like(planes))
    cdf = counts.cumsum(1)
    reference = cdf[:3].repeat(f, 1)
    lut = torch.searchsorted(reference, cdf).clamp(max=255)
    matched = torch.gather(lut, 1, planes).to(torch.uint8).reshape(f, 3, h, w).permute(0, 2, 3, 1)
    return torch.cat([frames[:1], matched[1:]])


def first_frame(decoded: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Convert SDXL's image (1, 3, 2h, 2w) to rounded bytes (2h, 2w, 3) and to the SD encoder's input (1,
    3, h, w)."""
    levels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round()
    means = torch.floor(F.avg_pool2d(levels, 2) + 0.5)
    return levels.to(torch.uint8)[0].permute(1, 2, 0).contiguous(), (means.to(dtype) / 127.5 - 1)
