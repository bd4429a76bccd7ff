# SPDX-License-Identifier: Apache-2.0
"""Checks whether TensorRT and TensorRT-RTX can build and run on this machine."""

from lamp_trt.engine.backends.probe import Gpu, Machine, ProbeRow

_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX = "tensorrt-rtx"
PACKAGES = (*_TENSORRT, _RTX)

RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
"""Compute capabilities that TensorRT-RTX 1.x supports. Hopper (9, 0) is not among them."""


def probe_rows(machine: Machine) -> list[ProbeRow]:
    return [
        _tensorrt(machine.first_installed(*_TENSORRT), machine.gpu),
        _tensorrt_rtx(machine.installed(_RTX), machine.gpu),
    ]


def _tensorrt(have: str | None, gpu: Gpu) -> ProbeRow:
    name = "TensorRT"
    if have is None:
        remedy = "pip install 'lamp-trt[tensorrt]'" if gpu.devices else ""
        return ProbeRow(name, "note", "tensorrt is not installed", remedy)
    if not gpu.devices:
        return ProbeRow(name, "note", f"tensorrt {have} cannot build or run: {gpu.problem}")
    return ProbeRow(name, "ok", f"tensorrt {have} for {gpu.devices[0].architecture}")


def _tensorrt_rtx(have: str | None, gpu: Gpu) -> ProbeRow:
    name = "TensorRT-RTX"
    known = bool(gpu.devices) and gpu.devices[0].capability in RTX_CAPABILITIES
    if have is None:
        remedy = "pip install 'lamp-trt[rtx]'" if known else ""
        return ProbeRow(name, "note", "tensorrt-rtx is not installed", remedy)
    if not gpu.devices:
        return ProbeRow(name, "note", f"tensorrt-rtx {have} can build but not run: {gpu.problem}")
    architecture = gpu.devices[0].architecture
    if not known:
        remedy = "use TensorRT: pip install 'lamp-trt[tensorrt]'"
        return ProbeRow(name, "note", f"tensorrt-rtx {have} does not know {architecture}", remedy)
    return ProbeRow(name, "ok", f"tensorrt-rtx {have} for {architecture}")
