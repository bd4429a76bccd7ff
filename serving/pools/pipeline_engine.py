# SPDX-License-Identifier: Apache-2.0
"""The engine of a bundle: a loaded pipeline, in the process that a pool started."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.runtime.control import Progress
from lamp_trt.runtime.preview import Preview
from lamp_trt.serving.pools.pool import EngineJob

if TYPE_CHECKING:
    from lamp_trt.runtime.media.video import Video

FACTORY = "lamp_trt.serving.pools.pipeline_engine:open_engine"


def open_engine(settings: Mapping[str, Any]) -> "PipelineEngine":
    """settings: `bundle`, its digest `expect_bundle`, and `placement`, arguments of Placement."""
    return PipelineEngine(settings)


class PipelineEngine:
    """Makes videos with one pipeline. Its process ends it; there is nothing to close."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from lamp_trt.runtime.load import load_pipeline
        from lamp_trt.runtime.requests import Placement

        placement = Placement(**settings["placement"])
        self._pipe = load_pipeline(settings["bundle"], placement, expect_bundle=settings["expect_bundle"])
        self._has_previews = has_previews(self._pipe.bundle.manifest)

    @property
    def motion(self) -> str:
        return self._pipe.motion

    def make(
        self, job: EngineJob, progress: Progress, cancel: threading.Event, preview: Preview | None = None
    ) -> None:
        import numpy as np

        frame = None if job.first_frame is None else np.load(job.first_frame, allow_pickle=False)
        if not self._has_previews:
            preview = None
        if job.clip is not None:
            video = self._edit(job, frame, progress, cancel, preview)
        else:
            video = self._pipe(
                job.prompt,
                motion=job.motion,
                first_frame=frame,
                progress=progress,
                preview=preview,
                cancel=cancel,
                **job.options,
            )
        video.save(job.out, job.fps)

    def _edit(
        self,
        job: EngineJob,
        frame: Any,
        progress: Progress,
        cancel: threading.Event,
        preview: Preview | None,
    ) -> "Video":
        """Edit as `lamp-trt edit` does; the settings have the clip's name in place of the server's path."""
        from lamp_trt.runtime.algorithm.config import GenerationConfig
        from lamp_trt.runtime.edit import EditRequest, edit_video
        from lamp_trt.runtime.requests import ClipRequest

        assert job.clip is not None
        clip = ClipRequest(Path(job.clip["path"]), job.clip["start"], job.clip["every"])
        request = EditRequest(job.prompt, clip, GenerationConfig(**job.options), job.motion, frame)
        video = edit_video(self._pipe, request, progress=progress, preview=preview, cancel=cancel)
        return replace(video, settings={**video.settings, "video": job.clip["name"]})


def has_previews(manifest: Manifest) -> bool:
    """Whether a bundle has the preview map of each of its VAEs; an older one has none."""
    return manifest.scaling_factors.keys() <= manifest.previews.keys()
