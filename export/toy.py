# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoints in the form of the published ones: seeded, trained briefly, good for demonstrations and tests.

FOLDER/sd                   as CompVis/stable-diffusion-v1-4, without safety checker and feature extractor
FOLDER/motions/horse_run    as official LAMP training leaves them; things move right …
FOLDER/motions/rain         … and down
"""

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lamp_trt.engine.errors import InputError
from lamp_trt.export import toy_lamp, toy_vae
from lamp_trt.export.lamp_unet import two_dimensional_name
from lamp_trt.export.toy_images import draw_images
from lamp_trt.export.toy_text import TEXT_ENCODER_CONFIG, encode_prompts, make_text_encoder
from lamp_trt.export.toy_tokenizer import write_tokenizer
from lamp_trt.export.toy_training import Report, reproducible

VARIANTS = {None: (torch.float32, ""), "fp16": (torch.float16, ".fp16")}
"""The published variants: dtype and what the file names have before their last suffix."""

PROMPTS = ("", "horse run", "rain", "a horse runs on the road", "a car in rain", "fireworks in the night sky")


def write_toy(
    folder: str | Path,
    *,
    seed: int = 0,
    sdxl: bool = True,
    variant: str | None = None,
    training: float = 1.0,
    progress: Report | None = None,
) -> None:
    """Write the toy checkpoints into `folder`, which must be new or empty.

    variant: "fp16" writes `*.fp16.safetensors` files in `sd` and `sdxl`, as the published folders have them; LAMP
    checkpoints are always float32. training scales the number of training steps: with 0 everything loads and runs,
    but videos are noise. progress is called with what is made, the steps done and the steps in all.
    The same arguments give the same bytes on one machine. Raises InputError for an unknown variant or a folder
    that is in use.
    """
    folder = Path(folder)
    if variant not in VARIANTS:
        raise InputError(f"variant is {variant!r}, expected one of None, 'fp16'.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: give a new folder, or remove it first.")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        with reproducible(seed) as generator:
            _write_all(partial, generator, sdxl, variant, training, progress or (lambda *_: None))
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_all(
    folder: Path, generator: torch.Generator, sdxl: bool, variant: str | None, training: float, report: Report
) -> None:
    sd = folder / "sd"
    write_tokenizer(sd / "tokenizer")
    text_encoder = make_text_encoder()
    vae = toy_vae.make_vae(generator, round(training * toy_vae.TRAINING_STEPS), report)
    latents = toy_vae.encode(vae, draw_images(24, 256, 384, generator))
    texts = encode_prompts(text_encoder, sd / "tokenizer", PROMPTS)
    steps = round(training * toy_lamp.TRAINING_STEPS)
    motions = toy_lamp.make_motions(latents, texts, generator, steps, report)

    _write_json(sd / "model_index.json", MODEL_INDEX)
    _write_json(sd / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    _write_component(
        sd / "text_encoder", "model", TEXT_ENCODER_CONFIG, _published_text_encoder(text_encoder), variant
    )
    vae_tensors = {_old_vae_name(n): t for n, t in vae.state_dict().items()}
    _write_component(sd / "vae", "diffusion_pytorch_model", VAE_CONFIG, vae_tensors, variant)
    _write_component(
        sd / "unet", "diffusion_pytorch_model", SD_UNET_CONFIG, _stable_diffusion(motions), variant
    )
    for name, tensors in motions.items():
        unet = folder / "motions" / name / "unet"
        _write_json(unet.parent / "model_index.json", LAMP_MODEL_INDEX)
        _write_json(unet / "config.json", LAMP_UNET_CONFIG)
        torch.save(OrderedDict(tensors), unet / "diffusion_pytorch_model.bin")


def _write_component(
    folder: Path, stem: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], variant: str | None
) -> None:
    _write_json(folder / "config.json", config)
    dtype, suffix = VARIANTS[variant]
    stored = {n: (t.to(dtype) if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}
    (folder / f"{stem}{suffix}.safetensors").write_bytes(save(stored, metadata={"format": "pt"}))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _stable_diffusion(motions: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The 2-D UNet that both motions could have started from: where they differ (attn1.to_q), their mean."""
    first, second = motions.values()
    names = {n: two_dimensional_name(n) for n in first}
    return {name: (first[n] + second[n]) / 2 for n, name in names.items() if name is not None}


def _published_text_encoder(text_encoder: torch.nn.Module) -> dict[str, Tensor]:
    """With the prefix and the constant position_ids that the files of Stable Diffusion v1.4 have."""
    tensors = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in text_encoder.state_dict().items()}
    positions = torch.arange(TEXT_ENCODER_CONFIG["max_position_embeddings"]).unsqueeze(0)
    return {"text_model.embeddings.position_ids": positions, **tensors}


OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_vae_name(name: str) -> str:
    """The mid-block attention's name before diffusers 0.18."""
    if ".attentions." in name:
        for new, old in OLD_VAE_ATTENTION.items():
            name = name.replace(new, old)
    return name


MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.2.2",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "block_out_channels": toy_vae.BLOCK_CHANNELS,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": toy_vae.NUM_GROUPS,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
"""No scaling_factor: files as old as Stable Diffusion v1.4's leave it to the reader (0.18215)."""

_UNET_CONFIG = {
    "act_fn": "silu",
    "attention_head_dim": toy_lamp.CONFIG.attention_head_dim,
    "block_out_channels": toy_lamp.CONFIG.block_out_channels,
    "center_input_sample": False,
    "cross_attention_dim": toy_lamp.CONFIG.cross_attention_dim,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": toy_lamp.CONFIG.layers_per_block,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": toy_lamp.CONFIG.norm_num_groups,
    "out_channels": 4,
    "sample_size": 64,
}

SD_UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.2.2",
    **_UNET_CONFIG,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}

LAMP_UNET_CONFIG = {
    "_class_name": "UNet3DConditionModel",
    "_diffusers_version": "0.11.1",
    **_UNET_CONFIG,
    "class_embed_type": None,
    "down_block_types": toy_lamp.CONFIG.down_block_types,
    "dual_cross_attention": False,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "up_block_types": toy_lamp.CONFIG.up_block_types,
    "upcast_attention": False,
    "use_linear_projection": False,
    "use_temp": True,
}

LAMP_MODEL_INDEX = {
    "_class_name": "LAMPPipeline",
    "_diffusers_version": "0.11.1",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["unet", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
