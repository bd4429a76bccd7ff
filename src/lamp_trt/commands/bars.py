# SPDX-License-Identifier: Apache-2.0
"""Progress bars of videos and first frames, on stderr if that is a terminal."""

from typing import Any, Self

from lamp_trt.engine.progress import progress as progress_bar

_LABELS = {"make_first_frame": "first frame", "invert": "inverting", "denoise": "denoising"}


class Bars:
    """A `progress` callback with a bar for each loop; a context manager that closes the last one."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done == 0 or self._bar is None:
            self.close()
            self._bar = progress_bar(label=_LABELS[stage], total=total, unit=" steps")
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
