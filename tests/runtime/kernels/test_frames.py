# SPDX-License-Identifier: Apache-2.0
"""first_frame, decoder_input and histogram matching, run on the CPU, bit for bit against the NumPy twins."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.histogram import match_histograms as match_histograms_twin
from lamp_trt.runtime.algorithm.histogram import uint8_frames
from lamp_trt.runtime.kernels import frames as frames_module
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.frames import (
    HISTOGRAM_PARTS,
    HistogramArrays,
    count_decoded,
    decoder_input,
    first_frame,
    match_histograms,
)
from lamp_trt.runtime.kernels.launch import PROGRESS
from lamp_trt.runtime.media.image import model_input, resize_to
from tests.doubles.cpu_kernels import Memory, RecordingLauncher, device, launcher


def decoded(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """A decoder's output: beyond [-1, 1] in places, and in places exactly between two levels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.6, shape)
    between = (rng.integers(0, 256, shape) + 0.5) / 127.5 - 1
    return np.where(rng.random(shape) < 0.2, between, x).astype(dtype)


def decoded_to(frames: np.ndarray) -> np.ndarray:
    """A decoder's output (f, 3, h, w) that becomes uint8 `frames` (f, h, w, 3): the middle of each level."""
    return ((frames.transpose(0, 3, 1, 2) + np.float32(0.5)) / np.float32(127.5) - 1).astype(np.float32)


def progress(memory: Memory) -> np.ndarray:
    return memory.array(np.zeros(1, PROGRESS))


@pytest.mark.parametrize("fused_multiply_add", [False, True])
@pytest.mark.parametrize("size", [(40, 64), (7, 9), (1, 1)])
@pytest.mark.parametrize(
    ("source", "target"),
    [(np.float32, np.float32), (np.float32, np.float16), (np.float16, np.float16)],
    ids=["fp32", "fp32-fp16", "fp16"],
)
def test_the_first_frame_is_the_host_paths(
    memory: Memory, source: Any, target: Any, size: tuple[int, int], fused_multiply_add: bool
) -> None:
    """Rounding, OpenCV's reduction to half, and the SD encoder's scale, bit for bit."""
    height, width = size
    x = memory.array(decoded(1, 3, 2 * height, 2 * width, dtype=source))
    pixels = memory.empty((2 * height, 2 * width, 3), np.uint8)
    image, reported = memory.empty((1, 3, height, width), target), progress(memory)
    launch = launcher(fused_multiply_add=fused_multiply_add)
    first_frame(launch, device(x), device(pixels), device(image), device(reported))
    want = uint8_frames(x, rounding="round")[0]
    np.testing.assert_array_equal(pixels, want)
    np.testing.assert_array_equal(image, model_input(resize_to(want, height, width), target))
    assert reported["image_not_finite"] == 0


def test_every_level_survives_to_the_encoders_input(memory: Memory) -> None:
    """All 256 levels, and all sums of four that round to each."""
    levels = np.arange(256 * 4).reshape(1, 1, 16, 64) % 256 / np.float32(127.5) - 1
    x = memory.array(np.repeat(levels, 3, axis=1), np.float32)
    pixels, image = memory.empty((16, 64, 3), np.uint8), memory.empty((1, 3, 8, 32), np.float32)
    first_frame(launcher(), device(x), device(pixels), device(image))
    np.testing.assert_array_equal(pixels[..., 0], np.arange(1024).reshape(16, 64) % 256)
    np.testing.assert_array_equal(image, model_input(resize_to(pixels, 8, 32)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("size", [(16, 16), (9, 37)])
def test_a_given_image_is_scaled_as_on_the_host(memory: Memory, dtype: Any, size: tuple[int, int]) -> None:
    pixels = memory.array(np.random.default_rng(0).integers(0, 256, (*size, 3)), np.uint8)
    image = memory.empty((1, 3, *size), dtype)
    frames_module.model_input(launcher(), device(pixels), device(image))
    np.testing.assert_array_equal(image, model_input(pixels, dtype))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1, 4, 5, 8, 8), (1, 4, 3, 5, 7), (1, 4, 40, 64), (1, 2, 9, 11)])
