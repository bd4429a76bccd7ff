# SPDX-License-Identifier: Apache-2.0
"""Clips of requests to edit: decoded once before they are queued, so that a bad one is refused at once."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime.media.clip.reader import read_clip
from lamp_trt.runtime.requests import ClipRequest
from lamp_trt.serving.jobs.fields import FieldError, VideoFields
from lamp_trt.serving.settings import ModelInfo

WALL_SECONDS = 60.0
"""Longest time to decode an upload."""

AT_ONCE = 4
"""Requests to edit that are read at the same time; their uploads lie in the temporary folder and the jobs
folder. Further ones wait before their bodies are read."""

_one_at_a_time = asyncio.Lock()


async def check_clip(path: Path, fields: VideoFields, model: ModelInfo) -> None:
    """Decode the frames that an edit takes, in the clip's child process. Raises FieldError."""
    assert fields.clip is not None
    async with _one_at_a_time:
        await asyncio.to_thread(_check, path, fields.clip, fields.options, model)


def _check(path: Path, clip: Mapping[str, Any], options: Mapping[str, Any], model: ModelInfo) -> None:
    request = ClipRequest(path, clip["start"], clip["every"])
    fit, background = options.get("fit", "stretch"), options.get("background", "white")
    try:
        read_clip(request, model.num_frames, *model.size, fit, background, WALL_SECONDS)
    except (InputError, EngineError) as error:
        message = str(error).replace(f"the video {str(path)!r:.300}", "video")
        raise FieldError("video", message.replace("--start", "start").replace("--every", "every")) from error
