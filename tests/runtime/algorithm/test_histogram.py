# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest

from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime.algorithm.histogram import match_histograms, uint8_frames


def video(shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shift = 9 * np.arange(shape[0])[:, None, None, None]
    return np.clip(rng.normal(120, 40, shape) + shift, 0, 255).astype(np.uint8)


def official_match(frame: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """np.histogram's densities, summed by Python floats one after the other."""
    out = np.empty_like(frame)
    for channel in range(3):
        cdfs = []
        for image in (reference, frame):
            density, _ = np.histogram(image[..., channel], bins=256, range=(0, 256), density=True)
            total, cdf = 0.0, []
            for p in density.tolist():
                total += p
                cdf.append(total)
            cdfs.append(np.array(cdf))
        lut = np.clip(np.searchsorted(cdfs[0], cdfs[1], side="left"), 0, 255)
        out[..., channel] = lut[frame[..., channel]]
    return out


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (3, 40, 64, 3), (2, 33, 7, 3), (2, 1, 1, 3)])
def test_official_matching_is_numpys_histogram_and_a_sequential_sum(shape: tuple[int, ...]) -> None:
    frames = video(shape, seed=sum(shape))
    want = np.stack([frames[0], *(official_match(frame, frames[0]) for frame in frames[1:])])
    np.testing.assert_array_equal(match_histograms(frames), want)


def test_exact_matching_compares_counts() -> None:
    frames = video((3, 20, 30, 3), seed=1)
    got = match_histograms(frames, "exact")
    for channel in range(3):
        counts = [np.cumsum(np.bincount(f[..., channel].ravel(), minlength=256)) for f in frames]
        for f in (1, 2):
            lut = [next(u for u in range(256) if counts[0][u] >= counts[f][v]) for v in range(256)]
            np.testing.assert_array_equal(got[f, ..., channel], np.array(lut)[frames[f, ..., channel]])


def test_exact_matching_has_no_white_dots_where_official_has() -> None:
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    frames[1] = video((1, 48, 64, 3), seed=2)[0]
    assert match_histograms(frames, "exact")[1].max() == 0
    assert match_histograms(frames, "official")[1].max() == 255


def test_none_copies() -> None:
    frames = video((2, 4, 4, 3), seed=0)
    out = match_histograms(frames, "none")
    np.testing.assert_array_equal(out, frames)
    assert out is not frames


def test_matching_accepts_views_and_keeps_them() -> None:
    wide = video((2, 8, 12, 3), seed=0)
    view, before = wide[:, ::2, ::-1], wide.copy()
    np.testing.assert_array_equal(match_histograms(view), match_histograms(view.copy()))
    np.testing.assert_array_equal(wide, before)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_anything_but_bytes_of_a_video_is_refused(frames: Any) -> None:
    with pytest.raises(InputError, match="expected uint8"):
        match_histograms(frames)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="histogram is 'fast'"):
        match_histograms(np.zeros((1, 2, 2, 3), np.uint8), "fast")  # type: ignore[arg-type]


def test_video_frames_are_truncated_and_images_rounded() -> None:
    levels = np.array([-0.4, 0, 0.4, 0.6, 1.5, 2.5, 127.5, 254.9, 255.7], np.float64)
    x = (levels / 255 * 2 - 1).astype(np.float32).reshape(1, 1, 1, -1).repeat(3, axis=1)
    np.testing.assert_array_equal(uint8_frames(x)[0, 0, :, 0], [0, 0, 0, 0, 1, 2, 127, 254, 255])
    assert uint8_frames(x, "round")[0, 0, [1, 2, 3, 7, 8], 0].tolist() == [0, 0, 1, 255, 255]
    assert uint8_frames(x).shape == (1, 1, 9, 3)


def test_half_precision_images_are_converted_in_float32() -> None:
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 3, 8, 8)).astype(np.float16)
    np.testing.assert_array_equal(uint8_frames(x), uint8_frames(x.astype(np.float32)))


def test_a_nan_from_the_decoder_is_an_error() -> None:
    with pytest.raises(EngineError, match="NaN"):
        uint8_frames(np.full((1, 3, 2, 2), np.nan, np.float32))
