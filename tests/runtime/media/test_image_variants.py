# SPDX-License-Identifier: Apache-2.0
"""Image files of rare variants: read rightly, or refused; damaged metadata are said."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.image import load_first_frame
from lamp_trt.runtime.media.image_files import decode_image

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PICTURE)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
TURNED = PICTURE.transpose(1, 0, 2)[:, ::-1]


def file_of(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png: bytes, kind: bytes, content: bytes, *, last: bool = False) -> bytes:
    """A PNG with one more chunk after its header, or before its end."""
    at = len(png) - 12 if last else 33
    return png[:at] + chunk(kind, content) + png[at:]


def tiff(samples: np.ndarray[Any, Any], *, planes: bool, order: str, deflate: bool, format: int = 1) -> bytes:
    """A TIFF of RGB (h, w, 3), or of grey (h, w), of one strip a plane."""
    stored = samples.astype(samples.dtype.newbyteorder(order))
    count = 1 if samples.ndim == 2 else samples.shape[2]
    parts = [stored[..., c].tobytes() for c in range(count)] if planes and count > 1 else [stored.tobytes()]
    strips = [zlib.compress(part) for part in parts] if deflate else parts
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    short, long = 3, 4
    fields: dict[int, tuple[int, list[int]]] = {
        256: (short, [samples.shape[1]]),
        257: (short, [samples.shape[0]]),
        258: (short, [samples.dtype.itemsize * 8] * count),
        259: (short, [8 if deflate else 1]),
        262: (short, [2 if count == 3 else 1]),
        273: (long, starts),
        277: (short, [count]),
        278: (short, [samples.shape[0]]),
        279: (long, [len(strip) for strip in strips]),
        284: (short, [2 if planes else 1]),
        339: (short, [format] * count),
    }
    body = b"".join(strips) + bytes(sum(map(len, strips)) % 2)
    ifd, extra = struct.pack(f"{order}H", len(fields)), b""
    behind = 8 + len(body) + 2 + 12 * len(fields) + 4
    for tag, (kind, values) in fields.items():
        raw = struct.pack(f"{order}{len(values)}{'H' if kind == short else 'I'}", *values)
        if len(raw) > 4:
            extra, raw = extra + raw, struct.pack(f"{order}I", behind + len(extra))
        ifd += struct.pack(f"{order}HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8 + len(body)) + body + ifd + bytes(4) + extra


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_samples_of_a_tiff_are_right_or_refused(order: str, deflate: bool, planes: bool, deep: bool) -> None:
    """Pillow takes separate planes of 16-bit samples for planes of bytes, unless libtiff reads them."""
    samples = PICTURE.astype(np.uint16) * 257 if deep else PICTURE
    data = tiff(samples, planes=planes, order=order, deflate=deflate)
    if deep and planes and not deflate:
        with pytest.raises(InputError, match="16-bit samples in separate planes"):
            decode_image(data, "x")
    else:
        np.testing.assert_array_equal(decode_image(data, "x"), PICTURE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_samples_are_refused(dtype: type, order: str) -> None:
    data = tiff(PICTURE[..., 0].astype(dtype), planes=False, order=order, deflate=False, format=2)
    with pytest.raises(InputError, match="signed"):
        decode_image(data, "x")


@pytest.mark.parametrize("format", ["GIF", "BMP", "PPM", "PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_truncated_files_are_refused_whatever_the_process_tells_pillow(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training scripts set this switch, and make videos in the same process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = file_of(IMAGE, format)
    with pytest.raises(InputError, match="cannot be read"):
        decode_image(data[: len(data) * 2 // 3], "x")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


BIG = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"zTXt", b"prompt\0\0" + BIG),
        (b"iTXt", b"workflow\0\1\0\0\0" + BIG),
        (b"tEXt", b"parameters\0" + bytes(70 << 20)),
    ],
    ids=["zTXt", "iTXt", "tEXt"],
)
def test_a_png_with_long_texts_is_read(kind: bytes, content: bytes, last: bool) -> None:
    """Interfaces of image generators write what they did into a PNG's texts."""
    data = with_chunk(file_of(IMAGE, "PNG"), kind, content, last=last)
    np.testing.assert_array_equal(decode_image(data, "x"), PICTURE)


def png_with_broken_profile() -> bytes:
    return with_chunk(file_of(IMAGE, "PNG"), b"iCCP", b"icc\0\0no zlib stream")


def jpeg_with_half_a_profile() -> bytes:
    """The second of its segments is missing."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(70_000)
    data = file_of(IMAGE, "JPEG", icc_profile=profile)
    at = data.find(b"ICC_PROFILE\0", data.find(b"ICC_PROFILE\0") + 1) - 2
    return data[: at - 2] + data[at + struct.unpack_from(">H", data, at)[0] :]


@pytest.mark.parametrize("make", [png_with_broken_profile, jpeg_with_half_a_profile])
def test_a_profile_that_pillow_drops_is_said(
    make: Callable[[], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert decode_image(make(), "x").shape == PICTURE.shape
    assert "its colour profile is damaged" in caplog.text


@pytest.mark.parametrize("length", range(8, 26, 2))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_that_breaks_off_is_said(format: str, length: int, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[274] = 6
    cut = exif.tobytes()[:length]
    data = file_of(IMAGE, format, exif=cut)
    assert decode_image(data, "x").shape == PICTURE.shape
    assert "damaged EXIF" in caplog.text


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_orientation_that_only_xmp_has_counts_except_in_avif(format: str) -> None:
    """AVIF's boxes say what its pixels need; XMP is often left from before a conversion."""
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"xmp": XMP, "quality": 100, "subsampling": 0},
        "PNG": {"pnginfo": texts},
        "WEBP": {"xmp": XMP, "lossless": True},
        "TIFF": {"tiffinfo": {700: XMP}},
        "AVIF": {"xmp": XMP, "quality": 100, "subsampling": "4:4:4"},
    }
    read = decode_image(file_of(IMAGE, format, **options[format]), "x").astype(int)
    expected = PICTURE if format == "AVIF" else TURNED
    assert read.shape == expected.shape
    assert abs(read - expected).mean() < 10


@pytest.mark.parametrize("brand", [b"hevx", b"msf1", b"iso5", b"crx ", b"3gp4", b"M4V "])
def test_other_files_in_isos_container_are_not_called_damaged(brand: bytes) -> None:
    with pytest.raises(InputError, match="is HEIC, a video or a camera's raw file"):
        decode_image(b"\0\0\0\x18ftyp" + brand + bytes(40), "x")


@pytest.mark.parametrize(
    "source", [IMAGE, PICTURE.tolist(), 3, None, b"x.png", io.BytesIO(file_of(IMAGE, "PNG"))], ids=type
)
def test_what_is_neither_a_path_nor_an_array_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="expected a file's name or uint8 RGB"):
        load_first_frame(source, 8, 8)
