# SPDX-License-Identifier: Apache-2.0
"""Colours of image files: conversion to sRGB, and parsing of the background colour."""

import io
import logging
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from lamp_trt.engine.errors import InputError

if TYPE_CHECKING:
    from PIL import Image as PIL

SAME_LEVELS = 2
"""Tolerance in levels: a profile that changes no colour by more counts as sRGB, so the image keeps its
values. Vendors round sRGB's curves differently."""

CodingPoints = tuple[int, int]
"""Colour primaries and transfer characteristics, numbered as in ITU-T H.273."""

_SRGB_LIKE = {(primaries, transfer) for primaries in (1, 2) for transfer in (1, 2, 6, 13)}
"""BT.709 or unspecified primaries; transfer characteristics that files with sRGB samples use."""

_DISPLAY_P3 = {(12, transfer) for transfer in (1, 2, 6, 13)}

_P3_COLORANTS = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""XYZ of Display P3's red, green and blue, adapted to D50. Source: SMPTE EG 432-1 primaries, D65 white,
Bradford."""

_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""Parameters g, a, b, c, d of ICC's parametric curve of type 3. Source: IEC 61966-2-1."""

log = logging.getLogger("lamp_trt")


def background_rgb(text: str) -> tuple[int, int, int]:
    """Parse a colour: "#rrggbb", "#rgb" or a CSS name ("white"). Raises InputError for anything else."""
    from PIL import ImageColor

    if isinstance(text, str):
        name = text.strip().lower()
        if re.fullmatch("#([0-9a-f]{3}|[0-9a-f]{6})", name) or name in ImageColor.colormap:
            red, green, blue = ImageColor.getrgb(name)[:3]
            return red, green, blue
    raise InputError(
        f"background is {text!r:.100}; expected a colour like #ffffff or a CSS name like white, black, grey, "
        "skyblue."
    )


def to_srgb(image: "PIL.Image", icc: bytes | None, points: CodingPoints | None, name: str) -> "PIL.Image":
    """Convert an opaque 8-bit image (mode L, RGB, CMYK, YCbCr or LAB) to RGB in sRGB.

    icc     embedded profile, applied with relative colorimetric intent and black point compensation, as in
            photo editors; an unusable profile is ignored with a warning
    points  used without a profile
    name    subject of log messages
    """
    from PIL import ImageCms

    if image.mode == "LAB":
        return _converted(image, ImageCms.createProfile("LAB", 5000))
    if image.mode == "YCbCr":
        image = image.convert("RGB")
    if icc is None:
        icc = _profile_of(points, name)
    if icc:
        try:
            profile = ImageCms.getOpenProfile(io.BytesIO(icc))
            space = profile.profile.xcolor_space.strip()
            if space == "RGB" and image.mode == "L":
                image = image.convert("RGB")
            if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != image.mode:
                raise ValueError(f"it is for {space or 'unknown'} samples, the image is {image.mode}")
            return _converted(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            log.warning("%s: its colour profile cannot be used, it is read as sRGB: %s", name, error)
    elif image.mode == "CMYK":
        log.warning("%s is CMYK without a colour profile: its colours are approximate", name)
    return image if image.mode == "RGB" else image.convert("RGB")


def coding_points(data: bytes) -> CodingPoints | None:
    """Coding points stored in a file: PNG's cICP chunk, AVIF's `colr` box of type `nclx`; None if absent."""
    if data.startswith(b"\x89PNG"):
        at = data.find(b"\0\0\0\x04cICP", 0, max(data.find(b"IDAT"), 0))
        return None if at < 0 else (data[at + 8], data[at + 9])
    if data[4:8] == b"ftyp":
        at = data.find(b"colrnclx", 0, 1 << 16)
        return None if at < 0 else struct.unpack_from(">HH", data, at + 8)
    return None


def _profile_of(points: CodingPoints | None, name: str) -> bytes | None:
    """An ICC profile for coding points; None for sRGB and, with a warning, for unsupported ones."""
    if points is None or points in _SRGB_LIKE:
        return None
    if points in _DISPLAY_P3:
        return matrix_profile(_P3_COLORANTS, _SRGB_CURVE)
    log.warning(
        "%s has colours (primaries %d, transfer %d) that are not converted, HDR perhaps: it is read as sRGB",
        name,
        *points,
    )
    return None


def matrix_profile(colorants: Any, curve: Any) -> bytes:
    """An ICC profile (version 4) from RGB colorants (XYZ under D50) and a parametric curve of type 3."""

    def fixed(values: Any) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    white = (0.9642, 1.0, 0.8249)
    text = "RGB".encode("utf-16-be")
    description = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    parts = {
        b"desc": description,
        b"cprt": description,
        b"wtpt": b"XYZ \0\0\0\0" + fixed(white),
        **{
            bytes([letter]) + b"XYZ": b"XYZ \0\0\0\0" + fixed(xyz)
            for letter, xyz in zip(b"rgb", colorants, strict=True)
        },
        **{bytes([letter]) + b"TRC": b"para\0\0\0\0\0\3\0\0" + fixed(curve) for letter in b"rgb"},
    }
    table, body = struct.pack(">I", len(parts)), b""
    start = 128 + 4 + 12 * len(parts)
    for tag, content in parts.items():
        table += struct.pack(">4sII", tag, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"\0\0\0\0", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    return head + bytes(12) + b"acsp" + bytes(28) + fixed(white) + bytes(48) + table + body


def _converted(image: "PIL.Image", profile: Any) -> "PIL.Image":
    """Convert to RGB in sRGB with LittleCMS. Keeps all values if the profile is sRGB within SAME_LEVELS."""
    from PIL import Image, ImageCms

    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if image.mode == "L":  # LittleCMS's shortcut for grey is off by 10 levels near black, and no faster
        flags |= ImageCms.Flags.NOOPTIMIZE
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags,
    )
    if image.mode in ("RGB", "L"):
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        lattice = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        probe = Image.fromarray(lattice if image.mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        moved = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
        if abs(moved).max() <= SAME_LEVELS:
            return image.convert("RGB")
    return transform.apply(image)
