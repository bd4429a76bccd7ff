# SPDX-License-Identifier: Apache-2.0
"""The preview of a running video as a file: an animated WebP, replaced atomically by each newer one."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from lamp_trt.engine.errors import InputError, LampError
from lamp_trt.engine.files.output import lies_in
from lamp_trt.runtime.media.video import FASTEST, Frames, check_format, save_frames

log = logging.getLogger("lamp_trt")

SUFFIX = ".webp"
ENLARGED = 2
"""Pixels of the file for each latent, along each axis: a quarter of the video's size."""
FILE_SECONDS = 2.0
"""Least interval between two versions of the file."""


class PreviewFile:
    """A preview callback that keeps `path` current; a context manager, which removes the file if its block
    raises: previews are no video that was checked and saved.

    A file that cannot be written while the loop runs is no reason to lose the video: one warning, and no
    further previews.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, min(fps, FASTEST[SUFFIX])
        self._failed = False

    def __enter__(self) -> Self:
        self._before = _identity(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.remove()

    def __call__(self, stage: str, step: int, frames: Frames) -> None:
        if self._failed:
            return
        try:
            save_frames(enlarged(frames), self._path, self._fps)
        except LampError as error:
            self._failed = True
            log.warning("no further previews of this video: %s", error)

    def remove(self) -> None:
        """Remove the file if this object wrote it."""
        try:
            if _identity(self._path) != self._before:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the preview %s is left, it cannot be removed: %s", self._path, error.strerror)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Device, inode and change time of a file, which differ once it is replaced; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def enlarged(frames: Frames) -> Frames:
    """Frames (f, h, w, 3) of latents' size, interpolated to ENLARGED times that."""
    import cv2

    size = (frames.shape[2] * ENLARGED, frames.shape[1] * ENLARGED)
    resized: list[Any] = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames]
    return np.stack(resized).astype(np.uint8)


def check_preview_path(path: Path, used: Sequence[Path], height: int, width: int) -> None:
    """Raise InputError for a name that is no preview's, or that belongs to a file in `used` or lies in it."""
    if path.suffix.lower() != SUFFIX:
        raise InputError(
            f"the preview {str(path)!r:.300} ends in {path.suffix!r}; previews are {SUFFIX} files."
        )
    check_format(path, height, width)
    for other in used:
        if lies_in(path, other):
            raise InputError(
                f"the preview {str(path)!r:.300} would replace or lie in {str(other)!r:.300}, an image or "
                "output of the same run; choose another name."
            )
