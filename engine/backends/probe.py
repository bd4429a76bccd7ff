# SPDX-License-Identifier: Apache-2.0
"""What a backend's probe is told of a machine, and the rows of `lamp-trt doctor` that it answers with.

A probe needs nothing but Python, so that it can say what is missing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "note", "problem"]
"""`note`: worth knowing, and nothing that is asked for today fails for it."""

Purpose = Literal["build", "generate"]


@dataclass(frozen=True)
class Device:
    """One GPU: its name, compute capability (9, 0), and memory."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def architecture(self) -> str:
        """As compilers name it: sm_90."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Gpu:
    """What the driver says. `problem` is why there is no device to use, "" if there is one.

    cuda: the newest CUDA that the driver runs, like "13.0".
    """

    devices: tuple[Device, ...] = ()
    driver: str = ""
    cuda: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Machine:
    """installed: pip package → its version, None if it is not installed. run: Python code → the JSON object
    that it prints in a process of its own, {"error": its last line} if it fails."""

    gpu: Gpu
    installed: Callable[[str], str | None]
    run: Callable[[str], dict[str, Any]]

    def first_installed(self, *packages: str) -> str | None:
        """The version of the first of `packages` that is installed."""
        return next((have for have in map(self.installed, packages) if have), None)


@dataclass(frozen=True)
class ProbeRow:
    """remedy: what to do about it. blocks: what cannot work at all because of it. data: figures behind it."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    blocks: tuple[Purpose, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
