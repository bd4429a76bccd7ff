# SPDX-License-Identifier: Apache-2.0
"""An engine that sleeps instead of computing, in the process that a pool starts.

The prompt of a job says what happens: "kill at STAGE" ends the process with SIGKILL at that stage, once or,
with "always", each time; "refuse", "no space" and "break" raise errors, "flagged" one after the last step;
"hang at STAGE" never goes on; "a long one" has 20 times the steps; "inputs" appends the job's input files to
the video. settings: step_seconds, steps, log (a file to which steps are written), fails_while (a file; while
it exists the constructor fails), hangs_while (likewise, it never ends), plays (write a video that plays).
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lamp_trt.engine.errors import Cancelled, EngineError, OutputError, SafetyError
from lamp_trt.engine.files.output import written
from lamp_trt.runtime.media.video import save_frames
from lamp_trt.serving.pools.pool import EngineJob

FACTORY = "tests.doubles.sleeping_engine:open_engine"
FOREVER = 3600.0
VIDEO = b"\0\0\0\x18ftypmp42"


def open_engine(settings: Mapping[str, Any]) -> "SleepingEngine":
    failing = settings.get("fails_while")
    if failing and Path(failing).exists():
        raise EngineError("the GPU is lost.")
    if "hangs_while" in settings and Path(settings["hangs_while"]).exists():
        time.sleep(FOREVER)
    return SleepingEngine(settings)


class SleepingEngine:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.motion = "a"
        self._steps = settings.get("steps", 10)
        self._step_seconds = settings.get("step_seconds", 0.02)
        self._plays = settings.get("plays", False)
        self._log = Path(settings["log"]) if "log" in settings else None

    def make(
        self,
        job: EngineJob,
        progress: Callable[[str, int, int], None],
        cancel: threading.Event,
        preview: Callable[[str, int, Any], None] | None = None,
    ) -> None:
        self._note(f"begin {job.id}")
        _kill(job, "begin")
        self.motion = job.motion
        for error, word in (
            (SafetyError("the first frame was refused."), "refuse"),
            (OutputError("no space left."), "no space"),
            (EngineError("a network failed."), "break"),
        ):
            if word in job.prompt:
                raise error
        steps = self._steps * (20 if "a long one" in job.prompt else 1)
        progress("denoise", 0, steps)
        for step in range(steps):
            if cancel.is_set():
                self._note(f"cancelled {job.id} {step}")
                raise Cancelled("cancelled")
            time.sleep(self._step_seconds)
            self._note(f"step {job.id}")
            if step == steps // 2:
                _kill(job, "denoise")
            progress("denoise", step + 1, steps)
            if preview is not None:
                preview("denoise", step, np.full((4, 8, 12, 3), 20 * step % 256, np.uint8))
        if "flagged" in job.prompt:
            raise SafetyError("the video was refused.")
        content = VIDEO + job.prompt.encode() + _inputs(job)
        with written(job.out.with_name(f"{job.out.name}.json"), job.out) as (sidecar, video):
            sidecar.write_text("{}")
            if self._plays:
                save_frames(np.full((4, 64, 96, 3), 120, np.uint8), video, job.fps)
            else:
                video.write_bytes(content)
            _kill(job, "save")
        _kill(job, "end")

    def _note(self, line: str) -> None:
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{line}\n")


def _inputs(job: EngineJob) -> bytes:
    if "inputs" not in job.prompt:
        return b""
    return b"".join(path.read_bytes() for path in job.inputs())


def _kill(job: EngineJob, stage: str) -> None:
    if f"hang at {stage}" in job.prompt:
        time.sleep(FOREVER)
    if f"kill at {stage}" not in job.prompt:
        return
    marker = job.out.parents[1] / f"killed-{job.id}"
    if "always" in job.prompt or not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