def test_the_decoders_input_is_scaled_frame_by_frame(memory: Memory, dtype: Any, shape: Any) -> None:
    latents = memory.array(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    frames = latents.swapaxes(1, 2)[0] if len(shape) == 5 else latents
    out = memory.empty(frames.shape, dtype)
    decoder_input(launcher(), device(latents), device(out), scaling_factor=0.18215)
    np.testing.assert_array_equal(out, (frames / np.float32(0.18215)).astype(dtype))


class Video:
    """A video's frames in `memory`."""

    def __init__(self, memory: Memory, f: int, h: int, w: int) -> None:
        self.frames = memory.empty((f, h, w, 3), np.uint8)
        self.counts = memory.empty((f, HISTOGRAM_PARTS, 3, 256), np.uint32)
        self.lut = memory.empty((f, 3, 256), np.uint8)
        self.progress = progress(memory)
        self.arrays = HistogramArrays(*map(device, (self.frames, self.counts, self.lut, self.progress)))


def check_decoded(
    memory: Memory, x: np.ndarray, mode: Any, chunk: int, launch: RecordingLauncher, want_nan: int = 0
) -> None:
    """Decoded `chunk` frames at a time, as the decoder gives them."""
    f, _, h, w = x.shape
    video, x = Video(memory, f, h, w), memory.array(x)
    for first in range(0, f, chunk):
        count_decoded(launch, video.arrays, device(x).rows(first, min(first + chunk, f)), first)
    frames = uint8_frames(np.nan_to_num(x, nan=-1) if want_nan else x)
    np.testing.assert_array_equal(video.frames, frames)
    counts = [[np.bincount(frame[..., c].ravel(), minlength=256) for c in range(3)] for frame in frames]
    np.testing.assert_array_equal(video.counts.sum(axis=1), counts)
    match_histograms(launch, video.arrays, mode)
    np.testing.assert_array_equal(video.frames, match_histograms_twin(frames, mode))
    assert video.progress["image_not_finite"] == want_nan


@pytest.mark.parametrize("mode", ["none", "official", "exact"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("size", "suffix"), [((40, 64), ""), ((33, 7), "_any"), ((8, 1), ""), ((1, 1), "_any")]
)
def test_decoded_frames_are_matched_bit_for_bit(
    memory: Memory, size: tuple[int, int], suffix: str, dtype: Any, mode: str
) -> None:
    launch = launcher()
    check_decoded(memory, decoded(5, 3, *size, dtype=dtype), mode, 2, launch)
    assert launch.launched[0] == f"lamp_hist_count_f{np.dtype(dtype).itemsize * 8}{suffix}"
    assert len(launch.launched) == (3 if mode == "none" else 5)


@pytest.mark.parametrize("size", [(200, 256), (79, 79)])
def test_frames_that_fill_every_block_are_matched_bit_for_bit(memory: Memory, size: tuple[int, int]) -> None:
    """More than 24 blocks of 256 threads take at once, as vectors and value by value."""
    check_decoded(memory, decoded(2, 3, *size, dtype=np.float16), "official", 2, launcher())


def test_contracted_arithmetic_does_not_change_a_level(memory: Memory) -> None:
    x = decoded(3, 3, 96, 128)
    check_decoded(memory, x, "official", 3, launcher(fused_multiply_add=True))


@settings(max_examples=40, deadline=None)
@given(
    f=st.integers(1, 4),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    chunk=st.integers(1, 4),
    dtype=st.sampled_from([np.float16, np.float32]),
    mode=st.sampled_from(["official", "exact"]),
    levels=st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_frames_of_any_size_are_matched_bit_for_bit(
    f: int, h: int, w: int, chunk: int, dtype: Any, mode: str, levels: int, seed: int
) -> None:
    """Few levels make gaps and ties, where the official rounding quirk shows."""
    x = np.round(decoded(f, 3, h, w, seed=seed) * levels) / levels
    memory = Memory()
    check_decoded(memory, x.astype(dtype), mode, chunk, launcher(seed))
    memory.check()


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    levels=st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_many_frames_are_matched_as_the_official_code_does(
    size: tuple[int, int], levels: int, seed: int
) -> None:
    x = np.round(decoded(2, 3, *size, seed=seed) * levels) / levels
    memory = Memory()
    check_decoded(memory, x.astype(np.float32), "official", 2, launcher(seed))
    memory.check()


@pytest.mark.parametrize("mode", ["official", "exact"])
@pytest.mark.parametrize("levels", [(0, 255), (255, 0), (0, 0), (17, 200), (255, 255)])
def test_constant_frames_are_matched_bit_for_bit(memory: Memory, levels: tuple[int, int], mode: Any) -> None:
    frames = np.stack([np.full((16, 24, 3), level, np.uint8) for level in levels])
    frames[1, 0, 0] = 7
    check_bytes(memory, frames, mode)


def check_bytes(memory: Memory, frames: np.ndarray, mode: Any) -> None:
    video, launch = Video(memory, *frames.shape[:3]), launcher()
    count_decoded(launch, video.arrays, device(memory.array(decoded_to(frames))))
    np.testing.assert_array_equal(video.frames, frames)
    match_histograms(launch, video.arrays, mode)
    np.testing.assert_array_equal(video.frames, match_histograms_twin(frames, mode))


@pytest.mark.parametrize("shape", [(3, 40, 64, 3), (2, 33, 7, 3), (1, 5, 8, 3)])
@pytest.mark.parametrize("mode", ["official", "exact"])
def test_frames_of_any_bytes_are_matched_bit_for_bit(memory: Memory, shape: Any, mode: Any) -> None:
    rng = np.random.default_rng(0)
    shift = 9 * np.arange(shape[0])[:, None, None, None]
    check_bytes(memory, np.clip(rng.normal(120, 40, shape) + shift, 0, 255).astype(np.uint8), mode)


def test_histograms_do_not_depend_on_the_video_before(memory: Memory) -> None:
    x = memory.array(decoded(3, 3, 16, 16))
    results = []
    video = Video(memory, 3, 16, 16)
    for _ in range(2):
        count_decoded(launcher(), video.arrays, device(x))
        match_histograms(launcher(), video.arrays)
        results.append(video.frames.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(("value", "level"), [(np.nan, 0), (np.inf, 255), (-np.inf, 0)])
@pytest.mark.parametrize("size", [(8, 8), (5, 5)])
def test_what_is_not_finite_from_the_decoder_is_reported(
    memory: Memory, size: tuple[int, int], value: float, level: int
) -> None:
    x = decoded(2, 3, *size)
    x[1, 2, 4, 3] = value
    check_decoded(memory, x, "official", 1, launcher(), want_nan=1)

    image = memory.array(decoded(1, 3, 4, 4))
    image[0, 1, 3, 2] = value
    pixels, small = memory.empty((4, 4, 3), np.uint8), memory.empty((1, 3, 2, 2), np.float32)
    reported = progress(memory)
    first_frame(launcher(), device(image), device(pixels), device(small), device(reported))
    assert (reported["image_not_finite"], pixels[3, 2, 1]) == (1, level)


def test_arrays_that_do_not_fit_are_refused() -> None:
    def array(shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return DeviceArray(64, shape, np.dtype(dtype))

    frames, lut = array((2, 8, 8, 3), "u1"), array((2, 3, 256), "u1")
    counts = array((2, HISTOGRAM_PARTS, 3, 256), "u4")
    with pytest.raises(InputError, match="counts is uint32"):
        HistogramArrays(frames, array((2, 1, 3, 256), "u4"), lut)
    video = HistogramArrays(frames, counts, lut)
    with pytest.raises(InputError, match=r"images is float32 \(1, 3, 8, 9\); expected float16 or float32"):
        count_decoded(launcher(), video, array((1, 3, 8, 9), "f4"))
    with pytest.raises(InputError, match=r"rows 1\.\.2 of an array of shape \(2, 8, 8, 3\)"):
        count_decoded(launcher(), video, array((2, 3, 8, 8), "f4"), first=1)
    with pytest.raises(InputError, match="histogram is 'best'"):
        match_histograms(launcher(), video, "best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"decoded is float32 \(1, 3, 9, 8\); expected"):
        first_frame(launcher(), array((1, 3, 9, 8), "f4"), array((8, 8, 3), "u1"), array((1, 3, 4, 4), "f4"))
    with pytest.raises(InputError, match=r"latents is float32 \(1, 4, 3, 8, 8\)"):
        decoder_input(launcher(), array((1, 4, 3, 8, 8), "f4"), array((2, 4, 8, 8), "f2"), scaling_factor=1)
