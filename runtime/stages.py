# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 between token ids and pixels, the same on every device: the operations are those of ops.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.runtime.algorithm.config import NOISE_BASE_WEIGHT, GenerationConfig
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule
from lamp_trt.runtime.algorithm.latents import Latents, StepMode, step_table
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.finite import (
    LAMP_UNET,
    SDXL_TEXT_ENCODERS,
    SDXL_UNET,
    TEXT_ENCODER,
    VAE_ENCODER,
    require_finite,
)
from lamp_trt.runtime.media.image import Image
from lamp_trt.runtime.ops import Array, Clock, ImageOps, Loop, StepCallback, TokenIds, VideoOps
from lamp_trt.runtime.safety.check import SafetyCheck, check_first_frame, check_frames

NOBODY = Control()
"""Reports to nobody and cannot be cancelled."""


@dataclass(frozen=True, eq=False)
class ImageJob:
    """A first frame to be made by SDXL, every argument checked.

    ids            for either text encoder (2, tokens): [negative, prompt]
    zero_negative  the negative prompt is all-zero embeddings, whatever its ids are
    noise          (1, 4, h, w) instead of the seed's
    safety         how the image is checked, None: not at all, or as the first frame of a VideoJob
    """

    ids: tuple[TokenIds, TokenIds]
    zero_negative: bool
    schedule: DDIMSchedule
    guidance_scale: float
    seed: int = 0
    noise: Array | None = None
    on_step: StepCallback | None = None
    safety: SafetyCheck | None = None


@dataclass(frozen=True, eq=False)
class VideoJob:
    """A video to be made, every argument checked; LampPipeline.__call__ explains them.

    ids          (2, tokens): [negative, prompt]
    first_frame  what VideoOps.take_image returned; or the job that makes one, which is then fitted as the
                 config says
    safety       how first frame and frames are checked, None: not at all
    """

    ids: TokenIds
    first_frame: Any | ImageJob
    schedule: DDIMSchedule
    config: GenerationConfig
    noise: Array | None = None
    base_noise: Array | None = None
    posterior_noise: Array | None = None
    on_step: StepCallback | None = None
    safety: SafetyCheck | None = None


@dataclass(frozen=True, eq=False)
class MadeImage:
    """image: uint8 RGB (h, w, 3). latents: float32 (1, 4, h // 8, w // 8) as decoded. timings: seconds by
    stage, text, denoise, decode, and safety if it was checked. flagged: by the safety checker, None if it
    was not checked."""

    image: Image
    latents: Latents
    timings: Mapping[str, float] = field(default_factory=dict)
    flagged: bool | None = None


@dataclass(frozen=True, eq=False)
class MadeVideo:
    """frames: uint8 RGB (f, h, w, 3). latents: float32 (1, 4, f, h // 8, w // 8) as decoded. first_frame: the
    image that was animated, uint8 RGB (h, w, 3). made: what SDXL made of the job's ImageJob, larger than
    that. timings: seconds by stage, text, make_first_frame (if it was made), first_frame, denoise, decode and
    histogram, and if it was checked first_frame_safety and safety. flagged: whether the safety checker
    flags first frame or frames, None if they were not checked."""

    frames: NDArray[np.uint8]
    latents: Latents
    first_frame: Image
    made: MadeImage | None
    timings: Mapping[str, float]
    flagged: bool | None = None


def make_video(ops: VideoOps, job: VideoJob, control: Control = NOBODY) -> MadeVideo:
    """Algorithm 1, its first frame made by SDXL if the job asks for one.

    Raises SafetyError for a first frame that is refused before the loop begins, and for refused frames.
    """
    config, made, flagged = job.config, None, None
    with ops.working(control) as clock:
        text = ops.encode_text(guided_ids(job.ids, config.guidance_scale))
        clock.end("text")
        image = job.first_frame
        if isinstance(image, ImageJob):
            images = ops.images()
            image_clock = images.clock()
            image_latents, decoded = _draw(images, image, image_clock, control)
            pixels, image = ops.fit(decoded, config)
            image_clock.end("decode")
            made = images, pixels, image_latents, image_clock
            clock.end("make_first_frame")
        first_frame = ops.encode_image(image, config.seed, job.posterior_noise)
        clock.end("first_frame")
        if job.safety:
            ops.finish(control)
            shown = [ops.fetch(made[1])] if made else []
            flagged = check_first_frame(ops, job.safety, [*shown, ops.animated(image)], control)
            clock.end("first_frame_safety")
        latents = ops.denoise(video_loop(job), text, first_frame, control)
        clock.end("denoise")
        decoded_frames = ops.decode(latents, control)
        clock.end("decode")
        frames = ops.match(decoded_frames, config.histogram_mode)
        clock.end("histogram")
        ops.finish(control)
        shown_frames = ops.fetch(frames)
        if job.safety:
            flagged = check_frames(ops, job.safety, shown_frames, control) or flagged
            clock.end("safety")
            ops.finish(control)
        made_image = _fetch_image(*made) if made else None
        return MadeVideo(
            shown_frames, ops.fetch(latents), ops.animated(image), made_image, clock.seconds(), flagged
        )


