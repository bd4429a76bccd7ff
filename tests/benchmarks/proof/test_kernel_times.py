# SPDX-License-Identifier: Apache-2.0
"""What the kernel benchmark compares with and prints, without a GPU."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamp_trt.benchmarks.proof.kernels import forms as kernel_forms
from lamp_trt.benchmarks.proof.kernels import times as kernels
from lamp_trt.benchmarks.proof.names import file_name
from lamp_trt.benchmarks.proof.timing import Timing
from lamp_trt.runtime.algorithm.ddim import ddim_schedule, step_coefficients
from lamp_trt.runtime.algorithm.histogram import match_histograms, uint8_frames
from lamp_trt.runtime.algorithm.latents import denoise_step
from lamp_trt.runtime.media.image import model_input, resize_to
from tests.tolerances import KERNEL_STEP_ATOL


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def test_the_pytorch_steps_are_the_twins() -> None:
    latents, pred, schedule = normal(4, 5, 8, 8), normal(2, 4, 5, 8, 8, seed=1), ddim_schedule(50)
    ddim = step_coefficients(schedule.alpha_t[40], schedule.alpha_prev[40])
    want = denoise_step(latents[None].numpy(), pred.numpy(), 40, schedule, guidance_scale=12.5)[0]
    for form in (kernel_forms.step, kernel_forms.official_step):
        got, sample = form(latents, pred, ddim, 12.5)
        np.testing.assert_allclose(got, want, rtol=0, atol=2 * KERNEL_STEP_ATOL * np.abs(want).max())
        np.testing.assert_array_equal(sample, np.broadcast_to(got, sample.shape))


def test_the_pytorch_noise_is_mixed_as_the_twins() -> None:
    torch.manual_seed(0)
    first = normal(4, 1, 8, 8)
    latents, sample = kernel_forms.noise(first, 5, torch.float16)
    torch.manual_seed(0)
    drawn = torch.randn(4, 5, 8, 8)
    np.testing.assert_array_equal(latents[:, :1], first)
    np.testing.assert_allclose(latents[:, 1:], 0.2 * drawn[:, :1] + 0.8 * drawn[:, 1:], atol=1e-6)
    np.testing.assert_array_equal(sample[1], latents.half())


def test_the_pytorch_histograms_are_the_twins() -> None:
    images = 0.5 * normal(4, 3, 24, 32)
    want = match_histograms(uint8_frames(images.numpy()), "exact")
    np.testing.assert_array_equal(kernel_forms.histogram_match(images), want)


def test_the_pytorch_first_frame_is_the_twins() -> None:
    decoded = 0.7 * normal(1, 3, 32, 48)
    pixels, image = kernel_forms.first_frame(decoded, torch.float32)
    want = uint8_frames(decoded.numpy(), rounding="round")[0]
    np.testing.assert_array_equal(pixels, want)
    np.testing.assert_array_equal(image, model_input(resize_to(want, 16, 24)))


def results() -> dict[str, Any]:
    def row(form: str, median: float) -> dict[str, Any]:
        timing = {"median_us": median, "p10_us": median - 1, "p90_us": median + 1}
        return {
            "case": "noise",
            "form": form,
            "graph": timing,
            "launched": timing,
            "bytes_moved": 10**6,
            "gbs": 1e3 / median,
            "share_of_copy": 0.25,
            "target_us": 5 if form == kernels.OURS else None,
            "error": 2e-7 if form == kernels.OURS else None,
            "error_unit": "max abs",
        }

    facts = dict.fromkeys(("gpu", "power_limit", "driver", "cuda", "torch", "commit", "date"), "x")
    rows = [row(kernels.OURS, 4.0), row("PyTorch eager", 30.0)]
    return {"machine": facts, "l2": "warm", "copy_gbs": 4000.0, "rows": rows}


def test_the_table_shows_speed_ups_targets_and_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results()))
    assert kernels.main(["--table", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "a device copy moves 4000 GB/s" in lines[0]
    ours = (
        "| noise | lamp-trt | 4.0 (3.0-5.0), target 5 | 1.0x | 4.0 (3.0-5.0) | 250 (25%) | 2.0e-07 max abs |"
    )
    assert lines[-2] == ours
    assert lines[-1] == "| noise | PyTorch eager | 30.0 (29.0-31.0) | 7.5x | 30.0 (29.0-31.0) | 33 (25%) |  |"


def test_results_are_compared_row_by_row() -> None:
    now, old = results(), copy.deepcopy(results())
    old["rows"][0]["graph"]["median_us"] = 8.0
    del old["rows"][1]
    assert kernels.comparison(now, old).split() == ["noise", "lamp-trt", "8.0", "->", "4.0", "us", "2.00x"]


def test_timings_are_percentiles() -> None:
    assert Timing.from_samples([float(x) for x in range(101)]) == Timing(50, 10, 90)


def test_a_gpus_name_becomes_a_file_name() -> None:
    assert file_name("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
