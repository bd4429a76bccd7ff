# SPDX-License-Identifier: Apache-2.0
"""The toy SDXL: a UNet trained briefly to paint soft shapes, tinted if the prompt names a colour."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp_trt.export.reference import alphas_cumprod
from lamp_trt.export.toy_images import draw_images
from lamp_trt.export.toy_text import TEXT_ENCODER_CONFIG, vary_vectors
from lamp_trt.export.toy_tokenizer import MODEL_MAX_LENGTH
from lamp_trt.export.toy_training import Report, train
from lamp_trt.export.toy_vae import SCALING_FACTOR as SD_SCALING_FACTOR
from lamp_trt.export.toy_vae import encode

SCALING_FACTOR = 0.13025
TRAINING_STEPS, BATCH, IMAGE_SIZE, LEARNING_RATE = 200, 4, (96, 128), 2e-3
COLOURS = {
    "red": (0.7, -0.6, -0.6),
    "green": (-0.6, 0.5, -0.6),
    "blue": (-0.6, -0.4, 0.8),
    "yellow": (0.8, 0.7, -0.6),
    "purple": (0.3, -0.7, 0.6),
    "white": (0.9, 0.9, 0.9),
}
TEMPLATES = ("a {} horse", "a {} car on the road", "{} flowers in a field")
PLAIN_PROMPTS = ("a horse runs on the road", "a car in rain", "fireworks in the night sky", "birds fly")
TINT = 0.6
CONSTANT = 4.0

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
"""OpenCLIP bigG's text half, tiny, and not as wide as the first so that they cannot be mixed up."""

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
    """transformers' CLIPTextModelWithProjection drawn from torch's global generator, no gradients."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    model: nn.Module = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_ENCODER_2_CONFIG))
    vary_vectors(model)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def make_vae(sd_vae: Any) -> Any:
    """Stable Diffusion's toy autoencoder with latents as much larger as SDXL's scaling factor is smaller."""
    vae, ratio = copy.deepcopy(sd_vae), SD_SCALING_FACTOR / SCALING_FACTOR
    vae.quant_conv.weight[:4] *= ratio
    vae.quant_conv.bias[:4] *= ratio
    vae.post_quant_conv.weight /= ratio
    return vae


def make_unet(
    sd_vae: Any,
    text_encoders: list[nn.Module],
    tokenizer_folders: list[Path],
    generator: torch.Generator,
    steps: int,
    report: Report,
) -> Any:
    """A UNet2DConditionModel trained on drawn images; its first draw is torch's global generator's."""
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel(**UNET_CONFIG)  # type: ignore[no-untyped-call]
    _start_linear(unet)
    prompts = [template.format(colour) for colour in COLOURS for template in TEMPLATES]
    texts, pooled = _encode_prompts([*prompts, *PLAIN_PROMPTS], text_encoders, tokenizer_folders)
    images = draw_images(8 * len(texts), *IMAGE_SIZE, generator).view(len(texts), 8, 3, *IMAGE_SIZE)
    tints = torch.tensor([COLOURS[c] for c in COLOURS for _ in TEMPLATES])
    images[: len(prompts)] = torch.lerp(images[: len(prompts)], tints[:, None, :, None, None], TINT)
    latents = torch.stack([encode(sd_vae, batch) for batch in images])
    table = alphas_cumprod()
    time_ids = torch.tensor([640.0, 1024.0, 0.0, 0.0, 640.0, 1024.0]).repeat(BATCH, 1)

    def loss(_: int) -> Tensor:
        prompt, image = (torch.randint(n, (BATCH,), generator=generator) for n in latents.shape[:2])
        timesteps = torch.randint(1, len(table), (BATCH,), generator=generator)
        clean, alpha = latents[prompt, image], table[timesteps][:, None, None, None]
        noise = torch.randn(clean.shape, generator=generator)
        sample = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
        said = (torch.rand(BATCH, generator=generator) > 0.2).float()  # else the empty prompt: zeros
        noise_pred = unet(
            sample,
            timesteps,
            texts[prompt] * said[:, None, None],
            added_cond_kwargs={"text_embeds": pooled[prompt] * said[:, None], "time_ids": time_ids},
        ).sample
        return F.mse_loss(noise_pred, noise)

    train(
        loss, [*unet.parameters()], steps=steps, learning_rate=LEARNING_RATE, report=report, what="SDXL UNet"
    )
    return unet.requires_grad_(False).eval()


def _encode_prompts(
    prompts: list[str], text_encoders: list[nn.Module], tokenizer_folders: list[Path]
) -> tuple[Tensor, Tensor]:
    """Both encoders' penultimate hidden states side by side (n, 77, 72); the second's pooled text (n, 40)."""
    from transformers import CLIPTokenizer

    hidden = []
    for encoder, folder in zip(text_encoders, tokenizer_folders, strict=True):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        ids = tokenizer(
            prompts, padding="max_length", max_length=MODEL_MAX_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        output = encoder(ids, output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
    return torch.cat(hidden, dim=-1), output.text_embeds


@torch.no_grad()
def _start_linear(unet: Any) -> None:
    """noise_pred = sample to begin with, by way of the last skip tensor; all residual branches start damped.

    As in toy_vae.py, with groups (s, c) and (-s, c): the norm maps s to 2s/c - 1.
    """
    vary_vectors(unet)
    for name, parameter in unet.named_parameters():
        if name.rpartition(".")[0].endswith(("conv2", "to_out.0", "ff.net.2", "proj_out")):
            parameter.mul_(0.1)
    signs = [(2 * k, k % 4, 1.0 if k < 4 else -1.0) for k in range(8)]  # channel, latent channel, sign
    shortcut = unet.up_blocks[-1].resnets[-1].conv_shortcut
    shortcut.weight.zero_()
    shortcut.bias.zero_()
    shortcut.weight[torch.arange(16), 16 + torch.arange(16)] = 1
    unet.conv_in.weight.zero_()
    unet.conv_in.bias[0::2], unet.conv_in.bias[1::2] = 0, CONSTANT
    unet.conv_norm_out.weight.fill_(1)
    unet.conv_norm_out.bias[0::2], unet.conv_norm_out.bias[1::2] = 1, 0
    unet.conv_out.weight.mul_(0.1)
    for channel, latent, sign in signs:
        unet.conv_in.weight[channel, latent, 1, 1] = sign
        unet.conv_out.weight[latent, channel, 1, 1] = sign * CONSTANT / 2
