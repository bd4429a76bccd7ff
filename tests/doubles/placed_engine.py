# SPDX-License-Identifier: Apache-2.0
"""A sleeping engine that notes where it runs: "placed GPUS THREADS PID JOB" in its log."""

import os
from collections.abc import Mapping
from typing import Any

from lamp_trt.serving.pools.pool import EngineJob
from tests.doubles.sleeping_engine import SleepingEngine
from tests.doubles.sleeping_engine import open_engine as open_sleeping

FACTORY = "tests.doubles.placed_engine:open_engine"


class PlacedEngine(SleepingEngine):
    def make(self, job: EngineJob, *rest: Any) -> None:
        gpus, threads = os.environ.get("CUDA_VISIBLE_DEVICES", "-"), os.environ.get("OMP_NUM_THREADS", "-")
        self._note(f"placed {gpus} {threads} {os.getpid()} {job.id}")
        super().make(job, *rest)


def open_engine(settings: Mapping[str, Any]) -> PlacedEngine:
    open_sleeping(settings)
    return PlacedEngine(settings)
