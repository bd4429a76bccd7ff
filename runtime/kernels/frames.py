# SPDX-License-Identifier: Apache-2.0
"""Launch functions for the kernels between networks: posterior sample, first frame, decoded frames.

Every function checks its arrays, selects kernel and grid, and launches. None allocates or synchronises, so
all may be called during stream capture.
"""

from dataclasses import dataclass
from math import prod

from lamp_trt.runtime.algorithm.config import MAX_SEED, Histogram, one_of, whole_number
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.kernels.arrays import DeviceArray, expect
from lamp_trt.runtime.kernels.launch import (
    BYTE,
    COUNT,
    DRAW,
    HALF,
    PROGRESS,
    SINGLE,
    SUFFIX,
    THREADS,
    VECTOR,
    Launcher,
    blocks,
    pointer,
    variant,
)

HISTOGRAM_PARTS = 24
"""Number of blocks that count one frame: 384 blocks for 16 frames, enough to fill the largest GPU."""


def posterior_sample(
    launch: Launcher,
    mean: DeviceArray,
    logvar: DeviceArray,
    out: DeviceArray,
    *,
    scaling_factor: float,
    seed: int,
    noise: DeviceArray | None = None,
) -> None:
    """Compute the first frame's latents: out = (mean + exp(clamp(logvar, -30, 20) / 2) * n) * scaling_factor.

    mean, logvar (1, c, h, w) float16 or float32; out (1, c, 1, h, w) float32; n is `noise` (1, c, h, w)
    float32, or drawn from `seed` for Purpose.POSTERIOR.
    """
    whole_number("seed", seed, 0, MAX_SEED)
    expect("latent_mean", mean, mean.shape, HALF, SINGLE)
    expect("latent_logvar", logvar, mean.shape, mean.dtype)
    expect("out", out, (*mean.shape[:2], 1, *mean.shape[2:]), SINGLE)
    if noise is not None:
        expect("noise", noise, mean.shape, SINGLE)
    count = prod(mean.shape)
    launch(
        f"lamp_posterior_sample_{SUFFIX[mean.dtype]}",
        (blocks(-(-count // DRAW)), 1, 1),
        THREADS,
        [
            mean.pointer,
            logvar.pointer,
            pointer(noise),
            out.pointer,
            seed,
            Purpose.POSTERIOR,
            scaling_factor,
            count,
        ],
    )


def first_frame(
    launch: Launcher,
    decoded: DeviceArray,
    pixels: DeviceArray,
    image: DeviceArray,
    progress: DeviceArray | None = None,
) -> None:
    """Convert SDXL's decoded image to uint8, rounded, and its 2x2 means to the SD encoder's input.

    decoded (1, 3, 2h, 2w) in [-1, 1]; pixels (2h, 2w, 3) uint8; image (1, 3, h, w) in [-1, 1]. decoded and
    image are float16 or float32; a float32 image needs float32 decoded. progress: reports non-finite values.
    Other ratios use image.py on the host.
    """
    expect("image", image, (1, 3, *image.shape[2:]), HALF, SINGLE)
    height, width = image.shape[2:]
    expect("decoded", decoded, (1, 3, 2 * height, 2 * width), image.dtype, SINGLE)
    expect("pixels", pixels, (2 * height, 2 * width, 3), BYTE)
    launch(
        f"lamp_first_frame_{SUFFIX[decoded.dtype]}_{SUFFIX[image.dtype]}",
        (blocks(height * width), 1, 1),
        THREADS,
        [decoded.pointer, pixels.pointer, image.pointer, pointer(progress), height, width],
    )


def model_input(launch: Launcher, pixels: DeviceArray, image: DeviceArray) -> None:
    """Convert an image of the video's size to the SD encoder's input, x / 127.5 - 1, as image.model_input.

    pixels (h, w, 3) uint8; image (1, 3, h, w) float16 or float32.
    """
    expect("image", image, (1, 3, *image.shape[2:]), HALF, SINGLE)
    height, width = image.shape[2:]
    expect("pixels", pixels, (height, width, 3), BYTE)
    launch(
        f"lamp_model_input_{SUFFIX[image.dtype]}",
        (blocks(height * width), 1, 1),
        THREADS,
        [pixels.pointer, image.pointer, height * width],
    )


def decoder_input(launch: Launcher, latents: DeviceArray, out: DeviceArray, *, scaling_factor: float) -> None:
    """Compute out = latents / scaling_factor, with one decoder input per frame.

    latents (1, c, f, h, w) or (1, c, h, w) float32; out (f, c, h, w) float16 or float32.
    """
    frames, channels, *size = out.shape
    shape = (1, channels, frames, *size) if len(latents.shape) == 5 else (1, channels, *size)
    expect("latents", latents, shape, SINGLE)
    expect("out", out, (frames if len(latents.shape) == 5 else 1, channels, *size), HALF, SINGLE)
    launch(
        f"lamp_decoder_input_{SUFFIX[out.dtype]}",
        (blocks(prod(size)), channels, frames),
        THREADS,
        [latents.pointer, out.pointer, scaling_factor, prod(size)],
    )


@dataclass(frozen=True)
class HistogramArrays:
    """Arrays for a video's histogram matching.

    frames    (f, h, w, 3) uint8
    counts    (f, HISTOGRAM_PARTS, 3, 256) uint32
    lut       (f, 3, 256) uint8
    progress  (1,) PROGRESS in mapped host memory, or None
    """

    frames: DeviceArray
    counts: DeviceArray
    lut: DeviceArray
    progress: DeviceArray | None = None

    def __post_init__(self) -> None:
        f, *size, _ = self.frames.shape
        expect("frames", self.frames, (f, *size, 3), BYTE)
        expect("counts", self.counts, (f, HISTOGRAM_PARTS, 3, 256), COUNT)
        expect("lut", self.lut, (f, 3, 256), BYTE)
        if self.progress is not None:
            expect("progress", self.progress, (1,), PROGRESS)

    @property
    def pixels(self) -> int:
        return prod(self.frames.shape[1:3])


def count_decoded(launch: Launcher, video: HistogramArrays, images: DeviceArray, first: int = 0) -> None:
    """Convert decoded images to frames first..first+n-1, truncated to uint8, and count their histograms.

    images (n, 3, h, w) in [-1, 1], float16 or float32.
    """
    n = images.shape[0]
    expect("images", images, (n, 3, *video.frames.shape[1:3]), HALF, SINGLE)
    frames, counts = video.frames.rows(first, first + n), video.counts.rows(first, first + n)
    launch(
        f"lamp_hist_count_{variant(video.pixels, VECTOR, images, frames)}",
        (HISTOGRAM_PARTS, n, 1),
        THREADS,
        [images.pointer, frames.pointer, counts.pointer, pointer(video.progress), video.pixels],
    )


def match_histograms(launch: Launcher, video: HistogramArrays, mode: Histogram = "official") -> None:
    """Match frames 1.. to the histogram of frame 0, in place; all frames must be counted before.

    For modes see algorithm.histogram.match_histograms.
    """
    one_of("histogram", mode, Histogram)
    f = video.frames.shape[0]
    if mode == "none" or f == 1:
        return
    divisor = 1 if mode == "exact" else video.pixels
    launch(
        "lamp_hist_lut",
        (f - 1, 3, 1),
        THREADS,
        [video.counts.pointer, video.lut.pointer, HISTOGRAM_PARTS, divisor],
    )
    launch(
        f"lamp_hist_apply_{variant(video.pixels, VECTOR, video.frames)}",
        (HISTOGRAM_PARTS, f - 1, 1),
        THREADS,
        [video.lut.pointer, video.frames.pointer, video.pixels],
    )
