# SPDX-License-Identifier: Apache-2.0
"""One denoising step of a LAMP UNet of full size with random fp16 weights: bundle against reference, CPU."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lamp_trt.benchmarks.proof.random_checkpoints import write_lamp_unet
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import COMPONENTS
from lamp_trt.export.build import build_bundle
from lamp_trt.export.lamp import reference
from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.export.published import config_of
from lamp_trt.export.recipe import BuildOptions
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.latents import denoise_step
from tests.tolerances import FP16_YARDSTICK

FRAMES, HEIGHT, WIDTH = 2, 8, 16
STEP, STEPS, GUIDANCE_SCALE = 25, 50, 12.5


@pytest.mark.slow
def test_one_step_of_a_full_size_unet_equals_the_reference(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 8 << 30:
        pytest.skip("needs 8 GiB of disk")
    checkpoint = write_lamp_unet(tmp_path / "rain", config_of("unet")) / "unet"
    assert (checkpoint / "diffusion_pytorch_model.safetensors").stat().st_size > 2 * COMPONENTS[
        "unet"
    ].parameters
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, FRAMES, HEIGHT, WIDTH)).astype(np.float32)
    text = rng.standard_normal((2, 77, 768)).astype(np.float16)
    schedule = ddim_schedule(STEPS)

    def reference_step(dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
        """noise_pred (2, ...) and the latents after the step, float32."""
        unet = load_lamp_unet(checkpoint, dtype)
        start = torch.from_numpy(latents).half().to(dtype)
        t, alpha_t, alpha_prev = (table[STEP] for table in reference.ddim_tables(STEPS))
        with torch.inference_mode():
            noise_pred = unet(torch.cat([start, start]), t, torch.from_numpy(text).to(dtype))
            guided = noise_pred[:1] + GUIDANCE_SCALE * (noise_pred[1:] - noise_pred[:1])
            moved = reference.ddim_step(start[:, :, 1:], guided[:, :, 1:], alpha_t, alpha_prev)
            after = torch.cat([start[:, :, :1], moved], dim=2)
            after = reference.match_frames(after, early=True, preset="official")
        return noise_pred.float().numpy(), after.float().numpy()

    exact, own = reference_step(torch.float32), reference_step(torch.float16)
    options = BuildOptions(
        motions={"rain": tmp_path / "rain"},
        precision="fp16",
        height=8 * HEIGHT,
        width=8 * WIDTH,
        num_frames=FRAMES,
    )
    build_bundle(tmp_path / "bundle", options)
    engine = OnnxRuntimeEngine(Bundle.open(tmp_path / "bundle"), "lamp_unet", motion="rain")
    start = latents.astype(np.float16).astype(np.float32)
    noise_pred = engine.run(
        {
            "sample": np.repeat(start, 2, axis=0).astype(np.float16),
            "timestep": schedule.timesteps[STEP : STEP + 1].astype(np.float32),
            "encoder_hidden_states": text,
        }
    )["noise_pred"]
    ours = noise_pred, denoise_step(start, noise_pred, STEP, schedule, guidance_scale=GUIDANCE_SCALE)
    for what, actual, expected, half in zip(("noise_pred", "latents"), ours, exact, own, strict=True):
        d, yardstick = distance(actual, expected), distance(half, expected)
        print(f"{what}: rel L2 {d.rel_l2:.2e}, PyTorch's own {yardstick.rel_l2:.2e}, cosine {d.cosine:.7f}")
        assert d.finite
        assert d.rel_l2 <= FP16_YARDSTICK * yardstick.rel_l2
        assert yardstick.rel_l2 < 0.05
    shutil.rmtree(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "rain")
