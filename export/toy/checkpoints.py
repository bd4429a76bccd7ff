# SPDX-License-Identifier: Apache-2.0
"""Tiny seeded checkpoints in the layouts of the published ones, for demonstrations and tests.

FOLDER/sd                   as CompVis/stable-diffusion-v1-4
FOLDER/motions/horse_run    as written by official LAMP training: objects move right
FOLDER/motions/rain         the same: objects move down
FOLDER/sdxl                 as stabilityai/stable-diffusion-xl-base-1.0
FOLDER/flagged.png          a picture that the safety checker flags
"""

import io
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lamp_trt.engine.errors import InputError, OutputError
from lamp_trt.engine.files.output import cannot_write
from lamp_trt.export.checkpoints.files import weight_stems
from lamp_trt.export.lamp.unet import two_dimensional_name
from lamp_trt.export.published import EXTRACTOR
from lamp_trt.export.toy import lamp as toy_lamp
from lamp_trt.export.toy import published as toy_published
from lamp_trt.export.toy import safety as toy_safety
from lamp_trt.export.toy import sdxl as toy_sdxl
from lamp_trt.export.toy import vae as toy_vae
from lamp_trt.export.toy.text import TEXT_ENCODER_CONFIG, make_text_encoder
from lamp_trt.export.toy.tokenizer import MODEL_MAX_LENGTH, write_tokenizer
from lamp_trt.export.toy.training import Report, reproducible

VARIANTS = {None: (torch.float32, ""), "fp16": (torch.float16, ".fp16")}
"""The published variants: dtype, and the part of the file names before the last suffix."""


def write_toy(
    folder: str | Path,
    *,
    seed: int = 0,
    sdxl: bool = True,
    safety: bool = True,
    variant: str | None = None,
    training: float = 1.0,
    progress: Report | None = None,
) -> None:
    """Write the toy checkpoints into `folder`, which must be new or empty.

    sdxl, safety  whether to write SDXL, and the safety checker with an image that it flags
    variant    "fp16" writes `*.fp16.safetensors` into `sd` and `sdxl`, as published; LAMP's stay float32
    training   share of the autoencoder's training steps; 0 gives blurred images
    progress   called with the name of the part being made, the steps done and the total steps
    The same arguments give the same bytes on one machine. Raises InputError for an unknown variant, negative
    training, or a folder that is not empty.
    """
    folder = Path(folder)
    if variant not in VARIANTS:
        raise InputError(f"variant is {variant!r}, expected 'fp16' or None (float32).")
    if training < 0:
        raise InputError(f"training is {training}, expected 0 or more.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: name a new one, or remove it first.")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        with reproducible(seed) as generator:
            _write_all(partial, generator, sdxl, variant, training, progress or (lambda *_: None))
        if safety:
            add_safety_checker(partial, seed=seed, variant=variant)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_all(
    folder: Path, generator: torch.Generator, sdxl: bool, variant: str | None, training: float, report: Report
) -> None:
    text_encoder = make_text_encoder()
    motions = toy_lamp.make_motions(generator)
    vae = toy_vae.make_vae(generator, round(training * toy_vae.TRAINING_STEPS), report)
    _write_sd(folder / "sd", text_encoder, vae, _stable_diffusion(motions), variant)
    for name, tensors in motions.items():
        unet = folder / "motions" / name / "unet"
        _write_json(unet.parent / "model_index.json", toy_published.LAMP_MODEL_INDEX)
        _write_json(unet / "config.json", toy_published.LAMP_UNET_CONFIG)
        _write_pickle(unet / "diffusion_pytorch_model.bin", tensors)
    if sdxl:
        _write_sdxl(folder / "sdxl", text_encoder, vae, variant)


