# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: runs networks on its CPU and CUDA providers without ahead-of-time compilation."""

import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lamp_trt.engine.backends.backend import Backend, DeviceOptions, Extra, HostOptions, Runner
from lamp_trt.engine.backends.onnxruntime.probe import WHEELS, probe_rows

if TYPE_CHECKING:
    from lamp_trt.engine.backends.contract import DeviceEngine, Engine
    from lamp_trt.engine.bundle.reader import Bundle


def _library() -> ModuleType:
    import onnx  # noqa: F401 (its sessions load graphs through onnx)

    from lamp_trt.engine.backends.onnxruntime.session import import_onnxruntime

    return import_onnxruntime()


def _host_engine(bundle: "Bundle", network: str, options: HostOptions) -> "Engine":
    from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, network, motion=options.motion, num_threads=options.num_threads)


def _device_engine(bundle: "Bundle", network: str, options: DeviceOptions) -> "DeviceEngine":
    from lamp_trt.engine.backends.onnxruntime.cuda import OnnxRuntimeCudaEngine

    return OnnxRuntimeCudaEngine(
        bundle, network, device=options.device, stream=options.stream, motion=options.motion
    )


def _operator_seconds(
    bundle: "Bundle", network: str, arrays: Mapping[str, Any], options: HostOptions
) -> dict[str, float]:
    from lamp_trt.engine.backends.onnxruntime.profile import operator_seconds

    return operator_seconds(bundle, network, arrays, options.motion, options.num_threads)


BACKEND = Backend(
    name="onnxruntime",
    title="ONNX Runtime",
    extras=(
        Extra("cpu", "for generate on the CPU", required=True, modules=("onnxruntime", "onnx")),
        Extra("gpu", "for ONNX Runtime on a GPU"),
    ),
    packages=WHEELS,
    exclusive=True,
    library=_library,
    probe=probe_rows,
    precisions=("fp32", "fp16"),  # its CPU provider lacks convolution in bf16
    remedy="Run it with --backend openvino (pip install 'lamp-trt[openvino]'), compile and run it with "
    "--backend aotinductor or, on a GPU, --backend tensorrt (lamp-trt build --precision bf16 "
    "--backend … --out {bundle}), or build a bundle with --precision fp32, for GPUs also fp16.",
    host=Runner(_host_engine, rank=1, ready=lambda bundle, folder: True, extra="cpu"),
    device=Runner(
        _device_engine,
        rank=2,
        ready=lambda bundle, folder: importlib.util.find_spec("onnxruntime") is not None,
        extra="gpu",
    ),
    operator_seconds=_operator_seconds,
)
