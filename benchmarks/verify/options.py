# SPDX-License-Identifier: Apache-2.0
"""Options of `lamp-trt verify`. Loads no torch, so that the command line can import it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lamp_trt.engine.backends.backend import parse_device
from lamp_trt.engine.backends.cpu import arithmetic
from lamp_trt.engine.bundle.manifest import NetworkEntry
from lamp_trt.engine.dtypes import Precision
from lamp_trt.engine.families import MOTION_CHECKPOINT
from lamp_trt.engine.networks import Origin
from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.requests import Placement

PROMPT = "a horse runs on the road"
STEPS = 10


@dataclass(frozen=True)
class Checkpoints:
    """Folders of the checkpoints to compare with; None or missing: not compared.

    The fields are those that engine/families.py's Origins name.
    """

    sd: Path | None = None
    motions: Mapping[str, Path] = field(default_factory=dict)
    sdxl: Path | None = None

    def given(self, origin: Origin) -> bool:
        return bool(getattr(self, origin.field))

    def motions_of(self, origin: Origin) -> list[str]:
        """Return the motions to verify a network from `origin` with; "" stands for none."""
        return list(self.motions) if origin == MOTION_CHECKPOINT else [""]

    def folder(self, origin: Origin, motion: str = "") -> Path:
        """Return the folder of a checkpoint that is given; for MOTION_CHECKPOINT that of `motion`."""
        folder: Path | None = self.motions[motion] if motion else getattr(self, origin.field)
        assert folder is not None
        return folder


@dataclass(frozen=True)
class VerifyOptions(Placement):
    """Options of a verification. InputError for an invalid prompt, seed or number of steps.

    first_frame          None for a synthetic picture
    num_inference_steps  steps of the loops, 0 for networks alone
    num_threads          CPU threads of both sides, also where the bundle runs on a GPU
    """

    checkpoints: Checkpoints
    prompt: str = PROMPT
    negative_prompt: str | None = None
    first_frame: Path | None = None
    seed: int = 0
    num_inference_steps: int = STEPS

    def __post_init__(self) -> None:
        from lamp_trt.runtime.media.tokenizer import prompt_text  # NumPy, which the parser does without

        super().__post_init__()
        prompt_text(self.prompt)
        prompt_text(self.negative_prompt or "")
        if self.num_inference_steps:
            GenerationConfig(seed=self.seed, num_inference_steps=self.num_inference_steps)

    @property
    def on_gpu(self) -> bool:
        return parse_device(self.device) is not None

    def computed_in(self, network: NetworkEntry) -> Precision:
        """How roughly a network is computed, weights and values."""
        if self.cpu_precision != "bf16":
            return network.precision
        return arithmetic(network.component, network.precision, "bf16")

    @property
    def loading(self) -> Placement:
        """Placement of the bundle."""
        return replace(self.placement, num_threads=None if self.on_gpu else self.num_threads)
