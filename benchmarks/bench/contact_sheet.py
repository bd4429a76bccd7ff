# SPDX-License-Identifier: Apache-2.0
"""Contact sheet of two clips and their difference."""

import base64

import numpy as np
from numpy.typing import NDArray

from lamp_trt.benchmarks.verify.metrics import Frames

MOST_FRAMES, THUMBNAIL_WIDTH = 8, 160
AMPLIFICATION = 32
"""Factor on the difference, so that one or two levels are visible."""


def contact_sheet(expected: Frames, actual: Frames) -> NDArray[np.uint8]:
    """Draw the reference's frames at the top, ours in the middle, AMPLIFICATION times their difference below.

    Frames are uint8 (f, h, w, 3). At most MOST_FRAMES frames are shown, the first and last among them. Wide
    frames are shrunk after the difference is taken: by means, the difference by maxima.
    """
    shown = np.unique(np.linspace(0, len(expected) - 1, min(len(expected), MOST_FRAMES)).round().astype(int))
    difference = np.abs(expected[shown].astype(np.int16) - actual[shown]) * AMPLIFICATION
    rows = [expected[shown], actual[shown], np.minimum(difference, 255).astype(np.uint8)]
    reduce = max(1, expected.shape[2] // THUMBNAIL_WIDTH)
    means = [_reduced(row, reduce, np.mean) for row in rows[:2]]
    return np.concatenate(
        [np.concatenate(list(r), axis=1) for r in (*means, _reduced(rows[2], reduce, np.max))]
    )


def sheet_png(expected: Frames, actual: Frames) -> str:
    """Return the contact sheet as PNG in base64."""
    from lamp_trt.runtime.media.image import encode_png

    return base64.b64encode(encode_png(contact_sheet(expected, actual))).decode("ascii")


def _reduced(frames: Frames, by: int, how: object) -> Frames:
    f, h, w, c = frames.shape
    cut = frames[:, : h // by * by, : w // by * by].reshape(f, h // by, by, w // by, by, c)
    pooled: Frames = np.asarray(how(cut, axis=(2, 4))).round().astype(np.uint8)  # type: ignore[operator]
    return pooled
