# SPDX-License-Identifier: Apache-2.0
"""Image files as people have them: every format, whole, cut off, turned, deep, animated."""

import base64
import contextlib
import io
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.image import image_from_base64, load_first_frame, png_base64
from lamp_trt.runtime.media.image_files import decode_image, read_image
from tests.fixtures.image_zoo import (
    FILES,
    HEIGHT,
    WIDTH,
    chunk,
    exif,
    picture,
    png,
    saved,
    tiff,
    with_exif_segment,
    with_value,
)


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, "the image")


def opencv(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


EXACT = {name for name in FILES if name.startswith(("png", "webp-lossless", "tiff", "bmp", "ppm"))} - {
    "png-palette",
    "tiff-jpeg",
    "bmp-palette",
    "png-interlaced",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read(name: str) -> None:
    image = decode(FILES[name]())
    if name == "png-interlaced":
        np.testing.assert_array_equal(image, picture()[:9, :13])
        return
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((HEIGHT, WIDTH, 3), np.uint8, True)
    wanted = picture()
    if name in EXACT:
        np.testing.assert_array_equal(image, wanted)
    elif "grey" not in name and name != "pgm":
        assert abs(image.astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"jpeg-cmyk"}))
def test_values_are_those_that_the_official_script_reads(name: str) -> None:
    """cv2.imread, bit for bit. CMYK is left out: OpenCV has rules of its own for it."""
    data = FILES[name]()
    np.testing.assert_array_equal(decode(data), opencv(data))


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(640, 1024), (63, 41)])
def test_jpegs_are_decoded_as_by_the_official_script(
    size: tuple[int, int], subsampling: int, progressive: bool, quality: int
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8)
    image = cv2.resize(noise, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    data = saved(image, "JPEG", quality=quality, progressive=progressive, subsampling=subsampling)
    np.testing.assert_array_equal(decode(data), opencv(data))


# --- cut off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_refused_or_complete(name: str) -> None:
    """Complete: only an end marker is missing, and the pixels are those of the whole file."""
    data = FILES[name]()
    whole, complete = decode(data), 0
    cuts = {*range(1, 24), *range(len(data) - 40, len(data)), *range(24, len(data), len(data) // 150 + 1)}
    for cut in sorted(cuts):
        try:
            image = decode(data[:cut])
        except InputError:
            continue
        complete += 1
        np.testing.assert_array_equal(image, whole)
    assert complete <= 4
    if "jpeg" in name and "tiff" not in name:
        assert complete == 0


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg-")])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_jpeg_whose_end_is_zeros_is_refused(name: str, share: float) -> None:
    """A download that reserved its space first."""
    data = FILES[name]()
    kept = max(int(len(data) * share), data.rindex(b"\xff\xda") + 20)
    with pytest.raises(InputError, match=r"end is missing|truncated"):
        decode(data[:kept] + bytes(len(data) - kept))


@pytest.mark.parametrize("read", ["path", "str", "base64", "first frame"])
def test_a_half_downloaded_file_is_refused_wherever_it_comes_from(read: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(FILES["jpeg-420"]()[:-200])
    png_half = base64.b64encode(FILES["png"]()[:-500]).decode()
    readers: dict[str, Callable[[], object]] = {
        "path": lambda: read_image(path),
        "str": lambda: read_image(str(path)),
        "first frame": lambda: load_first_frame(path, 8, 8),
        "base64": lambda: image_from_base64(png_half),
    }
    with pytest.raises(InputError, match="cannot be read: it is damaged, cut off"):
        readers[read]()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("jpeg", "png", "webp", "gif"))])
@pytest.mark.parametrize("tail", [b"\0" * 100, b"SEFH" + os.urandom(300), b"\xff\xd8\xff\xda"])
def test_data_after_the_end_is_ignored(name: str, tail: bytes) -> None:
    """Telephones append films and depth maps."""
    data = FILES[name]()
    np.testing.assert_array_equal(decode(data + tail), decode(data))


def test_a_telephones_jpeg_of_several_pictures_shows_the_first() -> None:
    data = mpo(picture())
    np.testing.assert_array_equal(decode(data), opencv(data))
    assert decode(data).shape == (HEIGHT, WIDTH, 3)
    end = data.index(b"\xff\xd9")
    for cut in (end - 1, end, end + 1):
        with pytest.raises(InputError, match="damaged, cut off"):
            decode(data[:cut])


def test_a_stored_frame_is_read_exactly_and_only_from_png() -> None:
    np.testing.assert_array_equal(image_from_base64(png_base64(picture())), picture())
    for text in ("%", "", base64.b64encode(FILES["jpeg-444"]()).decode(), base64.b64encode(b"x").decode()):
        with pytest.raises(InputError, match="the stored first frame"):
            image_from_base64(text)


# --- orientation ---------------------------------------------------------------------------------------


def mpo(image: np.ndarray) -> bytes:
    """A JPEG with a second picture behind it, as telephones write it."""
    second = Image.new("RGB", (16, 16))
    first = Image.fromarray(image)
    return saved(first, "MPO", save_all=True, append_images=[second], quality=95, subsampling=0)


TURNED: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "jpeg": lambda image, o: with_exif_segment(saved(image, "JPEG", quality=95, subsampling=0), exif(o)),
    "png": lambda image, o: saved(image, "PNG", exif=exif(o)),
    "webp": lambda image, o: saved(image, "WEBP", lossless=True, exif=exif(o)),
    "webp-lossy": lambda image, o: saved(image, "WEBP", quality=95, exif=exif(o)),
    "tiff": lambda image, o: tiff(image, 8, 2, (274, 3, o)),
    "tiff-lzw": lambda image, o: saved(image, "TIFF", compression="tiff_lzw", tiffinfo={274: o}),
    "avif": lambda image, o: saved(image, "AVIF", quality=100, subsampling="4:4:4", exif=exif(o)),
    "mpo": lambda image, o: with_exif_segment(mpo(image), exif(o)),
}

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}
"""Stored rows and columns to what is shown. Source: EXIF 2.32, tag 274 (6: row 0 is the right side)."""


