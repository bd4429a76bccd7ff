# SPDX-License-Identifier: Apache-2.0
"""Checks whether ONNX Runtime works on this machine, on the CPU and on a GPU."""

from typing import Any

from lamp_trt.engine.backends.probe import Gpu, Machine, ProbeRow

WHEELS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""Packages that all install the module `onnxruntime` and overwrite each other."""

_IDENTITY_GRAPH = (
    "080a3a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a017912"
    "0a0a08080112040a02080142040a001015"
)
"""An ONNX model in hexadecimal: y = Identity(x), float32 (1,)."""

SESSION = f"""
import json, onnxruntime as ort
ort.set_default_logger_severity(4)
wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in ort.get_available_providers()]
session = ort.InferenceSession(bytes.fromhex("{_IDENTITY_GRAPH}"), providers=wanted)
print(json.dumps({{"version": ort.__version__, "wanted": wanted, "got": session.get_providers()}}))
"""
"""onnxruntime-gpu silently falls back to the CPU without a usable GPU or library: only a session shows it."""


def probe_rows(machine: Machine) -> list[ProbeRow]:
    wheels = [name for name in WHEELS if machine.installed(name)]
    runtime = machine.run(SESSION) if wheels else {"error": "onnxruntime is not installed"}
    cuda_wheel = machine.installed("onnxruntime-gpu") is not None
    return [_cpu(runtime, wheels), _cuda(runtime, machine.gpu, installed=cuda_wheel)]


def _cpu(runtime: dict[str, Any], wheels: list[str]) -> ProbeRow:
    name = "ONNX Runtime, CPU"
    if "error" in runtime:
        remedy = "pip install 'lamp-trt[cpu]'"
        if wheels:
            remedy = f"pip uninstall -y {' '.join(wheels)}, then {remedy}"
        return ProbeRow(name, "problem", runtime["error"], remedy, ("generate",))
    return ProbeRow(name, "ok", f"onnxruntime {runtime['version']}", data=dict(runtime))


def _cuda(runtime: dict[str, Any], gpu: Gpu, *, installed: bool) -> ProbeRow:
    name, remedy = "ONNX Runtime, CUDA", "pip uninstall -y onnxruntime, then pip install 'lamp-trt[gpu]'"
    if not installed:
        return ProbeRow(name, "note", "onnxruntime-gpu is not installed", remedy if gpu.devices else "")
    if "error" in runtime:
        return ProbeRow(name, "problem", runtime["error"], remedy)
    if "CUDAExecutionProvider" in runtime["got"]:
        return ProbeRow(name, "ok", f"onnxruntime-gpu {runtime['version']}")
    if not gpu.devices:
        detail = f"onnxruntime-gpu {runtime['version']} runs on the CPU here: {gpu.problem}"
        return ProbeRow(name, "note", detail)
    detail = f"onnxruntime-gpu {runtime['version']} silently falls back to the CPU although there is a GPU"
    remedy = (
        f"its CUDA and cuDNN libraries do not load, or need a newer driver than {gpu.driver or 'this'} "
        f"(CUDA {gpu.cuda}): pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    return ProbeRow(name, "problem", detail, remedy)
