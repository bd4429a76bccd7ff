# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion v1 and XL folders: their parts by the bundle's names; other model families are rejected.

Loads neither torch nor weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import CheckpointError
from lamp_trt.engine.families import COMPONENTS, LAMP, SAFETY_CHECKER, SDXL
from lamp_trt.export.checkpoints.family import check_vae
from lamp_trt.export.checkpoints.files import (
    Checkpoint,
    ComponentFiles,
    open_components,
    read_json,
    refuse_cache_folder,
)
from lamp_trt.export.checkpoints.kinds import hint_for_folder
from lamp_trt.export.checkpoints.safety import with_sizes
from lamp_trt.export.checkpoints.scheduler import check_scheduler, scheduler_settings

_PIPELINE = "StableDiffusionXLPipeline"
_WANTED = "--sdxl takes a text-to-image checkpoint like stabilityai/stable-diffusion-xl-base-1.0."


@dataclass(frozen=True)
class SdxlCheckpoint:
    """The requested parts of an SDXL folder, by the bundle's names."""

    components: Mapping[str, ComponentFiles]
    tokenizers: Mapping[str, Path]
    scheduler_config: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool


def open_sdxl(folder: str | Path, components: tuple[str, ...]) -> SdxlCheckpoint:
    """Find `components`, by the bundle's names, in `folder`, with the tokenizers of its text encoders.

    Raises CheckpointError if any is missing, and for a refiner, an inpainting model, or another family.
    """
    root = Path(folder).expanduser()
    index: Mapping[str, Any] = {}
    if root.is_dir():
        refuse_cache_folder(root)
        if not (root / "model_index.json").is_file():
            hint = hint_for_folder(root) or _WANTED
            raise CheckpointError(f"{root / 'model_index.json'} is missing. {hint}")
        index = read_json(root / "model_index.json")
        _check_pipeline(root, index)
    checkpoint = open_components(root, components)
    found = checkpoint.components
    check_scheduler(root, checkpoint.scheduler_config, index)
    if SDXL.unet_component in found:
        _check_unet(root, found[SDXL.unet_component].config)
    _check_vae(found, SDXL.vae, "SDXL")
    zeros = index.get("force_zeros_for_empty_prompt", True)
    if not isinstance(zeros, bool):
        raise CheckpointError(
            f"{root / 'model_index.json'} has force_zeros_for_empty_prompt {zeros!r:.100}; "
            "expected true or false."
        )
    return SdxlCheckpoint(
        found,
        checkpoint.tokenizers,
        scheduler_settings(checkpoint.scheduler_config),
        zeros,
    )


def open_sd(folder: str | Path, components: tuple[str, ...]) -> Checkpoint:
    """Find `components`, by the bundle's names, in a Stable Diffusion v1 folder, with their tokenizers.

    Raises CheckpointError if any is missing, and for a checkpoint of another family.
    """
    root = Path(folder)
    index = refuse_other_family(root)
    checkpoint = open_components(root, components)
    check_scheduler(root, checkpoint.scheduler_config, index)
    _check_vae(checkpoint.components, LAMP.vae, "Stable Diffusion v1")
    found = checkpoint.components
    if SAFETY_CHECKER not in found:
        return checkpoint
    return replace(checkpoint, components={**found, SAFETY_CHECKER: with_sizes(found[SAFETY_CHECKER])})


def _check_vae(found: Mapping[str, ComponentFiles], name: str, family: str) -> None:
    scaling_factor = COMPONENTS[name].scaling_factor
    assert scaling_factor is not None
    if name in found:
        check_vae(found[name], family, scaling_factor)


def refuse_other_family(folder: Path) -> Mapping[str, Any]:
    """Read model_index.json of `folder`, given as Stable Diffusion v1; {} if it is missing.

    Raises CheckpointError if the folder is of another family. An SDXL folder has components of the same
    names, and its VAE would silently give wrong colours.
    """
    path = folder.expanduser() / "model_index.json"
    index = read_json(path) if path.is_file() else {}
    name = str(index.get("_class_name"))
    if name.startswith(("StableDiffusionXL", "StableDiffusion3")):
        remedy = " Give it as --sdxl." if name == _PIPELINE else ""
        raise CheckpointError(f"{folder} is a {name}; --sd takes Stable Diffusion v1.4.{remedy}")
    return index


def _check_pipeline(folder: Path, index: Mapping[str, Any]) -> None:
    name = str(index.get("_class_name"))
    if name == _PIPELINE:
        return
    kind = f"describes {name}"
    if name == "StableDiffusionXLImg2ImgPipeline":
        kind = "is SDXL's refiner, which refines an image and cannot make one from text"
    elif name == "StableDiffusionXLInpaintPipeline":
        kind = "is an inpainting model, which fills holes in an image and cannot make one from text"
    elif name.startswith("StableDiffusion") and "XL" not in name:
        kind = f"is Stable Diffusion of another family ({name}); give it as --sd"
    raise CheckpointError(f"{folder} {kind}. {_WANTED}")


_OTHER_CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim")


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
    else:
        conditioned = [name for name in _OTHER_CONDITIONS if config.get(name) is not None]
        if conditioned:
            problem = f"takes conditions other than text ({conditioned[0]} {config[conditioned[0]]!r:.100})"
        elif config.get("attention_type", "default") != "default":
            problem = (
                f"has attention_type {config['attention_type']!r:.100}, as GLIGEN, which also takes boxes"
            )
    if problem:
        raise CheckpointError(f"{folder / 'unet'} {problem}. {_WANTED}")
