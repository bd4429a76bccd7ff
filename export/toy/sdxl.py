# SPDX-License-Identifier: Apache-2.0
"""The toy SDXL, an untrained UNet that makes smooth clouds of colour, varied a little by the prompt."""

import copy
from typing import Any

import torch
from torch import nn

from lamp_trt.export.lamp.reference import alphas_cumprod
from lamp_trt.export.toy.layout import CENTRE, CONSTANT, MEMORY, MEMORY_SCALE, SAMPLE, clear
from lamp_trt.export.toy.noise import start_noise, start_output, start_time
from lamp_trt.export.toy.text import TEXT_ENCODER_CONFIG, vary_vectors
from lamp_trt.export.toy.vae import SCALING_FACTOR as SD_SCALING_FACTOR

SCALING_FACTOR = 0.13025
DAMPING, TIME_DAMPING = 0.05, 0.002
"""Factors of the random residual branches, and of the sizes' and pooled text's part of the time embedding."""
TEXT_GAIN, PROMPT_SHARE = 3.0, 0.25
"""Factors of the cross-attention's weights, and of its output in the memory channels."""
BLURRED_NOISE = 0.02
"""Variance of unit noise after blurring, relative to that of images after blurring."""

TEXT_ENCODER_2_CONFIG: dict[str, Any] = {
    **TEXT_ENCODER_CONFIG,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 40,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "projection_dim": 40,
    "transformers_version": "4.32.0.dev0",
}
"""A tiny OpenCLIP ViT-bigG text model; its width differs from the first encoder's to reveal mix-ups."""

UNET_CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 8,
    "attention_head_dim": [1, 2, 4],
    "block_out_channels": [16, 32, 32],
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 32 + 40,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 40 + 6 * 8,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 1, 2],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}


def make_text_encoder_2() -> nn.Module:
    """A random CLIPTextModelWithProjection of transformers, from torch's global generator, no gradients."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    model: nn.Module = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_ENCODER_2_CONFIG))
    vary_vectors(model)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def make_vae(sd_vae: Any) -> Any:
    """A copy of Stable Diffusion's toy autoencoder, with latents scaled for SDXL's smaller scaling factor."""
    vae, ratio = copy.deepcopy(sd_vae), SD_SCALING_FACTOR / SCALING_FACTOR
    vae.quant_conv.weight[:4] *= ratio
    vae.quant_conv.bias[:4] *= ratio
    vae.post_quant_conv.weight /= ratio
    return vae


def make_unet() -> Any:
    """A UNet2DConditionModel with the weights of `_start`; random weights from torch's global generator."""
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel(**UNET_CONFIG)  # type: ignore[no-untyped-call]
    _start(unet)
    return unet.requires_grad_(False).eval()


@torch.no_grad()
def _start(unet: Any) -> None:
    """Set the weights: the clean estimate is the sample, blurred by two downsamplings and upsamplings.

    As in export/toy/lamp.py all other weights are a small random perturbation. The trunk carries the sample
    as "memory".
    """
    vary_vectors(unet)
    for name, parameter in unet.named_parameters():
        if name.rpartition(".")[0].endswith(("conv2", "proj_out")):
            parameter.mul_(DAMPING)
        if ".attn2." in name and parameter.ndim == 2:
            parameter.mul_(TEXT_GAIN)
        if name.startswith("add_embedding.linear_2"):
            parameter.mul_(TIME_DAMPING)
    start_time(unet)
    conv = clear(unet.conv_in)
    for k in range(4):
        conv.weight[[SAMPLE[k], MEMORY[k]], k, *CENTRE] = torch.tensor([1.0, MEMORY_SCALE])
    conv.bias[1::2] = CONSTANT
    _carry_memory(unet)

    last = unet.up_blocks[-1].resnets[-1]
    unet.up_blocks[-1].resnets[-2].conv_shortcut.weight[1::2] = 0
    unet.up_blocks[-1].resnets[-2].conv_shortcut.bias[1::2] = CONSTANT
    alphas = alphas_cumprod()
    share = alphas.sqrt() / (alphas + (1 - alphas) * BLURRED_NOISE)  # Wiener's estimate of the clean picture
    start_noise(last, unet, alphas.sqrt() * share, alphas, {})
    start_output(unet)


def _carry_memory(unet: Any) -> None:
    ramp = torch.tensor([0.25, 0.5, 0.25])
    smooth, same = torch.outer(ramp, ramp), torch.ones(1, 1)
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    for block in blocks:
        for resnet in block.resnets:
            resnet.conv2.weight[list(MEMORY)], resnet.conv2.bias[list(MEMORY)] = 0, 0
        for transformer in getattr(block, "attentions", ()):
            transformer.proj_out.weight[list(MEMORY)] *= PROMPT_SHARE
            transformer.proj_out.bias[list(MEMORY)] = 0
        convs = [(r.conv_shortcut, same) for r in block.resnets if r.conv_shortcut is not None]
        for kind in ("downsamplers", "upsamplers"):
            convs += [(sampler.conv, smooth) for sampler in getattr(block, kind, None) or ()]
        for conv, taps in convs:
            for channel in MEMORY:
                conv.weight[channel], conv.bias[channel] = 0, 0
                conv.weight[channel, channel] = taps
