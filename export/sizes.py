# SPDX-License-Identifier: Apache-2.0
"""The size of every axis in a bundle's networks, from the requested sizes and the checkpoints' configs."""

from collections.abc import Mapping
from typing import Any

from lamp_trt.engine.errors import CheckpointError, InputError
from lamp_trt.engine.families import FAMILIES, LAMP, SDXL
from lamp_trt.engine.networks import Family

GUIDANCE_BATCH = 2
DECODE_BATCH = 1
"""Frames decoded at once. As in the official script: same result, a sixteenth of the memory."""

FIRST_FRAME_SCALE = 2
"""Default ratio of SDXL's image size to the video's: 1024x640 for 512x320, as LAMP's benchmark images."""

_TIME_IDS = 6

Configs = Mapping[str, Mapping[str, Any]]
"""config.json of each component, by the bundle's component name."""


def video_sizes(configs: Configs, height: int, width: int, num_frames: int) -> dict[str, int]:
    """Axis sizes of the networks that make a video from a first frame.

    height, width: in pixels. Raises InputError for a size that the VAE does not take, CheckpointError for
    components that do not belong together.
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
        sizes[f"latent_{name}"] = _latent_size(name, sizes[name], configs.get(LAMP.vae, {}))
    widths = {
        f"{component.title}'s {field}": configs[component.name].get(field, default)
        for component in reversed(LAMP.components)
        for axis, (field, default) in component.axes.items()
        if axis == "text_width" and component.name in configs
    }
    if len(set(widths.values())) > 1:
        raise _mismatch(widths, "LAMP is trained on Stable Diffusion v1.4 (768).")
    for family in FAMILIES.values():
        if family is not SDXL:
            sizes |= _config_sizes(family, configs)
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
        latent = _latent_size(f"first_frame_{name}", pixels, configs.get(SDXL.vae, {}))
        sizes[f"first_frame_latent_{name}"] = latent
    for component in SDXL.components:
        if component.tokenizer and component.name in configs:
            field, default = component.axes["tokens"]
            tokens = configs[component.name].get(field, default)
            if tokens != video["tokens"]:
                lengths = {f"{component.name}'s text length": tokens, "that of the others": video["tokens"]}
                raise _mismatch(lengths, "CLIP's is 77.")
    sizes |= _config_sizes(SDXL, configs)
    if SDXL.unet_component in configs:
        _add_pooled_width(sizes, configs[SDXL.unet_component])
    return sizes


def _config_sizes(family: Family, configs: Configs) -> dict[str, int]:
    """The axis sizes given by the configs of a family's components."""
    return {
        axis: configs[component.name].get(field, default)
        for component in family.components
        if component.name in configs
        for axis, (field, default) in component.axes.items()
    }


def _add_pooled_width(sizes: dict[str, int], config: Mapping[str, Any]) -> None:
    """Add the width of SDXL's pooled text; the UNet's widths must match those of the given text encoders."""
    context = sizes["sdxl_context_width"]
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
    sizes["sdxl_pooled_width"] = pooled


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
