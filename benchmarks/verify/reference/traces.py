# SPDX-License-Identifier: Apache-2.0
"""Traces of one video, step by step: by Algorithm 1 in PyTorch, and by the runtime on a bundle.

Both get the same prompt, picture and random numbers. Only `forced` uses the other side's values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamp_trt.benchmarks.verify.options import Checkpoints
from lamp_trt.benchmarks.verify.reference.arithmetic import Arithmetic
from lamp_trt.benchmarks.verify.reference.networks import (
    load_text_encoder,
    load_vae,
    prompt_ids,
    scaling_factor,
    scheduler_config,
)
from lamp_trt.engine.families import SD_CHECKPOINT
from lamp_trt.export.lamp import reference
from lamp_trt.export.lamp.unet import load_lamp_unet
from lamp_trt.runtime.algorithm.histogram import match_histograms
from lamp_trt.runtime.algorithm.noise import Purpose, latent_noise
from lamp_trt.runtime.pipeline import LampPipeline

Latents = NDArray[np.float32]


@dataclass(frozen=True)
class VideoJob:
    """Inputs of both sides. image: uint8 RGB (height, width, 3) at the video's size."""

    prompt: str
    negative_prompt: str | None
    image: NDArray[np.uint8]
    noise: Latents
    """(1, 4, f, h, w), not mixed yet."""
    posterior_noise: Latents
    """(1, 4, h, w)."""
    num_inference_steps: int
    adain_switch_step: int | None
    guidance_scale: float = 12.5


@dataclass(frozen=True)
class LoopTrace:
    """Values that one side computed, in order.

    entering   inputs of the loop, by name
    steps      latents after each step and its AdaIN; final: the latents that are decoded
    forced     each step's result when it starts from the other side's latents; None: not computed
    frames     uint8 RGB (f, h, w, 3)
    """

    timesteps: tuple[int, ...]
    entering: Mapping[str, NDArray[Any]]
    steps: tuple[Latents, ...]
    final: Latents
    frames: NDArray[np.uint8]
    forced: tuple[Latents, ...] | None = None


def video_job(
    pipeline: LampPipeline,
    image: NDArray[np.uint8],
    *,
    prompt: str,
    negative_prompt: str | None = None,
    seed: int,
    num_inference_steps: int,
) -> VideoJob:
    """Make a job with random numbers of `seed`, and with both regimes of AdaIN at any number of steps.

    The official code ends the first regime after 31 steps, an absolute number. Shorter loops would never
    reach the second one, so that in them it begins half way.
    """
    sizes = pipeline.bundle.manifest.sizes
    latent = sizes["latent_height"], sizes["latent_width"]
    switch = None
    if num_inference_steps <= reference.EARLY_STEPS["official"]:
        switch = (num_inference_steps + 1) // 2
    return VideoJob(
        prompt,
        negative_prompt,
        image,
        latent_noise(seed, Purpose.VIDEO, (1, 4, pipeline.num_frames, *latent)),
        latent_noise(seed, Purpose.POSTERIOR, (1, 4, *latent)),
        num_inference_steps,
        switch,
    )


