# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU with CUDA events, and the facts that belong to a published number."""

import datetime
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lamp_trt.benchmarks.proof import gpu
from lamp_trt.benchmarks.proof.names import COMMIT, UNKNOWN

WARM_UP_RUNS = 5
COPY_BYTES = 2**30


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, and the 10th and 90th percentile of the samples."""

    median_us: float
    p10_us: float
    p90_us: float

    @classmethod
    def from_samples(cls, samples_us: list[float]) -> "Timing":
        return cls(*(float(np.percentile(samples_us, q)) for q in (50, 10, 90)))


def time_calls(
    function: Callable[[], object], calls_inside: int, *, graph: bool, samples: int = 30
) -> Timing:
    """Time `function`, which does the operation `calls_inside` times, on the current stream.

    graph: captured once and replayed, so that the CPU's launching does not count. Otherwise launched from
    Python each time, as a program without graphs does. L2 is warm: buffers are used again and again.
    """
    for _ in range(WARM_UP_RUNS):
        function()
    torch.cuda.synchronize()
    run = function
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            captured, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            function()
        run = captured.replay
        run()
    times = []
    for _ in range(samples):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls_inside)
    return Timing.from_samples(times)


def copy_bandwidth_gbs() -> float:
    """Return the bytes read and written per second by a device-to-device copy of 1 GiB, in 1e9."""
    source, target = (torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    timing = time_calls(lambda: target.copy_(source), 1, graph=False)
    return 2 * COPY_BYTES / timing.median_us / 1e3


def machine() -> dict[str, str]:
    """Return GPU, power limit, driver, CUDA, torch, commit, date; UNKNOWN for what cannot be found out."""
    here = Path(__file__).resolve().parents[1]
    query = ["nvidia-smi", "--query-gpu=power.limit,driver_version", "--format=csv,noheader", "--id=0"]
    fields = [field.strip() for field in _output(*query).split(",")]
    power_limit, driver = fields if len(fields) == 2 else (UNKNOWN, UNKNOWN)
    return {
        "gpu": gpu.name(),
        "power_limit": power_limit,
        "driver": driver,
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "commit": os.environ.get(COMMIT) or _output("git", "-C", str(here), "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _output(*command: str) -> str:
    """Return the output of a program, UNKNOWN if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return UNKNOWN
    return done.stdout.strip() if done.returncode == 0 else UNKNOWN
