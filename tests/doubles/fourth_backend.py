# SPDX-License-Identifier: Apache-2.0
"""A backend that lamp-trt does not have, as a package below engine/backends would be.

Its engines are those of ONNX Runtime, noted down in `loaded`, and it compiles a file for each network."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lamp_trt.engine.backends.backend import (
    Backend,
    Build,
    BuildRequest,
    Extra,
    Flag,
    HostOptions,
    Runner,
)
from lamp_trt.engine.backends.compiled import CompiledEngine, CompiledKey, store
from lamp_trt.engine.backends.probe import Machine, ProbeRow
from lamp_trt.engine.bundle.reader import Bundle

SUFFIX = "fourth"
loaded: list[tuple[str, HostOptions]] = []
"""The networks that were loaded since it was cleared."""


def library() -> ModuleType:
    module = __import__("sys").modules[__name__]
    module.__version__ = "4.4.4"
    return module


def host_engine(bundle: Bundle, network: str, options: HostOptions) -> Any:
    from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine

    loaded.append((network, options))
    return OnnxRuntimeEngine(bundle, network, motion=options.motion, num_threads=1)


def build(request: BuildRequest) -> list[CompiledEngine]:
    """A file that holds what it was asked for."""
    folder = request.engine_dir or request.bundle.engine_folder
    engines = []
    for network in request.networks:
        flags = dict(request.flags)
        key = CompiledKey(network, BACKEND.name, "", "", "", {}, flags, "fourth 4.4.4", "any")
        engines.append(store(folder, key, SUFFIX, {}, lambda file: file.write(b"code") and None))
    return engines


def probe_rows(machine: Machine) -> list[ProbeRow]:
    have = machine.installed("fourth-runtime")
    if have is None:
        return [ProbeRow("Fourth", "note", "fourth-runtime is not installed", "pip install 'lamp-trt[four]'")]
    return [ProbeRow("Fourth", "ok", f"fourth-runtime {have}")]


def operator_seconds(
    bundle: Bundle, network: str, arrays: Mapping[str, Any], options: HostOptions
) -> dict[str, float]:
    return {"Everything": 0.25}


BACKEND = Backend(
    name="fourth",
    title="Fourth",
    extras=(Extra("four", "for the fourth backend", modules=("fourth",)),),
    packages=("fourth-runtime",),
    library=library,
    probe=probe_rows,
    precisions=("fp32",),
    remedy="Build it with --precision fp32.",
    host=Runner(host_engine, rank=-1, ready=lambda bundle, folder: any(folder.glob("ready")), extra="four"),
    build=Build(
        f"{__name__}:build",
        suffix=SUFFIX,
        from_checkpoints=False,
        flags=(Flag("--fourth-effort", {"type": int, "default": 3, "help": "how hard to try"}),),
    ),
    operator_seconds=operator_seconds,
)
