# SPDX-License-Identifier: Apache-2.0
"""Whether OpenVINO runs here, and in which arithmetic."""

import os
from importlib.metadata import PackageNotFoundError, version

from lamp_trt.engine.backends.cpu import why_no_bf16
from lamp_trt.engine.backends.probe import Machine, ProbeRow

PACKAGE = "openvino"

OLDEST = (2026, 4)
"""The first release that was tried. Its ONNX front end takes Attention of opset 23."""

REMEDY = "pip install 'lamp-trt[openvino]'"

MOUNT = "mount /proc"

CPU_FACTS = ("/proc/cpuinfo", "/sys/devices/system/cpu")
"""Where OpenVINO looks for the CPU's cores. Without either it looks forever when it compiles (2026.4.1)."""

SESSION = """
import json
from lamp_trt.engine.backends.openvino.library import core, import_openvino
devices = core().available_devices
print(json.dumps({"version": import_openvino().__version__.partition("-")[0], "devices": devices}))
"""


def version_numbers(text: str) -> tuple[int, ...]:
    """(2026, 4) of "2026.4.1-22982-e213a147257-releases/2026/4"."""
    return tuple(int(part) for part in text.partition("-")[0].split(".")[:2])


def why_no_cores() -> str | None:
    """Why OpenVINO would find no cores, as in a chroot without mounts; None if it finds them."""
    if any(os.path.exists(path) for path in CPU_FACTS):
        return None
    return f"neither {' nor '.join(CPU_FACTS)} can be read, without which OpenVINO hangs"


def is_usable() -> bool:
    """Whether a release is installed that is new enough, and finds the CPU's cores. Imports nothing of it."""
    try:
        return version_numbers(version(PACKAGE)) >= OLDEST and why_no_cores() is None
    except PackageNotFoundError:
        return False


def probe_rows(machine: Machine) -> list[ProbeRow]:
    name = "OpenVINO, CPU"
    if machine.installed(PACKAGE) is None:
        return [ProbeRow(name, "note", "not installed; on a CPU networks are faster on it", REMEDY)]
    blind = why_no_cores()
    if blind is not None:
        return [ProbeRow(name, "problem", blind, MOUNT)]
    found = machine.run(SESSION)
    if "error" in found:
        return [ProbeRow(name, "problem", found["error"], f"{REMEDY} --upgrade")]
    reason = why_no_bf16()
    precisions = f"fp32; no bf16: {reason}" if reason else "fp32 and bf16"
    return [ProbeRow(name, "ok", f"openvino {found['version']}, {precisions}", data=dict(found))]
