# SPDX-License-Identifier: Apache-2.0
"""Reader of image files in any of FORMATS: returns uint8 RGB in sRGB, upright and opaque.

docs/first_frames.md lists the outcome for each format and property.
"""

import ctypes
import io
import logging
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.image_colour import background_rgb, coding_points, to_srgb
from lamp_trt.runtime.media.image_samples import over, split_alpha

if TYPE_CHECKING:
    from PIL import Image as PIL
    from PIL import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "JPEG2000")
"""Pillow's names of the accepted formats. Its other plugins are never used: some of them run programs."""

READABLE = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP, PPM and JPEG 2000"

MAX_FILE_BYTES = 2**29
"""Maximum size of an image file, all of which is in memory during decoding."""

MAX_PIXELS = 2**27
"""Maximum number of pixels (16384 x 8192), checked in the header: a small file can hold a huge image."""

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
"""Brands of unsupported files in the ISO container (`ftyp` at byte 4)."""

_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Orientation (EXIF tag 274) → the transposition that reverts it."""

_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 259, 262, 284, 339
"""TIFF tags."""

_PNG = b"\x89PNG\r\n\x1a\n"

_MAGIC = {
    _PNG: "a PNG",
    b"\xff\xd8\xff": "a JPEG",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
}
"""First bytes of files in accepted formats."""

_END_MARKER = b"\xff\xd9"
"""EOI of JPEG, EOC of JPEG 2000. Coded data cannot contain it."""

log = logging.getLogger("lamp_trt")

_process_settings = threading.Lock()


def read_image(path: str | os.PathLike[str], background: str = "white") -> NDArray[np.uint8]:
    """Read an image file as uint8 RGB (h, w, 3), see decode_image. Raises InputError also for a missing or
    too large file."""
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
    data: bytes,
    name: str,
    background: str = "white",
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decode the first image of a file's bytes to uint8 RGB (h, w, 3).

    The image is rotated according to its orientation, converted to sRGB, reduced to 8 bits per sample, and
    transparent pixels are composited over `background` (see background_rgb). An 8-bit sRGB image keeps its
    values exactly. name: the subject of messages. Raises InputError if the image is damaged, truncated, of
    another format or larger than max_pixels.
    """
    colour = background_rgb(background)
    try:
        with _quiet():
            image = _open(data, name, formats, max_pixels)
            image.load()
            upright = _upright(image, name)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name} cannot be read: it does not fit into the memory.") from error
    except Exception as error:  # decoders raise many types for damaged files
        raise _refusal(data, name, error) from error
    if image.info.get("icc_profile", b"") is None:
        log.warning("%s: its colour profile is damaged, it is read as sRGB", name)
    if upright.mode == "F" or (upright.mode == "I" and image.format != "PPM"):
        raise InputError(
            f"{name} cannot be read: its samples are signed, 32-bit or float, without a defined white. "
            "Save it with 8 or 16 bits per sample."
        )
    opaque, alpha = split_alpha(upright, image.info.get("transparency"), *_depth(image, data))
    rgb = np.asarray(to_srgb(opaque, image.info.get("icc_profile"), coding_points(data), name))
    if alpha is not None and not (alpha == 255).all():
        log.info("%s has transparent pixels: composited over %s", name, background)
        rgb = over(rgb, alpha, colour)
    return np.ascontiguousarray(rgb)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without Pillow's warnings and with LOAD_TRUNCATED_IMAGES off.

    Errors are reported by decode_image; Pillow's warnings on metadata are not useful. Some training scripts
    make Pillow accept truncated images. Both settings are global to the process, so one thread at a time may
    change them.
    """
    from PIL import ImageFile

    with _process_settings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        accepted = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = accepted


def _open(data: bytes, name: str, formats: tuple[str, ...], max_pixels: int) -> "ImageFile.ImageFile":
    """Open an image, check its size and that it is not truncated; reads only the header.

    Raises InputError for an image that is too large, other exceptions for a damaged one.
    """
    from PIL import AvifImagePlugin, Image, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin

    # Their import registers them. For an unregistered format Pillow would import all its plugins.
    del AvifImagePlugin, Jpeg2KImagePlugin, TiffImagePlugin, WebPImagePlugin
    _silence_libtiff()
    try:
        image = Image.open(io.BytesIO(_without_texts(data)), formats=formats)
        too_large = image.width * image.height > max_pixels
    except Image.DecompressionBombError:
        too_large = True
    if too_large:
        raise InputError(
            f"{name} cannot be read: it has more than {max_pixels / 1e6:.0f} million pixels; make it smaller."
        )
    assert image.fp is not None
    if image.format in ("JPEG", "MPO", "JPEG2000"):
        coded = data.find(b"\xff\x90") if image.format == "JPEG2000" else image.fp.tell()
        if data.find(_END_MARKER, max(coded, 0)) < 0:
            raise EOFError("its end is missing")
    if image.format == "BMP" and image.mode == "1" and data[28] != 1:
        raise ValueError("bytes of two colours, which Pillow reads as bits")
    if image.format == "PNG":
        image.verify()  # the checksums, which loading ignores
        image = Image.open(io.BytesIO(_without_texts(data)), formats=formats)
    if image.format == "TIFF":
        _check_tiff(image.tag_v2)  # type: ignore[attr-defined]
    return image


def _without_texts(data: bytes) -> bytes:
    """A PNG without its text chunks, because Pillow rejects more than 1 MB of them; other files unchanged.
    XMP is kept for its orientation."""
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind not in (b"tEXt", b"zTXt", b"iTXt") or data.startswith(b"XML:com.adobe.xmp\0\0", at + 8):
            kept.append(data[at:end])
        at = end
        if kind == b"IEND":
            break
    return b"".join((*kept, data[at:]))


def _check_tiff(tags: Any) -> None:
    """Raise ValueError for a TIFF that Pillow reads incorrectly."""
    if 2 in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)):
        raise ValueError("signed samples, which have no defined white")
    separate, uncompressed = tags.get(_PLANAR, 1) == 2, tags.get(_COMPRESSION, 1) == 1
    if separate and uncompressed and max(tags.get(_BITS_PER_SAMPLE, (1,))) > 8:
        raise ValueError("16-bit samples in separate planes without compression")


def _silence_libtiff() -> None:
    """Disable libtiff's error output on stderr; Pillow disables only its warnings."""
    from PIL import _imaging

    try:
        handle = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):  # a Pillow that does not export libtiff's symbols
        return
    handle.argtypes, handle.restype = [ctypes.c_void_p], ctypes.c_void_p
    handle(None)


