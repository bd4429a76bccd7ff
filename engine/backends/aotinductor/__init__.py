# SPDX-License-Identifier: Apache-2.0
"""AOTInductor: networks as packages compiled by PyTorch. The only backend that needs torch at run time."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lamp_trt.engine.backends.backend import (
    Backend,
    Build,
    DeviceOptions,
    Extra,
    Flag,
    HostOptions,
    Runner,
)
from lamp_trt.engine.backends.probe import Machine, ProbeRow
from lamp_trt.engine.families import LAMP

if TYPE_CHECKING:
    from lamp_trt.engine.backends.contract import DeviceEngine, Engine
    from lamp_trt.engine.bundle.reader import Bundle


AUTO = "auto"
SWITCH = (AUTO, "on", "off")
"""Values of an option that can be left to measuring."""


def _library() -> ModuleType:
    from lamp_trt.engine.backends.aotinductor.engine import import_torch

    return import_torch()


def _host_engine(bundle: "Bundle", network: str, options: HostOptions) -> "Engine":
    from lamp_trt.engine.backends.aotinductor.engine import AotInductorEngine

    return AotInductorEngine(
        bundle,
        network,
        motion=options.motion,
        num_threads=options.num_threads,
        engine_dir=options.engine_dir,
    )


def _device_engine(bundle: "Bundle", network: str, options: DeviceOptions) -> "DeviceEngine":
    from lamp_trt.engine.backends.aotinductor.engine import AotInductorCudaEngine

    return AotInductorCudaEngine(
        bundle,
        network,
        device=options.device,
        stream=options.stream,
        motion=options.motion,
        engine_dir=options.engine_dir,
    )


def _has_packages_for_this_cpu(bundle: "Bundle", folder: Path) -> bool:
    from lamp_trt.engine.backends.aotinductor.key import cpu_name
    from lamp_trt.engine.backends.compiled import known

    keys = [engine.key for engine in known(folder)]
    return any(key.backend == BACKEND.name and key.device == cpu_name() for key in keys)


def _has_packages_for_gpus(bundle: "Bundle", folder: Path) -> bool:
    """Whether `folder` holds any package of the LAMP UNet for a GPU."""
    from lamp_trt.engine.backends.compiled import known

    keys = [engine.key for engine in known(folder) if engine.key.network == LAMP.unet]
    return any(key.backend == BACKEND.name and key.device.startswith("sm_") for key in keys)


def _probe_rows(machine: Machine) -> list[ProbeRow]:
    have = machine.installed("torch")
    if have is None:
        remedy = "pip install 'lamp-trt[aotinductor]'"
        return [ProbeRow(BACKEND.title, "note", "torch is not installed", remedy)]
    return [ProbeRow(BACKEND.title, "ok", f"torch {have}")]


def _switch(option: str, what: str) -> Flag:
    """A setting that is measured on a GPU unless it is given."""
    return Flag(
        option,
        {
            "nargs": "?",
            "const": "on",
            "default": AUTO,
            "choices": SWITCH,
            "help": f"on a GPU: {what}; auto turns it on where it is faster (default)",
        },
    )


BACKEND = Backend(
    name="aotinductor",
    title="AOTInductor",
    extras=(Extra("aotinductor", "for AOTInductor"),),
    packages=("torch",),
    library=_library,
    probe=_probe_rows,
    precisions=("fp32", "fp16", "bf16"),
    host=Runner(_host_engine, rank=2, ready=_has_packages_for_this_cpu, extra="aotinductor"),
    device=Runner(_device_engine, rank=1, ready=_has_packages_for_gpus, extra="aotinductor"),
    build=Build(
        "lamp_trt.export.aotinductor:build_requested",
        suffix="pt2",
        from_checkpoints=True,
        flags=(
            _switch("--max-autotune", "measure every candidate kernel, which takes many times as long"),
            Flag(
                "--forms",
                {
                    "default": AUTO,
                    "metavar": "SLOT=FORM,…",
                    "help": "forms of the LAMP UNet's layers: auto measures them on a GPU (default), "
                    "default measures nothing, or given like gate=taps (docs/aotinductor.md)",
                },
            ),
            _switch("--cudnn-benchmark", "cuDNN times its algorithms at a first run"),
            _switch("--conv-as-mm", "1x1 convolutions as matrix products"),
        ),
    ),
)
