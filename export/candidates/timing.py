# SPDX-License-Identifier: Apache-2.0
"""A timer for forms on a GPU. Unproven: no GPU has run it yet."""

import itertools
import statistics
from typing import Any

import torch
from torch import Tensor

from lamp_trt.export.candidates.choice import Form, Timer

WARM_UP, RUNS = 3, 10


def cuda_timer(device: torch.device, settings: dict[str, Any] | None = None) -> Timer:
    """Median of RUNS of a form compiled by Inductor, as in a package, by CUDA events.

    settings: Inductor's, as those of the package.
    """

    def seconds(form: Form, values: tuple[Any, ...]) -> tuple[float, Tensor]:
        run: Any = torch.compile(form, fullgraph=True, dynamic=False, options=settings or None)
        marks: list[Any] = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(RUNS + 1)
        ]
        with torch.cuda.device(device), torch.no_grad():
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
