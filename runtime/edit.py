# SPDX-License-Identifier: Apache-2.0
"""Editing of a clip: invert it, then make a video from the inverted latents with another first frame.

Both halves are calls of the pipeline; nothing of Algorithm 1 is here. See docs/editing.md.
"""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import GenerationConfig, file_path, plain_text
from lamp_trt.runtime.algorithm.latents import Latents
from lamp_trt.runtime.control import CancelToken, Control, Progress
from lamp_trt.runtime.inverted import (
    Origin,
    cache,
    cached,
    check_latents_path,
    read_latents,
    write_latents,
)
from lamp_trt.runtime.media.clip.reader import read_clip
from lamp_trt.runtime.media.image import load_first_frame
from lamp_trt.runtime.media.video import Video
from lamp_trt.runtime.pipeline import LampPipeline
from lamp_trt.runtime.preview import PREVIEW_SECONDS, Preview
from lamp_trt.runtime.requests import ClipRequest
from lamp_trt.runtime.stages import with_total

log = logging.getLogger("lamp_trt")


@dataclass(frozen=True, eq=False)
class EditRequest:
    """An edit of a video file, checked.

    clip         the part of the file that is edited
    config       of the video; num_inference_steps is also the inversion's, fit and background the clip's
    motion       None: the pipeline's current one
    first_frame  an image file or uint8 RGB (h, w, 3); None: the clip's own
    latents      a file of the clip's inverted latents: read if it exists, otherwise written
    Raises InputError for invalid values, and for settings that only generated videos have.
    """

    prompt: str
    clip: ClipRequest
    config: GenerationConfig
    motion: str | None = None
    first_frame: str | Path | NDArray[np.uint8] | None = None
    latents: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.clip, ClipRequest):
            raise InputError(f"clip is {self.clip!r:.100}; expected a ClipRequest.")
        vars(self).update(
            prompt=plain_text("prompt", self.prompt),
            config=replace(self.config, mix_noise=False),
            motion=None if self.motion is None else plain_text("motion", self.motion),
            latents=None if self.latents is None else file_path("the file of latents", self.latents),
        )
        if self.config.first_frame_prompt is not None:
            raise InputError("an edit starts from a given first frame: leave first_frame_prompt out.")
        if self.latents is not None:
            check_latents_path(self.latents)


def edit_video(
    pipeline: LampPipeline,
    request: EditRequest,
    *,
    progress: Progress | None = None,
    preview: Preview | None = None,
    preview_interval: float = PREVIEW_SECONDS,
    cancel: CancelToken | None = None,
) -> Video:
    """Edit a clip. The video's settings have the clip's file, digest and fitting, and repeat the edit.

    progress  called for both halves, stages "invert" and "denoise"
    preview, preview_interval: of the second half, as in LampPipeline.__call__
    The first frame is checked by the safety checker before the inversion and before latents are written; the
    source clip is not checked.
    Raises as LampPipeline.__call__, and InputError for a clip or a file of latents that does not fit.
    """
    control = Control(progress, cancel)
    config = request.config
    motion = pipeline.motion if request.motion is None else request.motion
    pipeline.bundle.motion(motion)
    pipeline.safety_check(config)
    size = pipeline.size
    clip = read_clip(request.clip, pipeline.num_frames, *size, config.fit, config.background)
    control.check()
    given = clip.frames[0] if request.first_frame is None else request.first_frame
    first_frame = load_first_frame(given, *size, config.fit, config.background)
    if request.first_frame is None:
        log.info("the clip's own first frame is kept; --first-frame gives another")
    origin = Origin(
        clip.digest,
        pipeline.bundle.digest,
        motion,
        config.num_inference_steps,
        pipeline.latents_shape,
        f"{pipeline.runner}, {pipeline.cpu_precision or 'its own precision'}",
    )
    latents = _found(request, origin)
    timings = {}
    keeps = request.latents is not None and not request.latents.exists()
    if latents is None or keeps:
        pipeline.check_first_frame(first_frame, config)
    if latents is None:
        start = time.perf_counter()
        latents = pipeline.invert(
            clip.frames,
            motion=motion,
            num_inference_steps=config.num_inference_steps,
            progress=progress,
            cancel=cancel,
        )
        timings["invert"] = time.perf_counter() - start
        cache(latents, origin)
    if keeps and request.latents is not None:
        write_latents(request.latents, latents, origin)
    video = pipeline(
        request.prompt,
        motion=motion,
        first_frame=first_frame,
        noise=latents,
        progress=progress,
        preview=preview,
        preview_interval=preview_interval,
        cancel=cancel,
        **vars(config),
    )
    timings |= {stage: seconds for stage, seconds in video.timings.items() if stage != "total"}
    settings = {**video.settings, **_clip_settings(request, clip.digest), "injected": []}
    return replace(video, timings=with_total(timings), settings=settings)


def _found(request: EditRequest, origin: Origin) -> Latents | None:
    """Latents from the given file or the cache, None if the clip has to be inverted."""
    if request.latents is not None and request.latents.exists():
        latents = read_latents(request.latents, origin)
        log.info("inverted latents are read from %s", request.latents)
        return latents
    kept = cached(origin)
    if kept is not None:
        log.info("this clip was inverted before: its latents are in the cache")
    return kept


def _clip_settings(request: EditRequest, digest: str) -> dict[str, Any]:
    """Settings that find and fit the clip again. The path is absolute, for use from any folder."""
    clip, config = request.clip, request.config
    return {
        "video": str(clip.video.absolute()),
        "start": clip.start,
        "every": clip.every,
        "clip_sha256": digest,
        "fit": config.fit,
        "background": config.background,
    }
