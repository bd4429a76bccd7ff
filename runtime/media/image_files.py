# SPDX-License-Identifier: Apache-2.0
"""Reading of image files: any of FORMATS to uint8 RGB in sRGB, upright and opaque, or an InputError.

docs/first_frames.md lists the outcome for each format and property.
"""

import ctypes
import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.image_colour import background_rgb, coding_points, to_srgb
from lamp_trt.runtime.media.image_samples import over, split_alpha

if TYPE_CHECKING:
    from PIL import Image as PIL
    from PIL import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000")
"""Pillow's names of all that is read. Its other plugins are never asked: some of them start programs."""

READABLE = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP, PPM and JPEG 2000"

MAX_FILE_BYTES = 2**29
"""Of an image file: all of it is in memory while it is decoded."""

MAX_PIXELS = 2**27
"""An image of more (16384 x 8192) is refused by its header: a small file can hold an image that fills the
memory."""

_OTHER_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIC",
    b"mp42": "a video",
    b"isom": "a video",
    b"qt  ": "a video",
}
"""Of files in ISO's container (`ftyp` at byte 4)."""

_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Orientation (EXIF tag 274) to the transposition that undoes it."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""

_END_MARKER = b"\xff\xd9"
"""EOI of JPEG, EOC of JPEG 2000. Coded data cannot contain it."""

log = logging.getLogger("lamp_trt")

_warning_filters = threading.Lock()


def read_image(path: str | os.PathLike[str], background: str = "white") -> NDArray[np.uint8]:
    """An image file as uint8 RGB (h, w, 3), see decode_image. InputError also for a missing or huge file."""
    name = f"the image {os.fspath(path)!r:.300}"
    if not os.path.isfile(path):
        raise InputError(f"{name} does not exist or is not a file.")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1) if os.path.getsize(path) <= MAX_FILE_BYTES else None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from error
    if data is None or len(data) > MAX_FILE_BYTES:
        raise InputError(f"{name} has more than {MAX_FILE_BYTES >> 20} MiB; save it as PNG or JPEG.")
    return decode_image(data, name, background)


def decode_image(
    data: bytes, name: str, background: str = "white", formats: tuple[str, ...] = FORMATS
) -> NDArray[np.uint8]:
    """The first picture of an image file's bytes as uint8 RGB (h, w, 3).

    It is turned as its orientation says, converted to sRGB, reduced to 8 bits a sample, and composited over
    `background` (see background_rgb) where it is transparent. An 8-bit sRGB image keeps its values exactly.
    name: the subject of messages. Raises InputError if the image is damaged, cut off, of another format or
    larger than MAX_PIXELS.
    """
    colour = background_rgb(background)
    try:
        with _quiet():
            image = _open(data, name, formats)
            image.load()
            upright = _upright(image, name)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name} cannot be read: it does not fit into the memory.") from error
    except Exception as error:  # whatever type a decoder meets in a damaged file
        raise _refusal(data, name, error) from error
    if upright.mode == "F" or (upright.mode == "I" and image.format != "PPM"):
        raise InputError(
            f"{name} cannot be read: its samples are 32-bit numbers without a defined white. "
            "Save it with 8 or 16 bits a sample."
        )
    opaque, alpha = split_alpha(upright, image.info.get("transparency"), *_depth(image, data))
    rgb = np.asarray(to_srgb(opaque, image.info.get("icc_profile"), coding_points(data), name))
    if alpha is not None and not (alpha == 255).all():
        log.info("%s has transparent pixels: composited over %s", name, background)
        rgb = over(rgb, alpha, colour)
    return np.ascontiguousarray(rgb)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings from Pillow meanwhile: its errors are reported by us, its hints on metadata are noise.

    Python's warning filters belong to the process, so only one thread at a time may change them.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _open(data: bytes, name: str, formats: tuple[str, ...]) -> "ImageFile.ImageFile":
    """The image with its header read, of an allowed size, and with its end in place."""
    from PIL import AvifImagePlugin, Image, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin

    # Their import registers them; asked for one that is not registered, Pillow imports all its plugins.
    del AvifImagePlugin, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin
    _silence_libtiff()
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        too_large = image.width * image.height > MAX_PIXELS
    except Image.DecompressionBombError:
        too_large = True
    if too_large:
        raise InputError(
            f"{name} cannot be read: it has more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller."
        )
    assert image.fp is not None
    if image.format in ("JPEG", "MPO", "JPEG2000"):
        coded = data.find(b"\xff\x90") if image.format == "JPEG2000" else image.fp.tell()
        if data.find(_END_MARKER, max(coded, 0)) < 0:
            raise EOFError("its end is missing")
    if image.format == "BMP" and image.mode == "1" and data[28] != 1:
        raise ValueError("bytes of two colours, which Pillow takes for bits")
    if image.format == "PNG":
        image.verify()  # the checksums, which loading ignores
        image = Image.open(io.BytesIO(data), formats=formats)
    return image


def _silence_libtiff() -> None:
    """libtiff writes to stderr unless it is told not to, which Pillow does for warnings only."""
    from PIL import _imaging

    try:
        handle = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):  # a Pillow that hides its libtiff
        return
    handle.argtypes, handle.restype = [ctypes.c_void_p], ctypes.c_void_p
    handle(None)


def _refusal(data: bytes, name: str, error: Exception) -> InputError:
    """InputError for an image that Pillow cannot decode."""
    from PIL import UnidentifiedImageError

    of_iso = data[4:8] == b"ftyp" and b"avif" not in data[8:64]
    brand = _OTHER_BRANDS.get(data[8:12]) if of_iso else None
    if brand:
        return InputError(f"{name} cannot be read: it is {brand}. Save it as JPEG or PNG.")
    if isinstance(error, UnidentifiedImageError):
        return InputError(
            f"{name} cannot be read: its header is damaged, or it is of another format than {READABLE}."
        )
    return InputError(
        f"{name} cannot be read: it is damaged, cut off, or of a rare variant ({error!s:.100}). "
        "Fetch it again, or save it as PNG or JPEG."
    )


def _upright(image: "ImageFile.ImageFile", name: str) -> "PIL.Image":
    """The loaded image as its orientation says: EXIF's, in AVIF `irot` and `imir`. Pillow has already turned
    a TIFF."""
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # noqa: BLE001  (its types are as various as damaged EXIF blocks)
        log.warning("%s has damaged EXIF data, its orientation is not known: %s", name, error)
        return image
    method = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image.transpose(Image.Transpose[method]) if method else image


def _depth(image: "ImageFile.ImageFile", data: bytes) -> tuple[int, bool]:
    """Bits of a sample as the file has them (8 where Pillow has already scaled them), and whether 0 is white
    in samples that Pillow leaves so."""
    if image.format == "PNG":
        return data[24], False  # IHDR
    tags = getattr(image, "tag_v2", None)
    if tags is not None and image.mode.startswith("I;16"):
        return tags[_BITS_PER_SAMPLE][0], tags.get(_PHOTOMETRIC) == 0
    return 16 if image.mode.startswith("I") else 8, False
