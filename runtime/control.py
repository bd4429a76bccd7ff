# SPDX-License-Identifier: Apache-2.0
"""Progress and cancelling of one call: both are looked after between steps, and cost the device no wait."""

from dataclasses import dataclass
from typing import Protocol

from lamp_trt.engine.errors import Cancelled, InputError


class Progress(Protocol):
    """Called in the thread that makes the video: with done = 0 when a loop begins, then as steps are done.

    stage: "make_first_frame" (SDXL's loop) or "denoise" (the video's). done: steps of `total`, which may grow
    by more than one. An error that it raises ends the call; it must not use the pipeline.
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


class CancelToken(Protocol):
    """What threading.Event is: once set, it stays set while the call runs. Any thread may set it."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Control:
    """The progress callback and cancel token of one call, None for none. InputError for anything else."""

    progress: Progress | None = None
    cancel: CancelToken | None = None

    def __post_init__(self) -> None:
        if self.progress is not None and not callable(self.progress):
            raise InputError(f"progress is {self.progress!r:.100}; expected a function (stage, done, total).")
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise InputError(f"cancel is {self.cancel!r:.100}; expected a threading.Event or its like.")

    def report(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    def check(self) -> None:
        """Raise Cancelled if the token is set."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("cancelled before it was finished.")
