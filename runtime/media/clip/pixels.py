# SPDX-License-Identifier: Apache-2.0
"""Pixels of a decoded frame: upright 8-bit RGB in BT.709 colours, from any format, matrix and transfer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

_UNSPECIFIED = 2
_BT709 = 1
_BT601 = 5
"""Of swscale: ITU-R BT.601."""

_WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
"""Colour primaries (ITU-T H.273) beyond BT.709's."""

_HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics (ITU-T H.273) of high dynamic range."""

_HD_HEIGHT = 720
"""Untagged frames from this height on are taken as BT.709, as players do; smaller ones as BT.601."""


@dataclass(frozen=True)
class Look:
    """Properties of a frame that shape its conversion. text: of all that must not change within a clip."""

    text: str
    notes: list[str]
    matrix: int | None
    converts_colours: bool
    has_alpha: bool
    quarter_turns: int
    mirrored: bool


def look_of(frame: "VideoFrame") -> Look:
    """The properties of a frame. Turns are counterclockwise, after mirroring left to right."""
    notes = []
    parts = frame.format.components
    depth = max((part.bits for part in parts), default=8)
    if depth > 8:
        notes.append(f"{depth}-bit samples are reduced to 8")
    hdr, wide = _HDR.get(frame.color_trc), _WIDE.get(frame.color_primaries)
    if hdr:
        notes.append(f"HDR ({hdr}) is mapped to standard range")
    elif wide:
        notes.append(f"{wide} colours are converted to BT.709")
    matrix = None
    if not frame.format.is_rgb and not frame.format.has_palette and frame.colorspace in (0, _UNSPECIFIED):
        matrix = _BT709 if frame.height >= _HD_HEIGHT else _BT601
        notes.append(f"untagged colours are read as {'BT.709' if matrix == _BT709 else 'BT.601'}")
    if frame.interlaced_frame:
        notes.append("interlaced: fields are not separated")
    turns, mirrored, odd = _orientation(frame)
    if odd:
        notes.append("its rotation is not a multiple of 90 degrees and is ignored")
    elif turns or mirrored:
        notes.append(f"turned upright ({90 * turns} degrees{', mirrored' if mirrored else ''})")
    has_alpha = any(part.is_alpha for part in parts) or frame.format.name in ("bgra", "rgba", "pal8")
    if has_alpha and not frame.format.has_palette:
        notes.append("transparent pixels show the background")
    text = f"{frame.width}x{frame.height} {frame.format.name}"
    return Look(text, notes, matrix, bool(hdr or wide), has_alpha, turns, mirrored)


def rgb_pixels(reformatter: "VideoReformatter", frame: "VideoFrame", look: Look) -> NDArray[np.uint8]:
    """uint8 (h, w, 3), or (h, w, 4) with alpha. reformatter: keeps FFmpeg's tables from frame to frame, which
    take it seconds for HDR."""
    options: dict[str, Any] = {"dst_color_trc": _BT709, "dst_color_primaries": _BT709}
    converted = reformatter.reformat(
        frame,
        format="rgba" if look.has_alpha else "rgb24",
        src_colorspace=look.matrix,
        interpolation="BICUBIC",
        threads=1,
        **(options if look.converts_colours else {}),
    )
    pixels = np.asarray(converted.to_ndarray(), np.uint8)
    if look.mirrored:
        pixels = pixels[:, ::-1]
    return np.rot90(pixels, look.quarter_turns)


def _orientation(frame: "VideoFrame") -> tuple[int, bool, bool]:
    """Counterclockwise quarter turns and mirroring that make a frame upright, from its display matrix; and
    whether the matrix is neither, which is ignored."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), "<i4")[:5].tolist()
    size = max(map(abs, (a, b, c, d)))
    if size == 0:
        return 0, False, True
    a, b, c, d = (round(value / size) if abs(value) in (0, size) else 2 for value in (a, b, c, d))
    return _TURNS.get((a, b, c, d), (0, False, True))


_TURNS = {
    (1, 0, 0, 1): (0, False, False),
    (0, 1, -1, 0): (3, False, False),
    (-1, 0, 0, -1): (2, False, False),
    (0, -1, 1, 0): (1, False, False),
    (-1, 0, 0, 1): (0, True, False),
    (1, 0, 0, -1): (2, True, False),
    (0, 1, 1, 0): (1, True, False),
    (0, -1, -1, 0): (3, True, False),
}
"""Display matrix (a, b, c, d), where a pixel (x, y) is shown at (a x + c y, b x + d y), y downwards → turns,
mirroring, whether it is neither."""
