# SPDX-License-Identifier: Apache-2.0
"""PyTorch on the same UNet, inputs and GPU: eager (SDPA) and torch.compile, official and lean formulation."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from lamp_trt.benchmarks.cuda_timing import Timing, time_calls
from lamp_trt.benchmarks.proof import Check
from lamp_trt.benchmarks.proof_unet import MOTIONS, Work

MODES: dict[str, str | None] = {
    "eager": None,
    "compile": "default",
    "compile-max-autotune": "max-autotune-no-cudagraphs",
}
"""How each formulation is run; a compiled one also from a CUDA graph, as a user in a hurry would."""

FORMULATIONS = ("official", "lean")


def checks(work: Work) -> Iterator[Check]:
    for mode in MODES:
        for formulation in FORMULATIONS:
            yield (
                f"PyTorch {mode}, {formulation} formulation, is timed",
                partial(_time, work, mode, formulation),
            )


def module(work: Work, formulation: str) -> torch.nn.Module:
    """The UNet of the first motion in the work's precision."""
    from lamp_trt.export.lamp_unet import load_lamp_unet
    from lamp_trt.export.lean_unet import make_lean

    dtype = torch.float16 if work.precision == "fp16" else torch.float32
    unet = load_lamp_unet(work.folder / MOTIONS[0], dtype).to(work.torch_device)
    return make_lean(unet) if formulation == "lean" else unet


def step(work: Work, unet: Callable[..., Any]) -> Callable[[], Any]:
    """One UNet call on Work.inputs."""
    tensors = [torch.from_numpy(array).to(work.torch_device) for array in work.inputs().values()]

    def run() -> Any:
        with torch.inference_mode():
            return unet(*tensors)

    return run


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
