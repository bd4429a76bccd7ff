# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: networks on its CPU plugin, nothing compiled beforehand."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lamp_trt.engine.backends.backend import Backend, Extra, HostOptions, Runner
from lamp_trt.engine.backends.openvino.probe import PACKAGE, is_usable, probe_rows

if TYPE_CHECKING:
    from lamp_trt.engine.backends.contract import Engine
    from lamp_trt.engine.bundle.reader import Bundle


def _library() -> ModuleType:
    import onnx  # noqa: F401 (its models are made of graphs that onnx reads)

    from lamp_trt.engine.backends.openvino.library import import_openvino

    return import_openvino()


def _host_engine(bundle: "Bundle", network: str, options: HostOptions) -> "Engine":
    from lamp_trt.engine.backends.cpu import arithmetic
    from lamp_trt.engine.backends.openvino.engine import OpenVinoEngine

    entry = bundle.network(network)
    return OpenVinoEngine(
        bundle,
        network,
        precision=arithmetic(entry.component, entry.precision, options.cpu_precision),
        motion=options.motion,
        num_threads=options.num_threads,
    )


def _ready(bundle: "Bundle", folder: Path) -> bool:
    return is_usable()


def _operator_seconds(
    bundle: "Bundle", network: str, arrays: Mapping[str, Any], options: HostOptions
) -> dict[str, float]:
    from lamp_trt.engine.backends.openvino.profile import operator_seconds

    return operator_seconds(bundle, network, arrays, options)


BACKEND = Backend(
    name="openvino",
    title="OpenVINO",
    extras=(Extra("openvino", "for OpenVINO, the fastest on a CPU", modules=("openvino",)),),
    packages=(PACKAGE,),
    library=_library,
    probe=probe_rows,
    precisions=("fp32", "fp16", "bf16"),
    host=Runner(_host_engine, rank=0, ready=_ready, extra="openvino"),
    cpu_precisions=("fp32", "bf16"),
    operator_seconds=_operator_seconds,
)
