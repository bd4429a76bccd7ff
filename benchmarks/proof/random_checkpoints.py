# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of any size with seeded random weights, whose activations stay in fp16's range.

No weights are published for such tests, and plain random ones overflow: here every matrix keeps its input's
variance, norms are near 1, biases near 0, and a UNet's prediction is damped.
"""

import json
import math
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lamp_trt.benchmarks.proof import gpu
from lamp_trt.benchmarks.proof.prepared.locks import locked
from lamp_trt.engine.bundle.weights import write_weight_file
from lamp_trt.engine.families import SDXL
from lamp_trt.engine.networks import is_motion_tensor
from lamp_trt.export import published

Shapes = Mapping[str, tuple[int, ...]]

DAMPED = 0.1
"""Factor on a UNet's output convolution, so that 50 steps stay finite."""


def write_component(folder: Path, config: Mapping[str, Any], shapes: Shapes, motion: int = 0) -> Path:
    """Write config.json and fp16 weights to `folder`. A tensor's values depend on its name, its shape and
    the kind of device that draws them; of a LAMP UNet's motion tensors also on `motion`, so that checkpoints
    share what motions share."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    stem = "model" if "CLIP" in str(config.get("architectures")) else "diffusion_pytorch_model"
    tensors = {name: ("F16", shape) for name, shape in shapes.items()}
    data = ((name, _values(name, shape, motion)) for name, shape in shapes.items())
    with (folder / f"{stem}.safetensors").open("wb") as file:
        write_weight_file(file, tensors, data)
    return folder


def write_lamp_unet(folder: Path, config: Mapping[str, Any], motion: int = 0) -> Path:
    """Write a LAMP checkpoint to `folder`/unet. config: of LampUNetConfig, as in a config.json."""
    from lamp_trt.export.lamp.unet import LampUNet, LampUNetConfig

    with torch.device("meta"):
        state = LampUNet(LampUNetConfig.from_dict(dict(config))).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    write_component(folder / "unet", {"_class_name": "UNet3DConditionModel", **config}, shapes, motion=motion)
    return folder


def write_sdxl_unet(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write SDXL's UNet to `folder`/unet, with the folder's model_index.json and scheduler. config: as in
    a config.json. ModuleNotFoundError without diffusers, whose module defines the tensors."""
    from lamp_trt.export.networks import module_from_config

    with torch.device("meta"):
        state = module_from_config(SDXL.unet_component, config).state_dict()
    write_component(folder / "unet", config, {name: tuple(tensor.shape) for name, tensor in state.items()})
    write_sdxl_index(folder)
    return folder


def finished(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return `folder`, written first by one process if it is missing. A partial one has another name."""
    with locked(folder.parent, folder.name):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            write(part)
            part.rename(folder)
    return folder


def write_sdxl_index(folder: Path) -> None:
    """Write model_index.json and the scheduler's configuration, as published."""
    write_scheduler(folder)
    (folder / "model_index.json").write_text(json.dumps(published.SDXL_INDEX))


def write_scheduler(folder: Path) -> None:
    (folder / "scheduler").mkdir()
    text = json.dumps(published.SDXL_SCHEDULER)
    (folder / "scheduler" / "scheduler_config.json").write_text(text)


def _values(name: str, shape: tuple[int, ...], motion: int) -> memoryview:
    of_motion = f"{motion} " if is_motion_tensor(name) else ""
    # Of a UNet: a second on a GPU, fifteen on a CPU.
    device = "cuda" if gpu.present() else "cpu"
    generator = torch.Generator(device)
    generator.manual_seed(zlib.crc32(f"{of_motion}{name}".encode()))
    values = torch.randn(shape, generator=generator, device=device)
    if len(shape) == 1:
        values = 0.1 * values + ("norm" in name and name.endswith("weight"))
    else:
        values *= math.prod(shape[1:]) ** -0.5
    if name.startswith("conv_out."):
        values *= DAMPED
    return values.half().reshape(-1).view(torch.uint8).cpu().numpy().data
