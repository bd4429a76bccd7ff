# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs and their driver, queried through the driver library without creating a device context."""

import ctypes
from pathlib import Path

from lamp_trt.doctor.findings import Finding, probe
from lamp_trt.engine.backends.probe import Device, Gpu

_SECTION = "GPU"
LIBRARY = "libcuda.so.1"
_DRIVER_VERSION = Path("/sys/module/nvidia/version")
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def find_gpu() -> Gpu:
    """Query the driver in a separate process, since a broken driver may hang."""
    code = "from lamp_trt.doctor.gpu import ask_driver; import json; print(json.dumps(ask_driver()))"
    answer = probe(code, timeout_s=60)
    if "error" in answer:
        return Gpu(problem=answer["error"])
    devices = tuple(
        Device(device["name"], (device["major"], device["minor"]), device["memory_bytes"])
        for device in answer["devices"]
    )
    driver = _DRIVER_VERSION.read_text().strip() if _DRIVER_VERSION.is_file() else ""
    return Gpu(devices, driver, answer["cuda"], answer["problem"])


def ask_driver() -> dict[str, object]:
    """The results of the driver API's calls, as JSON values."""
    nothing = {"devices": [], "cuda": ""}
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return {**nothing, "problem": f"no NVIDIA driver: {LIBRARY} does not load"}
    code = cuda.cuInit(0)
    if code:
        return {**nothing, "problem": f"the NVIDIA driver does not start: cuInit returns {code}"}
    number = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    cuda.cuDeviceGetCount(ctypes.byref(number))
    devices = [_device(cuda, index) for index in range(number.value)]
    return {"devices": devices, "cuda": version, "problem": "" if devices else "the driver sees no GPU"}


def _device(cuda: ctypes.CDLL, index: int) -> dict[str, object]:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, handle)
    return {
        "name": name.value.decode(errors="replace"),
        "major": major.value,
        "minor": minor.value,
        "memory_bytes": memory.value,
    }


def gpu_findings(gpu: Gpu) -> list[Finding]:
    """The devices and the driver, or why there are none."""
    if gpu.problem:
        remedy = "not needed on the CPU; for a GPU install NVIDIA's driver, and in a container its toolkit"
        if gpu.cuda:
            remedy = "check CUDA_VISIBLE_DEVICES, and the options that the container was started with"
        return [Finding(_SECTION, "NVIDIA GPU", "note", gpu.problem, remedy)]
    findings = [
        Finding(
            _SECTION,
            device.name,
            "ok",
            f"{device.architecture}, {device.memory_bytes / 2**30:.0f} GiB",
            data={"architecture": device.architecture, "memory_bytes": device.memory_bytes},
        )
        for device in gpu.devices
    ]
    driver = f"{gpu.driver or 'version unknown'}, runs CUDA up to {gpu.cuda}"
    return [*findings, Finding(_SECTION, "driver", "ok", driver)]
