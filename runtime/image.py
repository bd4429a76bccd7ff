# SPDX-License-Identifier: Apache-2.0
"""A first frame from a file or an array: decoded, fitted to the video's size, scaled to the VAE encoder's
input."""

import base64
import os
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.config import one_of

Fit = Literal["stretch", "crop", "pad"]
"""How an image of another aspect ratio becomes the video's: `stretch` ignores the ratio, as the official
script does; `crop` cuts the longer side equally at both ends; `pad` adds black at both ends of the shorter
side."""

Image = NDArray[np.uint8]

MAX_FILE_BYTES = 2**29
"""Of an image file: OpenCV reads all of it before it looks."""

MAX_PIXELS = 2**27
"""A file that decodes to more (16384 x 8192) is refused: a small file can hold an image that fills the
memory."""


def load_first_frame(
    source: str | os.PathLike[str] | Image, height: int, width: int, fit: Fit = "stretch"
) -> Image:
    """The image as uint8 RGB (height, width, 3).

    source: a file that OpenCV reads, or uint8 RGB (h, w, 3). From files, 16-bit samples are reduced to 8
    bits, grey becomes RGB, alpha is dropped, EXIF orientation is applied, of an animation the first picture
    is taken: what cv2.imdecode does. Raises InputError if it cannot be read.
    """
    image = _check_array(source) if isinstance(source, np.ndarray) else read_image(source)
    return resize_to(image, height, width, fit)


def read_image(path: str | os.PathLike[str]) -> Image:
    """A file as uint8 RGB (h, w, 3), see load_first_frame."""
    if not os.path.isfile(path):
        raise InputError(f"the image {os.fspath(path)!r:.300} does not exist or is not a file.")
    if os.path.getsize(path) > MAX_FILE_BYTES:
        raise InputError(
            f"the image {os.fspath(path)!r} has more than {MAX_FILE_BYTES >> 20} MiB; save it as PNG or JPEG."
        )
    cv2 = _cv2()
    refusal = InputError(
        f"the image {os.fspath(path)!r} cannot be read: it is damaged, of a format unknown to OpenCV, "
        f"or has more than {MAX_PIXELS / 1e6:.0f} million pixels. PNG and JPEG work."
    )
    try:
        content = np.fromfile(path, np.uint8)  # cv2.imread crashes on a file name that is no UTF-8
        bgr = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except (cv2.error, OSError) as error:
        raise refusal from error
    if bgr is None or bgr.shape[0] * bgr.shape[1] > MAX_PIXELS:
        raise refusal
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def resize_to(image: Image, height: int, width: int, fit: Fit = "stretch") -> Image:
    """uint8 RGB (h, w, 3) to (height, width, 3), by the official script's cv2.resize: bilinear, no
    antialiasing."""
    one_of("fit", fit, Fit)
    image = _check_array(image)
    h, w = image.shape[:2]
    if fit == "crop":
        kept_h, kept_w = _inside(height, width, h, w)
        image = image[(h - kept_h) // 2 :, (w - kept_w) // 2 :][:kept_h, :kept_w]
    target_h, target_w = _inside(h, w, height, width) if fit == "pad" else (height, width)
    resized = _cv2().resize(np.ascontiguousarray(image), (target_w, target_h))
    if fit != "pad":
        return np.asarray(resized, np.uint8)
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - target_h) // 2, (width - target_w) // 2
    out[top : top + target_h, left : left + target_w] = resized
    return out


def model_input(image: Image, dtype: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    """uint8 RGB (h, w, 3) as x / 127.5 - 1, (1, 3, h, w) in `dtype`. In float16 both operations round, as in
    the official script."""
    x = image.astype(dtype).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(x / dtype(127.5) - dtype(1))


def encode_png(image: Image) -> bytes:
    """uint8 RGB (h, w, 3) as the bytes of a PNG file."""
    done, png = _cv2().imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    assert done
    return bytes(png)


def png_base64(image: Image) -> str:
    """uint8 RGB (h, w, 3) as a PNG file in base64, to be kept in JSON; `image_from_base64` reads it back."""
    return base64.b64encode(encode_png(image)).decode("ascii")


def image_from_base64(text: str) -> Image:
    """What `png_base64` wrote. Raises InputError for anything else."""
    try:
        png = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        bgr = _cv2().imdecode(png, _cv2().IMREAD_COLOR)
    except (ValueError, _cv2().error) as error:
        raise InputError(f"the stored first frame is no PNG in base64: {error}.") from error
    if bgr is None:
        raise InputError("the stored first frame is no PNG in base64.")
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def _inside(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """The largest size of ratio h : w inside height x width, each side at least 1."""
    scale = min(height / h, width / w)
    return max(1, min(height, round(h * scale))), max(1, min(width, round(w * scale)))


def _check_array(image: Image) -> Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"the image is {image.dtype} {image.shape}; expected uint8 RGB of shape (h, w, 3).")
    return image


def _cv2() -> ModuleType:
    """OpenCV, told to refuse larger images before it decodes them; it reads this once, when first
    imported."""
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    import cv2

    return cv2
