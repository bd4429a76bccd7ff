# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 from token ids to pixels, independent of the device: it calls the operations of ops.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.runtime.algorithm.config import NOISE_BASE_WEIGHT, GenerationConfig
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule
from lamp_trt.runtime.algorithm.latents import Latents, StepMode, step_table
from lamp_trt.runtime.algorithm.noise import Purpose
from lamp_trt.runtime.algorithm.preview import clean_table
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
from lamp_trt.runtime.safety.check import FIRST_FRAME, VIDEO, SafetyCheck, check_first_frame, check_frames

NO_CONTROL = Control()
"""No progress reports, no cancelling."""


@dataclass(frozen=True, eq=False)
class ImageJob:
    """A first frame to be made by SDXL, with checked arguments.

    ids            one array per text encoder, (2, tokens): [negative, prompt]
    zero_negative  replace the negative prompt's embeddings by zeros
    noise          (1, 4, h, w), replaces the noise drawn from `seed`
    safety         check of the image; None: none, or as the first frame of a VideoJob
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
    """A video to be made, with checked arguments, see LampPipeline.__call__.

    ids          (2, tokens): [negative, prompt]
    first_frame  the result of VideoOps.take_image; or the job that makes a first frame, whose image is then
                 fitted as configured
    safety       check of the first frame and the frames, None: none
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
class InversionJob:
    """A clip to be inverted, with checked arguments, see LampPipeline.invert.

    ids     (2, tokens): the empty prompt, twice
    frames  uint8 RGB (f, height, width, 3)
    shape   of the latents, (1, 4, f, h, w)
    """

    ids: TokenIds
    frames: NDArray[np.uint8]
    shape: tuple[int, ...]
    schedule: DDIMSchedule


@dataclass(frozen=True, eq=False)
class MadeImage:
    """An image made by SDXL.

    image    uint8 RGB (h, w, 3)
    latents  float32 (1, 4, h // 8, w // 8), before decoding
    timings  seconds by stage: text, denoise, decode, and safety if it was checked
    flagged  by the safety checker, None if it was not checked
    """

    image: Image
    latents: Latents
    timings: Mapping[str, float] = field(default_factory=dict)
    flagged: bool | None = None


@dataclass(frozen=True, eq=False)
class MadeVideo:
    """A video made by the pipeline.

    frames       uint8 RGB (f, h, w, 3)
    latents      float32 (1, 4, f, h // 8, w // 8), before decoding
    first_frame  the animated image, uint8 RGB (h, w, 3)
    made         the image made by SDXL at its own size, None for a given first frame
    timings      seconds by stage: text, make_first_frame (if made), first_frame, denoise, decode, histogram,
                 and first_frame_safety and safety if they were checked
    flagged      whether the safety checker flags the first frame or a frame, None if they were not checked
    """

    frames: NDArray[np.uint8]
    latents: Latents
    first_frame: Image
    made: MadeImage | None
    timings: Mapping[str, float]
    flagged: bool | None = None


def make_video(ops: VideoOps, job: VideoJob, control: Control = NO_CONTROL) -> MadeVideo:
    """Run Algorithm 1; SDXL makes the first frame if job.first_frame is an ImageJob.

    Raises SafetyError for a refused first frame, before the loop begins, and for refused frames. No preview
    comes before the first frame has passed a check that refuses, hence none of SDXL's loop.
    """
    config, made, flagged = job.config, None, None
    with ops.working(control) as clock:
        text = ops.encode_text(guided_ids(job.ids, config.guidance_scale))
        clock.end("text")
        image = job.first_frame
        if isinstance(image, ImageJob):
            images = ops.images()
            image_clock = images.clock()
            refusing = job.safety is not None and not job.safety.report
            shown_by = control.without_previews() if refusing else control
            image_latents, decoded = _draw(images, image, image_clock, shown_by)
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


def make_image(ops: ImageOps, job: ImageJob, control: Control = NO_CONTROL) -> MadeImage:
    """Make one image with SDXL. Raises SafetyError if it is refused."""
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


def invert(ops: VideoOps, job: InversionJob, control: Control = NO_CONTROL) -> Latents:
    """Invert a clip by DDIM: latents (1, 4, f, h, w) from which the loop comes back to it."""
    with ops.working(control):
        clip = _encode_clip(ops, job, control)
        latents = ops.denoise(inversion_loop(job.schedule, clip), ops.encode_text(job.ids), None, control)
        ops.finish(control)
        return ops.fetch(latents)


