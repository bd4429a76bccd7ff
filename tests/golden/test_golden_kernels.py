# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, run on the CPU, against arrays of the official implementation."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.runtime.algorithm.config import NOISE_BASE_WEIGHT
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule, ddim_schedule
from lamp_trt.runtime.algorithm.latents import denoise_step, final_adain, step_table
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.kernels.frames import count_decoded, first_frame, match_histograms, posterior_sample
from lamp_trt.runtime.kernels.latent_loop import begin_loop, latent_step
from tests.conftest import GoldenClose
from tests.doubles.cpu_kernels import Loop, Memory, RecordingLauncher, device, launcher
from tests.runtime.kernels.test_frames import Video, decoded_to
from tests.tolerances import (
    GOLDEN_EXACT,
    GOLDEN_INITIAL,
    GOLDEN_LATENTS_FINAL,
    GOLDEN_LATENTS_FREE,
    GOLDEN_TEACHER_FORCED,
    GOLDEN_VAE,
    KERNEL_STEP_ATOL,
)

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("one_thread")]
Arrays = Mapping[str, np.ndarray]
Golden = Callable[[str], Arrays]

SD_SCALING_FACTOR = 0.18215


def begin(
    memory: Memory, golden_set: Path, arrays: Arrays, dtype: Any, adain: Any = "schedule"
) -> tuple[Loop, DDIMSchedule, RecordingLauncher]:
    """A loop with the golden's tables, started from the golden's noise or inverted latents."""
    config = json.loads((golden_set / "scheduler" / "scheduler_config.json").read_text())
    n = len(arrays["timesteps"])
    schedule = ddim_schedule(n, config)
    shape = arrays["init_latents"].shape
    loop, launch = Loop(memory, (2, *shape[1:]), dtype, n), launcher()
    loop.rows[:] = step_table(schedule, guidance_scale=float(arrays["guidance"]), adain=adain)
    loop.time_table[:, 0] = schedule.timesteps
    editing = "inv_latent" in arrays
    begin_loop(
        launch,
        loop.arrays,
        n,
        seed=0,
        purpose=Purpose.VIDEO,
        noise=device(memory.array(arrays["inv_latent" if editing else "raw_noise"])),
        base_weight=0.0 if editing else NOISE_BASE_WEIGHT,
        first_frame=device(memory.array(arrays["first_frame_latents"])),
    )
    return loop, schedule, launch


@pytest.mark.parametrize("name", ["loop50", "loop10", "edit10"])
def test_a_loop_starts_from_the_official_latents(
    memory: Memory, golden: Golden, golden_set: Path, golden_close: GoldenClose, name: str
) -> None:
    arrays = golden(name)
    loop, _, _ = begin(memory, golden_set, arrays, np.float32)
    n = len(arrays["timesteps"])
    golden_close(loop.latents_before(0, n), arrays["init_latents"], **GOLDEN_INITIAL)
    golden_close(loop.sample[1:], arrays["init_latents"], **GOLDEN_INITIAL)


@pytest.mark.parametrize("name", ["loop50", "loop10"])
@pytest.mark.parametrize("adain", ["schedule", "none"])
def test_a_teacher_forced_step_is_the_official_one(
    memory: Memory, golden: Golden, golden_set: Path, golden_close: GoldenClose, name: str, adain: str
) -> None:
    """From the golden's latents and UNet output: with AdaIN, and before it."""
    arrays = golden(name)
    loop, schedule, launch = begin(memory, golden_set, arrays, np.float32, adain)
    n = len(schedule)
    for k, i in enumerate(arrays["sel_steps"]):
        loop.latents[:] = arrays["latents_after"][i - 1] if i else arrays["init_latents"]
        loop.noise_pred[:] = arrays["unet_raw_sel"][k]
        loop.state["step"] = i
        latent_step(launch, loop.arrays)
        got = loop.latents_before(i + 1, n)[0]
        if adain == "none":
            golden_close(got[:, 1:], arrays["latents_pre_adain_sel"][k], **GOLDEN_TEACHER_FORCED)
        elif i < n - 1:
            golden_close(got, arrays["latents_after"][i], **GOLDEN_TEACHER_FORCED)
        else:
            golden_close(got, arrays["latents_final"][0], **GOLDEN_LATENTS_FINAL)


@pytest.mark.parametrize("name", ["loop50", "loop10"])
def test_an_fp16_step_is_the_twins_fed_the_same_values(
    memory: Memory, golden: Golden, golden_set: Path, name: str
) -> None:
    arrays = golden(name)
    loop, schedule, launch = begin(memory, golden_set, arrays, np.float16)
    n = len(schedule)
    for k, i in enumerate(arrays["sel_steps"]):
        before = arrays["latents_after"][i - 1][None] if i else arrays["init_latents"]
        loop.latents[:] = before[0]
        loop.noise_pred[:] = arrays["unet_raw_sel"][k]
        loop.state["step"] = i
        latent_step(launch, loop.arrays)
        want = denoise_step(
            before,
            loop.noise_pred.astype(np.float32),
            int(i),
            schedule,
            guidance_scale=float(arrays["guidance"]),
        )
        want = final_adain(want) if i == n - 1 else want
        np.testing.assert_allclose(
            loop.latents_before(i + 1, n), want, rtol=0, atol=KERNEL_STEP_ATOL * np.abs(want).max()
        )
        np.testing.assert_array_equal(loop.sample[0], loop.latents_before(i + 1, n)[0].astype(np.float16))