@pytest.mark.parametrize("format", TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(format: str, orientation: int) -> None:
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = (250, 30, 30)
    stored[:16, 32:] = (30, 240, 30)
    stored[16:, :24] = (40, 40, 250)
    image = decode(TURNED[format](stored, orientation))
    wanted = UPRIGHT[orientation](stored)
    assert image.shape == wanted.shape
    tolerance = 0 if format in ("png", "webp", "tiff", "tiff-lzw") else 16
    centres = np.s_[4::8, 4::8]
    np.testing.assert_allclose(image[centres].astype(int), wanted[centres], atol=tolerance)


@pytest.mark.parametrize(("format", "box"), [("avif", b"irot"), ("avif", b"imir")])
def test_an_avif_that_is_turned_says_so_in_its_own_boxes(format: str, box: bytes) -> None:
    """So the test above has shown `irot` and `imir`, not EXIF alone."""
    assert box in TURNED[format](picture(), 5)


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff"])
def test_an_orientation_that_does_not_exist_is_ignored(format: str, orientation: int) -> None:
    image = decode(TURNED[format](picture(), orientation))
    assert abs(image.astype(int) - picture()).mean() < 12


def test_a_photo_with_damaged_exif_is_read(caplog: pytest.LogCaptureFixture) -> None:
    jpeg = FILES["jpeg-420"]()
    for block in (b"", b"MM", b"XX\x00\x2a1234", exif(6)[:-9], b"MM\x00\x2a\xff\xff\xff\xff", os.urandom(40)):
        assert decode(with_exif_segment(jpeg, block)).shape == (HEIGHT, WIDTH, 3)


# --- depth and modes -----------------------------------------------------------------------------------


def grey_levels() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


DEEP: dict[str, Callable[[np.ndarray], bytes]] = {
    "png-grey": lambda deep: png(deep, 16, 0),
    "png-rgb": lambda deep: png(deep.repeat(3, axis=1), 16, 2, width=deep.shape[1]),
    "png-grey-alpha": lambda deep: png(
        np.stack([deep, np.full_like(deep, 65535)], -1).reshape(len(deep), -1), 16, 4, width=deep.shape[1]
    ),
    "png-rgba": lambda deep: png(
        np.stack([deep, deep, deep, np.full_like(deep, 65535)], -1).reshape(len(deep), -1),
        16,
        6,
        width=deep.shape[1],
    ),
    "tiff-grey": lambda deep: tiff(deep, 16, 1),
    "tiff-grey-big-endian": lambda deep: tiff(deep, 16, 1, order=">"),
    "tiff-white-is-zero": lambda deep: tiff(65535 - deep, 16, 0),
    "tiff-rgb": lambda deep: tiff(np.stack([deep] * 3, -1), 16, 2),
    "tiff-rgb-big-endian": lambda deep: tiff(np.stack([deep] * 3, -1), 16, 2, order=">"),
    "tiff-lzw": lambda deep: saved(Image.fromarray(deep), "TIFF", compression="tiff_lzw"),
    "pgm": lambda deep: b"P5\n%d %d\n65535\n" % deep.shape[::-1] + deep.astype(">u2").tobytes(),
    "jpeg2000": lambda deep: saved(Image.fromarray(deep), "JPEG2000"),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("low", [0, 128, 255])
def test_of_16_bits_the_upper_8_are_kept(name: str, low: int) -> None:
    deep = grey_levels().astype(np.uint16) * 256 + low
    if name == "tiff-white-is-zero":
        deep = (deep >> 8) * 257  # its complement has other lower halves
    np.testing.assert_array_equal(decode(DEEP[name](deep)), grey_levels()[..., None].repeat(3, axis=-1))


@pytest.mark.parametrize("name", ["png-grey", "png-rgb", "tiff-grey", "tiff-rgb"])
def test_16_bits_become_what_the_official_script_reads(name: str) -> None:
    """OpenCV rounds RGB TIFFs only: one level of difference there."""
    deep = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)
    data = DEEP[name](deep)
    atol = 1 if name == "tiff-rgb" else 0
    np.testing.assert_allclose(decode(data).astype(int), opencv(data), rtol=0, atol=atol)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", ["png", "png-palette", "tiff", "bmp"])
def test_few_bits_a_sample_are_spread_over_all_levels(kind: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 2**bits, (16, 16)).astype(np.uint8)
    wanted = samples * (255 // (2**bits - 1))
    packed = np.packbits(np.unpackbits(samples[..., None], axis=-1)[..., -bits:].reshape(16, -1), axis=1)
    if kind == "png":
        data = png(packed, bits, 0, width=16)
    elif kind == "png-palette":
        entries = np.arange(2**bits, dtype=np.uint8)[:, None].repeat(3, 1) * (255 // (2**bits - 1))
        data = png(packed, bits, 3, chunk(b"PLTE", entries.tobytes()), width=16)
    elif kind == "tiff":
        data = with_value(tiff(packed, bits, 1), 256, 16)
    else:
        image = Image.fromarray(samples)
        image.putpalette([v * (255 // (2**bits - 1)) for v in range(2**bits) for _ in range(3)])
        if bits == 1:
            with pytest.raises(InputError, match="bytes of two colours"):
                decode(saved(image, "BMP"))
            image = image.convert("1")
        data = saved(image, "BMP")
    np.testing.assert_array_equal(decode(data), wanted[..., None].repeat(3, axis=-1))


def test_12_bit_grey_is_scaled() -> None:
    samples = np.random.default_rng(0).integers(0, 4096, (8, 8))
    pairs = samples.reshape(8, 4, 2)
    packed = np.stack(
        [pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1
    )
    data = with_value(tiff(packed.astype(np.uint8).reshape(8, 12), 12, 1), 256, 8)
    np.testing.assert_array_equal(decode(data)[..., 0], samples >> 4)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("float TIFF", lambda: saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")),
        ("32-bit TIFF", lambda: saved(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF")),
        ("signed 16-bit TIFF", lambda: tiff(np.ones((4, 4), np.int16), 16, 1, (339, 3, 2))),
        ("float RGB TIFF", lambda: tiff(np.ones((4, 4, 3), np.float32), 32, 2, (339, 3, 3))),
        ("PFM", lambda: b"Pf\n2 2\n-1.0\n" + np.ones(4, np.float32).tobytes()),
    ],
)
def test_numbers_without_a_defined_white_are_refused(name: str, data: Callable[[], bytes]) -> None:
    with pytest.raises(InputError, match=r"signed|32-bit|rare variant|another format"):
        decode(data())


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_or_several_pages_the_first_is_taken(format: str) -> None:
    rgb = [np.full((16, 24, 3), level, np.uint8) for level in (200, 100, 0)]
    frames = [Image.fromarray(image) for image in rgb]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(data).astype(int), rgb[0], atol=2)


def test_an_apng_whose_first_picture_is_not_in_the_animation_shows_it() -> None:
    still, moving = Image.new("RGB", (8, 8), (9, 9, 9)), Image.new("RGB", (8, 8), (99, 0, 0))
    data = saved(still, "PNG", save_all=True, append_images=[moving, moving], default_image=True)
    assert (decode(data) == 9).all()


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header is damaged, or it is of another format than PNG, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of another format than"),
        (b"%PDF-1.7\n", "of another format than"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of another format than"),
        (b"8BPS\0\1" + bytes(40), "of another format than"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "it is HEIC. Save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "it is a video"),
        (b"\xff\x0a" + bytes(40), "of another format than"),
        (saved(np.zeros((4, 4, 3), np.uint8), "TGA"), "of another format than"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(data)


def test_only_the_plugins_of_known_formats_are_loaded(run_python: Callable[[str], str]) -> None:
    code = (
        "import sys\n"
        "from lamp_trt.runtime.media.image_files import decode_image\n"
        "try: decode_image(b'%!PS-Adobe-3.0 EPSF-3.0 ' + bytes(99), 'it')\n"
        "except ValueError: print(sorted(m for m in sys.modules if m.startswith('PIL.') and 'Plugin' in m))"
    )
    loaded = run_python(code)
    assert "PngImagePlugin" in loaded
    assert not [name for name in ("Eps", "Pdf", "Wmf", "Psd", "Fpx", "Gbr") if f"PIL.{name}" in loaded]


def stderr_of(call: Callable[[], object]) -> str:
    """What native code and Python write to file descriptor 2 meanwhile."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode(errors="replace")


@pytest.mark.parametrize("name", FILES)
def test_no_decoder_writes_to_stderr(name: str) -> None:
    """Over cuts and changed bytes; warnings are shown, as in an application that wants all of them."""
    data, rng = FILES[name](), random.Random(0)

    def read_all() -> None:
        for number in range(120):
            broken = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                reach = min(200, len(data)) if rng.random() < 0.5 else len(data)
                broken[rng.randrange(reach)] = rng.randrange(256)
            with contextlib.suppress(InputError):
                decode(bytes(broken[: rng.randint(1, len(data))] if number % 3 == 0 else broken))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert stderr_of(read_all) == ""


def test_a_large_image_is_read_without_a_warning(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns of "decompression bombs" from 89 million pixels on, by default; our limit is higher."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(FILES["png"]()))
    recwarn.clear()
    np.testing.assert_array_equal(decode(FILES["png"]()), picture())
    assert len(recwarn) == 0


def test_an_image_of_too_many_pixels_is_refused() -> None:
    whole = decode_image(FILES["png"](), "the image", max_pixels=HEIGHT * WIDTH)
    assert whole.shape == (HEIGHT, WIDTH, 3)
    for name in FILES.keys() - {"png-interlaced"}:
        with pytest.raises(InputError, match="million pixels; make it smaller"):
            decode_image(FILES[name](), "the image", max_pixels=HEIGHT * WIDTH - 1)


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    before = list(warnings.filters)
    names = [name for name in FILES if name != "png-interlaced"] * 4
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda name: decode(FILES[name]()), names))
    assert all(image.shape == (HEIGHT, WIDTH, 3) for image in images)
    assert warnings.filters == before
