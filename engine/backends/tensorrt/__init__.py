# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: building, loading and refitting engines."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, get_args

from lamp_trt.engine.backends.backend import Backend, Build, DeviceOptions, Extra, Residence, Runner
from lamp_trt.engine.backends.tensorrt.options import FLAGS
from lamp_trt.engine.backends.tensorrt.probe import PACKAGES, probe_rows
from lamp_trt.engine.families import LAMP

if TYPE_CHECKING:
    from lamp_trt.engine.backends.contract import DeviceEngine
    from lamp_trt.engine.bundle.reader import Bundle


def _library() -> ModuleType:
    from lamp_trt.engine.backends.tensorrt.trt import tensorrt

    return tensorrt()


def _device_engine(bundle: "Bundle", network: str, options: DeviceOptions) -> "DeviceEngine":
    from lamp_trt.engine.backends.tensorrt.engine import TensorRtEngine

    return TensorRtEngine(
        bundle,
        network,
        device=options.device,
        stream=options.stream,
        motion=options.motion,
        engine_dir=options.engine_dir,
        resident_motions=options.resident_motions,
    )


def _has_engines(bundle: "Bundle", folder: Path) -> bool:
    """Whether `folder` holds an engine of the LAMP UNet for TensorRT or TensorRT-RTX."""
    from lamp_trt.engine.backends.compiled import known

    keys = [engine.key for engine in known(folder)]
    return any(key.network == LAMP.unet and key.backend.startswith(BACKEND.name) for key in keys)


BACKEND = Backend(
    name="tensorrt",
    title="TensorRT",
    extras=(Extra("tensorrt", "for TensorRT"), Extra("rtx", "for TensorRT-RTX")),
    packages=PACKAGES,
    library=_library,
    probe=probe_rows,
    precisions=("fp32", "fp16", "bf16"),
    device=Runner(_device_engine, rank=0, ready=_has_engines, extra="tensorrt"),
    build=Build(
        "lamp_trt.engine.backends.tensorrt.build:build_requested",
        suffix="plan",
        from_checkpoints=False,
        flags=FLAGS,
    ),
    residences=get_args(Residence),
)
