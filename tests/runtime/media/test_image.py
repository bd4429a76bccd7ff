# SPDX-License-Identifier: Apache-2.0
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.media.image import load_first_frame, model_input, resize_to
from lamp_trt.runtime.media.image_files import read_image


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def test_a_png_is_read_as_rgb(tmp_path: Path) -> None:
    rgb = picture(5, 7)
    path = tmp_path / "ein Bild é.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    np.testing.assert_array_equal(read_image(path), rgb)
    np.testing.assert_array_equal(load_first_frame(str(path), 5, 7), rgb)


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "webp", "tiff", "ppm"])
def test_other_formats_are_read(suffix: str, tmp_path: Path) -> None:
    rgb = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    path = tmp_path / f"image.{suffix}"
    cv2.imwrite(str(path), rgb[..., ::-1])
    np.testing.assert_allclose(read_image(path).astype(int), rgb, atol=2)  # JPEG's colour conversion


def test_deep_grey_and_transparent_images_become_8_bit_rgb(tmp_path: Path) -> None:
    rgb = picture(4, 6)
    deep = rgb[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), rgb)
    cv2.imwrite(str(tmp_path / "grey.png"), rgb[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), rgb[..., :1].repeat(3, axis=2))
    alpha = np.dstack([rgb[..., ::-1], np.full((4, 6), 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), rgb)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    rgb = np.zeros((16, 32, 3), np.uint8)
    rgb[:, :16] = 255
    ok, jpeg = cv2.imencode(".jpg", rgb)
    assert ok
    tiff = b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)  # rotate 90 degrees
    exif = b"Exif\x00\x00" + tiff
    data = jpeg.tobytes()
    path = tmp_path / "rotated.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    image = read_image(path)
    assert image.shape == (32, 16, 3)
    assert (image[:14].min(), image[-14:].max()) == (255, 0)


def test_half_size_is_the_rounded_2x2_mean() -> None:
    rgb = picture(20, 28)
    quads = rgb.reshape(10, 2, 14, 2, 3).astype(int).sum(axis=(1, 3))
    np.testing.assert_array_equal(resize_to(rgb, 10, 14), (quads + 2) >> 2)


def test_stretch_ignores_the_ratio_crop_cuts_and_pad_adds() -> None:
    rgb = np.zeros((40, 100, 3), np.uint8)
    rgb[:, 30:70] = 255
    stretched, cropped, padded = (resize_to(rgb, 20, 20, fit) for fit in ("stretch", "crop", "pad"))
    assert {image.shape for image in (stretched, cropped, padded)} == {(20, 20, 3)}
    assert stretched[:, 7:13].min() == 255
    assert stretched[:, :5].max() == 0
    assert cropped.min() == 255
    assert padded[:6].max() == padded[14:].max() == 0
    assert padded[6:14, 7:13].min() == 255


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (3, 5), (320, 512)])
def test_extreme_ratios_fit(size: tuple[int, int], fit: str) -> None:
    out = resize_to(np.full((*size, 3), 9, np.uint8), 32, 48, fit)  # type: ignore[arg-type]
    assert out.shape == (32, 48, 3)
    assert out.max() == 9


def test_an_image_of_the_right_size_is_kept() -> None:
    rgb = picture(8, 12)
    for fit in ("stretch", "crop", "pad"):
        np.testing.assert_array_equal(load_first_frame(rgb, 8, 12, fit), rgb)  # type: ignore[arg-type]


def test_views_are_accepted() -> None:
    rgb = picture(16, 24)
    np.testing.assert_array_equal(resize_to(rgb[:, ::-1], 8, 12), resize_to(rgb[:, ::-1].copy(), 8, 12))


def test_model_input_is_in_minus_one_to_one() -> None:
    x = model_input(np.array([[[0, 127, 255]]], np.uint8))
    assert (x.shape, x.dtype) == ((1, 3, 1, 1), np.float32)
    np.testing.assert_allclose(x.ravel(), [-1, 127 / 127.5 - 1, 1], rtol=0, atol=1e-7)


def test_half_precision_input_is_rounded_after_each_operation() -> None:
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    got = model_input(levels, np.float16)[0, 0, 0]
    quotients = (np.arange(256) / 127.5).astype(np.float16)
    np.testing.assert_array_equal(got, (quotients.astype(np.float64) - 1).astype(np.float16))
    assert (got != (np.arange(256) / 127.5 - 1).astype(np.float16)).any()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_an_unreadable_image_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png' cannot be read"):
        read_image(path)


def test_a_missing_image_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_first_frame(tmp_path / "none.png", 8, 8)
    with pytest.raises(InputError, match="not a file"):
        load_first_frame(tmp_path, 8, 8)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_an_array_that_is_no_rgb_image_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected uint8 RGB"):
        load_first_frame(array, 8, 8)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(InputError, match="fit is 'fill'"):
        load_first_frame(picture(4, 4), 8, 8, "fill")  # type: ignore[arg-type]


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """24000 x 24000 grey pixels in about half a megabyte: 1.7 GB as RGB."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    side = 24000
    packer = zlib.compressobj(9)
    row = bytes(side + 1)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    program = (
        "import sys; from lamp_trt.runtime.media.image_files import read_image\n"
        "try: read_image(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    message, peak_kib = result.stdout.strip().splitlines()
    assert "million pixels" in message
    assert int(peak_kib) < 400 * 1024