def make_image(ops: ImageOps, job: ImageJob, control: Control = NOBODY) -> MadeImage:
    """SDXL's image of a prompt. Raises SafetyError if it is refused."""
    flagged = None
    with ops.working(control) as clock:
        latents, decoded = _draw(ops, job, clock, control)
        pixels = ops.pixels(decoded)
        clock.end("decode")
        ops.finish(control)
        if job.safety:
            flagged = check_first_frame(ops, job.safety, [ops.fetch(pixels)], control)
            clock.end("safety")
            ops.finish(control)
        return replace(_fetch_image(ops, pixels, latents, clock), flagged=flagged)


def encode_prompt(ops: VideoOps, ids: TokenIds) -> Array:
    """Text embeddings (2, tokens, width), [negative, prompt]."""
    with ops.working(NOBODY):
        text = ops.encode_text(ids)
        ops.finish(NOBODY)
        return _finite(ops.fetch(text), TEXT_ENCODER)


def encode_sdxl_prompt(
    ops: ImageOps, ids: tuple[TokenIds, TokenIds], zero_negative: bool
) -> tuple[Array, Array]:
    """SDXL's text conditions, see ImageOps.encode_text."""
    with ops.working(NOBODY):
        states, embeds = ops.encode_text(ids, zero_negative)
        ops.finish(NOBODY)
        both = " or ".join(SDXL_TEXT_ENCODERS)
        return _finite(ops.fetch(states), both), _finite(ops.fetch(embeds), SDXL_TEXT_ENCODERS[1])


def encode_first_frame(ops: VideoOps, image: Image, seed: int, posterior_noise: Array | None) -> Latents:
    """uint8 RGB (h, w, 3) to first-frame latents (1, 4, 1, h // 8, w // 8), float32 and scaled."""
    with ops.working(NOBODY):
        latents = ops.encode_image(image, seed, posterior_noise)
        ops.finish(NOBODY)
        return _finite(ops.fetch(latents), VAE_ENCODER)


def decode(ops: VideoOps, latents: Latents) -> NDArray[np.uint8]:
    """Latents (1, 4, f, h, w) to frames uint8 (f, height, width, 3), before histogram matching."""
    with ops.working(NOBODY):
        frames = ops.decode(ops.put(latents), NOBODY)
        ops.finish(NOBODY)
        return ops.fetch(frames)


def are_flagged(ops: VideoOps, check: SafetyCheck, frames: NDArray[np.uint8]) -> bool:
    """Whether the safety checker flags any of frames (n, h, w, 3)."""
    with ops.working(NOBODY):
        return check_frames(ops, check, frames, NOBODY)


def with_total(timings: Mapping[str, float]) -> dict[str, float]:
    """Stages that follow each other, and "total", their sum."""
    return {**timings, "total": sum(timings.values())}


def guided_ids(ids: TokenIds, guidance_scale: float) -> TokenIds:
    """Token ids [negative, prompt] for both halves of the UNet's batch. Without guidance (a scale of at most
    1) both halves are the prompt."""
    return ids if guidance_scale > 1 else ids[[1, 1]]


def video_loop(job: VideoJob) -> Loop:
    """The loop of a video. With callbacks the final AdaIN comes after the last one."""
    config = job.config
    rows = step_table(
        job.schedule,
        guidance_scale=config.guidance_scale,
        preset=config.preset,
        adain=config.adain,
        adain_switch_step=config.adain_switch_step,
    )
    final = job.on_step is not None and bool(rows["mode"][-1] & StepMode.FINAL_TO_FRAME_0)
    if final:
        rows["mode"] &= ~np.uint32(StepMode.FINAL_TO_FRAME_0)
    paper = config.preset == "paper" and config.mix_noise
    return Loop(
        stage="denoise",
        unet=LAMP_UNET,
        timesteps=job.schedule.timesteps,
        rows=rows,
        seed=config.seed,
        purpose=Purpose.VIDEO,
        noise=job.noise,
        base_weight=NOISE_BASE_WEIGHT if config.mix_noise else 0.0,
        base_purpose=Purpose.PAPER_BASE if paper else None,
        base_noise=job.base_noise,
        on_step=job.on_step,
        final_adain=final,
    )


def image_loop(job: ImageJob) -> Loop:
    """The loop of SDXL's image."""
    return Loop(
        stage="make_first_frame",
        unet=SDXL_UNET,
        timesteps=job.schedule.timesteps,
        rows=step_table(job.schedule, guidance_scale=job.guidance_scale, adain="none", step_frame_0=True),
        seed=job.seed,
        purpose=Purpose.SDXL_LATENTS,
        noise=job.noise,
        on_step=job.on_step,
    )


def _draw(ops: ImageOps, job: ImageJob, clock: Clock, control: Control) -> tuple[Any, Any]:
    """Latents and decoded image. Without guidance nothing is left of the negative prompt."""
    first, second = (guided_ids(ids, job.guidance_scale) for ids in job.ids)
    text = ops.encode_text((first, second), job.zero_negative and job.guidance_scale > 1)
    clock.end("text")
    latents = ops.denoise(image_loop(job), text, control)
    clock.end("denoise")
    return latents, ops.decode(latents)


def _fetch_image(ops: ImageOps, pixels: Any, latents: Any, clock: Clock) -> MadeImage:
    return MadeImage(ops.fetch(pixels), ops.fetch(latents), clock.seconds())


def _finite(values: Array, where: str) -> Array:
    require_finite(values, where)
    return values
