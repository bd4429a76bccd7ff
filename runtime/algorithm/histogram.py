# SPDX-License-Identifier: Apache-2.0
"""Conversion of decoded frames to uint8, and histogram matching to the first frame (Algorithm 1, last line).

NumPy equivalent of kernels/hist_match.cu. Source: docs/algorithm.md.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime.algorithm.config import Histogram, one_of

LEVELS = 256

Rounding = Literal["truncate", "round"]


def uint8_frames(images: NDArray[Any], rounding: Rounding = "truncate") -> NDArray[np.uint8]:
    """Convert decoded images (f, 3, h, w) in [-1, 1] to uint8 RGB (f, h, w, 3).

    clamp(x / 2 + 0.5, 0, 1) * 255 in float32. Video frames are truncated, as in the official script; SDXL's
    image is rounded (half to even), as in diffusers. Raises EngineError if the decoder returned NaN.
    """
    one_of("rounding", rounding, Rounding)
    if np.isnan(images).any():
        raise EngineError(
            "the VAE decoder returned NaN; build the bundle with --precision fp32 and try again."
        )
    unit = np.clip(images.astype(np.float32) / 2 + np.float32(0.5), 0, 1)
    levels = unit * np.float32(LEVELS - 1)
    if rounding == "round":
        levels = np.rint(levels)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))


def match_histograms(frames: NDArray[np.uint8], mode: Histogram = "official") -> NDArray[np.uint8]:
    """Match frames 1.. to the histogram of frame 0, per colour channel; uint8 (f, h, w, 3) to a new array.

    A level v becomes the first level u with cdf_reference[u] >= cdf_frame[v]. "exact" compares pixel counts.
    "official" equals the official code bit for bit: its CDFs are running float64 sums of n_k / N, so equal
    CDFs may differ in the last bit, and a level whose CDF exceeds all of the reference's becomes 255 instead
    of the reference's maximum. "none" only copies. Raises InputError for other shapes, dtypes and modes.
    """
    one_of("histogram", mode, Histogram)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise InputError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (f, h, w, 3).")
    out = frames.copy()
    if mode == "none":
        return out
    for channel in range(3):
        reference = _cdf(frames[0, ..., channel], mode)
        for f in range(1, len(frames)):
            levels = frames[f, ..., channel]
            lut = np.searchsorted(reference, _cdf(levels, mode), side="left")
            out[f, ..., channel] = np.minimum(lut, LEVELS - 1).astype(np.uint8)[levels]
    return out


def _cdf(levels: NDArray[np.uint8], mode: Histogram) -> NDArray[Any]:
    """Cumulative histogram (256,) of counts, or of float64 densities in bin order ("official")."""
    counts = np.bincount(levels.ravel(), minlength=LEVELS)
    return np.cumsum(counts if mode == "exact" else counts / levels.size)
