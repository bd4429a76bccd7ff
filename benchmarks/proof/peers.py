# SPDX-License-Identifier: Apache-2.0
"""Times of PyTorch on the same UNet, inputs and GPU: eager (SDPA) and torch.compile, the LAMP UNet also in
lean formulation."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from lamp_trt.benchmarks.proof.check import Check
from lamp_trt.benchmarks.proof.timing import Timing, time_calls
from lamp_trt.benchmarks.proof.work import LAMP, Work
from lamp_trt.benchmarks.verify.reference.networks import REFERENCE_NETWORKS, module_inputs

MODES: dict[str, str | None] = {
    "eager": None,
    "compile": "default",
    "compile-max-autotune": "max-autotune-no-cudagraphs",
}
"""Ways to run each formulation; each is also replayed from a CUDA graph."""


def checks(work: Work, modes: tuple[str, ...] = ()) -> Iterator[Check]:
    """modes: of MODES, all if empty."""
    for mode in modes or tuple(MODES):
        for formulation in formulations(work):
            yield (
                f"PyTorch {mode}, {formulation} formulation of {work.subject.title}, is timed",
                partial(_time, work, mode, formulation),
            )


def formulations(work: Work) -> tuple[str, ...]:
    return ("official", "lean") if work.subject is LAMP else ("official",)


def module(work: Work, formulation: str) -> torch.nn.Module:
    """Return the reference's module in the work's precision."""
    unet = REFERENCE_NETWORKS[work.subject.network].load(work.checkpoint, work.dtype).to(work.torch_device)
    if formulation == "official":
        return unet
    from lamp_trt.export.lamp.lean_unet import make_lean
    from lamp_trt.export.lamp.unet import LampUNet

    assert isinstance(unet, LampUNet)
    return make_lean(unet)


def step(work: Work, unet: Any) -> Callable[[], Any]:
    """Return a function that calls the UNet once on Work.inputs."""
    tensors = module_inputs(unet, work.inputs())
    run = REFERENCE_NETWORKS[work.subject.network].run

    def call() -> Any:
        with torch.inference_mode():
            return run(unet, tensors)[0]

    return call


def _time(work: Work, mode: str, formulation: str) -> str:
    assert work.bundle
    unet: Any = module(work, formulation)
    compile_mode = MODES[mode]
    if compile_mode is not None:
        unet = torch.compile(unet, mode=compile_mode, fullgraph=True)
    run = step(work, unet)
    timings: dict[str, Timing] = {"launched": time_calls(run, 1, graph=False, samples=10)}
    timings["graph"] = time_calls(run, 1, graph=True, samples=10)
    figures = {f"{how}_ms": timing.median_us / 1e3 for how, timing in timings.items()}
    work.results[f"pytorch {mode} {formulation}"] = figures
    torch._dynamo.reset()
    return json.dumps(figures)
