# SPDX-License-Identifier: Apache-2.0
"""Timers for forms and settings on a GPU. Unproven: no GPU has run them yet."""

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lamp_trt.engine.backends.aotinductor.cudnn import CUDNN_BENCHMARK, cudnn_benchmark
from lamp_trt.export.candidates.choice import Form, Timer

WARM_UP, RUNS = 3, 10

INDUCTOR = {"max_autotune": "max_autotune", "conv_as_mm": "conv_1x1_as_mm"}
"""Inductor's option of each setting that is one."""


def inductor_options(settings: Mapping[str, bool]) -> dict[str, Any]:
    return {option: settings.get(name, False) for name, option in INDUCTOR.items()}


def cuda_timer(device: torch.device, settings: Mapping[str, bool] | None = None) -> Timer:
    """Median of RUNS of a form compiled by Inductor, as in a package, by CUDA events.

    settings: of the package, by name in registry.SETTINGS; those that are missing are off.
    """
    given = dict(settings or {})

    def seconds(form: Form, values: tuple[Any, ...]) -> tuple[float, Tensor]:
        run: Any = torch.compile(form, fullgraph=True, dynamic=False, options=inductor_options(given))
        marks: list[Any] = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(RUNS + 1)
        ]
        benchmark = cudnn_benchmark(torch, given.get(CUDNN_BENCHMARK, False))
        with torch.cuda.device(device), torch.no_grad(), benchmark:
            for _ in range(WARM_UP):
                run(*values)
            marks[0].record()
            for mark in marks[1:]:
                result = run(*values)
                mark.record()
            torch.cuda.synchronize()
        torch._dynamo.reset()
        times = [float(before.elapsed_time(after)) / 1e3 for before, after in itertools.pairwise(marks)]
        return statistics.median(times), result

    return seconds
