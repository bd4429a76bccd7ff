# SPDX-License-Identifier: Apache-2.0
"""Traces of the first frame from text: by diffusers' SDXL pipeline with DDIM, and by the runtime."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamp_trt.benchmarks.verify.reference.arithmetic import Arithmetic
from lamp_trt.benchmarks.verify.reference.networks import (
    force_zeros_for_empty_prompt,
    load_sdxl_unet,
    load_text_encoder,
    load_text_encoder_2,
    load_vae,
    published,
    quiet_libraries,
    scaling_factor,
    scheduler_config,
)
from lamp_trt.benchmarks.verify.reference.traces import Latents, LoopTrace
from lamp_trt.runtime.first_frame import FirstFrameMaker
from lamp_trt.runtime.requests import FirstFrameRequest

DDIM_SETTINGS: Mapping[str, Any] = {
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
"""Settings that turn SDXL's published Euler configuration into the DDIM that LAMP uses."""

GUIDANCE_SCALE = 5.0


@dataclass(frozen=True)
class ImageJob:
    """Inputs of both sides. height, width in pixels; noise (1, 4, height // 8, width // 8)."""

    prompt: str
    negative_prompt: str | None
    height: int
    width: int
    noise: Latents
    num_inference_steps: int


def sdxl_runtime_trace(maker: FirstFrameMaker, job: ImageJob, forced_from: tuple[Latents, ...]) -> LoopTrace:
    """Trace the image that the bundle makes, and each step from the other side's latents."""
    request = FirstFrameRequest(
        job.prompt,
        job.negative_prompt,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=GUIDANCE_SCALE,
        noise=job.noise,
        safety="off",  # nothing is given out
    )
    steps: list[Latents] = []
    forced: list[Latents] = []
    timesteps: list[int] = []

    def watch(step: int, timestep: int, latents: Latents) -> Latents:
        timesteps.append(timestep)
        steps.append(latents.copy())
        return latents

    def force(step: int, timestep: int, latents: Latents) -> Latents:
        forced.append(latents.copy())
        return forced_from[step].copy()

    made = maker(request, on_step=watch)
    maker(request, on_step=force)
    hidden_states, text_embeds = maker.encode_prompt(job.prompt, job.negative_prompt)
    return LoopTrace(
        timesteps=tuple(timesteps),
        entering={"text embeddings": hidden_states, "pooled text": text_embeds},
        steps=tuple(steps),
        final=made.latents,
        frames=made.image[None],
        forced=tuple(forced),
    )


def sdxl_reference_trace(
    folder: Path, job: ImageJob, arithmetic: Arithmetic, forced_from: tuple[Latents, ...] = ()
) -> LoopTrace:
    """Trace the image that diffusers makes, by `arithmetic` except for the VAE, which both sides run in
    fp32."""
    with arithmetic.active():
        return _reference_trace(folder, job, arithmetic.dtype, forced_from)


def _reference_trace(
    folder: Path, job: ImageJob, dtype: torch.dtype, forced_from: tuple[Latents, ...]
) -> LoopTrace:
    pipe = _diffusers_pipeline(folder, dtype)
    with torch.no_grad():
        text, no_text, pooled, no_pooled = pipe.encode_prompt(job.prompt, negative_prompt=job.negative_prompt)
    steps: list[Latents] = []
    forced: list[Latents] = []

    def watch(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(values["latents"].float().numpy())
        return values

    def force(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        forced.append(values["latents"].float().numpy())
        return {"latents": torch.from_numpy(forced_from[step]).to(dtype)}

    arguments: dict[str, Any] = {
        "negative_prompt": job.negative_prompt,
        "height": job.height,
        "width": job.width,
        "latents": torch.from_numpy(job.noise).to(dtype),
        "num_inference_steps": job.num_inference_steps,
        "guidance_scale": GUIDANCE_SCALE,
        "output_type": "latent",
    }
    final = pipe(job.prompt, **arguments, callback_on_step_end=watch).images.float()
    if forced_from:
        pipe(job.prompt, **arguments, callback_on_step_end=force)
    return LoopTrace(
        timesteps=tuple(pipe.scheduler.timesteps.tolist()),
        entering={
            "text embeddings": torch.cat([no_text, text]).float().numpy(),
            "pooled text": torch.cat([no_pooled, pooled]).float().numpy(),
        },
        steps=tuple(steps),
        final=final.numpy(),
        frames=_decoded(pipe.vae, final / scaling_factor(folder)),
        forced=tuple(forced) or None,
    )


def _decoded(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Decode latents (1, 4, h, w), divided by the scaling factor, to uint8 RGB (1, H, W, 3), rounded."""
    with torch.no_grad():
        image = vae.decode(latents).sample
    unit = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    frames: NDArray[np.uint8] = (unit * 255).round().to(torch.uint8).numpy()
    return frames


def _diffusers_pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """Load StableDiffusionXLPipeline from a checkpoint, with DDIM as its scheduler."""
    quiet_libraries()
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    tokenizers = {name: published(CLIPTokenizer, folder / name) for name in ("tokenizer", "tokenizer_2")}
    settings = {**scheduler_config(folder), **DDIM_SETTINGS}
    pipe: Any = StableDiffusionXLPipeline(  # type: ignore[no-untyped-call]
        vae=load_vae(folder, torch.float32),
        text_encoder=load_text_encoder(folder, dtype),
        text_encoder_2=load_text_encoder_2(folder, dtype),
        unet=load_sdxl_unet(folder, dtype),
        scheduler=DDIMScheduler.from_config(settings),  # type: ignore[no-untyped-call]
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt(folder),
        add_watermarker=False,
        **tokenizers,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
