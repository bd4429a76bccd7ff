# SPDX-License-Identifier: Apache-2.0
"""State of one command of the proofs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamp_trt.engine.backends.registry import backends_on

WHOLE = "whole"
"""A bundle of every network, as a subject of `prepare`."""


def on_gpus() -> tuple[str, ...]:
    """Names of the backends that run on GPUs."""
    return tuple(backend.name for backend in backends_on(0))


@dataclass
class Session:
    """Shared by the parts of one command.

    out       folder of the reports
    folder    of checkpoints, bundles and engines
    deadline  of time.monotonic(), after which no check starts
    subjects  UNets that `prepare` and `profile` take, by network, or WHOLE; all if empty
    modes     of `peers`; all if empty
    together  `hoists` takes all hoists together only
    timings   whether `kernels` times them too
    build_flags  of BuildRequest, for the engines of all parts
    results   figures of the part under way, for its report
    """

    out: Path
    folder: Path
    deadline: float
    backends: tuple[str, ...] = field(default_factory=on_gpus)
    subjects: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    together: bool = False
    timings: bool = True
    build_flags: Mapping[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    _works: dict[str, Any] = field(default_factory=dict)

    @property
    def lamp(self) -> Any:
        """The LAMP UNet's Work, shared by the parts that need it."""
        from lamp_trt.benchmarks.proof.work import LAMP

        return self.work(LAMP)

    @property
    def sdxl(self) -> Any:
        """Likewise of SDXL's UNet."""
        from lamp_trt.benchmarks.proof.work import SDXL

        return self.work(SDXL)

    def works(self) -> list[Any]:
        """Of `subjects`."""
        from lamp_trt.benchmarks.proof.work import LAMP, SDXL

        wanted = [s for s in (LAMP, SDXL) if not self.subjects or s.network in self.subjects]
        return [self.work(subject) for subject in wanted]

    def work(self, subject: Any) -> Any:
        if subject.network not in self._works:
            from lamp_trt.benchmarks.proof.prepared.engines import load_network
            from lamp_trt.benchmarks.proof.work import Work
            from lamp_trt.runtime.cuda.device import CudaDevice

            device = next((work.device for work in self._works.values()), None) or CudaDevice()
            self._works[subject.network] = Work(
                self.folder, device, load_network, subject, build_flags=self.build_flags
            )
        return self._works[subject.network]
