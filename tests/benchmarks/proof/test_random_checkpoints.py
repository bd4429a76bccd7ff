# SPDX-License-Identifier: Apache-2.0
"""Random checkpoints of published widths stay in fp16's range, whole loops long."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamp_trt.benchmarks.proof.random_checkpoints import write_lamp_unet, write_sdxl_unet
from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.export.published import SDXL_UNET, config_of
from lamp_trt.runtime.algorithm.ddim import ddim_schedule
from lamp_trt.runtime.algorithm.latents import denoise_step

STEPS, EVERY = 50, 10
"""Steps of a loop, and how many of them one prediction serves: a call takes seconds."""

LARGEST = 65504 / 8
"""Of a value, where fp16 ends at 65504: full depth adds up at most four times as many residuals."""


class Range:
    """The largest magnitude that any module of a network gives."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.largest = 0.0
        for module in network.modules():
            module.register_forward_hook(self._look)

    def _look(self, module: Any, inputs: Any, output: Any) -> None:
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, float(value.abs().max()))


@pytest.mark.slow
def test_fifty_steps_of_a_lamp_unet_of_full_width_stay_in_fp16s_range(tmp_path: Path) -> None:
    """One ResNet a block instead of two; in float32, which shows how far values go."""
    config = {**config_of("unet"), "layers_per_block": 1}
    unet = load_lamp_unet(write_lamp_unet(tmp_path / "lamp", config) / "unet", torch.float32)
    seen, schedule, rng = Range(unet), ddim_schedule(STEPS), np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, 2, 8, 8)).astype(np.float32)
    text = torch.from_numpy(rng.standard_normal((2, 77, 768)).astype(np.float32))
    for step in range(STEPS):
        sample = torch.from_numpy(np.repeat(latents, 2, axis=0))
        if step % EVERY == 0:
            with torch.inference_mode():
                noise_pred = unet(sample, schedule.timesteps[step], text).numpy()
        latents = denoise_step(latents, noise_pred, step, schedule, guidance_scale=12.5)
    print(f"largest value within {seen.largest:.1f}, largest latent {np.abs(latents).max():.2f}")
    assert seen.largest < LARGEST
    assert 1 < np.abs(latents).max() < LARGEST


@pytest.mark.slow
def test_fifty_steps_of_sdxls_unet_of_full_width_stay_in_fp16s_range(tmp_path: Path) -> None:
    """One ResNet a block instead of two, one transformer layer instead of two and ten."""
    from lamp_trt.export.networks import module_from_config

    config = {**SDXL_UNET, "layers_per_block": 1, "transformer_layers_per_block": [1, 1, 1]}
    folder = write_sdxl_unet(tmp_path / "sdxl", config) / "unet"
    from safetensors.torch import load_file

    unet: Any = module_from_config("sdxl_unet", config).eval()
    unet.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    seen, schedule, rng = Range(unet), ddim_schedule(STEPS), np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
    text, pooled = (
        torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
        for shape in ((2, 77, 2048), (2, 1280))
    )
    conditions = {"text_embeds": pooled, "time_ids": torch.tensor([[640.0, 1024, 0, 0, 640, 1024]] * 2)}
    for step in range(STEPS):
        sample = torch.from_numpy(np.repeat(latents, 2, axis=0))
        if step % EVERY == 0:
            with torch.inference_mode():
                (pred,) = unet(
                    sample, schedule.timesteps[step], text, added_cond_kwargs=conditions, return_dict=False
                )
        u, c = pred.numpy()
        guided = u + 5.0 * (c - u)
        a, b = schedule.alpha_t[step], schedule.alpha_prev[step]
        clean = (latents - (1 - a) ** 0.5 * guided) / a**0.5
        latents = (b**0.5 * clean + (1 - b) ** 0.5 * guided).astype(np.float32)
    print(f"largest value within {seen.largest:.1f}, largest latent {np.abs(latents).max():.2f}")
    assert seen.largest < LARGEST
    assert 1 < np.abs(latents).max() < LARGEST
