# SPDX-License-Identifier: Apache-2.0
"""Previews in the process of an engine: drawn small, and encoded and sent only while somebody asks."""

import base64
import io
import threading
from collections.abc import Callable
from typing import Any

from lamp_trt.runtime.preview import Preview
from lamp_trt.serving.pools.pool import EngineJob

MAX_BYTES = 256 << 10
"""Of a preview as WebP; one that is larger is sent with fewer frames."""

QUALITY = 70


class Previews:
    """The jobs of which previews are wanted. The reader's thread changes them, the engine's thread asks.

    send: writes one message to the pool.
    """

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._wanted: set[str] = set()

    def want(self, job: str, wanted: bool) -> None:
        with self._lock:
            (self._wanted.add if wanted else self._wanted.discard)(job)

    def of(self, job: EngineJob) -> Preview:
        """The preview callback of a job. Jobs that ended before are forgotten, also those asked for late."""
        with self._lock:
            self._wanted &= {job.id}

        def show(stage: str, step: int, frames: Any) -> None:
            if job.id in self._wanted:
                webp = base64.b64encode(webp_from_frames(frames, job.fps)).decode()
                self._send(event="preview", job=job.id, stage=stage, step=step, webp=webp)

        return show

    def end(self, job: EngineJob) -> None:
        self.want(job.id, False)


def webp_from_frames(frames: Any, fps: float) -> bytes:
    """Frames uint8 (f, h, w, 3) as an animated WebP of twice their size and of at most MAX_BYTES, unless a
    single frame has more."""
    from PIL import Image

    from lamp_trt.runtime.media.preview_file import enlarged

    pictures = [Image.fromarray(frame) for frame in enlarged(frames)]
    every = 1
    while True:
        taken = pictures[::every]
        file = io.BytesIO()
        duration = max(20, round(1000 * every / fps))  # browsers slow shorter delays down
        taken[0].save(
            file,
            "WEBP",
            save_all=True,
            append_images=taken[1:],
            duration=duration,
            loop=0,
            quality=QUALITY,
            method=0,
        )
        if file.tell() <= MAX_BYTES or len(taken) == 1:
            return file.getvalue()
        every *= 2
