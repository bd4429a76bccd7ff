# SPDX-License-Identifier: Apache-2.0
"""Progress, previews and cancelling of one call: handled between steps, without making the device wait."""

from dataclasses import dataclass, replace
from typing import Protocol

from lamp_trt.engine.errors import Cancelled, InputError
from lamp_trt.runtime.preview import Previews


class Progress(Protocol):
    """Progress callback, called in the thread that makes the video: with done = 0 when a loop begins, then as
    steps are done.

    stage: "make_first_frame" (SDXL's loop), "invert" (a clip's) or "denoise" (the video's). done: finished
    steps of `total`; may increase by more than one. An exception that it raises ends the call. It must not
    use the pipeline.
    """

    def __call__(self, stage: str, done: int, total: int) -> None: ...


class CancelToken(Protocol):
    """Cancel token, such as a threading.Event; any thread may set it. It must stay set during the call."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Control:
    """The progress callback, cancel token and previews of one call, or None. Raises InputError for other
    types."""

    progress: Progress | None = None
    cancel: CancelToken | None = None
    previews: Previews | None = None

    def __post_init__(self) -> None:
        if self.progress is not None and not callable(self.progress):
            raise InputError(f"progress is {self.progress!r:.100}; expected a function (stage, done, total).")
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise InputError(f"cancel is {self.cancel!r:.100}; expected a threading.Event or similar.")

    def report(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    def without_previews(self) -> "Control":
        return replace(self, previews=None)

    def check(self) -> None:
        """Raise Cancelled if the token is set."""
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("cancelled before it was finished.")
