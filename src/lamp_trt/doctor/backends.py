# SPDX-License-Identifier: Apache-2.0
"""Which backends can run here, and for those that cannot, why."""

from typing import Any

from lamp_trt.doctor.findings import Finding, probe
from lamp_trt.doctor.gpu import Gpu
from lamp_trt.doctor.packages import installed, installed_onnx_runtimes

_SECTION = "backends"

RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""GPUs that TensorRT-RTX 1.x builds for. Hopper (9, 0) is not among them."""

_IDENTITY_GRAPH = (
    "080a3a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a017912"
    "0a0a08080112040a02080142040a001015"
)
"""An ONNX model in hexadecimal: y = Identity(x), float32 (1,)."""

_ONNX_RUNTIME = f"""
import json, onnxruntime as ort
ort.set_default_logger_severity(4)
wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in ort.get_available_providers()]
session = ort.InferenceSession(bytes.fromhex("{_IDENTITY_GRAPH}"), providers=wanted)
print(json.dumps({{"version": ort.__version__, "wanted": wanted, "got": session.get_providers()}}))
"""
"""onnxruntime-gpu that finds no usable GPU or library goes on on the CPU, silently: only a session tells."""


def backend_findings(gpu: Gpu) -> list[Finding]:
    runtime = probe(_ONNX_RUNTIME) if installed_onnx_runtimes() else {"error": "onnxruntime is not installed"}
    return [
        _onnx_runtime_cpu(runtime),
        _onnx_runtime_cuda(runtime, gpu),
        _tensorrt(gpu),
        _tensorrt_rtx(gpu),
        _aotinductor(),
    ]


def _onnx_runtime_cpu(runtime: dict[str, Any]) -> Finding:
    name = "ONNX Runtime, CPU"
    if "error" in runtime:
        packages = installed_onnx_runtimes()
        remedy = "pip install 'lamp-trt[cpu]'"
        if packages:
            remedy = f"pip uninstall -y {' '.join(packages)}, then {remedy}"
        return Finding(_SECTION, name, "problem", runtime["error"], remedy, ("generate",))
    return Finding(_SECTION, name, "ok", f"onnxruntime {runtime['version']}", data=dict(runtime))


def _onnx_runtime_cuda(runtime: dict[str, Any], gpu: Gpu) -> Finding:
    name, remedy = "ONNX Runtime, CUDA", "pip uninstall -y onnxruntime, then pip install 'lamp-trt[gpu]'"
    if not installed("onnxruntime-gpu"):
        return Finding(
            _SECTION, name, "note", "onnxruntime-gpu is not installed", remedy if gpu.devices else ""
        )
    if "error" in runtime:
        return Finding(_SECTION, name, "problem", runtime["error"], remedy)
    if "CUDAExecutionProvider" in runtime["got"]:
        return Finding(_SECTION, name, "ok", f"onnxruntime-gpu {runtime['version']}")
    if not gpu.devices:
        detail = f"onnxruntime-gpu {runtime['version']} runs on the CPU here: {gpu.problem}"
        return Finding(_SECTION, name, "note", detail)
    detail = f"onnxruntime-gpu {runtime['version']} runs on the CPU without a word, although a GPU is here"
    remedy = (
        f"its CUDA and cuDNN libraries do not load, or want a newer driver than {gpu.driver or 'this'} "
        f"(CUDA {gpu.cuda}): pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    return Finding(_SECTION, name, "problem", detail, remedy)


def _tensorrt(gpu: Gpu) -> Finding:
    name = "TensorRT"
    have = next((v for v in map(installed, ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")) if v), None)
    if have is None:
        remedy = "pip install 'lamp-trt[tensorrt]'" if gpu.devices else ""
        return Finding(_SECTION, name, "note", "tensorrt is not installed", remedy)
    if not gpu.devices:
        return Finding(_SECTION, name, "note", f"tensorrt {have} cannot build or run: {gpu.problem}")
    return Finding(_SECTION, name, "ok", f"tensorrt {have} for {gpu.devices[0].architecture}")


def _tensorrt_rtx(gpu: Gpu) -> Finding:
    name, have = "TensorRT-RTX", installed("tensorrt-rtx")
    known = bool(gpu.devices) and gpu.devices[0].capability in RTX_CAPABILITIES
    if have is None:
        remedy = "pip install 'lamp-trt[rtx]'" if known else ""
        return Finding(_SECTION, name, "note", "tensorrt-rtx is not installed", remedy)
    if not gpu.devices:
        return Finding(_SECTION, name, "note", f"tensorrt-rtx {have} can build but not run: {gpu.problem}")
    architecture = gpu.devices[0].architecture
    if not known:
        remedy = "use TensorRT: pip install 'lamp-trt[tensorrt]'"
        return Finding(_SECTION, name, "note", f"tensorrt-rtx {have} does not know {architecture}", remedy)
    return Finding(_SECTION, name, "ok", f"tensorrt-rtx {have} for {architecture}")


def _aotinductor() -> Finding:
    have = installed("torch")
    if have is None:
        remedy = "pip install 'lamp-trt[aotinductor]'"
        return Finding(_SECTION, "AOTInductor", "note", "torch is not installed", remedy)
    return Finding(_SECTION, "AOTInductor", "ok", f"torch {have}")
