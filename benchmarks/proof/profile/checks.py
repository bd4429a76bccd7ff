# SPDX-License-Identifier: Apache-2.0
"""One launched step of a UNet under torch.profiler, against the floors of its graph."""

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch

from lamp_trt.benchmarks.proof import peers
from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.profile.events import cuda_elapsed_us, cuda_mark, operator_launches
from lamp_trt.benchmarks.proof.profile.floor import Ceilings, floors_ms
from lamp_trt.benchmarks.proof.profile.profile import figures
from lamp_trt.benchmarks.proof.profile.trace import Launch, launches
from lamp_trt.benchmarks.proof.timing import copy_bandwidth_gbs, time_calls
from lamp_trt.benchmarks.proof.unet import UnetProof
from lamp_trt.benchmarks.proof.work import LAMP, Work

KERNELS = "kernels, by torch.profiler"
OPERATORS = "operators of the eager module, by CUDA events around each: the profiler saw no kernels"

PRODUCT = 8192
"""Rows and columns of the product whose rate is the ceiling."""

Trace = dict[str, Any]


def profiled(call: Callable[[], object]) -> Trace:
    """torch.profiler's trace of a call that waits for the device."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        trace: Trace = json.loads(file.read_text())
    return trace


def measured_ceilings() -> Ceilings:
    a, b = (torch.randn(PRODUCT, PRODUCT, dtype=torch.float16, device="cuda") for _ in range(2))
    timing = time_calls(lambda: a @ b, 1, graph=False)
    return Ceilings(2 * PRODUCT**3 / (timing.median_us * 1e-6), copy_bandwidth_gbs() * 1e9)


class ProfileProof:
    """One UNet on one backend. results: the profile goes there under the claim's words.

    trace, ceilings, operators   how they are measured, for tests to replace
    """

    def __init__(
        self,
        work: Work,
        backend: str,
        results: dict[str, Any],
        *,
        trace: Callable[[Callable[[], object]], Trace] = profiled,
        ceilings: Callable[[], Ceilings] = measured_ceilings,
        operators: Callable[[Callable[[], Any]], list[Launch]] | None = None,
    ) -> None:
        self.work, self.backend, self.results = work, backend, results
        self._trace, self._ceilings = trace, ceilings
        self._operators = operators or partial(
            operator_launches, mark=cuda_mark, elapsed_us=cuda_elapsed_us, wait=torch.cuda.synchronize
        )
        self._unet = UnetProof(work, backend)

    def checks(self) -> Iterator[Check]:
        of = f"{self.backend}: {self.work.subject.title}"
        yield f"{of} loads for its profile", self._unet.load
        yield f"{of}'s launched step is profiled", self.profile
        yield f"{of} is let go after its profile", self._unet.close

    def profile(self) -> str:
        """The backend's kernels, or, where no profiler sees any, the eager module's operators."""
        title = f"{self.work.subject.title} on {self.backend}, one launched step"
        self._unet.begin_loop()
        self._unet.launch_step()  # warm
        found, source = self._kernels(), KERNELS
        if not found:
            found, source = self._eager(), OPERATORS
            title = f"{self.work.subject.title} in eager PyTorch, one step"
        if not found:
            raise Unavailable("neither the profiler nor events show what ran on the device")
        model = onnx.load_from_string(self.work.bundle.graph_bytes(self.work.subject.network))
        ceilings = self._ceilings()
        profile = figures(title, source, found, floors_ms(model, ceilings), ceilings)
        self.results[title] = profile
        dearest = ", ".join(f"{row['kind']} {row['ms']:.2f} ms" for row in profile["kinds"][:4])
        return f"{profile['step_ms']:.2f} ms, floor {profile['floor_ms']:.2f} ms; {dearest}"

    def _kernels(self) -> list[Launch]:
        """Empty where the profiler does not work."""
        self._unet.begin_loop()
        try:
            return launches(self._trace(self._unet.launch_step))
        except RuntimeError as error:  # of CUPTI: no permission, another profiler, a driver that is too old
            print(f"torch.profiler failed: {error}", flush=True)
            return []

    def _eager(self) -> list[Launch]:
        formulation = "lean" if self.work.subject is LAMP else "official"
        return self._operators(peers.step(self.work, peers.module(self.work, formulation)))
