# SPDX-License-Identifier: Apache-2.0
"""Input and output of a backend's probe: a description of the machine, and rows of `lamp-trt doctor`.

A probe needs only Python, so that it can report what is missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "note", "problem"]
"""`note`: information that makes nothing fail."""

Purpose = Literal["build", "generate"]


@dataclass(frozen=True)
class Device:
    """One GPU: its name, compute capability (9, 0), and memory."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def architecture(self) -> str:
        """The compilers' name, like "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Gpu:
    """The driver's report. problem: why there is no usable device, "" if there is one.

    cuda: the newest CUDA version that the driver supports, like "13.0".
    """

    devices: tuple[Device, ...] = ()
    driver: str = ""
    cuda: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Machine:
    """A machine as probes see it.

    installed: pip package → its version, None if it is not installed. run: Python code → the JSON object that
    it prints in a separate process, {"error": last line} if it fails."""

    gpu: Gpu
    installed: Callable[[str], str | None]
    run: Callable[[str], dict[str, Any]]

    def first_installed(self, *packages: str) -> str | None:
        """The version of the first of `packages` that is installed."""
        return next((have for have in map(self.installed, packages) if have), None)


@dataclass(frozen=True)
class ProbeRow:
    """One row of `lamp-trt doctor`. remedy: how to fix the problem. blocks: purposes that cannot work because
    of it. data: the underlying figures."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    blocks: tuple[Purpose, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
