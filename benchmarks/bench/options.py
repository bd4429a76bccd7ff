# SPDX-License-Identifier: Apache-2.0
"""Options of `lamp-trt bench`. Loads no torch, so that the command line can import it."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from lamp_trt.benchmarks.verify.options import PROMPT, Checkpoints
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.requests import Placement

BUDGET = "60s"
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class BenchOptions(Placement):
    """Options of a benchmark. InputError for an invalid budget, prompt, seed or number of steps.

    budget_s      seconds for set-up and sampling; compilers, builds, sweeps and parity come on top
    filter        only rows whose name or backend contains this, in any case
    full          also whole videos, PyTorch baselines, builds and several videos at once
    sweep         also the UNet at other frame counts, sizes and precisions, built from the first motion
    num_inference_steps   steps of whole videos
    parity_steps  steps of the loops that are compared with PyTorch
    compare       results of earlier runs; the last one is the baseline
    """

    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    budget_s: float = 60.0
    filter: str = ""
    full: bool = False
    sweep: bool = False
    expect_bundle: str | None = None
    num_inference_steps: int = 50
    parity_steps: int = 4
    prompt: str = PROMPT
    seed: int = 0
    compare: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        from lamp_trt.runtime.media.tokenizer import prompt_text  # NumPy, which the parser does without

        super().__post_init__()
        prompt_text(self.prompt)
        GenerationConfig(seed=self.seed, num_inference_steps=self.num_inference_steps)
        if not (math.isfinite(self.budget_s) and self.budget_s > 0):
            raise InputError(f"the budget is {self.budget_s} s; expected more than 0.")
        if self.sweep and not self.checkpoints.motions:
            raise InputError("--sweep builds the UNet at other sizes: add --motion NAME=DIR.")

    @property
    def compares_with_pytorch(self) -> bool:
        given = self.checkpoints
        return bool(given.sd or given.sdxl or given.motions)


def budget_seconds(text: str) -> float:
    """Parse a budget like "60", "90s", "5m" or "1h" into seconds. InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"--budget is {text!r}; expected a time like 60s, 5m or 1h.")
    return float(match[1]) * _UNITS[match[2]]
