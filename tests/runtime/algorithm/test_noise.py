# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise, philox4x32, standard_normal
from tests.tolerances import NOISE_FP64_ATOL


@pytest.mark.parametrize(
    ("counter", "key", "bits"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter: str, key: str, bits: str) -> None:
    words = [np.array([int(word, 16) for word in text.split()], np.uint32) for text in (counter, key, bits)]
    np.testing.assert_array_equal(philox4x32(words[0], words[1]), words[2])


def test_an_element_can_be_computed_alone() -> None:
    """Element e of frame k from Python integers only, against the array."""
    seed, frame, element = 2**63 + 12345, 3, 4 * 5 + 2
    noise = standard_normal(seed, Purpose.POSTERIOR, 5, (4, 3, 7))
    counter = np.array([element // 4, 0, frame, 1], np.uint32)
    bits = philox4x32(counter, np.array([seed % 2**32, seed // 2**32], np.uint32))
    r = np.sqrt(-2 * np.log((int(bits[2]) + 0.5) / 2**32))
    pair = r * np.cos(2 * np.pi * int(bits[3]) / 2**32), r * np.sin(2 * np.pi * int(bits[3]) / 2**32)
    got = noise[frame].ravel()[element : element + 2]
    np.testing.assert_allclose(got, pair, rtol=0, atol=NOISE_FP64_ATOL)


def test_no_two_purposes_or_seeds_share_numbers() -> None:
    draws = [
        standard_normal(seed, purpose, 2, (4, 8, 8)).ravel()
        for purpose, seed in itertools.product(Purpose, (0, 1, 2**32))
    ]
    # a float32 may repeat by chance, a run of three may not
    runs = [set(zip(d, d[1:], d[2:], strict=False)) for d in draws]
    for a, b in itertools.combinations(runs, 2):
        assert not a & b


def test_a_frame_does_not_depend_on_the_videos_length() -> None:
    short, long = (latent_noise(7, Purpose.VIDEO, (1, 4, f, 5, 3)) for f in (2, 16))
    np.testing.assert_array_equal(short, long[:, :, :2])
    np.testing.assert_array_equal(short[0, :, 1], standard_normal(7, Purpose.VIDEO, 2, (4, 5, 3))[1])


def test_an_image_is_a_video_of_one_frame() -> None:
    image = latent_noise(7, Purpose.SDXL_LATENTS, (1, 4, 5, 3))
    np.testing.assert_array_equal(image, latent_noise(7, Purpose.SDXL_LATENTS, (1, 4, 1, 5, 3))[:, :, 0])


def test_the_numbers_are_standard_normal() -> None:
    x = latent_noise(0, Purpose.VIDEO, (1, 4, 16, 40, 64)).astype(np.float64)
    n = x.size
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n) ** 0.5
    flat = x.ravel()
    for lag in (1, 2, 3, 4, 64, 2560):
        assert abs((flat[:-lag] * flat[lag:]).mean()) < 4 / n**0.5
    assert np.isfinite(x).all()


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = (latent_noise(3, Purpose.VIDEO, (1, 4, 3, 4, 5)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.dtype == np.float32


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, None])
def test_a_seed_that_is_no_64_bit_integer_is_refused(seed: object) -> None:
    with pytest.raises(InputError, match="seed is"):
        standard_normal(seed, Purpose.VIDEO, 1, (4, 2, 2))  # type: ignore[arg-type]


def test_a_batch_of_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 4, 3, 4, 5\)"):
        latent_noise(0, Purpose.VIDEO, (2, 4, 3, 4, 5))
