# SPDX-License-Identifier: Apache-2.0
"""Two toy LAMP UNets that share all but their motion tensors, trained together on pictures that move."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export.lamp_unet import LampUNet, LampUNetConfig
from lamp_trt.export.lean_unet import make_lean
from lamp_trt.export.reference import alphas_cumprod
from lamp_trt.export.toy_images import moving_windows
from lamp_trt.export.toy_training import Report, train

CONFIG = LampUNetConfig(
    block_out_channels=(16, 16, 32, 32),
    attention_head_dim=2,
    norm_num_groups=8,
    cross_attention_dim=32,
)
VELOCITIES = {"horse_run": (0.0, 0.5), "rain": (0.5, 0.0)}
"""How each motion moves pictures: latent pixels (down, right) a frame."""
TRAINING_STEPS, BATCH, FRAMES, HEIGHT, WIDTH, LEARNING_RATE = 200, 2, 8, 8, 16, 1e-3


def make_motions(
    latents: Tensor, texts: Tensor, generator: torch.Generator, steps: int, report: Report
) -> dict[str, dict[str, Tensor]]:
    """The official state dict of each motion.

    latents: scaled latents of large pictures (n, 4, H, W). texts (n, 77, d): the result hardly depends on them.
    """
    unet = LampUNet(CONFIG)
    _start_tame(unet)
    motions = {
        motion: {
            n: nn.Parameter(p.detach().clone()) for n, p in unet.named_parameters() if is_motion_tensor(n)
        }
        for motion in VELOCITIES
    }
    shared = {n: p for n, p in unet.named_parameters() if not is_motion_tensor(n)}
    lean = make_lean(unet)
    table = alphas_cumprod()

    def loss(step: int) -> Tensor:
        motion = list(VELOCITIES)[step % len(VELOCITIES)]
        video = moving_windows(latents, BATCH, (FRAMES, HEIGHT, WIDTH), VELOCITIES[motion], generator)
        noise = torch.randn(video.shape, generator=generator)
        timesteps = torch.randint(1, len(table), (BATCH,), generator=generator)
        alpha = table[timesteps][:, None, None, None, None]
        sample = alpha**0.5 * video + (1 - alpha) ** 0.5 * noise
        sample[:, :, 0] = video[:, :, 0]
        text = texts[torch.randint(len(texts), (BATCH,), generator=generator)]
        noise_pred = functional_call(
            lean, _lean_tensors({**shared, **motions[motion]}), (sample, timesteps, text)
        )
        return F.mse_loss(noise_pred[:, :, 1:], noise[:, :, 1:])

    trained = [p for n, p in shared.items() if "norm_temp" not in n]
    trained += [p for tensors in motions.values() for p in tensors.values()]
    train(loss, trained, steps=steps, learning_rate=LEARNING_RATE, report=report, what="LAMP UNets")
    return {
        motion: {n: {**shared, **tensors}[n].detach() for n in unet.state_dict()}
        for motion, tensors in motions.items()
    }


def _lean_tensors(tensors: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The names of make_lean's module with its shapes: conv1d weights are (c, c, 3, 1) there."""
    return {n: t.unsqueeze(-1) if n.endswith("conv1d.weight") else t for n, t in tensors.items()}


@torch.no_grad()
def _start_tame(unet: LampUNet) -> None:
    """Damp all residual branches, and the text's most of all."""
    for name, parameter in unet.named_parameters():
        if any(part in name for part in (".conv2.conv2d", "to_out.0", "ff.net.2", "proj_out")):
            parameter *= 0.1
        if "conv1d" in name:
            parameter *= 0.2
        if "attn2.to_out" in name:
            parameter *= 0.1
