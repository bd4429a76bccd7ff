# SPDX-License-Identifier: Apache-2.0
"""Synthetic first frame for measurements and comparisons."""

import numpy as np
from numpy.typing import NDArray


def synthetic_picture(height: int, width: int) -> NDArray[np.uint8]:
    """Return a smooth picture with all levels and a few edges, uint8 RGB (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = y / height, x / width
    colours = np.stack([np.sin(5 * x + 3 * y), np.cos(7 * x * y), np.sin(9 * y - 2 * x)], axis=-1)
    disc = (x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.04
    colours[disc] = colours[disc][:, ::-1] * 0.8
    return np.rint(127.5 + 120 * colours).astype(np.uint8)
