# SPDX-License-Identifier: Apache-2.0
"""Checked requests of callers: placement of networks, a first frame, a video.

Does not import NumPy, because the command line is generated from the fields: arrays are typed Any.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lamp_trt.engine.backends.backend import Residence
from lamp_trt.engine.backends.cpu import CpuPrecision
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import (
    MAX_THREADS,
    Fit,
    GenerationConfig,
    Safety,
    SafetyCrops,
    checked,
    file_path,
    plain_text,
    setting,
)

NOISES = ("noise", "base_noise", "first_frame_noise", "posterior_noise")
"""The injected arrays of a VideoRequest."""

MAX_CLIP_FRAMES = 20_000
"""Maximum number of frames of a video file to edit: 11 minutes at 30 frames a second."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Requested placement of a bundle's networks, as the arguments of `lamp_trt.load`.

    Raises InputError for invalid values.
    """

    device: str = setting("auto", "cpu, cuda or cuda:N; auto is the CPU")
    backend: str = setting("auto", "name of a backend")
    num_threads: int | None = setting(
        None, "CPU threads; default: the backend's choice", low=1, high=MAX_THREADS, metavar="NUM_THREADS"
    )
    engine_dir: Path | None = setting(
        None, "folder of the compiled engines; default: in the bundle", metavar="DIR"
    )
    resident_motions: Residence = setting(
        "mapped", "TensorRT: where to keep used motions, so that switching back to them is faster"
    )
    cpu_precision: CpuPrecision | None = setting(
        None, "OpenVINO: arithmetic; default: fp32, but bf16 for a bundle in bf16 where the CPU has it"
    )

    def __post_init__(self) -> None:
        vars(self).update(checked(self))

    @property
    def placement(self) -> "Placement":
        """The placement fields of a subclass with more fields."""
        return Placement(**{each.name: getattr(self, each.name) for each in fields(Placement)})


@dataclass(frozen=True, eq=False)
class FirstFrameRequest:
    """A first frame to be made from a prompt. Raises InputError for a value out of range.

    negative_prompt  None: zero embeddings or those of the empty text, as the checkpoint specifies
    guidance_scale   <= 1 turns guidance off
    noise            (1, 4, h // 8, w // 8), replaces the noise drawn from `seed`
    """

    prompt: str
    negative_prompt: str | None = setting(None, "default: as the checkpoint specifies", metavar="PROMPT")
    seed: int = setting(0, "0 to 2^64-1")
    num_inference_steps: int = setting(50, "of SDXL's loop", metavar="STEPS")
    guidance_scale: float = setting(5.0, "1 or less turns guidance off", metavar="SCALE")
    noise: Any | None = None
    safety: Safety | None = setting(
        None, "flagged images; default: refuse, if the bundle has a safety checker"
    )
    safety_crops: SafetyCrops = setting(
        "all", "parts of the image that are checked; official is the centre alone"
    )

    def __post_init__(self) -> None:
        config = GenerationConfig(
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            first_frame_num_inference_steps=self.num_inference_steps,
            first_frame_guidance_scale=self.guidance_scale,
            safety=self.safety,
            safety_crops=self.safety_crops,
        )
        vars(self).update(
            prompt=plain_text("prompt", self.prompt),
            negative_prompt=config.negative_prompt,
            seed=config.seed,
            num_inference_steps=config.first_frame_num_inference_steps,
            guidance_scale=config.first_frame_guidance_scale,
            safety=config.safety,
            safety_crops=config.safety_crops,
        )

    def settings(self) -> dict[str, Any]:
        """The settings that reproduce the image, as JSON values."""
        kept = {name: value for name, value in vars(self).items() if name != "noise"}
        return {**kept, "injected": ["noise"] * (self.noise is not None)}


@dataclass(frozen=True, eq=False)
class InversionRequest:
    """A clip to be inverted, with the arguments of `LampPipeline.invert`. Raises InputError for invalid
    ones."""

    frames: Any
    num_inference_steps: int = 50
    motion: str | None = None
    fit: Fit = "stretch"

    def __post_init__(self) -> None:
        config = GenerationConfig(num_inference_steps=self.num_inference_steps, fit=self.fit)
        vars(self).update(num_inference_steps=config.num_inference_steps, fit=config.fit)
        if self.motion is not None:
            vars(self)["motion"] = plain_text("motion", self.motion)

    def fitted_frames(self, num_frames: int, height: int, width: int) -> Any:
        """The frames at the video's size, uint8 (f, height, width, 3). Raises InputError for other arrays and
        for another number of frames."""
        import numpy as np

        from lamp_trt.runtime.media.image import resize_to

        frames = self.frames
        if not isinstance(frames, np.ndarray):
            raise InputError(f"frames are a {type(frames).__name__}; expected a NumPy array.")
        if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[-1] != 3 or not frames.size:
            raise InputError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (f, h, w, 3).")
        if len(frames) != num_frames:
            raise InputError(f"{len(frames)} frames were given; this bundle's videos have {num_frames}.")
        if frames.shape[1:3] == (height, width):
            return frames
        return np.stack([resize_to(frame, height, width, self.fit) for frame in frames])


@dataclass(frozen=True)
class ClipRequest:
    """The part of a video file that is edited. Raises InputError for invalid values."""

    video: Path
    start: int = setting(0, "number of the clip's first frame to take, from 0", high=MAX_CLIP_FRAMES)
    every: int = setting(1, "take each, every second, … frame of the clip", low=1, high=MAX_CLIP_FRAMES)

    def __post_init__(self) -> None:
        vars(self).update(checked(self), video=file_path("the video", self.video))


@dataclass(frozen=True, eq=False)
class VideoRequest:
    """A video to be made, with the arguments of `LampPipeline.__call__`.

    Arrays replace the noise drawn from the seed:
    noise              (1, 4, f, h // 8, w // 8); if the config's mix_noise is False, DDIM-inverted latents,
                       used as given
    base_noise         (1, 4, 1, h // 8, w // 8), for preset "paper"
    first_frame_noise  (1, 4, h // 8, w // 8), for the first frame that SDXL makes
    posterior_noise    (1, 4, h // 8, w // 8); zeros give the posterior's mean
    Raises InputError for arguments that exclude each other.
    """

    prompt: str
    config: GenerationConfig
    motion: str | None = None
    first_frame: Any | None = None
    noise: Any | None = None
    base_noise: Any | None = None
    first_frame_noise: Any | None = None
    posterior_noise: Any | None = None

    def __post_init__(self) -> None:
        vars(self)["prompt"] = plain_text("prompt", self.prompt)
        if self.motion is not None:
            vars(self)["motion"] = plain_text("motion", self.motion)
        config = self.config
        if self.first_frame is not None and (
            config.first_frame_prompt is not None or self.first_frame_noise is not None
        ):
            raise InputError("give either first_frame, or first_frame_prompt and first_frame_noise for SDXL.")
        if self.noise is None and not config.mix_noise:
            raise InputError("mix_noise=False is for editing and needs `noise`: DDIM-inverted latents.")
        if self.base_noise is not None and (config.preset != "paper" or not config.mix_noise):
            raise InputError(
                'base_noise belongs to preset="paper" with mix_noise=True; nothing else uses it.'
            )

    @property
    def injected(self) -> list[str]:
        """Names of the injected noise arrays that a sidecar cannot reproduce. first_frame_noise is excluded:
        the sidecar stores the image."""
        names = set(NOISES) - {"first_frame_noise"}
        return sorted(name for name in names if getattr(self, name) is not None)

    def check_shapes(self, frames: int, height: int, width: int) -> None:
        """Raise InputError if injected noise does not have the shape of the video's latents."""
        from lamp_trt.runtime.algorithm.noise import check_noise

        shapes = {
            "noise": (1, 4, frames, height, width),
            "base_noise": (1, 4, 1, height, width),
            "posterior_noise": (1, 4, height, width),
        }
        for name in self.injected:
            check_noise(name, getattr(self, name), shapes[name])

    def first_frame_request(self) -> FirstFrameRequest:
        """The request for the first frame that SDXL makes."""
        config = self.config
        return FirstFrameRequest(
            self.prompt if config.first_frame_prompt is None else config.first_frame_prompt,
            config.negative_prompt,
            config.seed,
            config.first_frame_num_inference_steps,
            config.first_frame_guidance_scale,
            safety="off",  # the video's own check sees it
            noise=self.first_frame_noise,
        )
