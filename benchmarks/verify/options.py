# SPDX-License-Identifier: Apache-2.0
"""What `lamp-trt verify` can be asked for. Loads no torch, so that the command line can."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamp_trt.engine.backends.backend import parse_device
from lamp_trt.runtime.algorithm.config import GenerationConfig

PROMPT = "a horse runs on the road"
STEPS = 10


@dataclass(frozen=True)
class Checkpoints:
    """The folders that a bundle is compared with; None or missing where it is not to be."""

    sd: Path | None = None
    motions: Mapping[str, Path] = field(default_factory=dict)
    sdxl: Path | None = None

    def given(self, option: str) -> bool:
        return bool({"--sd": self.sd, "--sdxl": self.sdxl, "--motion": self.motions}[option])

    def motions_of(self, option: str) -> list[str]:
        """What a network is verified with whose checkpoint `option` gives: motions, or "" for none."""
        return list(self.motions) if option == "--motion" else [""]

    def folder(self, option: str, motion: str = "") -> Path:
        """Of a checkpoint that is given; of `motion`, for "--motion"."""
        folder = self.motions[motion] if motion else {"--sd": self.sd, "--sdxl": self.sdxl}[option]
        assert folder is not None
        return folder


@dataclass(frozen=True)
class VerifyOptions:
    """What `lamp-trt verify` was asked for.

    first_frame          None for a synthetic picture
    num_inference_steps  of the loops, 0 for networks alone
    num_threads          CPU threads of both sides
    device, backend, engine_dir: where the bundle runs, as lamp_trt.load takes them
    Raises InputError for a prompt that is no text, and a seed or a number of steps that no loop takes.
    """

    checkpoints: Checkpoints
    prompt: str = PROMPT
    negative_prompt: str | None = None
    first_frame: Path | None = None
    seed: int = 0
    num_inference_steps: int = STEPS
    num_threads: int | None = None
    device: str = "auto"
    backend: str = "auto"
    engine_dir: Path | None = None

    def __post_init__(self) -> None:
        from lamp_trt.runtime.media.tokenizer import prompt_text  # NumPy, which the parser does without

        prompt_text(self.prompt)
        prompt_text(self.negative_prompt or "")
        if self.num_inference_steps:
            GenerationConfig(seed=self.seed, num_inference_steps=self.num_inference_steps)

    @property
    def on_gpu(self) -> bool:
        return parse_device(self.device) is not None

    @property
    def loading(self) -> dict[str, Any]:
        """What the loaders of runtime/load.py are given."""
        return {
            "device": self.device,
            "backend": self.backend,
            "engine_dir": self.engine_dir,
            "num_threads": None if self.on_gpu else self.num_threads,
        }
