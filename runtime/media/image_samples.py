# SPDX-License-Identifier: Apache-2.0
"""Conversion of a decoded image's samples to 8 bits, and separation of transparency."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image as PIL

Alpha = NDArray[np.uint8]
"""(h, w): 0 is transparent, 255 opaque."""


def split_alpha(
    image: "PIL.Image", key: Any, bits: int = 8, zero_is_white: bool = False
) -> tuple["PIL.Image", Alpha | None]:
    """The image with 8 bits per sample and without transparency (mode L, RGB, CMYK, YCbCr or LAB), and its
    alpha, None if it has none.

    key            Pillow's `transparency`: the transparent palette entries, or colour in samples of `bits`
    zero_is_white  of 16-bit grey images
    The upper 8 of 16 bits are kept, as in OpenCV.
    """
    if image.mode.startswith("I"):
        return _deep_grey(image, key, bits, zero_is_white)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or (image.mode == "P" and key is not None):
        rgba = image.convert("RGBA")
        opaque = image.getchannel("L") if image.mode == "LA" else rgba.convert("RGB")
        return opaque, np.asarray(rgba.getchannel("A"))
    mode = {"1": "L", "P": "RGB", "RGBX": "RGB"}.get(image.mode, image.mode)
    plain = image if mode == image.mode else image.convert(mode)
    if key is None or mode not in ("L", "RGB"):
        return plain, None
    return plain, _keyed(np.asarray(plain), key, 8 if image.mode == "1" else bits)


def over(rgb: NDArray[np.uint8], alpha: Alpha, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Composite uint8 RGB (h, w, 3) over one colour: (alpha * rgb + (255 - alpha) * background) / 255,
    rounded to nearest."""
    out = np.empty_like(rgb)
    opaque = alpha.astype(np.uint32)
    for channel, behind in enumerate(background):  # one at a time: a third of the memory
        total = rgb[..., channel] * opaque + (255 - opaque) * behind
        out[..., channel] = (total + 127) // 255
    return out


def _deep_grey(
    image: "PIL.Image", key: Any, bits: int, zero_is_white: bool
) -> tuple["PIL.Image", Alpha | None]:
    from PIL import Image

    deep = np.asarray(image)
    grey = (deep.astype(np.uint32) >> (bits - 8)).clip(0, 255).astype(np.uint8)
    alpha = None if key is None else np.where(deep == key, 0, 255).astype(np.uint8)
    return Image.fromarray(255 - grey if zero_is_white else grey), alpha


def _keyed(samples: NDArray[np.uint8], key: Any, bits: int) -> Alpha:
    """Alpha that is 0 where all samples of a pixel equal `key`, a value of `bits` bits. 16-bit samples are
    already reduced, so only the upper bytes are compared."""
    colour = np.array(key, np.int64)
    colour = colour >> 8 if bits == 16 else colour * 255 // (2**bits - 1)
    same = samples == colour
    return np.where(same.all(axis=-1) if same.ndim == 3 else same, 0, 255).astype(np.uint8)