def _write_sd(
    folder: Path, text_encoder: nn.Module, vae: Any, unet: Mapping[str, Tensor], variant: str | None
) -> None:
    _write_json(folder / "model_index.json", toy_published.MODEL_INDEX)
    _write_json(folder / "scheduler" / "scheduler_config.json", toy_published.SCHEDULER_CONFIG)
    write_tokenizer(folder / "tokenizer")
    positions = {"text_model.embeddings.position_ids": torch.arange(MODEL_MAX_LENGTH).unsqueeze(0)}
    old_vae = {toy_published.old_vae_name(name): tensor for name, tensor in vae.state_dict().items()}
    for name, config, tensors in (
        ("text_encoder", TEXT_ENCODER_CONFIG, positions | _prefixed(text_encoder)),
        ("vae", toy_published.VAE_CONFIG, old_vae),
        ("unet", toy_published.SD_UNET_CONFIG, unet),
    ):
        _write_component(folder / name, config, tensors, variant)


def _write_sdxl(folder: Path, text_encoder: nn.Module, sd_vae: Any, variant: str | None) -> None:
    text_encoder_2, unet = toy_sdxl.make_text_encoder_2(), toy_sdxl.make_unet()
    vae = toy_sdxl.make_vae(sd_vae)
    _write_json(folder / "model_index.json", toy_published.SDXL_MODEL_INDEX)
    _write_json(folder / "scheduler" / "scheduler_config.json", toy_published.SDXL_SCHEDULER_CONFIG)
    write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad_token="!")
    for name, config, tensors in (
        ("text_encoder", TEXT_ENCODER_CONFIG, _prefixed(text_encoder)),
        ("text_encoder_2", toy_sdxl.TEXT_ENCODER_2_CONFIG, text_encoder_2.state_dict()),
        ("vae", toy_published.SDXL_VAE_CONFIG, vae.state_dict()),
        ("unet", toy_published.SDXL_UNET_CONFIG, unet.state_dict()),
    ):
        _write_component(folder / name, config, tensors, variant)


def _write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .bin as diffusers does: its archive is named after the file, which a buffer cannot give.
    OSError, or OutputError, where the file cannot be written."""
    try:
        torch.save(OrderedDict(tensors), path)
    except RuntimeError as error:  # does not hold the system's reason, which writing the bytes again gives
        pickled = io.BytesIO()
        torch.save(OrderedDict(tensors), pickled)
        path.write_bytes(pickled.getvalue())
        raise OutputError(f"{str(path)!r} cannot be written: {str(error).splitlines()[0]}.") from error


def add_safety_checker(folder: Path, *, seed: int = 0, variant: str | None = None) -> None:
    """Write the safety checker, under the names of its time, into the Stable Diffusion checkpoint
    folder/sd, and folder/flagged.png. The other components are as they are without it."""
    with reproducible(seed) as generator:
        checker = toy_safety.make_safety_checker(generator)
    tensors = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: tensor
        for name, tensor in checker.state_dict().items()
    }
    positions = torch.arange(len(tensors["vision_model.vision_model.embeddings.position_embedding.weight"]))
    tensors["vision_model.vision_model.embeddings.position_ids"] = positions.unsqueeze(0)
    _write_component(folder / "sd" / "safety_checker", toy_safety.CONFIG, tensors, variant)
    _write_json(folder / "sd" / "feature_extractor" / "preprocessor_config.json", EXTRACTOR)
    _write_json(folder / "sd" / "model_index.json", toy_published.SAFETY_MODEL_INDEX)
    (folder / "flagged.png").write_bytes(toy_safety.flagged_png())


def _write_component(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], variant: str | None
) -> None:
    """Write config.json and one safetensors file, named as transformers or diffusers name it."""
    _write_json(folder / "config.json", config)
    stem, _ = weight_stems(folder.name)
    dtype, suffix = VARIANTS[variant]
    stored = {n: (t.to(dtype) if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}
    (folder / f"{stem}{suffix}.safetensors").write_bytes(save(stored, metadata={"format": "pt"}))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _prefixed(text_encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors under published names: transformers 5 dropped the prefix `text_model.`."""
    return {f"text_model.{n.removeprefix('text_model.')}": t for n, t in text_encoder.state_dict().items()}


def _stable_diffusion(motions: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A 2-D UNet that both motions could be trained from: the mean of tensors that differ (attn1.to_q)."""
    first, second = motions.values()
    names = {n: two_dimensional_name(n) for n in first}
    return {name: (first[n] + second[n]) / 2 for n, name in names.items() if name is not None}
