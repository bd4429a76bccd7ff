# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 between token ids and pixels: what a job holds, what comes back, and who does it.

`host/stages.py` works on host arrays and is the plain reference; `cuda/stages.py` keeps everything on a GPU.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamp_trt.runtime.algorithm.config import GenerationConfig
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule
from lamp_trt.runtime.host.loop import Latents, StepCallback
from lamp_trt.runtime.media.image import Fit, Image

Array = NDArray[Any]
TokenIds = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageJob:
    """A first frame to be made by SDXL, every argument checked.

    ids            for either text encoder (2, tokens): [negative, prompt]
    zero_negative  the negative prompt is all-zero embeddings, whatever its ids are
    noise          (1, 4, h, w) instead of the seed's
    """

    ids: tuple[TokenIds, TokenIds]
    zero_negative: bool
    schedule: DDIMSchedule
    guidance_scale: float
    seed: int = 0
    noise: Array | None = None
    on_step: StepCallback | None = None


@dataclass(frozen=True, eq=False)
class VideoJob:
    """A video to be made, every argument checked; LampPipeline.__call__ explains them.

    ids          (2, tokens): [negative, prompt]
    first_frame  an image of the video's size, for a GPU also a CUDA array; or the job that makes one, which
                 is then fitted as `fit` says
    """

    ids: TokenIds
    first_frame: Any | ImageJob
    fit: Fit
    schedule: DDIMSchedule
    config: GenerationConfig
    noise: Array | None = None
    base_noise: Array | None = None
    posterior_noise: Array | None = None
    on_step: StepCallback | None = None


@dataclass(frozen=True, eq=False)
class MadeImage:
    """image: uint8 RGB (h, w, 3). latents: float32 (1, 4, h // 8, w // 8) as decoded. timings: seconds by
    stage."""

    image: Image
    latents: Latents
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MadeVideo:
    """frames: uint8 RGB (f, h, w, 3). latents: float32 (1, 4, f, h // 8, w // 8) as decoded. first_frame: the
    image that was animated, uint8 RGB (h, w, 3). made: what SDXL made of the job's ImageJob, larger than
    that. timings: seconds by stage."""

    frames: NDArray[np.uint8]
    latents: Latents
    first_frame: Image
    made: MadeImage | None
    timings: Mapping[str, float]


class ImageStages(Protocol):
    """SDXL. Not for several threads at once; methods raise EngineError if a network fails."""

    def make_image(self, job: ImageJob) -> MadeImage: ...

    def encode_text(self, ids: tuple[TokenIds, TokenIds], zero_negative: bool) -> tuple[Array, Array]:
        """Both encoders' hidden states side by side (2, tokens, width), and text_embeds (2, projection_dim),
        [negative, prompt]."""
        ...


class VideoStages(Protocol):
    """The networks of the video. Not for several threads at once; methods raise EngineError if one fails."""

    def take_image(self, first_frame: Any, fit: Fit, background: str) -> Any:
        """A user's first frame as VideoJob takes it. InputError if it is no image."""
        ...

    def set_motion(self, motion: str) -> None: ...

    def make_video(self, job: VideoJob) -> MadeVideo: ...

    def encode_text(self, ids: TokenIds) -> Array:
        """Text embeddings (2, tokens, width), [negative, prompt]."""
        ...

    def encode_image(self, image: Image, seed: int, posterior_noise: Array | None) -> Latents:
        """uint8 RGB (h, w, 3) to first-frame latents (1, 4, 1, h // 8, w // 8), float32 and scaled: a sample
        of the VAE's posterior."""
        ...

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Latents (1, 4, f, h, w) to frames uint8 (f, height, width, 3), before histogram matching."""
        ...


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Sets timings[stage] to the seconds of the block, if it ends without an error."""
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start