def _refusal(data: bytes, name: str, error: Exception) -> InputError:
    """The InputError for an image that Pillow cannot decode."""
    from PIL import UnidentifiedImageError

    if data[4:8] == b"ftyp" and not {b"avif", b"avis"} & {data[i : i + 4] for i in range(8, 64, 4)}:
        kind = _OTHER_BRANDS.get(data[8:12], "HEIC, a video or a camera's raw file")
        return InputError(f"{name} cannot be read: it is {kind}. Save it as JPEG or PNG.")
    known = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if isinstance(error, UnidentifiedImageError) and known:
        return InputError(
            f"{name} cannot be read: it is {known} whose header is damaged, or of a rare variant "
            "(docs/first_frames.md). Fetch it again, or save it as 8-bit PNG or JPEG."
        )
    if isinstance(error, UnidentifiedImageError):
        return InputError(
            f"{name} cannot be read: its header is damaged, or it is of another format than {READABLE}."
        )
    return InputError(
        f"{name} cannot be read: it is damaged, cut off, or of a rare variant ({error!s:.100}). "
        "Fetch it again, or save it as PNG or JPEG."
    )


def _upright(image: "ImageFile.ImageFile", name: str) -> "PIL.Image":
    """Rotate the loaded image to its orientation: EXIF's, or XMP's if EXIF has none.

    AVIF uses only `irot` and `imir`. Pillow rotates a TIFF itself.
    """
    from PIL import ExifTags, Image

    if image.format == "AVIF":
        image.info.pop("xmp", None)  # the boxes take precedence, even if they mean upright
    exif = image.info.get("exif")
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  (its types are as various as damaged EXIF blocks)
        orientation, exif = None, exif or b"damaged"
    if orientation is None and _is_damaged(exif):
        log.warning("%s has damaged EXIF data, its orientation is unknown", name)
    method = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image.transpose(Image.Transpose[method]) if method else image


def _is_damaged(exif: bytes | None) -> bool:
    """Whether an EXIF block is truncated or invalid."""
    from PIL import Image

    if not exif:
        return False
    with warnings.catch_warnings(record=True) as hints:
        warnings.simplefilter("always")
        try:
            Image.Exif().load(exif)
        except Exception:  # noqa: BLE001  (its types are as various as damaged EXIF blocks)
            return True
    return bool(hints)


def _depth(image: "ImageFile.ImageFile", data: bytes) -> tuple[int, bool]:
    """Bits per sample in the file (8 if Pillow has already scaled them), and whether 0 means white in samples
    that Pillow does not invert."""
    if image.format == "PNG":
        return data[24], False  # IHDR
    tags = getattr(image, "tag_v2", None)
    if tags is not None and image.mode.startswith("I;16"):
        return tags[_BITS_PER_SAMPLE][0], tags.get(_PHOTOMETRIC) == 0
    return 16 if image.mode.startswith("I") else 8, False
