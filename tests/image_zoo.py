# SPDX-License-Identifier: Apache-2.0
"""Image files of every format that is read, small, and made without our own code."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 56, 40


def picture() -> np.ndarray:
    """uint8 RGB: gradients with noise, so that every byte of a file counts."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 3))
    return (np.stack([x * 4, y * 5, (x + y) * 2], -1) + noise).astype(np.uint8)


def saved(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


def _rgb(format: str, mode: str = "RGB", **options: Any) -> Callable[[], bytes]:
    return lambda: saved(Image.fromarray(picture()).convert(mode), format, **options)


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg-444": _rgb("JPEG", subsampling=0),
    "jpeg-420": _rgb("JPEG", subsampling=2),
    "jpeg-progressive": _rgb("JPEG", progressive=True),
    "jpeg-progressive-444": _rgb("JPEG", progressive=True, subsampling=0),
    "jpeg-restarts": _rgb("JPEG", restart_marker_blocks=2),
    "jpeg-progressive-restarts": _rgb("JPEG", progressive=True, restart_marker_rows=1),
    "jpeg-grey": _rgb("JPEG", "L"),
    "jpeg-cmyk": _rgb("JPEG", "CMYK"),
    "jpeg-thumbnail": lambda: with_exif_segment(
        FILES["jpeg-420"](), exif(1) + saved(Image.new("RGB", (16, 8)), "JPEG")
    ),
    "png": _rgb("PNG"),
    "png-palette": lambda: saved(Image.fromarray(picture()).quantize(256), "PNG"),
    "png-interlaced": lambda: interlaced_png(picture()[:9, :13]),
    "webp-lossy": _rgb("WEBP"),
    "webp-lossless": _rgb("WEBP", lossless=True),
    "webp-alpha": _rgb("WEBP", "RGBA"),
    "avif": _rgb("AVIF"),
    "tiff": _rgb("TIFF"),
    "tiff-lzw": _rgb("TIFF", compression="tiff_lzw"),
    "tiff-deflate": _rgb("TIFF", compression="tiff_adobe_deflate"),
    "tiff-packbits": _rgb("TIFF", compression="packbits"),
    "tiff-jpeg": _rgb("TIFF", compression="jpeg"),
    "gif": lambda: saved(Image.fromarray(picture()).quantize(256), "GIF"),
    "bmp": _rgb("BMP"),
    "bmp-palette": lambda: saved(Image.fromarray(picture()).quantize(256), "BMP"),
    "ppm": _rgb("PPM"),
    "pgm": _rgb("PPM", "L"),
    "jpeg2000": _rgb("JPEG2000"),
    "jpeg2000-lossy": _rgb("JPEG2000", irreversible=True),
    "jpeg2000-stream": _rgb("JPEG2000", no_jp2=True),
}
"""A name and what makes the bytes. All but "png-interlaced" show `picture()`, some of them roughly."""


def exif(orientation: int) -> bytes:
    """An EXIF block that holds an orientation alone, without the "Exif" header of JPEG."""
    return b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def with_value(tiff: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a LONG."""
    at = tiff.index(struct.pack("<HHI", tag, 4, 1)) + 8
    return tiff[:at] + struct.pack("<I", value) + tiff[at + 4 :]


def with_exif_segment(jpeg: bytes, block: bytes) -> bytes:
    segment = b"Exif\x00\x00" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples: np.ndarray, depth: int, colour_type: int, *chunks: bytes, width: int | None = None) -> bytes:
    """A PNG of rows of bytes, as IHDR says (colour type 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA).
    width: in pixels, where a byte holds several."""
    rows = samples.astype(samples.dtype.newbyteorder(">"))
    header = struct.pack(">IIBBBBB", width or samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced_png(rgb: np.ndarray) -> bytes:
    """By Adam7, which Pillow does not write."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = [
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in rgb[top::down, left::right]
        if row.size
    ]
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 1)
    parts = (
        chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")
    )  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    samples: np.ndarray, bits: int, photometric: int, *tags: tuple[int, int, int], order: str = "<"
) -> bytes:
    """An uncompressed TIFF of one strip, (h, w) or (h, w, samples). tags: (number, type, value), one more
    each."""
    h, w = samples.shape[:2]
    count = samples.shape[2] if samples.ndim == 3 else 1
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    entries = [
        (256, 4, w),
        (257, 4, h),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, count),
        (278, 4, h),
        (279, 4, len(data)),
        *tags,
    ]
    bits_at = 8 + len(data)
    body = data + struct.pack(f"{order}{count}H", *[bits] * count)
    start = 8 + len(body) + len(body) % 2
    ifd = []
    for number, kind, value in entries:
        packed = struct.pack(f"{order}I", value) if kind == 4 else struct.pack(f"{order}HH", value, 0)
        ifd.append((number, struct.pack(f"{order}HHI", number, kind, 1) + packed))
    place = struct.pack(f"{order}HH", bits, 0) if count == 1 else (
        struct.pack(f"{order}HH", bits, bits) if count == 2 else struct.pack(f"{order}I", bits_at)
    )  # fmt: skip
    ifd.append((258, struct.pack(f"{order}HHI", 258, 3, count) + place))
    table = b"".join(entry for _, entry in sorted(ifd))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + body + bytes(len(body) % 2) + struct.pack(f"{order}H", len(ifd)) + table + bytes(4)