def _encode_clip(ops: VideoOps, job: InversionJob, control: Control) -> Latents:
    """Latents (1, 4, f, h, w) of a clip: the means of the VAE's posteriors, so that no seed enters."""
    latents = []
    mean = np.zeros((*job.shape[:2], *job.shape[3:]), np.float32)
    for frame in job.frames:
        encoded = ops.encode_image(frame, 0, mean)
        ops.finish(control)
        latents.append(_finite(ops.fetch(encoded), VAE_ENCODER))
    return np.concatenate(latents, axis=2)


def encode_prompt(ops: VideoOps, ids: TokenIds) -> Array:
    """Encode token ids to text embeddings (2, tokens, width), [negative, prompt]."""
    with ops.working(NO_CONTROL):
        text = ops.encode_text(ids)
        ops.finish(NO_CONTROL)
        return _finite(ops.fetch(text), TEXT_ENCODER)


def encode_sdxl_prompt(
    ops: ImageOps, ids: tuple[TokenIds, TokenIds], zero_negative: bool
) -> tuple[Array, Array]:
    """Compute SDXL's text conditions, see ImageOps.encode_text."""
    with ops.working(NO_CONTROL):
        states, embeds = ops.encode_text(ids, zero_negative)
        ops.finish(NO_CONTROL)
        both = " or ".join(SDXL_TEXT_ENCODERS)
        return _finite(ops.fetch(states), both), _finite(ops.fetch(embeds), SDXL_TEXT_ENCODERS[1])


def encode_first_frame(ops: VideoOps, image: Image, seed: int, posterior_noise: Array | None) -> Latents:
    """Encode uint8 RGB (h, w, 3) to first-frame latents (1, 4, 1, h // 8, w // 8), float32 and scaled."""
    with ops.working(NO_CONTROL):
        latents = ops.encode_image(image, seed, posterior_noise)
        ops.finish(NO_CONTROL)
        return _finite(ops.fetch(latents), VAE_ENCODER)


def decode(ops: VideoOps, latents: Latents) -> NDArray[np.uint8]:
    """Decode latents (1, 4, f, h, w) to uint8 frames (f, height, width, 3), without histogram matching."""
    with ops.working(NO_CONTROL):
        frames = ops.decode(ops.put(latents), NO_CONTROL)
        ops.finish(NO_CONTROL)
        return ops.fetch(frames)


def are_flagged(ops: VideoOps, check: SafetyCheck, frames: NDArray[np.uint8], stage: str = VIDEO) -> bool:
    """Whether the safety checker flags any of frames (n, h, w, 3). stage: FIRST_FRAME or VIDEO, for
    messages."""
    with ops.working(NO_CONTROL):
        if stage == FIRST_FRAME:
            return check_first_frame(ops, check, list(frames), NO_CONTROL)
        return check_frames(ops, check, frames, NO_CONTROL)


def with_total(timings: Mapping[str, float]) -> dict[str, float]:
    """The timings of consecutive stages with their sum as "total"."""
    return {**timings, "total": sum(timings.values())}


def guided_ids(ids: TokenIds, guidance_scale: float) -> TokenIds:
    """Token ids for both halves of the UNet's batch: `ids` [negative, prompt], or the prompt twice without
    guidance (a scale of at most 1)."""
    return ids if guidance_scale > 1 else ids[[1, 1]]


def video_loop(job: VideoJob) -> Loop:
    """The denoising loop of a video. With a callback, the final AdaIN follows its last call."""
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
        clean=clean_table(job.schedule),
    )


def inversion_loop(schedule: DDIMSchedule, clip: Latents) -> Loop:
    """The loop of DDIM inversion from a clip's latents, without guidance or AdaIN; frame 0 is one of all.

    schedule: of denoising. Both halves of the UNet's batch hold the same clip and text (docs/editing.md).
    """
    steps = schedule.inversion
    return Loop(
        stage="invert",
        unet=LAMP_UNET,
        timesteps=steps.timesteps,
        rows=step_table(steps, guidance_scale=1, adain="none", step_frame_0=True),
        seed=0,
        purpose=Purpose.VIDEO,
        noise=clip,
    )


def image_loop(job: ImageJob) -> Loop:
    """The denoising loop of SDXL's image."""
    return Loop(
        stage="make_first_frame",
        unet=SDXL_UNET,
        timesteps=job.schedule.timesteps,
        rows=step_table(job.schedule, guidance_scale=job.guidance_scale, adain="none", step_frame_0=True),
        seed=job.seed,
        purpose=Purpose.SDXL_LATENTS,
        noise=job.noise,
        on_step=job.on_step,
        clean=clean_table(job.schedule),
    )


def _draw(ops: ImageOps, job: ImageJob, clock: Clock, control: Control) -> tuple[Any, Any]:
    """Make an image; returns latents and decoded image. Without guidance the negative prompt is not used."""
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