@pytest.mark.parametrize("name", ["loop50", "loop10", "edit10"])
def test_a_whole_loop_with_the_reference_unet_ends_at_the_official_latents(
    memory: Memory, golden: Golden, golden_set: Path, golden_close: GoldenClose, name: str
) -> None:
    """The loop as a GPU runs it: the UNet reads `sample` and the time row, and writes noise_pred."""
    arrays = golden(name)
    loop, schedule, launch = begin(memory, golden_set, arrays, np.float32)
    n, unet, text = len(schedule), load_lamp_unet(golden_set), torch.from_numpy(arrays["text"])
    sample, noise_pred = torch.from_numpy(loop.sample), torch.from_numpy(loop.noise_pred)
    for i in range(n):
        with torch.inference_mode():
            noise_pred.copy_(unet(sample, torch.from_numpy(loop.time_row[0].copy()), text))
        latent_step(launch, loop.arrays)
        if i < n - 1:
            golden_close(
                loop.latents_before(i + 1, n)[0],
                arrays["latents_after"][i],
                **GOLDEN_LATENTS_FREE,
                what=f"step {i}",
            )
    golden_close(loop.latents[:1], arrays["latents_final"], **GOLDEN_LATENTS_FINAL)
    assert loop.progress["steps_done"] == n


def test_the_posterior_sample_is_the_official_one(
    memory: Memory, golden: Golden, golden_close: GoldenClose
) -> None:
    mean, logvar, noise = (memory.array(golden("vae")[name]) for name in ("mean", "logvar", "eps"))
    out = memory.empty((*mean.shape[:2], 1, *mean.shape[2:]), np.float32)
    inputs = device(mean), device(logvar), device(out)
    posterior_sample(launcher(), *inputs, scaling_factor=SD_SCALING_FACTOR, seed=0, noise=device(noise))
    golden_close(out[:, :, 0], golden("vae")["latents"], **GOLDEN_VAE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_first_frame_is_reduced_as_the_official_script_does(
    memory: Memory, golden: Golden, golden_close: GoldenClose, dtype: Any
) -> None:
    arrays = {
        key.partition("/")[2]: value
        for key, value in golden("preprocess").items()
        if key.startswith("half_size/")
    }
    rgb = arrays["bgr_u8"][..., ::-1]
    decoded = memory.array((rgb.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32))
    height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
    pixels, image = memory.empty(rgb.shape, np.uint8), memory.empty((1, 3, height, width), dtype)
    first_frame(launcher(), device(decoded), device(pixels), device(image))
    golden_close(pixels, rgb, **GOLDEN_EXACT)
    want = arrays["model_input_f16" if dtype == np.float16 else "model_input_f32"]
    golden_close(image, want, **GOLDEN_EXACT)


def matched(memory: Memory, frames: np.ndarray, mode: Any = "official") -> np.ndarray:
    video = Video(memory, *frames.shape[:3])
    count_decoded(launcher(), video.arrays, device(memory.array(decoded_to(frames))))
    match_histograms(launcher(), video.arrays, mode)
    return video.frames


def test_histograms_are_matched_as_officially_bit_for_bit(
    memory: Memory, golden: Golden, golden_close: GoldenClose
) -> None:
    """Every case, the overflow of the brightest level included; and "exact" against exact integer CDFs."""
    arrays = golden("histmatch")
    cases = sorted({name.partition("/")[0] for name in arrays})
    for case in cases:
        pair = []
        for image in ("src", "dst"):
            as_float = arrays.get(f"{case}/{image}_f32")
            u8 = arrays[f"{case}/{image}_u8"] if as_float is None else as_float * np.float32(255)
            pair.append(u8.astype(np.uint8))
        golden_close(matched(memory, np.stack(pair))[1], arrays[f"{case}/out_u8"], **GOLDEN_EXACT, what=case)
        luts = arrays[f"{case}/lut_exact_integer"]
        exact = np.stack([lut[pair[1][..., c]] for c, lut in enumerate(luts)], axis=-1)
        golden_close(matched(memory, np.stack(pair), "exact")[1], exact, **GOLDEN_EXACT, what=case)


def test_the_whole_video_is_matched_as_officially(
    memory: Memory, golden: Golden, golden_close: GoldenClose
) -> None:
    arrays = golden("loop50")
    frames = (arrays["video"][0].transpose(1, 2, 3, 0) * np.float32(255)).astype(np.uint8)
    golden_close(matched(memory, frames), arrays["gif_u8"], **GOLDEN_EXACT)