def runtime_trace(
    pipeline: LampPipeline, motion: str, job: VideoJob, forced_from: tuple[Latents, ...] = ()
) -> LoopTrace:
    """Trace the video that the bundle makes through the public pipeline.

    forced_from: the other side's latents after each step, from which step i + 1 then starts in a second run.
    """
    arguments: dict[str, Any] = {
        "motion": motion,
        "first_frame": job.image,
        "negative_prompt": job.negative_prompt,
        "noise": job.noise,
        "posterior_noise": job.posterior_noise,
        "num_inference_steps": job.num_inference_steps,
        "adain_switch_step": job.adain_switch_step,
        "guidance_scale": job.guidance_scale,
        "safety": "off",  # nothing is given out, and the checker is compared by itself
    }
    steps: list[Latents] = []
    forced: list[Latents] = []
    timesteps: list[int] = []

    def watch(_: LampPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        timesteps.append(timestep)
        steps.append(values["latents"].copy())

    def force(_: LampPipeline, step: int, timestep: int, values: dict[str, Any]) -> Mapping[str, Any]:
        forced.append(values["latents"].copy())
        return {"latents": forced_from[step].copy()}

    video = pipeline(job.prompt, **arguments, callback_on_step_end=watch)
    if forced_from:
        pipeline(job.prompt, **arguments, callback_on_step_end=force)
    return LoopTrace(
        timesteps=tuple(timesteps),
        entering={
            "text embeddings": pipeline.encode_prompt(job.prompt, job.negative_prompt),
            "first-frame latents": pipeline.encode_first_frame(
                job.image, posterior_noise=job.posterior_noise
            ),
        },
        steps=tuple(steps),
        final=video.latents,
        frames=video.frames,
        forced=tuple(forced) or None,
    )


def reference_trace(
    checkpoints: Checkpoints,
    motion: str,
    job: VideoJob,
    arithmetic: Arithmetic,
    forced_from: tuple[Latents, ...] = (),
) -> LoopTrace:
    """Trace the same video in PyTorch, by `arithmetic`, with export/lamp/reference.py. One module at a
    time is loaded."""
    with arithmetic.active():
        return _reference_trace(checkpoints, motion, job, arithmetic.dtype, forced_from)


def _reference_trace(
    checkpoints: Checkpoints,
    motion: str,
    job: VideoJob,
    dtype: torch.dtype,
    forced_from: tuple[Latents, ...],
) -> LoopTrace:
    sd = checkpoints.folder(SD_CHECKPOINT)
    scaling, scheduler = scaling_factor(sd), scheduler_config(sd)
    ids = torch.from_numpy(prompt_ids(sd / "tokenizer", [job.negative_prompt or "", job.prompt]))
    text = reference.encode_text(load_text_encoder(sd, dtype), ids)
    first_frame = reference.encode_first_frame(
        load_vae(sd, dtype),
        _pixels(job.image).to(dtype),
        torch.from_numpy(job.posterior_noise).to(dtype),
        scaling,
    )
    steps: list[Latents] = []
    unet = load_lamp_unet(checkpoints.motions[motion], dtype)
    final = reference.denoise(
        unet,
        first_frame,
        torch.from_numpy(job.noise).to(dtype),
        text,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        adain_switch_step=job.adain_switch_step,
        scheduler_config=scheduler,
        callback=lambda step, latents: steps.append(latents.float().numpy()),
    )
    forced = None
    if forced_from:
        forced = _forced_steps(unet, steps[0], forced_from, text, job, scheduler)
    del unet
    frames = reference.frames_from_latents(load_vae(sd, dtype), final, scaling, _matched)
    return LoopTrace(
        timesteps=tuple(reference.ddim_tables(job.num_inference_steps, scheduler)[0].tolist()),
        entering={
            "text embeddings": text.float().numpy(),
            "first-frame latents": first_frame.float().numpy(),
        },
        steps=tuple(steps),
        final=final.float().numpy(),
        frames=frames.numpy(),
        forced=forced,
    )


def _forced_steps(
    unet: Any,
    first: Latents,
    starts: tuple[Latents, ...],
    text: Tensor,
    job: VideoJob,
    scheduler: Mapping[str, Any],
) -> tuple[Latents, ...]:
    """Return `first`, the result of step 0, then each step's result from the other side's latents before
    it."""
    early_steps = job.adain_switch_step
    if early_steps is None:
        early_steps = reference.EARLY_STEPS["official"]
    forced = [first]
    tables = zip(*reference.ddim_tables(job.num_inference_steps, scheduler), strict=True)
    for step, (t, alpha_t, alpha_prev) in enumerate(tables):
        if step == 0:
            continue
        start = torch.from_numpy(starts[step - 1]).to(text.dtype)
        with torch.no_grad():
            moved = reference.denoise_step(unet, start, text, t, alpha_t, alpha_prev, job.guidance_scale)
        matched = reference.match_frames(moved, early=step < early_steps, preset="official")
        forced.append(matched.float().numpy())
    return tuple(forced)


def _pixels(image: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 RGB (h, w, 3) to (1, 3, h, w) in [-1, 1], float32."""
    return (torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0).float() / 127.5) - 1


def _matched(frames: Tensor) -> Tensor:
    """Match histograms by the runtime's code, which equals the official one bit for bit."""
    return torch.from_numpy(match_histograms(frames.numpy()))
