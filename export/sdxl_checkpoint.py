# SPDX-License-Identifier: Apache-2.0
"""A Stable Diffusion XL folder: its parts under a bundle's names, refused early if it is of another kind.

Loads neither torch nor a weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.manifest import BETA_SCHEDULES
from lamp_trt.export.checkpoint_files import (
    ComponentFiles,
    open_checkpoint,
    read_json,
    refuse_cache_folder,
)

FOLDERS = {
    "sdxl_text_encoder": "text_encoder",
    "sdxl_text_encoder_2": "text_encoder_2",
    "sdxl_unet": "unet",
    "sdxl_vae": "vae",
}
"""Where each component of a bundle lies in the checkpoint."""

TOKENIZERS = {"sdxl_text_encoder": "tokenizer", "sdxl_text_encoder_2": "tokenizer_2"}
"""The tokenizer folder of each text encoder in the checkpoint."""

TOKENIZER_NAMES = {"tokenizer": "sdxl_tokenizer", "tokenizer_2": "tokenizer_2"}
"""Their names in a bundle, where Stable Diffusion's is `tokenizer`."""

_PIPELINE = "StableDiffusionXLPipeline"
_WANTED = "--sdxl takes a text-to-image checkpoint like stabilityai/stable-diffusion-xl-base-1.0."


@dataclass(frozen=True)
class SdxlCheckpoint:
    """The parts that were asked for, by the bundle's names."""

    components: Mapping[str, ComponentFiles]
    tokenizers: Mapping[str, Path]
    scheduler_config: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool


def open_sdxl(folder: str | Path, components: tuple[str, ...]) -> SdxlCheckpoint:
    """Find `components` (keys of FOLDERS) in `folder`, with the tokenizers of its text encoders.

    Raises CheckpointError for what is missing, and for a refiner, an inpainting model, or another family.
    """
    root = Path(folder).expanduser()
    if root.is_dir():
        refuse_cache_folder(root)
    index = read_json(root / "model_index.json") if root.is_dir() else {}
    if root.is_dir():
        _check_pipeline(root, index)
    tokenizers = tuple(TOKENIZERS[name] for name in components if name in TOKENIZERS)
    checkpoint = open_checkpoint(root, tuple(FOLDERS[name] for name in components), tokenizers)
    found = {name: replace(checkpoint.components[FOLDERS[name]], name=name) for name in components}
    check_scheduler(root, checkpoint.scheduler_config)
    if "sdxl_unet" in found:
        _check_unet(root, found["sdxl_unet"].config)
    if "sdxl_vae" in found and found["sdxl_vae"].config.get("latents_mean") is not None:
        raise CheckpointError(
            f"{root / 'vae'} normalises latents by latents_mean, which SDXL does not. {_WANTED}"
        )
    return SdxlCheckpoint(
        found,
        {TOKENIZER_NAMES[name]: path for name, path in checkpoint.tokenizers.items()},
        checkpoint.scheduler_config,
        bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def check_scheduler(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the checkpoint predicts noise, by a schedule of betas that the runtime
    computes, as Stable Diffusion v1.4 and SDXL do."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise CheckpointError(
            f"{folder / 'scheduler'} has prediction_type {prediction!r:.100}; only 'epsilon' is supported "
            "(Stable Diffusion v1.4, v1.5 and SDXL; not v2.x at 768 pixels)."
        )
    schedule = config.get("beta_schedule", "scaled_linear")
    if schedule not in BETA_SCHEDULES or config.get("trained_betas") is not None:
        what = f"beta_schedule {schedule!r:.100}" if schedule not in BETA_SCHEDULES else "trained_betas"
        raise CheckpointError(
            f"{folder / 'scheduler'} has {what}; supported are {' and '.join(BETA_SCHEDULES)} schedules, "
            "which Stable Diffusion v1.4 and SDXL have. Was the file edited?"
        )


def refuse_other_family(folder: Path) -> None:
    """Raise CheckpointError if `folder`, given as Stable Diffusion v1, says that it is SDXL or SD 3.

    An SDXL folder has parts of the same names, and its VAE would give wrong colours without an error.
    """
    path = folder.expanduser() / "model_index.json"
    name = str(read_json(path).get("_class_name")) if path.is_file() else ""
    if name.startswith(("StableDiffusionXL", "StableDiffusion3")):
        remedy = " Give it as --sdxl." if name == _PIPELINE else ""
        raise CheckpointError(f"{folder} is a {name}; --sd takes Stable Diffusion v1.4.{remedy}")


def _check_pipeline(folder: Path, index: Mapping[str, Any]) -> None:
    name = str(index.get("_class_name"))
    if name == _PIPELINE:
        return
    kind = f"describes {name}"
    if name == "StableDiffusionXLImg2ImgPipeline":
        kind = "is SDXL's refiner, which improves an image and makes none from text"
    elif name == "StableDiffusionXLInpaintPipeline":
        kind = "is an inpainting model, which fills holes in an image and makes none from text"
    elif name.startswith("StableDiffusion") and "XL" not in name:
        kind = f"is Stable Diffusion of another family ({name}); give it as --sd"
    raise CheckpointError(f"{folder} {kind}. {_WANTED}")


def _check_unet(folder: Path, config: Mapping[str, Any]) -> None:
    problem = None
    if config.get("in_channels", 4) == 9:
        problem = "has 9 input channels: it is an inpainting model"
    elif config.get("in_channels", 4) != 4 or config.get("out_channels", 4) != 4:
        problem = f"has {config.get('in_channels')} input channels, SDXL's latents have 4"
    elif config.get("addition_embed_type") != "text_time":
        problem = f"has addition_embed_type {config.get('addition_embed_type')!r:.100}, SDXL's is 'text_time'"
    elif config.get("time_cond_proj_dim") is not None:
        problem = "takes the guidance scale as an input (time_cond_proj_dim): it is distilled, like LCM"
    if problem:
        raise CheckpointError(f"{folder / 'unet'} {problem}. {_WANTED}")
