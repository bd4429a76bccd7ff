# SPDX-License-Identifier: Apache-2.0
"""Frames as the safety checker's network takes them: what CLIP's image processor of transformers does, by
the same library, for the centre of a picture and for the rest of it.

That processor resizes the shorter side to the network's size and cuts out the centre, which of a 512x320
frame is 63 % of the width. `all` also cuts out both ends of the longer side, and where these three leave
gaps as many more as cover the picture; `official` is the centre alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import SafetyEntry
from lamp_trt.runtime.algorithm.config import SafetyCrops
from lamp_trt.runtime.media.image import Image

MIN_CROPS = 3


def crops_of(frame: Image, size: int, which: SafetyCrops = "all") -> list[Image]:
    """Square pictures (size, size, 3) of a frame, uint8 RGB (h, w, 3), from left to right or top to bottom;
    one of a square frame."""
    from PIL import Image as Pillow

    height, width = frame.shape[:2]
    scale = size / min(height, width)
    longer = int(size * max(height, width) / min(height, width))
    resized_size = (longer, size) if width > height else (size, longer)
    unchanged = scale == 1 and longer == max(height, width)
    picture = Pillow.fromarray(np.ascontiguousarray(frame))
    resized = np.asarray(picture if unchanged else picture.resize(resized_size, Pillow.Resampling.BICUBIC))
    starts = [(longer - size) // 2] if which == "official" else crop_starts(longer, size)
    if width > height:
        return [resized[:, start : start + size] for start in starts]
    return [resized[start : start + size] for start in starts]


def crop_starts(length: int, size: int) -> list[int]:
    """Where crops of `size` begin so that they cover `length`: both ends, evenly between them, and the
    centre where CLIP's processor has it."""
    spare = length - size
    if spare <= 0:
        return [0]
    count = max(MIN_CROPS, math.ceil(spare / size) + 1)
    count += 1 - count % 2  # an odd number has a centre
    return list(dict.fromkeys(spare * index // (count - 1) for index in range(count)))


def pixel_values(crops: Sequence[Image], entry: SafetyEntry) -> NDArray[np.float32]:
    """uint8 (size, size, 3) each to float32 (n, 3, size, size), normalised."""
    mean, std = (np.array(values, np.float32) for values in (entry.image_mean, entry.image_std))
    unit: NDArray[Any] = np.stack(crops).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((unit - mean) / std).transpose(0, 3, 1, 2))
