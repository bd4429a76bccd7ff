# SPDX-License-Identifier: Apache-2.0
"""The interface of Algorithm 1's operations, which stages.py calls.

host/ops.py executes each operation in NumPy and returns arrays; cuda/ops.py enqueues each and returns handles
of device memory. Results are only passed to operations of the same object, or to `fetch`.
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
"""(step index from 0, timestep, latents after the step's AdaIN) → the latents to continue with."""


@dataclass(frozen=True, eq=False)
class Loop:
    """Description of one denoising loop, for host and device.

    stage          name of the loop for Progress
    unet           name of the UNet in errors
    timesteps      (n,), descending; ascending in an inversion
    rows           (n,) latents.STEP_ROW
    seed, purpose  of the noise to draw, if `noise` is None
    noise          initial noise, (1, c, f, h, w) or (1, c, h, w)
    base_weight    weight of the noise shared by all frames, 0 for none
    base_purpose   purpose of the shared noise's draw; None: frame 0 of the same draw
    base_noise     the shared noise, (1, c, 1, h, w), instead of a draw
    on_step        callback after each step; on a device, waits for each step
    final_adain    match frames to frame 0 once more after the last callback
    clean          (n, 2) from preview.clean_table, for previews; None: no previews of this loop
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
    clean: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.rows)


class Clock(Protocol):
    """Timer of consecutive stages: each begins where the previous one ended."""

    def end(self, stage: str) -> None: ...

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in order; after `finish`."""
        ...


class Ops(Protocol):
    """Operations common to both families; not thread-safe.

    Operations raise EngineError if a network fails or, in `finish` at the latest, if it returned non-finite
    values.
    """

    def working(self, control: Control) -> AbstractContextManager[Clock]:
        """A context for one piece of work: waits for earlier work at its start; after an error in it, nothing
        is pending. Raises Cancelled if the token is set already."""
        ...

    def finish(self, control: Control) -> None:
        """Wait until everything is done, reporting progress. Raises Cancelled if the token gets set."""
        ...

    def safety_cosines(self, pixel_values: NDArray[np.float32]) -> tuple[Array, Array]:
        """See runtime/safety/check.py's Network; of a bundle with a safety checker, which is loaded at the
        first call. Waits for all earlier work."""
        ...

    def fetch(self, value: Any) -> Array:
        """A result as a host array, after `finish`."""
        ...

    def close(self) -> None:
        """Release engines and memory; a second call does nothing. Operations raise afterwards."""
        ...


class ImageOps(Ops, Protocol):
    """SDXL's operations."""

    def clock(self) -> Clock:
        """A separate clock for work inside other work."""
        ...

    def encode_text(self, ids: tuple[TokenIds, TokenIds], zero_negative: bool) -> tuple[Any, Any]:
        """Both encoders' hidden states, concatenated to (2, tokens, width), and text_embeds
        (2, projection_dim), each [negative, prompt]. ids: (2, tokens) per encoder."""
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
    """LAMP's operations."""

    def images(self) -> ImageOps:
        """SDXL's operations on the same device and in the same work; loads its networks on the first call."""
        ...

    def take_image(self, first_frame: Any, config: GenerationConfig) -> Any:
        """Convert a user's first frame for VideoJob. Raises InputError if it is not an image."""
        ...

    def set_motion(self, motion: str) -> None:
        """Switch the UNet to `motion`. Waits."""
        ...

    def encode_text(self, ids: TokenIds) -> Any:
        """Text embeddings (2, tokens, width), [negative, prompt]."""
        ...

    def fit(self, decoded: Any, config: GenerationConfig) -> tuple[Any, Any]:
        """SDXL's decoded image as pixels, and fitted to the video's size as input of `encode_image`."""
        ...

    def encode_image(self, image: Any, seed: int, posterior_noise: Array | None) -> Any:
        """First-frame latents (1, 4, 1, h, w), float32 and scaled: a sample of the VAE's posterior. image:
        the result of `fit` or `take_image`."""
        ...

    def animated(self, image: Any) -> Image:
        """The image given to the last encode_image, uint8 RGB (height, width, 3); after `finish`."""
        ...

    def denoise(self, loop: Loop, text: Any, first_frame: Any | None, control: Control) -> Any:
        """Latents (1, 4, f, h, w) float32 after the last step. first_frame: latents of frame 0; None: frame 0
        is one of the loop's, as in an inversion."""
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
    """First frame of each VAE decoder run of `batch` frames.

    If `batch` does not divide `frames`, the last run decodes some frames a second time. Raises EngineError
    for a batch larger than the video.
    """
    if batch > frames:
        raise EngineError(f"the VAE decoder takes {batch} frames at once, the video has {frames}.")
    return [min(start, frames - batch) for start in range(0, frames, batch)]


def time_ids(sizes: Mapping[str, int]) -> NDArray[np.float32]:
    """SDXL's [original size, crop corner, target size] of an uncropped image, (2, 6) float32: one row for
    each half of guidance."""
    height, width = sizes["first_frame_height"], sizes["first_frame_width"]
    return np.repeat(np.array([[height, width, 0, 0, height, width]], np.float32), 2, axis=0)
