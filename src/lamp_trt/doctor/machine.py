# SPDX-License-Identifier: Apache-2.0
"""The operating system, the processor, memory, and the cache folder."""

import os
import platform
import re
import tempfile
from pathlib import Path

from lamp_trt.doctor.findings import Finding
from lamp_trt.engine.files.user_cache import cache_folder
from lamp_trt.engine.memory import memory_bytes

_SECTION = "machine"


def machine_findings(folder: Path) -> list[Finding]:
    """Findings on the machine. folder: where bundles would be built."""
    total, available = memory_bytes()
    return [
        _system_finding(),
        Finding(_SECTION, "processor", "ok", f"{processor()}, {cpu_count()} threads for this process"),
        Finding(
            _SECTION,
            "memory",
            "ok",
            f"{total / 1e9:.1f} GB, {available / 1e9:.1f} GB available",
            data={"total_bytes": total, "available_bytes": available},
        ),
        _cache_finding(),
        _folder_finding(folder),
    ]


def processor() -> str:
    """The CPU model's name according to Linux, with family and model number where a hypervisor leaves the
    model out."""
    facts: dict[str, str] = dict(
        re.findall(r"^([a-z ]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    )
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts and not re.search(r"\d", name):
        return f"{name} (family {facts['cpu family']}, model {facts['model']})"
    return name


def cpu_count() -> int:
    return len(os.sched_getaffinity(0))


def _system_finding() -> Finding:
    libc = " ".join(platform.libc_ver())
    return Finding(_SECTION, "system", "ok", f"{platform.system()} {platform.release()}, {libc}")


def _cache_finding() -> Finding:
    """Whether digests and compiled kernels can be kept."""
    remedy = "set XDG_CACHE_HOME to a folder that can be written"
    kept = cache_folder("digests")
    if kept is None:
        detail = (
            "neither XDG_CACHE_HOME nor HOME is an absolute path: checkpoints are read in full by every build"
        )
        return Finding(_SECTION, "cache", "problem", detail, remedy)
    folder = kept.parent
    why = not_writable(folder)
    if why:
        detail = f"{folder} cannot be written ({why}): checkpoints are read in full by every build"
        return Finding(_SECTION, "cache", "problem", detail, remedy)
    return Finding(_SECTION, "cache", "ok", str(folder))


def _folder_finding(folder: Path) -> Finding:
    why = not_writable(folder)
    if why:
        detail = f"{folder} cannot be written ({why})"
        return Finding(_SECTION, "folder for bundles", "problem", detail, "choose another: --folder DIR")
    return Finding(_SECTION, "folder for bundles", "ok", str(folder.absolute()))


def not_writable(folder: Path) -> str:
    """Why a file in `folder`, or in the nearest folder above that exists, cannot be made; "" if it can."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return str(error.strerror)
