# SPDX-License-Identifier: Apache-2.0
"""Frames to the network's pictures: transformers' CLIP image processor is the reference."""

from itertools import pairwise

import numpy as np
import pytest

from lamp_trt.engine.bundle.manifest import SafetyEntry
from lamp_trt.export.published import EXTRACTOR
from lamp_trt.runtime.safety.pictures import crop_starts, crops_of, pixel_values

SIZE = 224
ENTRY = SafetyEntry(tuple(EXTRACTOR["image_mean"]), tuple(EXTRACTOR["image_std"]), (0.2,), (0.2,))
SHAPES = [(320, 512), (512, 320), (64, 96), (64, 64), (224, 224), (224, 300), (640, 1024), (100, 333), (1, 5)]


def frame_of(height: int, width: int) -> np.ndarray:
    """Coarse colours with noise on them."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    picture = coarse.repeat(16, 0).repeat(16, 1)[:height, :width] + rng.integers(-30, 31, (height, width, 3))
    return picture.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_is_what_transformers_makes_of_a_frame(shape: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(**{k: v for k, v in EXTRACTOR.items() if k != "feature_extractor_type"})
    frame = frame_of(*shape)
    expected = np.asarray(
        processor([frame], return_tensors="np", input_data_format="channels_last")["pixel_values"]
    )
    (crop,) = crops_of(frame, SIZE, "official")
    ours = pixel_values([crop], ENTRY)
    levels = np.abs(ours - expected) * np.array(ENTRY.image_std)[:, None, None] * 255
    assert ours.dtype == np.float32
    assert levels.max() < 1
    all_crops = crops_of(frame, SIZE)
    assert any(np.array_equal(crop, other) for other in all_crops)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_crops_cover_the_frame(shape: tuple[int, int]) -> None:
    frame = frame_of(*shape)
    crops = crops_of(frame, SIZE)
    assert {crop.shape for crop in crops} == {(SIZE, SIZE, 3)}
    assert len(crops) == 1 if shape[0] == shape[1] else len(crops) >= 3


@pytest.mark.parametrize("length", [224, 225, 226, 358, 448, 672, 673, 1000, 1120, 28672])
def test_crops_leave_no_gap_and_have_both_ends_and_the_centre(length: int) -> None:
    starts = crop_starts(length, SIZE)
    assert starts[0] == 0
    assert starts[-1] == length - SIZE
    assert (length - SIZE) // 2 in starts
    assert all(later - earlier <= SIZE for earlier, later in pairwise(starts))
    assert length > 3 * SIZE or len(starts) <= 3


@pytest.mark.parametrize(("place", "official"), [("left", False), ("middle", True), ("right", False)])
def test_the_centre_alone_misses_the_ends(place: str, official: bool) -> None:
    """A white bar of 40 columns in a black frame of 512x320."""
    frame = np.zeros((320, 512, 3), np.uint8)
    first = {"left": 10, "middle": 236, "right": 462}[place]
    frame[:, first : first + 40] = 255
    assert any(crop.max() > 200 for crop in crops_of(frame, SIZE))
    assert any(crop.max() > 200 for crop in crops_of(frame, SIZE, "official")) == official
