# SPDX-License-Identifier: Apache-2.0
"""First frames: loading from a file or an array, fitting to the video's size, scaling for the VAE encoder."""

import base64
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import Fit, one_of
from lamp_trt.runtime.media.image_colour import background_rgb
from lamp_trt.runtime.media.image_files import decode_image, read_image

Image = NDArray[np.uint8]


def load_first_frame(
    source: str | os.PathLike[str] | Image,
    height: int,
    width: int,
    fit: Fit = "stretch",
    background: str = "white",
) -> Image:
    """Load an image and fit it to uint8 RGB (height, width, 3).

    source      an image file (see read_image), or uint8 RGB (h, w, 3)
    background  colour under transparent pixels of a file (see background_rgb)
    Raises InputError for a file that cannot be read and for invalid arguments.
    """
    background_rgb(background)
    if not isinstance(source, str | os.PathLike | np.ndarray):
        raise InputError(
            f"the image is a {type(source).__name__}; expected a file's name or uint8 RGB of shape "
            "(h, w, 3), as np.asarray(image.convert('RGB')) gives for Pillow's images."
        )
    image = _check_array(source) if isinstance(source, np.ndarray) else read_image(source, background)
    return resize_to(image, height, width, fit)


def resize_to(image: Image, height: int, width: int, fit: Fit = "stretch") -> Image:
    """Resize uint8 RGB (h, w, 3) to (height, width, 3) as the official script: cv2.resize, bilinear, without
    antialiasing."""
    import cv2

    one_of("fit", fit, Fit)
    image = _check_array(image)
    h, w = image.shape[:2]
    if fit == "crop":
        kept_h, kept_w = _inside(height, width, h, w)
        image = image[(h - kept_h) // 2 :, (w - kept_w) // 2 :][:kept_h, :kept_w]
    target_h, target_w = _inside(h, w, height, width) if fit == "pad" else (height, width)
    resized = cv2.resize(np.ascontiguousarray(image), (target_w, target_h))
    if fit != "pad":
        return np.asarray(resized, np.uint8)
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - target_h) // 2, (width - target_w) // 2
    out[top : top + target_h, left : left + target_w] = resized
    return out


def model_input(image: Image, dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    """Convert uint8 RGB (h, w, 3) to x / 127.5 - 1, (1, 3, h, w) in `dtype`. In float16 both operations
    round, as in the official script."""
    x = image.astype(dtype).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(x / dtype(127.5) - dtype(1))


def encode_png(image: Image) -> bytes:
    """Encode uint8 RGB (h, w, 3) as a PNG file."""
    import cv2

    done, png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    assert done
    return bytes(png)


def png_base64(image: Image) -> str:
    """Encode uint8 RGB (h, w, 3) as a PNG file in base64, for JSON; `image_from_base64` is the inverse."""
    return base64.b64encode(encode_png(image)).decode("ascii")


def image_from_base64(text: str) -> Image:
    """Decode the result of `png_base64` to uint8 RGB (h, w, 3). Raises InputError for anything else."""
    try:
        png = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"the stored first frame is not base64: {error}.") from error
    return decode_image(png, "the stored first frame (a PNG in base64)", formats=("PNG",))


def _inside(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """The largest size with ratio h : w inside height x width, each side at least 1."""
    scale = min(height / h, width / w)
    return max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))


def _check_array(image: Image) -> Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"the image is {image.dtype} {image.shape}; expected uint8 RGB of shape (h, w, 3).")
    return image
