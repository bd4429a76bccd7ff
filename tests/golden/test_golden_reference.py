# SPDX-License-Identifier: Apache-2.0
"""The PyTorch reference against the official implementation: AdaIN, VAE, whole loops, editing, inversion."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lamp_trt.export.checkpoints.tensors import load_vae
from lamp_trt.export.lamp import reference
from lamp_trt.export.lamp.lean_unet import make_lean
from lamp_trt.export.lamp.unet import LampUNet, load_lamp_unet
from lamp_trt.runtime.algorithm.histogram import match_histograms
from tests.conftest import GoldenClose
from tests.tolerances import (
    GOLDEN_ADAIN,
    GOLDEN_BLOCK,
    GOLDEN_FINAL_FP64,
    GOLDEN_GIF_EQUAL_SHARE,
    GOLDEN_GIF_LEVELS,
    GOLDEN_INITIAL,
    GOLDEN_INVERSION,
    GOLDEN_LATENTS_FINAL,
    GOLDEN_LATENTS_FREE,
    GOLDEN_TEACHER_FORCED,
    GOLDEN_UNET,
    GOLDEN_VAE,
    GOLDEN_VIDEO,
)

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("one_thread")]
Arrays = Mapping[str, np.ndarray]
Golden = Callable[[str], Arrays]
LOOPS = ["loop50", "loop10", "edit10"]


@pytest.fixture(scope="module", params=["official", "lean"])
def unet(request: pytest.FixtureRequest, golden_set: Path) -> LampUNet:
    official = load_lamp_unet(golden_set)
    return official if request.param == "official" else make_lean(official)


@pytest.fixture(scope="module")
def vae(golden_set: Path) -> nn.Module:
    return load_vae(golden_set)


@pytest.fixture(scope="module")
def scheduler_config(golden_set: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((golden_set / "scheduler" / "scheduler_config.json").read_text())
    return config


def tensors(arrays: Arrays, *names: str) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(arrays[name]) for name in names)


def start(arrays: Arrays) -> tuple[Tensor, bool]:
    """What goes into the loop as noise, and whether it is mixed: editing starts from inverted latents."""
    name = "inv_latent" if "inv_latent" in arrays else "raw_noise"
    return torch.from_numpy(arrays[name]), name == "raw_noise"


def denoise(
    unet: nn.Module, arrays: Arrays, scheduler_config: dict[str, Any], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """The free-running loop of a golden file: final latents, and those after each step."""
    after: list[Tensor] = []
    noise, mix = start(arrays)
    first, text = tensors(arrays, "first_frame_latents", "text")
    final = reference.denoise(
        unet,
        first.to(dtype),
        noise.to(dtype),
        text.to(dtype),
        num_inference_steps=len(arrays["timesteps"]),
        guidance_scale=float(arrays["guidance"]),
        mix_noise=mix,
        scheduler_config=scheduler_config,
        callback=lambda step, latents: after.append(latents),
    )
    return final, after


@pytest.mark.parametrize("case", [("content", "style", "out"), ("content_small", "style", "out_small")])
def test_adain(golden: Golden, golden_close: GoldenClose, case: tuple[str, str, str]) -> None:
    arrays = golden("adain")
    content, style = tensors(arrays, *case[:2])
    golden_close(reference.adain(content, style), arrays[case[2]], **GOLDEN_ADAIN)


def test_adain_of_constant_channels(golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("adain")
    content, style = tensors(arrays, "content_constch", "style_constch")
    golden_close(reference.adain(content, style), arrays["out_constch"], **GOLDEN_ADAIN)


def test_adain_statistics(golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("adain")
    mean, std = reference.channel_statistics(torch.from_numpy(arrays["content"]))
    golden_close(mean, arrays["content_mean"], **GOLDEN_ADAIN)
    golden_close(std, arrays["content_std"], **GOLDEN_ADAIN)


@torch.no_grad()
def test_the_vae_encodes_a_sample_of_the_posterior(
    vae: Any, golden: Golden, golden_close: GoldenClose
) -> None:
    arrays = golden("vae")
    image, noise = tensors(arrays, "image", "eps")
    mean, logvar = vae.quant_conv(vae.encoder(image)).chunk(2, dim=1)
    golden_close(mean, arrays["mean"], **GOLDEN_VAE, what="mean")
    golden_close(logvar.clamp(-30, 20), arrays["logvar"], **GOLDEN_VAE, what="logvar")
    latents = reference.encode_first_frame(vae, image, noise)
    golden_close(latents.squeeze(2), arrays["latents"], **GOLDEN_VAE, what="latents")


def test_the_vae_decodes(vae: nn.Module, golden: Golden, golden_close: GoldenClose) -> None:
    arrays = golden("vae")
    video = reference.decode_video(vae, torch.from_numpy(arrays["latents"]).unsqueeze(2))
    golden_close(video.squeeze(2), (arrays["decoded"] / 2 + 0.5).clip(0, 1), **GOLDEN_VAE)


@pytest.mark.parametrize("loop", ["loop50", "loop10"])
def test_the_schedule(
    golden: Golden, golden_close: GoldenClose, scheduler_config: dict[str, Any], loop: str
) -> None:
    arrays = golden(loop)
    timesteps, alpha_t, alpha_prev = reference.ddim_tables(len(arrays["timesteps"]), scheduler_config)
    table = reference.alphas_cumprod(scheduler_config)
    assert timesteps.tolist() == arrays["timesteps"].tolist()
    for name, got in (("alphas_cumprod", table), ("alpha_t", alpha_t), ("alpha_prev", alpha_prev)):
        golden_close(got, arrays[name], **GOLDEN_INITIAL, what=name)


@pytest.mark.parametrize("loop", LOOPS)
def test_initial_latents(golden: Golden, golden_close: GoldenClose, loop: str) -> None:
    arrays = golden(loop)
    noise, mix = start(arrays)
    latents = reference.initial_latents(torch.from_numpy(arrays["first_frame_latents"]), noise, mix=mix)
    golden_close(latents, arrays["init_latents"], **GOLDEN_INITIAL)
    if mix:
        golden_close(reference.mix_noise(noise), arrays["mixed_noise"], **GOLDEN_INITIAL)


@torch.no_grad()
@pytest.mark.parametrize("loop", LOOPS)
def test_every_step_from_the_official_latents(
    unet: LampUNet, golden: Golden, golden_close: GoldenClose, scheduler_config: dict[str, Any], loop: str
) -> None:
    arrays = golden(loop)
    guidance, (text,) = float(arrays["guidance"]), tensors(arrays, "text")
    tables = reference.ddim_tables(len(arrays["timesteps"]), scheduler_config)
    before = torch.from_numpy(np.concatenate([arrays["init_latents"], arrays["latents_after"][:-1]]))
    selected = {step: i for i, step in enumerate(arrays.get("sel_steps", np.empty(0)).tolist())}
    for step, (t, alpha_t, alpha_prev) in enumerate(zip(*tables, strict=True)):
        latents = before[step : step + 1]
        raw = unet(torch.cat([latents, latents]), t, text)
        alphas = alpha_t, alpha_prev
        moved = reference.denoise_step(lambda *_, raw=raw: raw, latents, text, t, *alphas, guidance)
        early = step < reference.EARLY_STEPS["official"]
        after = reference.match_frames(moved, early=early, preset="official")
        golden_close(after[0], arrays["latents_after"][step], **GOLDEN_TEACHER_FORCED, what=f"step {step}")
        if step in selected:
            golden_close(raw, arrays["unet_raw_sel"][selected[step]], **GOLDEN_UNET, what=f"step {step} raw")
            moved_want = arrays["latents_pre_adain_sel"][selected[step]]
            golden_close(moved[0, :, 1:], moved_want, **GOLDEN_TEACHER_FORCED, what=f"step {step} moved")


@pytest.mark.parametrize("loop", ["loop50", "loop10"])
def test_guidance_of_the_official_predictions(golden: Golden, golden_close: GoldenClose, loop: str) -> None:
    arrays = golden(loop)
    text, first = tensors(arrays, "text", "init_latents")
    for raw, want in zip(arrays["unet_raw_sel"], arrays["noise_pred_cfg_sel"], strict=True):
        guided = reference.predict_noise(
            lambda *_, raw=raw: torch.from_numpy(raw), first, torch.tensor(1), text, float(arrays["guidance"])
        )
        golden_close(guided[0, :, 1:], want, **GOLDEN_BLOCK)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_whole_loop(
    unet: LampUNet,
    vae: nn.Module,
    golden: Golden,
    golden_close: GoldenClose,
    scheduler_config: dict[str, Any],
    loop: str,
) -> None:
    arrays = golden(loop)
    final, after = denoise(unet, arrays, scheduler_config)
    for step, (latents, want) in enumerate(zip(after, arrays["latents_after"], strict=True)):
        golden_close(latents[0], want, **GOLDEN_LATENTS_FREE, what=f"step {step}")
    golden_close(final, arrays["latents_final"], **GOLDEN_LATENTS_FINAL, what="final")
    if "video" in arrays:
        golden_close(reference.decode_video(vae, final), arrays["video"], **GOLDEN_VIDEO, what="video")
    if "gif_u8" in arrays:
        frames = reference.frames_from_latents(
            vae, final, match_histograms=lambda frames: torch.from_numpy(match_histograms(frames.numpy()))
        )
        levels = np.abs(frames.numpy().astype(int) - arrays["gif_u8"])
        assert (levels == 0).mean() >= GOLDEN_GIF_EQUAL_SHARE
        assert levels.max() <= GOLDEN_GIF_LEVELS


@pytest.mark.parametrize("loop", ["loop50", "loop10"])
def test_the_whole_loop_in_float64(
    golden_set: Path,
    golden: Golden,
    golden_close: GoldenClose,
    scheduler_config: dict[str, Any],
    loop: str,
) -> None:
    arrays = golden(loop)
    # Editing mode, so that init_latents, float32 in the golden run too, are taken as they are.
    exact_start = {**arrays, "inv_latent": arrays["init_latents"]}
    unet = load_lamp_unet(golden_set, torch.float64)
    final, _ = denoise(unet, exact_start, scheduler_config, torch.float64)
    golden_close(final, arrays["latents_final_fp64"], **GOLDEN_FINAL_FP64)


@pytest.mark.parametrize("case", ["five_of_five", "five_of_fifty"])
def test_ddim_inversion(
    unet: LampUNet, golden: Golden, golden_close: GoldenClose, scheduler_config: dict[str, Any], case: str
) -> None:
    arrays = golden("inversion")
    latents, text = tensors(arrays, "video_latents", "text_uncond")
    asked: list[int] = []

    def spy(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        asked.append(int(timestep))
        out: Tensor = unet(sample, timestep, text)
        return out

    trajectory = reference.ddim_inversion(
        spy,
        latents,
        text[None],
        num_inference_steps=len(arrays[f"{case}/scheduler_timesteps"]),
        num_steps=len(arrays[f"{case}/used_timesteps"]),
        scheduler_config=scheduler_config,
    )
    assert asked == arrays[f"{case}/used_timesteps"].tolist()
    golden_close(torch.cat(trajectory), arrays[f"{case}/latents"], **GOLDEN_INVERSION)
