# SPDX-License-Identifier: Apache-2.0
"""The runtime's NumPy code against arrays of the official implementation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lamp_trt.runtime.algorithm.config import Histogram
from lamp_trt.runtime.algorithm.ddim import alphas_cumprod, ddim_schedule
from lamp_trt.runtime.algorithm.histogram import match_histograms
from lamp_trt.runtime.algorithm.latents import (
    adain,
    apply_row,
    denoise_step,
    final_adain,
    guided,
    mix_noise,
    step_table,
    with_first_frame,
)
from lamp_trt.runtime.media.image import model_input, resize_to
from tests.conftest import Arrays, GoldenClose
from tests.tolerances import (
    GOLDEN_ADAIN,
    GOLDEN_EXACT,
    GOLDEN_INITIAL,
    GOLDEN_LATENTS_FINAL,
    GOLDEN_TEACHER_FORCED,
)

pytestmark = pytest.mark.golden
LOOPS = ["loop50", "loop10"]
Golden = Callable[[str], Arrays]


def cases(arrays: Arrays) -> dict[str, dict[str, np.ndarray]]:
    """The arrays named <case>/<array>, by case."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        case, _, array = name.partition("/")
        found.setdefault(case, {})[array] = value
    assert found
    return found


@pytest.mark.parametrize("loop", LOOPS)
def test_the_schedule_is_the_official_one(
    golden: Golden, golden_close: GoldenClose, golden_set: Path, loop: str
) -> None:
    arrays = golden(loop)
    config = json.loads((golden_set / "scheduler" / "scheduler_config.json").read_text())
    schedule = ddim_schedule(len(arrays["timesteps"]), config)
    golden_close(schedule.timesteps, arrays["timesteps"], **GOLDEN_EXACT)
    golden_close(alphas_cumprod(config), arrays["alphas_cumprod"], **GOLDEN_INITIAL)
    golden_close(schedule.alpha_t, arrays["alpha_t"], **GOLDEN_INITIAL)
    golden_close(schedule.alpha_prev, arrays["alpha_prev"], **GOLDEN_INITIAL)


@pytest.mark.parametrize("loop", LOOPS)
def test_initial_latents_are_the_official_ones(golden: Golden, golden_close: GoldenClose, loop: str) -> None:
    arrays = golden(loop)
    got = mix_noise(arrays["raw_noise"], arrays["first_frame_latents"])
    golden_close(got, arrays["init_latents"], **GOLDEN_INITIAL)
    golden_close(got[:, :, 1:], arrays["mixed_noise"][:, :, 1:], **GOLDEN_INITIAL)


def test_editing_starts_from_inverted_latents(golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("edit10")
    got = with_first_frame(arrays["inv_latent"], arrays["first_frame_latents"])
    golden_close(got, arrays["init_latents"], **GOLDEN_EXACT)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_teacher_forced_step_is_the_official_step(
    golden: Golden, golden_close: GoldenClose, loop: str
) -> None:
    """From the golden's own latents and UNet output: guidance, DDIM and AdaIN of each recorded step."""
    arrays = golden(loop)
    schedule, scale = ddim_schedule(len(arrays["timesteps"])), float(arrays["guidance"])
    rows = step_table(schedule, guidance_scale=scale, adain="none")
    for index, step in enumerate(arrays["sel_steps"].tolist()):
        latents = arrays["latents_after"][step - 1][None] if step else arrays["init_latents"]
        pred = arrays["unet_raw_sel"][index]
        stepped = apply_row(latents, pred, rows[step])
        after = denoise_step(latents, pred, step, schedule, guidance_scale=scale)
        for got, name in (
            (guided(pred, scale)[0, :, 1:], "noise_pred_cfg_sel"),
            (stepped[0, :, 1:], "latents_pre_adain_sel"),
        ):
            golden_close(got, arrays[name][index], **GOLDEN_TEACHER_FORCED, what=f"{name}, step {step}")
        golden_close(after[0], arrays["latents_after"][step], **GOLDEN_TEACHER_FORCED, what=f"step {step}")


@pytest.mark.parametrize("loop", [*LOOPS, "edit10"])
def test_the_final_adain_gives_what_is_decoded(golden: Golden, golden_close: GoldenClose, loop: str) -> None:
    arrays = golden(loop)
    golden_close(final_adain(arrays["latents_after"][-1:]), arrays["latents_final"], **GOLDEN_LATENTS_FINAL)


@pytest.mark.parametrize(
    ("content", "style", "out"),
    [
        ("content", "style", "out"),
        ("content_constch", "style_constch", "out_constch"),
        ("content_small", "style", "out_small"),
    ],
)
def test_adain_is_the_official_one(
    golden: Golden, golden_close: GoldenClose, content: str, style: str, out: str
) -> None:
    arrays = golden("adain")
    golden_close(adain(arrays[content], arrays[style]), arrays[out], **GOLDEN_ADAIN)


def as_bytes(case: Arrays, name: str) -> np.ndarray:
    """An image of histmatch.npz as uint8: given so, or as float to be truncated."""
    if f"{name}_u8" in case:
        return case[f"{name}_u8"]
    return (case[f"{name}_f32"] * np.float32(255)).astype(np.uint8)


@pytest.mark.parametrize(("mode", "lut"), [("official", "lut_unclipped"), ("exact", "lut_exact_integer")])
def test_histogram_matching_is_bit_for_bit(
    golden: Golden, golden_close: GoldenClose, mode: Histogram, lut: str
) -> None:
    for name, case in cases(golden("histmatch")).items():
        frames = np.stack([as_bytes(case, "src"), as_bytes(case, "dst")])
        matched = match_histograms(frames, mode)[1]
        for channel, table in enumerate(np.minimum(case[lut], 255)):
            want = table[frames[1, ..., channel]]
            golden_close(matched[..., channel], want, **GOLDEN_EXACT, what=f"{name}, channel {channel}")
        if mode == "official":
            golden_close(matched, case["out_u8"], **GOLDEN_EXACT, what=name)


def test_the_gif_is_made_from_the_decoded_video(golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("loop50")
    video = (arrays["video"][0] * np.float32(255)).astype(np.uint8).transpose(1, 2, 3, 0)
    golden_close(match_histograms(video), arrays["gif_u8"], **GOLDEN_EXACT)


def test_first_frames_are_resized_as_the_official_script_does(
    golden: Golden, golden_close: GoldenClose
) -> None:
    for name, case in cases(golden("preprocess")).items():
        height, width = case["resized_rgb_u8"].shape[:2]
        image = resize_to(case["bgr_u8"][..., ::-1], height, width)
        golden_close(image, case["resized_rgb_u8"], **GOLDEN_EXACT, what=name)
        golden_close(model_input(image), case["model_input_f32"], **GOLDEN_EXACT, what=name)
        golden_close(model_input(image, np.float16), case["model_input_f16"], **GOLDEN_EXACT, what=name)
