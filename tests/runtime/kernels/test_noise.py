# SPDX-License-Identifier: Apache-2.0
"""begin_loop and posterior_sample, run on the CPU, against the NumPy twins."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import MAX_SEED, NOISE_BASE_WEIGHT
from lamp_trt.runtime.algorithm.latents import mix_noise, with_first_frame
from lamp_trt.runtime.algorithm.latents import posterior_sample as posterior_sample_twin
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise, philox4x32
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.frames import posterior_sample
from lamp_trt.runtime.kernels.latent_loop import begin_loop
from lamp_trt.runtime.kernels.launch import NO_STEP
from tests.doubles.cpu_kernels import Loop, Memory, device, launcher, philox
from tests.tolerances import KERNEL_NOISE_ATOL, KERNEL_NOISE_ULP, KERNEL_POSTERIOR

SHAPES = [(2, 4, 5, 8, 8), (1, 4, 3, 5, 7), (2, 3, 2, 3, 3), (2, 4, 1, 40, 64), (2, 1, 4, 1, 1)]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same_numbers(got: np.ndarray, want: np.ndarray) -> None:
    """Within a few ulp, or absolutely near zero, where the cosine's own rounding is many ulp."""
    difference = np.abs(got.astype(np.float64) - want)
    assert (difference <= np.maximum(KERNEL_NOISE_ULP * np.spacing(np.abs(want)), KERNEL_NOISE_ATOL)).all()


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_answers(counter: list[int], key: list[int], want: list[int]) -> None:
    np.testing.assert_array_equal(philox(np.array(counter, np.uint32), np.array(key, np.uint32)), want)


words = st.integers(0, 2**32 - 1)


@given(st.lists(words, min_size=4, max_size=4), st.lists(words, min_size=2, max_size=2))
def test_philox_gives_the_twins_bits(counter: list[int], key: list[int]) -> None:
    c, k = np.array(counter, np.uint32), np.array(key, np.uint32)
    np.testing.assert_array_equal(philox(c, k), philox4x32(c, k))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("purpose", [Purpose.SDXL_LATENTS, Purpose.VIDEO])
@pytest.mark.parametrize("seed", [0, 1, 0x0123456789ABCDEF, MAX_SEED])
def test_drawn_noise_is_the_twins(memory: Memory, shape: Any, purpose: Purpose, seed: int) -> None:
    loop = Loop(memory, shape)
    begin_loop(launcher(seed % 97), loop.arrays, 4, seed=seed, purpose=purpose)
    assert_same_numbers(loop.latents[:1], latent_noise(seed, purpose, (1, *shape[1:])))
    np.testing.assert_array_equal(loop.sample, np.broadcast_to(loop.latents[:1], shape))


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*(st.integers(1, n) for n in (2, 5, 5, 12, 12))),
    st.integers(0, MAX_SEED),
    st.sampled_from(Purpose),
)
def test_drawn_noise_of_any_shape_is_the_twins(shape: Any, seed: int, purpose: Purpose) -> None:
    memory = Memory()
    test_drawn_noise_is_the_twins(memory, shape, purpose, seed)
    memory.check()


def draw(memory: Memory, purpose: Purpose, frames: int, seed: int = 5) -> np.ndarray:
    loop = Loop(memory, (1, 4, frames, 8, 8))
    begin_loop(launcher(), loop.arrays, 2, seed=seed, purpose=purpose)
    return loop.latents[0]


def test_a_frames_noise_does_not_depend_on_the_videos_length(memory: Memory) -> None:
    long, short = draw(memory, Purpose.VIDEO, 9), draw(memory, Purpose.VIDEO, 4)
    np.testing.assert_array_equal(long[:, :4], short)


def test_no_two_purposes_frames_or_seeds_share_numbers(memory: Memory) -> None:
    streams = [
        draw(memory, purpose, 3, seed)[:, f].reshape(-1, 4)
        for purpose in Purpose
        for seed in (5, 5 + 2**32)
        for f in range(3)
    ]
    draws = np.concatenate(streams)
    assert len(np.unique(draws, axis=0)) == len(draws) == len(Purpose) * 2 * 3 * 64
    correlations = np.corrcoef([stream.ravel() for stream in streams])
    assert np.abs(correlations - np.eye(len(streams))).max() < 0.3  # 4.8 sigma of 1 / sqrt(256)


