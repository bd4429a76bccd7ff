# SPDX-License-Identifier: Apache-2.0
"""Previews of one call: the callback, when it is due, and what a bundle needs for them."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from lamp_trt.engine.bundle.manifest import Manifest, rebuild_command
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.algorithm.config import finite_number

PREVIEW_SECONDS = 0.5
"""Least interval between previews."""


class Preview(Protocol):
    """Preview callback, called in the thread that makes the video, while the loop runs.

    stage: "make_first_frame" (SDXL's loop) or "denoise". step: index of the finished step, from 0; steps may
    be left out. frames: a new array uint8 RGB (f, h // 8, w // 8, 3), of the first frame with f = 1. An
    exception that it raises ends the call. It must not use the pipeline.
    """

    def __call__(self, stage: str, step: int, frames: Any) -> None: ...


class Previews:
    """The previews of one call. Raises InputError for a callback that is no function, or an invalid interval.

    interval: least seconds between the end of one callback and the next preview; the first is due at once.
    """

    def __init__(self, callback: Preview, interval: float) -> None:
        if not callable(callback):
            raise InputError(
                f"preview is {callback!r:.100}; expected a function (stage, step, frames), or None."
            )
        self.interval = finite_number("preview_interval", interval)
        if self.interval < 0:
            raise InputError(f"preview_interval is {interval!r:.100}; expected seconds, 0 or more.")
        self._callback, self._next = callback, 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def show(self, stage: str, step: int, frames: Any) -> None:
        self._callback(stage, step, frames)
        self._next = time.monotonic() + self.interval


def previews_from(callback: Preview | None, interval: float) -> Previews | None:
    """The previews of a call with these arguments, None for none. Raises InputError, see Previews."""
    if callback is None:
        finite_number("preview_interval", interval)
        return None
    return Previews(callback, interval)


def require_preview_maps(manifest: Manifest, vaes: Iterable[str], folder: Path) -> None:
    """Raise InputError unless the bundle in `folder` has the preview map of every VAE in `vaes`."""
    missing = [vae for vae in vaes if vae not in manifest.previews]
    if missing:
        raise InputError(
            f"no preview: this bundle has no preview map of {' and '.join(missing)}, as an older lamp-trt "
            f"made it. Repeat its build, which adds the map in seconds ({rebuild_command(folder)}), or leave "
            "the preview out."
        )
