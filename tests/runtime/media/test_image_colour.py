# SPDX-License-Identifier: Apache-2.0
"""Colours of image files: embedded profiles to sRGB, transparency over a background."""

import logging
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.image import load_first_frame
from lamp_trt.runtime.media.image_colour import background_rgb, matrix_profile
from lamp_trt.runtime.media.image_files import decode_image
from tests.fixtures.image_zoo import FILES, chunk, picture, png, saved, tiff

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
ADOBE_CURVE = (563 / 256, 1.0, 0.0, 0.0, 0.0)
LINEAR = (1.0, 1.0, 0.0, 1.0, 0.0)
D50 = (0.9642, 1.0, 0.8249)

PRIMARIES = {
    "display-p3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "adobe-rgb": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
}
"""CIE x, y of red, green, blue, all under D65. Sources: SMPTE EG 432-1, Adobe RGB (1998), IEC 61966-2-1."""


def rgb_to_xyz(name: str) -> np.ndarray:
    """Linear RGB to XYZ under D65, 3 x 3."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in PRIMARIES[name]]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def profile(name: str, curve: Any) -> bytes:
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65 = rgb_to_xyz(name).sum(axis=1)
    scale = np.diag(bradford @ np.array(D50) / (bradford @ d65))
    to_d50 = np.linalg.inv(bradford) @ scale @ bradford
    return matrix_profile((to_d50 @ rgb_to_xyz(name)).T, curve)


def decoded_curve(values: np.ndarray, curve: Any) -> np.ndarray:
    gamma, a, b, c, d = curve
    return np.where(values >= d, np.maximum(a * values + b, 0) ** gamma, c * values)


def srgb(rgb: np.ndarray, name: str, curve: Any) -> np.ndarray:
    """uint8 in the profile's colours to 0..255 in sRGB, by the definitions, clipped to sRGB's gamut."""
    linear = decoded_curve(rgb / 255, curve) @ (np.linalg.inv(rgb_to_xyz("srgb")) @ rgb_to_xyz(name)).T
    clipped = np.clip(linear, 0, 1)
    low = clipped <= 0.0031308
    return 255 * np.where(low, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)


def decode(data: bytes, background: str = "white") -> np.ndarray:
    return decode_image(data, "the image", background)


SPACES = {"display-p3": SRGB_CURVE, "adobe-rgb": ADOBE_CURVE}

WITH_PROFILE: dict[str, Callable[[np.ndarray, bytes], bytes]] = {
    "png": lambda rgb, icc: saved(rgb, "PNG", icc_profile=icc),
    "png-palette": lambda rgb, icc: saved(Image.fromarray(rgb).quantize(256), "PNG", icc_profile=icc),
    "png-16-bit": lambda rgb, icc: png(
        (rgb.astype(np.uint16) * 257).reshape(len(rgb), -1), 16, 2, iccp(icc), width=rgb.shape[1]
    ),
    "jpeg": lambda rgb, icc: saved(rgb, "JPEG", icc_profile=icc, quality=100, subsampling=0),
    "webp": lambda rgb, icc: saved(rgb, "WEBP", icc_profile=icc, lossless=True),
    "webp-alpha": lambda rgb, icc: saved(
        Image.fromarray(rgb).convert("RGBA"), "WEBP", icc_profile=icc, lossless=True
    ),
    "tiff": lambda rgb, icc: saved(rgb, "TIFF", icc_profile=icc),
    "avif": lambda rgb, icc: saved(rgb, "AVIF", icc_profile=icc, quality=100, subsampling="4:4:4"),
}


def iccp(icc: bytes) -> bytes:
    import zlib

    return chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc))


def patches() -> np.ndarray:
    """Plain areas, which every codec keeps within a level or two, all inside sRGB in either space."""
    colours = [
        (200, 110, 90),
        (110, 170, 100),
        (90, 100, 180),
        (128, 128, 128),
        (240, 230, 220),
        (60, 50, 45),
    ]
    rows = np.array(colours, np.uint8).reshape(2, 3, 3)
    return rows.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("format", WITH_PROFILE)
@pytest.mark.parametrize("space", SPACES)
def test_embedded_profiles_are_converted_to_srgb(space: str, format: str) -> None:
    rgb, curve = patches(), SPACES[space]
    stored = decode(WITH_PROFILE[format](rgb, b""))
    wanted = srgb(stored, space, curve)
    assert abs(wanted - stored).max() > 10
    image = decode(WITH_PROFILE[format](rgb, profile(space, curve)))
    np.testing.assert_allclose(image, wanted, rtol=0, atol=1.5)


@pytest.mark.parametrize("format", WITH_PROFILE)
@pytest.mark.parametrize("icc", ["littlecms", "by definition", "rounded"])
def test_an_srgb_profile_leaves_values_alone(format: str, icc: str) -> None:
    profiles = {
        "littlecms": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "by definition": profile("srgb", SRGB_CURVE),
        "rounded": profile("srgb", (2.4, 0.948, 0.052, 0.0774, 0.0405)),
    }
    plain = decode(WITH_PROFILE[format](picture(), b""))
    np.testing.assert_array_equal(decode(WITH_PROFILE[format](picture(), profiles[icc])), plain)


def grey_profile(gamma: float) -> bytes:
    """Version 2, "GRAY", one curve."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(79)
    parts = {b"desc": text, b"wtpt": white, b"kTRC": curve}
    table, body, start = struct.pack(">I", len(parts)), b"", 128 + 4 + 12 * len(parts)
    for tag, content in parts.items():
        table += struct.pack(">4sII", tag, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    xyz = b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    return head + bytes(12) + b"acsp" + bytes(28) + xyz + bytes(48) + table + body


@pytest.mark.parametrize(
    ("format", "alpha"), [("PNG", False), ("JPEG", False), ("TIFF", False), ("PNG", True), ("TIFF", True)]
)
def test_a_grey_profile_is_converted(format: str, alpha: bool) -> None:
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(grey)
    if alpha:
        image = image.convert("LA")
    options = {"quality": 100} if format == "JPEG" else {}
    data = saved(image, format, icc_profile=grey_profile(1.0), **options)
    linear = grey / 255
    wanted = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(decode(data)[..., 0], wanted, rtol=0, atol=4 if format == "JPEG" else 2)


def test_an_rgb_profile_of_a_grey_image_is_converted() -> None:
    grey = np.full((8, 8), 100, np.uint8)
    data = saved(grey, "PNG", icc_profile=profile("srgb", LINEAR))
    assert abs(decode(data).astype(int) - 168).max() <= 1  # 255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)


BROKEN_PROFILES = {
    "noise": b"no profile at all",
    "empty": b"",
    "cut": profile("display-p3", SRGB_CURVE)[:200],
    "grey of an RGB image": grey_profile(2.2),
    "no curves": profile("display-p3", SRGB_CURVE).replace(b"TRC", b"xyz"),
}


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("kind", sorted(BROKEN_PROFILES.keys() - {"empty"}))
def test_a_broken_profile_is_said_and_the_image_read_as_srgb(
    kind: str, format: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = decode(WITH_PROFILE[format](picture(), BROKEN_PROFILES[kind]))
    np.testing.assert_array_equal(image, decode(WITH_PROFILE[format](picture(), b"")))
    assert "its colour profile cannot be used, it is read as sRGB" in caplog.text


# --- CMYK, Lab, coding points --------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile_is_inverted_ink(format: str, caplog: pytest.LogCaptureFixture) -> None:
    """Adobe's inverted JPEGs and TIFF's plain ones: white paper is white, full black is black."""
    inks = np.zeros((16, 64, 4), np.uint8)
    inks[:, 16:32, 3] = 255
    inks[:, 32:48, 0] = 255
    inks[:, 48:, 1:3] = 255
    data = saved(Image.fromarray(inks, "CMYK"), format, **({"quality": 100} if format == "JPEG" else {}))
    middles = decode(data)[8, 8::16].astype(int)
    wanted = [(255, 255, 255), (0, 0, 0), (0, 255, 255), (255, 0, 0)]
    np.testing.assert_allclose(middles, wanted, rtol=0, atol=6)
    assert "CMYK without a colour profile" in caplog.text


def cmyk_profile() -> bytes:
    """A printer whose inks are grey, on paper of L* = 100: cyan darkens to 50, the others to 100, in steps of
    a 2-point table. A conversion without it would show colours."""
    grid = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], [0, 1], indexing="ij")).reshape(4, -1).T
    light = np.clip(100 - 50 * grid[:, 0] - 100 * grid[:, 1:].sum(axis=1), 0, 100)
    lab = np.stack([light * 255 / 100, np.full(16, 128), np.full(16, 128)], -1).round().astype(np.uint8)
    ramp = bytes(range(256))
    lut = struct.pack(">4sIBBBB", b"mft1", 0, 4, 3, 2, 0)
    lut += b"".join(struct.pack(">i", round(v * 65536)) for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut += ramp * 4 + lab.tobytes() + ramp * 3
    white = b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"inks\0" + bytes(79)
    parts = {b"desc": text, b"wtpt": white, b"A2B0": lut, b"A2B1": lut}
    table, body, start = struct.pack(">I", len(parts)), b"", 128 + 4 + 12 * len(parts)
    for tag, content in parts.items():
        table += struct.pack(">4sII", tag, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    xyz = b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
    return head + bytes(12) + b"acsp" + bytes(28) + xyz + bytes(48) + table + body


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_a_cmyk_profile_is_converted(format: str) -> None:
    inks = np.zeros((16, 48, 4), np.uint8)
    inks[:, 16:32, 0] = 255
    inks[:, 32:, 3] = 255
    options = {"quality": 100} if format == "JPEG" else {}
    data = saved(Image.fromarray(inks, "CMYK"), format, icc_profile=cmyk_profile(), **options)
    middles = decode(data)[8, 8::16].astype(int)
    np.testing.assert_allclose(middles, [[255] * 3, [119] * 3, [0] * 3], rtol=0, atol=5)  # L* = 50: sRGB 119


def test_lab_is_converted() -> None:
    """L* 50 neutral, and a colour: L* 53.24, a* 80.09, b* 67.20 is sRGB's red under D65; under D50 L* 54.3,
    a* 80.8, b* 69.9."""
    lab = np.array([[[round(50 * 2.55), 0, 0], [round(54.29 * 2.55), 81, 70]]], np.int64)
    data = tiff((lab % 256).astype(np.uint8).repeat(4, 0), 8, 8)
    image = decode(data).astype(int)
    np.testing.assert_allclose(image[0], [[119, 119, 119], [255, 0, 0]], rtol=0, atol=6)


@pytest.mark.parametrize(("primaries", "transfer"), [(12, 13), (12, 1)])
def test_display_p3_by_numbers_is_converted(primaries: int, transfer: int) -> None:
    rgb = patches()
    data = png(rgb.reshape(len(rgb), -1), 8, 2, chunk(b"cICP", bytes([primaries, transfer, 0, 1])), width=48)
    np.testing.assert_allclose(decode(data), srgb(rgb, "display-p3", SRGB_CURVE), rtol=0, atol=1.5)


@pytest.mark.parametrize(("primaries", "transfer", "said"), [(1, 13, False), (9, 16, True), (9, 18, True)])
def test_other_colours_by_numbers_are_said(
    primaries: int, transfer: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rgb = patches()
    data = png(rgb.reshape(len(rgb), -1), 8, 2, chunk(b"cICP", bytes([primaries, transfer, 0, 1])), width=48)
    np.testing.assert_array_equal(decode(data), rgb)
    assert ("HDR perhaps" in caplog.text) is said


def test_an_avifs_own_numbers_count() -> None:
    data = saved(patches(), "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    assert struct.unpack_from(">HH", data, at) == (1, 13)
    p3 = data[:at] + struct.pack(">H", 12) + data[at + 2 :]
    wanted = srgb(decode(data), "display-p3", SRGB_CURVE)
    np.testing.assert_allclose(decode(p3), wanted, rtol=0, atol=1.5)
    assert abs(decode(p3).astype(int) - decode(data)).max() > 10


def test_gamma_and_chromaticities_of_a_png_are_ignored() -> None:
    """As OpenCV does; most files that have them are in sRGB."""
    rgb = patches()
    chunks = chunk(b"gAMA", struct.pack(">I", 100000)), chunk(b"cHRM", struct.pack(">8I", *[30000] * 8))
    np.testing.assert_array_equal(decode(png(rgb.reshape(len(rgb), -1), 8, 2, *chunks, width=48)), rgb)


# --- transparency --------------------------------------------------------------------------------------


def rgba() -> np.ndarray:
    """Red, hidden below alpha 0, 128 and 255."""
    image = np.zeros((16, 48, 4), np.uint8)
    image[..., 0] = 200
    image[:, 16:32, 3], image[:, 32:, 3] = 128, 255
    return image


TRANSPARENT: dict[str, Callable[[np.ndarray], bytes]] = {
    "png": lambda image: saved(image, "PNG"),
    "png-16-bit": lambda image: png(
        (image.astype(np.uint16) * 257).reshape(len(image), -1), 16, 6, width=image.shape[1]
    ),
    "webp": lambda image: saved(image, "WEBP", lossless=True, exact=True),
    "webp-lossy": lambda image: saved(image, "WEBP", quality=100, exact=True),
    "avif": lambda image: saved(image, "AVIF", quality=100, subsampling="4:4:4"),
    "tiff": lambda image: saved(image, "TIFF"),
    "tiff-lzw": lambda image: saved(image, "TIFF", compression="tiff_lzw"),
    "tiff-premultiplied": lambda image: tiff(
        np.dstack([image[..., :3].astype(int) * image[..., 3:] // 255, image[..., 3]]).astype(np.uint8),
        8,
        2,
        (338, 3, 1),
    ),
    "jpeg2000": lambda image: saved(image, "JPEG2000"),
    "bmp": lambda image: bmp_with_alpha(image),
}


def bmp_with_alpha(image: np.ndarray) -> bytes:
    """32 bits a pixel with BITMAPV4HEADER, as Windows' clipboard writes it."""
    h, w = image.shape[:2]
    rows = image[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, w, h, 1, 32, 3, len(rows), 2835, 2835, 0, 0) + masks
    header += b"BGRs" + bytes(108 - len(header) - 4)
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(rows), 0, 0, 122) + header + rows


BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "#102030": (16, 32, 48),
    "#FFF": (255, 255, 255),
    " SkyBlue ": (135, 206, 235),
}


@pytest.mark.parametrize("format", TRANSPARENT)
@pytest.mark.parametrize("background", ["white", "black", "#102030"])
def test_transparent_pixels_show_the_background(
    format: str, background: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lamp_trt")
    behind = np.array(BACKGROUNDS[background])
    image = decode(TRANSPARENT[format](rgba()), background)[8, 8::16]
    red = np.array([200, 0, 0])
    wanted = [behind, (red * 128 + behind * 127) / 255, red]
    lossy = format in ("webp-lossy", "avif", "jpeg2000", "tiff-premultiplied")
    np.testing.assert_allclose(image, wanted, rtol=0, atol=5 if lossy else 0.5)
    assert f"transparent pixels: composited over {background}" in caplog.text


def test_an_opaque_alpha_channel_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lamp_trt")
    image = np.dstack([picture(), np.full(picture().shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode(saved(image, "PNG"), "black"), picture())
    assert caplog.text == ""


@pytest.mark.parametrize("deep", [False, True])
def test_grey_with_alpha(deep: bool) -> None:
    pairs = np.array([[[100, 0], [100, 51], [100, 255]]], np.uint8)
    data = png(
        (pairs.astype(np.uint16) * 257 if deep else pairs).reshape(1, -1), 16 if deep else 8, 4, width=3
    )
    np.testing.assert_array_equal(decode(data)[0, :, 0], [255, 224, 100])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_level_that_is_transparent(depth: int) -> None:
    """tRNS in the units of the file's samples."""
    high = 2**depth - 1
    samples = np.array([[0, high] * 8], np.uint16)
    if depth == 16:
        rows = samples
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., -depth:]
        rows = np.packbits(bits.reshape(1, -1), axis=1)
    for key, wanted in ((high, [0, 77]), (0, [77, 255])):
        data = png(rows, depth, 0, chunk(b"tRNS", struct.pack(">H", key)), width=16)
        np.testing.assert_array_equal(decode(data, "#4d4d4d")[0, :2, 1], wanted)
    if depth > 1:
        data = png(rows, depth, 0, chunk(b"tRNS", struct.pack(">H", 1)), width=16)
        np.testing.assert_array_equal(decode(data, "#4d4d4d")[0, :2, 1], [0, 255])


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_that_is_transparent(depth: int) -> None:
    scale = 257 if depth == 16 else 1
    colours = np.array([[[10, 20, 30], [10, 20, 31]]], np.uint16) * scale
    rows = colours.reshape(1, -1).astype(np.uint16 if depth == 16 else np.uint8)
    trns = chunk(b"tRNS", struct.pack(">3H", *(colours[0, 0].tolist())))
    image = decode(png(rows, depth, 2, trns, width=2))
    np.testing.assert_array_equal(image[0], [[255, 255, 255], [10, 20, 31]])


@pytest.mark.parametrize("alphas", [b"\x00", b"\xff\x00", b"\x00\x80\xff"])
def test_palette_entries_that_are_transparent(alphas: bytes) -> None:
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    chunks = chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", alphas)
    image = decode(png(np.array([[0, 1, 2]], np.uint8), 8, 3, *chunks))
    alpha = np.frombuffer(alphas.ljust(3, b"\xff"), np.uint8)[:, None].astype(int)
    np.testing.assert_array_equal(image[0], (colours * alpha + 255 * (255 - alpha) + 127) // 255)


def test_a_gifs_transparent_colour() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8).repeat(4, 0))
    image.putpalette([200, 0, 0, 0, 200, 0])
    np.testing.assert_array_equal(decode(saved(image, "GIF", transparency=0))[0], [[255] * 3, [0, 200, 0]])


def test_colours_are_converted_before_compositing() -> None:
    """The background is sRGB, whatever the image is."""
    image = rgba()
    data = saved(image, "PNG", icc_profile=profile("adobe-rgb", ADOBE_CURVE))
    shown = decode(data, "#102030")
    np.testing.assert_array_equal(shown[8, 8], [16, 32, 48])
    np.testing.assert_allclose(
        shown[8, 40], srgb(image[8, 40, :3], "adobe-rgb", ADOBE_CURVE), rtol=0, atol=1.5
    )


@pytest.mark.parametrize("text", BACKGROUNDS)
def test_colours_by_name_and_number(text: str) -> None:
    assert background_rgb(text) == BACKGROUNDS[text]


@pytest.mark.parametrize(
    "text", ["", "nocolour", "#12345", "#1234567", "#11223344", "rgb(1,2,3)", "0", None, 3]
)
def test_what_is_no_colour_is_refused_before_any_file_is_read(text: Any) -> None:
    with pytest.raises(InputError, match="expected a colour like #ffffff or a CSS name"):
        background_rgb(text)
    for source in ("missing.png", np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="background is"):
            load_first_frame(source, 8, 8, background=text)


def test_padding_is_black_whatever_the_background(tmp_path: Any) -> None:
    path = tmp_path / "clear.png"
    path.write_bytes(saved(np.zeros((4, 8, 4), np.uint8), "PNG"))
    image = load_first_frame(path, 8, 8, "pad", background="#00ff00")
    assert image[0].max() == 0
    np.testing.assert_array_equal(image[4, 4], [0, 255, 0])


def test_every_file_of_the_zoo_is_opaque_and_without_profile(caplog: pytest.LogCaptureFixture) -> None:
    """So nothing above has been shown by accident."""
    caplog.set_level(logging.INFO, "lamp_trt")
    for name in FILES.keys() - {"jpeg-cmyk"}:
        decode(FILES[name]())
    assert caplog.text == ""
