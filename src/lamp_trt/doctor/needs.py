# SPDX-License-Identifier: Apache-2.0
"""Requirements of checkpoints of the published sizes: disk for a bundle, memory for its weights.

All figures are computed from the numbers of parameters in engine/families.py. Memory for activations is
additional and not stated: it depends on the backend.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from lamp_trt.doctor.findings import Finding
from lamp_trt.engine.backends.probe import Gpu
from lamp_trt.engine.dtypes import PRECISIONS, Precision
from lamp_trt.engine.families import COMPONENTS, LAMP, NETWORKS, SDXL, component_of
from lamp_trt.engine.memory import memory_bytes

_SECTION = "needs at the published size"

BUILD_MEMORY_BYTES = 2 << 30
"""A build handles one tensor at a time and exports graphs without weights; a test checks this limit."""


def weight_bytes(networks: Iterable[str], precision: Precision) -> int:
    """Size of the weight files of `networks` in a bundle of `precision`; equal files count once."""
    components = {component.name: component for component in map(component_of, networks)}
    return sum(
        component.parameters * PRECISIONS[component.precision_in(precision)].size
        for component in components.values()
        if not component.same_as
    )


def both_sizes(precision: Precision) -> tuple[int, int]:
    """Size of all weights of a bundle in bytes: (without SDXL, with SDXL)."""
    without = [name for name in NETWORKS if name not in SDXL.names]
    return weight_bytes(without, precision), weight_bytes(NETWORKS, precision)


def motion_bytes(precision: Precision) -> int:
    """Size of a motion's file."""
    return COMPONENTS[LAMP.unet_component].motion_parameters * PRECISIONS[precision].size


def need_findings(folder: Path, gpu: Gpu) -> list[Finding]:
    """Disk where bundles are built, host memory and GPU memory, each compared with what is available."""
    findings = [_disk_finding(folder), *_memory_findings()]
    return findings + ([_gpu_memory_finding(gpu)] if gpu.devices else [])


def _disk_finding(folder: Path) -> Finding:
    half, half_with_sdxl = both_sizes("fp16")
    single, single_with_sdxl = both_sizes("fp32")
    needed = {
        "fp16_bytes": half,
        "fp32_bytes": single,
        "fp16_with_sdxl_bytes": half_with_sdxl,
        "fp32_with_sdxl_bytes": single_with_sdxl,
        "free_bytes": shutil.disk_usage(_existing(folder)).free,
    }
    detail = (
        f"a bundle takes {_gb(needed['fp16_bytes'])} in fp16 or {_gb(needed['fp32_bytes'])} in fp32, "
        f"with SDXL {_gb(needed['fp16_with_sdxl_bytes'])} or {_gb(needed['fp32_with_sdxl_bytes'])}, "
        f"a further motion {_gb(motion_bytes('fp16'))} or {_gb(motion_bytes('fp32'))}; "
        f"{_gb(needed['free_bytes'])} are free"
    )
    if needed["free_bytes"] < needed["fp16_bytes"]:
        remedy = "free some space, or build elsewhere (--folder DIR looks there)"
        return Finding(_SECTION, "disk for a bundle", "problem", detail, remedy, data=needed)
    return Finding(_SECTION, "disk for a bundle", "ok", detail, data=needed)


def _memory_findings() -> list[Finding]:
    total, available = memory_bytes()
    video, both = both_sizes("fp32")
    have = f"{_gb(available)} of {_gb(total)} are available"
    data = {"available_bytes": available, "total_bytes": total}
    build = Finding(
        _SECTION,
        "memory for build",
        "ok" if available >= BUILD_MEMORY_BYTES else "problem",
        f"at most {_gb(BUILD_MEMORY_BYTES)} in addition to the page cache; {have}",
        "" if available >= BUILD_MEMORY_BYTES else "end other programs",
        data={**data, "needed_bytes": BUILD_MEMORY_BYTES},
    )
    enough = available >= video
    generate = Finding(
        _SECTION,
        "memory for generate",
        "ok" if enough else "problem",
        f"weights in fp32 {_gb(video)}, with SDXL {_gb(both)}, activations on top; {have}",
        "" if enough else "end other programs, or use a machine with more memory; toy bundles need 1 GB",
        data={**data, "weights_bytes": video, "weights_with_sdxl_bytes": both},
    )
    return [build, generate]


def _gpu_memory_finding(gpu: Gpu) -> Finding:
    largest = max(device.memory_bytes for device in gpu.devices)
    video, both = both_sizes("fp16")
    detail = (
        f"weights in fp16 {_gb(video)}, with SDXL {_gb(both)}, activations on top; the GPU has {_gb(largest)}"
    )
    enough = largest >= video
    return Finding(
        _SECTION,
        "GPU memory",
        "ok" if enough else "problem",
        detail,
        "" if enough else "use a GPU with more memory, or the CPU",
        data={"weights_bytes": video, "weights_with_sdxl_bytes": both, "total_bytes": largest},
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if os.path.isdir(path))


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
