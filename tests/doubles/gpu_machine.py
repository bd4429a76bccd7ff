# SPDX-License-Identifier: Apache-2.0
"""A bare machine with one GPU for the proofs' command line: a clock that every check moves, programs and
packages that may be missing."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.benchmarks.proof import gpu, timing
from lamp_trt.benchmarks.proof.check import Check
from lamp_trt.benchmarks.proof.commands import parts, run

NAME = "NVIDIA H200"


@dataclass
class Clock:
    """seconds that pass; `each` with every check."""

    now: float = 1000.0
    each: float = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@dataclass
class GpuMachine:
    """What tests set on it. part: replaces a part's checks; missing: makes a package impossible to import."""

    clock: Clock
    patch: pytest.MonkeyPatch
    made: list[str] = field(default_factory=list)

    def part(self, name: str, *checks: Check) -> None:
        self.patch.setitem(parts.PARTS, name, lambda _: iter(checks))

    def every_part_overruns(self, seconds: float, claims: int = 3) -> None:
        """Each has so many checks, each of which takes so long."""

        def overrun(claim: str) -> str:
            self.made.append(claim)
            self.clock.now += seconds
            return "fine"

        def checks(name: str) -> Iterator[Check]:
            for number in range(claims):
                claim = f"{name} claim {number}"
                yield claim, lambda claim=claim: overrun(claim)  # type: ignore[misc]

        for name in parts.PARTS:
            self.patch.setitem(parts.PARTS, name, lambda _, name=name: checks(name))

    def missing(self, package: str) -> None:
        for module in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            self.patch.delitem(sys.modules, module)
        self.patch.setitem(sys.modules, package, None)

    def no_programs(self) -> None:
        """Neither git nor g++, nvcc, nvidia-smi, compute-sanitizer."""
        self.patch.setenv("PATH", "/nowhere")


def gpu_machine(patch: pytest.MonkeyPatch) -> GpuMachine:
    clock = Clock()
    patch.setattr(gpu, "present", lambda: True)
    patch.setattr(gpu, "name", lambda: NAME)
    patch.setattr(gpu, "own_stream", lambda: nullcontext())
    patch.setattr(gpu, "release_cached", lambda: None)
    patch.setattr(run, "time", clock)
    patch.setattr(run.signal, "signal", lambda *_: None)
    patch.delenv(timing.COMMIT, raising=False)
    return GpuMachine(clock, patch)


def fake_program(folder: Path, name: str, script: str) -> Path:
    """An executable of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def rows_of(report: dict[str, Any]) -> dict[str, str]:
    """Claim → result."""
    return {row["claim"]: row["result"] for row in report["checks"]}
