# SPDX-License-Identifier: Apache-2.0
"""What checkpoints of the published sizes need: disk for a bundle, memory for its weights.

All figures follow from one table of parameter counts. Memory for activations comes on top and is not stated:
it depends on the backend.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from lamp_trt.doctor.findings import Finding
from lamp_trt.doctor.machine import memory_bytes
from lamp_trt.engine.backends.probe import Gpu
from lamp_trt.engine.dtypes import PRECISIONS, Precision
from lamp_trt.engine.networks import COMPONENT_PRECISION, FIRST_FRAME_NETWORKS, NETWORKS, VIDEO_NETWORKS

_SECTION = "needs at the published size"

PARAMETERS = {
    "text_encoder": 123_060_480,
    "vae": 83_653_863,
    "unet": 1_101_091_358,
    "sdxl_text_encoder_2": 694_659_840,
    "sdxl_unet": 2_567_463_684,
    "sdxl_vae": 83_653_863,
}
"""Values in each component's weight file: Stable Diffusion v1.4's and SDXL's as published, the UNet with
LAMP's layers."""

HELD_ONCE = {"sdxl_text_encoder"}
"""SDXL's first text encoder is Stable Diffusion's, which a bundle stores once."""

MOTION_PARAMETERS = 253_935_834
"""What LAMP trains, a part of the UNet: every further motion."""

BUILD_MEMORY_BYTES = 2 << 30
"""A build handles one tensor at a time and exports graphs without weights; a test holds it to this."""


def weight_bytes(networks: Iterable[str], precision: Precision) -> int:
    """Size of the weight files of `networks` in a bundle of `precision`."""
    components = {NETWORKS[name].component for name in networks} - HELD_ONCE
    return sum(
        PARAMETERS[name] * PRECISIONS[COMPONENT_PRECISION.get(name, precision)].size for name in components
    )


def both_sizes(precision: Precision) -> tuple[int, int]:
    """Size of all weights of a bundle without SDXL, and with it."""
    return weight_bytes(VIDEO_NETWORKS, precision), weight_bytes(
        (*VIDEO_NETWORKS, *FIRST_FRAME_NETWORKS), precision
    )


def need_findings(folder: Path, gpu: Gpu) -> list[Finding]:
    """Disk where bundles are built, host memory and GPU memory, each against what is there."""
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
        f"a further motion {_gb(MOTION_PARAMETERS * PRECISIONS['fp16'].size)} "
        f"or {_gb(MOTION_PARAMETERS * PRECISIONS['fp32'].size)}; "
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
        f"at most {_gb(BUILD_MEMORY_BYTES)} beside the page cache; {have}",
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
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
