# SPDX-License-Identifier: Apache-2.0
"""The operations that Algorithm 1 is made of, as stages.py calls them.

host/ops.py executes each in NumPy and returns arrays; cuda/ops.py enqueues each and returns handles of device
memory. What an operation returns is only ever given back to operations of the same object, until `fetch`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import EngineError
from lamp_trt.runtime.algorithm.config import GenerationConfig, Histogram
from lamp_trt.runtime.algorithm.latents import Latents
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.media.image import Image

Array = NDArray[Any]
TokenIds = NDArray[np.int64]
StepCallback = Callable[[int, int, Latents], Latents]
"""(step index from 0, timestep, latents after the step's AdaIN) → the latents to go on with."""


@dataclass(frozen=True, eq=False)
class Loop:
    """One denoising loop, as host and device interpret it.

    stage          of Progress
    unet           its name in errors
    timesteps      (n,), falling
    rows           (n,) latents.STEP_ROW
    seed, purpose  of the noise, where `noise` is None
    base_weight    share of the noise that frames have in common, 0 for none
    base_purpose   the draw of that shared noise; None: frame 0's of the same draw
    base_noise     that shared noise, given
    on_step        selects a mode that waits for each step, on a device
    final_adain    match frames to frame 0 once more after the last callback
    """

    stage: str
    unet: str
    timesteps: NDArray[np.int64]
    rows: NDArray[np.void]
    seed: int
    purpose: Purpose
    noise: Array | None = None
    base_weight: float = 0.0
    base_purpose: Purpose | None = None
    base_noise: Array | None = None
    on_step: StepCallback | None = None
    final_adain: bool = False

    def __len__(self) -> int:
        return len(self.rows)


class Clock(Protocol):
    """Times consecutive stages: each begins where the one before ended."""

    def end(self, stage: str) -> None: ...

    def seconds(self) -> dict[str, float]:
        """By stage, in order; after `finish`."""
        ...


class Ops(Protocol):
    """Common to both families. Not for several threads at once. Operations raise EngineError if a network
    fails or, at the latest in `finish`, returned values that are not finite."""

    def working(self, control: Control) -> AbstractContextManager[Clock]:
        """One piece of work: it begins when earlier work is done, and leaves nothing pending however it ends.
        Cancelled if the token is set already."""
        ...

    def finish(self, control: Control) -> None:
        """Wait until everything is done, reporting progress; Cancelled if the token is set meanwhile."""
        ...

    def safety_cosines(self, pixel_values: NDArray[np.float32]) -> tuple[Array, Array]:
        """See runtime/safety/check.py's Network; of a bundle with a safety checker, which is loaded at the
        first call. Waits for all earlier work."""
        ...

    def fetch(self, value: Any) -> Array:
        """A result as a host array, after `finish`."""
        ...

    def close(self) -> None:
        """Give engines and memory back; a second time does nothing. Operations raise afterwards."""
        ...


class ImageOps(Ops, Protocol):
    """SDXL."""

    def clock(self) -> Clock:
        """A clock of its own for work inside other work."""
        ...

    def encode_text(self, ids: tuple[TokenIds, TokenIds], zero_negative: bool) -> tuple[Any, Any]:
        """Both encoders' hidden states along their last axis (2, tokens, width), and text_embeds
        (2, projection_dim), [negative, prompt]; `ids` for either encoder (2, tokens)."""
        ...

    def denoise(self, loop: Loop, text: tuple[Any, Any], control: Control) -> Any:
        """Latents (1, 4, h, w) float32 after the last step."""
        ...

    def decode(self, latents: Any) -> Any:
        """The image (1, 3, height, width) in [-1, 1]."""
        ...

    def pixels(self, decoded: Any) -> Any:
        """A decoded image as uint8 RGB (height, width, 3), rounded as diffusers does."""
        ...


class VideoOps(Ops, Protocol):
    """LAMP."""

    def images(self) -> ImageOps:
        """SDXL on the same device and for the same work, loaded if it is not yet."""
        ...

    def take_image(self, first_frame: Any, config: GenerationConfig) -> Any:
        """A user's first frame as VideoJob holds it. InputError if it is no image."""
        ...

    def set_motion(self, motion: str) -> None:
        """Make `motion` the one that the UNet shows. Waits."""
        ...

    def encode_text(self, ids: TokenIds) -> Any:
        """Text embeddings (2, tokens, width), [negative, prompt]."""
        ...

    def fit(self, decoded: Any, config: GenerationConfig) -> tuple[Any, Any]:
        """SDXL's decoded image as its pixels, and fitted to the video's size for `encode_image`."""
        ...

    def encode_image(self, image: Any, seed: int, posterior_noise: Array | None) -> Any:
        """First-frame latents (1, 4, 1, h, w), float32 and scaled: a sample of the VAE's posterior. image: of
        `fit`, or as VideoJob holds it."""
        ...

    def animated(self, image: Any) -> Image:
        """The image given to the last encode_image, uint8 RGB (height, width, 3); after `finish`."""
        ...

    def denoise(self, loop: Loop, text: Any, first_frame: Any, control: Control) -> Any:
        """Latents (1, 4, f, h, w) float32 after the last step."""
        ...

    def put(self, latents: Latents) -> Any:
        """Latents from the host, as `denoise` returns them."""
        ...

    def decode(self, latents: Any, control: Control) -> Any:
        """Frames uint8 (f, height, width, 3), truncated as the official script does."""
        ...

    def match(self, frames: Any, mode: Histogram) -> Any:
        """Decoded frames with the histogram of frame 0."""
        ...


def decode_windows(frames: int, batch: int) -> list[int]:
    """First frames of the VAE decoder's runs, each of `batch` frames. Where that does not divide their
    number, the last run decodes some frames a second time. EngineError for a batch larger than the video."""
    if batch > frames:
        raise EngineError(f"the VAE decoder takes {batch} frames at once, the video has {frames}.")
    return [min(start, frames - batch) for start in range(0, frames, batch)]


def time_ids(sizes: Mapping[str, int]) -> NDArray[np.float32]:
    """SDXL's [original size, crop corner, target size] for an uncropped image of the size that is made,
    (2, 6): once for each half of guidance."""
    height, width = sizes["first_frame_height"], sizes["first_frame_width"]
    return np.repeat(np.array([[height, width, 0, 0, height, width]], np.float32), 2, axis=0)
