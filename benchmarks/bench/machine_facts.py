# SPDX-License-Identifier: Apache-2.0
"""Facts on machine and software that belong to published numbers. Never a user's or host's name."""

import datetime
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lamp_trt.doctor.machine import cpu_count, processor
from lamp_trt.engine.backends.registry import backends
from lamp_trt.engine.memory import memory_bytes

_PACKAGES = ("lamp-trt", "numpy", "onnx", "torch", "diffusers", "transformers", "cuda-core")
"""Packages whose versions are recorded, in addition to those of the backends."""
_GPU_FACTS = {
    "name": "gpu",
    "driver_version": "driver",
    "power.limit": "power_limit",
    "memory.total": "gpu_memory",
    "clocks.max.sm": "max_sm_clock",
}
_GPU_STATE = {
    "clocks.sm": "sm_clock",
    "clocks.mem": "memory_clock",
    "temperature.gpu": "temperature",
    "power.draw": "power_draw",
}
_LOAD = Path("/proc/loadavg")


def machine_facts(ordinal: int | None) -> dict[str, Any]:
    """Return the facts that stay constant during a run. ordinal: of the measured CUDA device, None for the
    CPU."""
    facts: dict[str, Any] = {
        "cpu": processor(),
        "cpu_threads": cpu_count(),
        "memory_gb": round(memory_bytes()[0] / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if ordinal is not None:
        facts |= _ask_gpu(ordinal, _GPU_FACTS)
    return facts


def machine_state(ordinal: int | None) -> dict[str, Any]:
    """Return the facts that may change during a run; they are recorded before and after it."""
    state: dict[str, Any] = {"cpu_mhz": _cpu_mhz(), "load_average": _load_average()}
    if ordinal is not None:
        state |= _ask_gpu(ordinal, _GPU_STATE)
    return state


def _versions() -> dict[str, str]:
    found = {}
    of_backends = (name for backend in backends() for name in backend.packages)
    for name in dict.fromkeys((*_PACKAGES, *of_backends)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_mhz() -> float | None:
    """Return the mean clock of the cores in MHz, None if the kernel does not report it."""
    speeds = re.findall(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
    return round(sum(map(float, speeds)) / len(speeds)) if speeds else None


def _load_average() -> float | None:
    """Return the load average of the last minute, None if the system has none."""
    return float(_LOAD.read_text().split()[0]) if _LOAD.is_file() else None


def _commit() -> str:
    """Return the commit of the checkout of this file, with "-dirty" if files are changed, "" outside a
    checkout."""
    folder = Path(__file__).resolve().parent
    if not shutil.which("git"):
        return ""
    head = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if head and _output(
        "git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"
    ):
        head += "-dirty"
    return head


def _ask_gpu(ordinal: int, fields: dict[str, str]) -> dict[str, str]:
    """Return nvidia-smi's answers by our names; empty without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return {}
    query = f"--query-gpu={','.join(fields)}"
    answer = _output("nvidia-smi", query, "--format=csv,noheader", f"--id={ordinal}")
    return dict(zip(fields.values(), (value.strip() for value in answer.split(",")), strict=False))


def _output(*command: str) -> str:
    """Return the output of a program, "" if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