def test_drawn_noise_is_standard_normal(memory: Memory) -> None:
    x = np.concatenate([draw(memory, Purpose.VIDEO, 16, seed).ravel() for seed in range(25)])
    n = x.size
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert abs((np.abs(x) < 0.6744898).mean() - 0.5) < 2 / n**0.5


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_videos_start_is_the_twins(memory: Memory, shape: Any, dtype: Any, num_steps: int) -> None:
    loop = Loop(memory, shape, dtype, width=3)
    loop.time_table[:] = normal(*loop.time_table.shape)
    loop.latents[1 - num_steps % 2] = 7
    first = memory.array(normal(1, shape[1], 1, *shape[3:]))
    begin_loop(
        launcher(),
        loop.arrays,
        num_steps,
        seed=3,
        purpose=Purpose.VIDEO,
        base_weight=NOISE_BASE_WEIGHT,
        first_frame=device(first),
    )
    noise = latent_noise(3, Purpose.VIDEO, (1, *shape[1:]))
    want = NOISE_BASE_WEIGHT * noise[:, :, :1] + np.float32(1 - NOISE_BASE_WEIGHT) * noise
    want[:, :, :1] = first
    got = loop.latents[num_steps % 2]
    np.testing.assert_allclose(got, want[0], rtol=0, atol=KERNEL_NOISE_ATOL)
    np.testing.assert_array_equal(got[:, 0], first[0, :, 0])
    for half in loop.sample:
        np.testing.assert_array_equal(half, got.astype(dtype))
    np.testing.assert_array_equal(loop.latents[1 - num_steps % 2], 7)
    np.testing.assert_array_equal(loop.time_row[0], loop.time_table[0])
    assert loop.state.item() == (0, num_steps, 0, NO_STEP)
    assert loop.progress.item()[:3] == (0, NO_STEP, 0)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6, 6), (1, 4, 3, 5, 7)])
@pytest.mark.parametrize("base", ["frame 0", "given", "drawn"])
def test_given_noise_is_mixed_as_the_twin_does(memory: Memory, shape: Any, base: str) -> None:
    loop = Loop(memory, shape)
    noise = memory.array(normal(1, *shape[1:]))
    one_frame = (1, shape[1], 1, *shape[3:])
    first, given_base = memory.array(normal(*one_frame, seed=1)), memory.array(normal(*one_frame, seed=2))
    begin_loop(
        launcher(),
        loop.arrays,
        2,
        seed=11,
        purpose=Purpose.VIDEO,
        noise=device(noise),
        base_weight=NOISE_BASE_WEIGHT,
        base_purpose=None if base == "frame 0" else Purpose.PAPER_BASE,
        base_noise=device(given_base) if base == "given" else None,
        first_frame=device(first),
    )
    drawn = latent_noise(11, Purpose.PAPER_BASE, one_frame)
    want = mix_noise(noise, first, {"frame 0": None, "given": given_base, "drawn": drawn}[base])
    np.testing.assert_allclose(loop.latents[:1], want, rtol=0, atol=KERNEL_NOISE_ATOL)


def test_inverted_latents_are_used_as_they_are(memory: Memory) -> None:
    loop = Loop(memory, (2, 4, 5, 6, 6))
    inverted = memory.array(normal(1, 4, 5, 6, 6))
    inverted[0, 0, 0] = np.inf  # frame 0 is replaced, and nothing is mixed from it
    first = memory.array(normal(1, 4, 1, 6, 6, seed=1))
    begin_loop(
        launcher(),
        loop.arrays,
        2,
        seed=0,
        purpose=Purpose.VIDEO,
        noise=device(inverted),
        first_frame=device(first),
    )
    np.testing.assert_array_equal(loop.latents[:1], with_first_frame(inverted, first))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
@pytest.mark.parametrize("given_noise", [False, True])
def test_the_posterior_sample_is_the_twins(
    memory: Memory, dtype: Any, size: tuple[int, int], given_noise: bool
) -> None:
    mean, logvar = (memory.array(normal(1, 4, *size, seed=i), dtype) for i in (0, 1))
    logvar.flat[:4] = [-60000, 40, -31, 3]
    logvar.flat[-3:] = [np.nan, np.inf, -np.inf][: max(0, logvar.size - 4)]
    noise = memory.array(normal(1, 4, *size, seed=2))
    noise.flat[[0, 2]] = 1e6  # or else a deviation of exp(-15) is too small to be seen
    out = memory.empty((1, 4, 1, *size), np.float32)
    posterior_sample(
        launcher(),
        device(mean),
        device(logvar),
        device(out),
        scaling_factor=0.18215,
        seed=9,
        noise=device(noise) if given_noise else None,
    )
    drawn = latent_noise(9, Purpose.POSTERIOR, (1, 4, *size))
    want = posterior_sample_twin(mean, logvar, noise if given_noise else drawn, 0.18215)
    np.testing.assert_allclose(out, want, **KERNEL_POSTERIOR)


def test_a_posterior_of_another_shape_is_refused() -> None:
    half = np.dtype("f2")
    mean, out = DeviceArray(64, (1, 4, 5, 7), half), DeviceArray(64, (1, 4, 5, 7), np.dtype("f4"))
    with pytest.raises(
        InputError, match=r"out is float32 \(1, 4, 5, 7\); expected float32 \(1, 4, 1, 5, 7\)"
    ):
        posterior_sample(launcher(), mean, mean, out, scaling_factor=1, seed=0)
