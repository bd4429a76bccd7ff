# SPDX-License-Identifier: Apache-2.0
"""The size of every axis in a bundle's networks, from the wanted pictures and the checkpoints' configs."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.engine.errors import CheckpointError, InputError

GUIDANCE_BATCH = 2
DECODE_BATCH = 1
"""Frames decoded at once. The official script slices too: same result, a sixteenth of the memory."""

FIRST_FRAME_SCALE = 2
"""SDXL's image is twice the video in both directions, unless asked for otherwise: 1024x640 for 512x320, the
size of LAMP's own benchmark images."""

_TIME_IDS = 6

Configs = Mapping[str, Mapping[str, Any]]
"""config.json of each component, by the bundle's names."""


def video_sizes(configs: Configs, height: int, width: int, num_frames: int) -> dict[str, int]:
    """Axis sizes of the networks that make a video from a first frame.

    Raises InputError for a size in pixels that the VAE does not take, CheckpointError for components that do
    not belong together.
    """
    sizes = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "batch": GUIDANCE_BATCH,
        "decode_batch": DECODE_BATCH,
        "tokens": 77,
    }
    for name in ("height", "width"):
        sizes[f"latent_{name}"] = _latent_size(name, sizes[name], configs.get("vae", {}))
    widths = {}
    if "unet" in configs:
        widths["the LAMP UNet's cross_attention_dim"] = configs["unet"].get("cross_attention_dim", 1280)
    if "text_encoder" in configs:
        widths["the text encoder's hidden_size"] = configs["text_encoder"].get("hidden_size", 512)
        sizes["tokens"] = configs["text_encoder"].get("max_position_embeddings", 77)
    if len(set(widths.values())) > 1:
        raise _mismatch(widths, "LAMP is trained on Stable Diffusion v1.4 (768).")
    if widths:
        sizes["text_width"] = next(iter(widths.values()))
    return sizes


def first_frame_sizes(
    configs: Configs, video: Mapping[str, int], height: int | None, width: int | None
) -> dict[str, int]:
    """Axis sizes of SDXL's networks; `height` and `width` in pixels, None for twice the video's.

    Raises as `video_sizes` does.
    """
    sizes: dict[str, int] = {}
    for name, wanted in (("height", height), ("width", width)):
        pixels = FIRST_FRAME_SCALE * video[name] if wanted is None else wanted
        sizes[f"first_frame_{name}"] = pixels
        latent = _latent_size(f"first_frame_{name}", pixels, configs.get("sdxl_vae", {}))
        sizes[f"first_frame_latent_{name}"] = latent
    for name, short in (("sdxl_text_encoder", "sdxl_text"), ("sdxl_text_encoder_2", "sdxl_text_2")):
        if name in configs:
            sizes[f"{short}_width"] = configs[name].get("hidden_size", 512)
            tokens = configs[name].get("max_position_embeddings", 77)
            if tokens != video["tokens"]:
                lengths = {f"{name}'s text length": tokens, "that of the others": video["tokens"]}
                raise _mismatch(lengths, "CLIP's is 77.")
    if "sdxl_text_encoder_2" in configs:
        sizes["sdxl_pooled_width"] = configs["sdxl_text_encoder_2"].get("projection_dim", 512)
    if "sdxl_unet" in configs:
        _add_unet_sizes(sizes, configs["sdxl_unet"])
    return sizes


def _add_unet_sizes(sizes: dict[str, int], config: Mapping[str, Any]) -> None:
    """The widths of what SDXL's UNet is given, checked against the text encoders that are there."""
    context = config.get("cross_attention_dim", 1280)
    pooled = config.get("projection_class_embeddings_input_dim") or 0
    pooled -= _TIME_IDS * (config.get("addition_time_embed_dim") or 0)
    if {"sdxl_text_width", "sdxl_text_2_width"} <= sizes.keys():
        widths = {
            "the UNet's cross_attention_dim": context,
            "the width of both text encoders": sizes["sdxl_text_width"] + sizes["sdxl_text_2_width"],
        }
        if len(set(widths.values())) > 1:
            raise _mismatch(widths, "SDXL's is 2048.")
    widths = {
        "the UNet's share of text_embeds": pooled,
        "the second text encoder's projection_dim": sizes.get("sdxl_pooled_width", pooled),
    }
    if len(set(widths.values())) > 1 or pooled < 1:
        raise _mismatch(widths, "SDXL's is 1280.")
    sizes["sdxl_context_width"], sizes["sdxl_pooled_width"] = context, pooled


def _latent_size(name: str, pixels: int, vae: Mapping[str, Any]) -> int:
    factor: int = 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)
    if pixels % factor:
        low = pixels // factor * factor
        raise InputError(
            f"{name} is {pixels}; the VAE takes multiples of {factor}: try {low or factor} or {low + factor}."
        )
    return pixels // factor


def _mismatch(widths: Mapping[str, int], hint: str) -> CheckpointError:
    found = ", ".join(f"{name} is {value}" for name, value in widths.items())
    return CheckpointError(f"the checkpoints do not belong together: {found}. {hint}")
