# SPDX-License-Identifier: Apache-2.0
"""Distances between two results: tensors, and clips."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Frames = NDArray[np.uint8]

_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Distance:
    """Distance of an array to the expected one. If either holds NaN or infinity, `finite` is False, the
    cosine 0, and the others are infinite.

    max_abs   largest |actual - expected|
    scale     largest |expected|, for comparison with max_abs
    rel_l2    ||actual - expected|| / ||expected||
    cosine    of the angle between the two, as vectors
    """

    max_abs: float
    scale: float
    rel_l2: float
    cosine: float
    finite: bool


def distance(actual: Array, expected: Array) -> Distance:
    """Return the distance, computed in float64 for any dtypes. ValueError if the shapes differ."""
    _require_same_shape(actual, expected)
    a, b = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Distance(math.inf, math.inf, math.inf, 0.0, finite=False)
    difference = a - b
    norm_a, norm_b, norm = (float(np.linalg.norm(x)) for x in (a, b, difference))
    tiny = float(np.finfo(np.float64).tiny)
    cosine = 1.0 if norm == 0 else float(a @ b) / max(norm_a * norm_b, tiny)
    return Distance(
        max_abs=float(np.abs(difference).max(initial=0)),
        scale=float(np.abs(b).max(initial=0)),
        rel_l2=norm / max(norm_b, tiny),
        cosine=cosine,
        finite=True,
    )


@dataclass(frozen=True)
class ClipDistance:
    """Distance of uint8 frames to the expected ones.

    psnr_db       over the whole clip, infinite if equal
    ssim          mean over frames
    max_levels    largest difference of a value, of 255
    equal_share   share of equal values
    """

    psnr_db: float
    ssim: float
    max_levels: int
    equal_share: float


def clip_distance(actual: Frames, expected: Frames) -> ClipDistance:
    """Return the distance of frames, uint8 (f, h, w, 3). ValueError if the shapes differ."""
    _require_same_shape(actual, expected)
    levels = np.abs(actual.astype(np.int16) - expected)
    return ClipDistance(
        psnr_db=psnr_db(actual, expected),
        ssim=float(np.mean([ssim(a, b) for a, b in zip(actual, expected, strict=True)])),
        max_levels=int(levels.max()),
        equal_share=float((levels == 0).mean()),
    )


def _require_same_shape(actual: Array, expected: Array) -> None:
    if actual.shape != expected.shape:
        raise ValueError(f"shape {actual.shape} is compared with {expected.shape}")


def psnr_db(actual: Frames, expected: Frames) -> float:
    """Return the peak signal-to-noise ratio of uint8 arrays: 10 log10(255^2 / mean squared difference)."""
    mean_square = float(np.square(actual.astype(np.float64) - expected).mean())
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


def ssim(actual: Frames, expected: Frames) -> float:
    """Return the structural similarity of the luma of two uint8 RGB images (h, w, 3), 1 if equal.

    Wang et al. 2004, eq. 13: Gaussian window of 11 pixels and sigma 1.5, constants (0.01 L)^2, (0.03 L)^2.
    """
    x, y = (image @ _LUMA for image in (actual, expected))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    return float((luminance * structure).mean())


def _blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    import cv2

    return np.asarray(cv2.GaussianBlur(image, (11, 11), _SSIM_SIGMA), np.float64)
