# SPDX-License-Identifier: Apache-2.0
"""The protocol between the front and a pool of engines.

The front owns jobs, queue, retries and cancellation; a pool runs one job on each engine and reports events.
Every method is called, and every event is reported, in the front's event loop. What each pool must do is in
tests/serving/pool_conformance.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class EngineJob:
    """One video to make.

    options: of `LampPipeline.__call__`, with `seed` set. first_frame: a .npy of uint8 RGB at the video's
    size; None: SDXL makes it. out: the .mp4 to write; its settings come next to it. clip: of an edit, the
    `path` of the video, `start` and `every`, and the `name` that the settings call it; first_frame None is
    then the clip's own.
    """

    id: str
    prompt: str
    motion: str
    options: Mapping[str, Any]
    fps: float
    out: Path
    first_frame: Path | None = None
    clip: Mapping[str, Any] | None = None

    def inputs(self) -> list[Path]:
        """Files that the engine reads. They go when the job is deleted, perhaps before they are read."""
        clip = None if self.clip is None else Path(self.clip["path"])
        return [path for path in (self.first_frame, clip) if path is not None]


@dataclass(frozen=True)
class Slot:
    """A place where a job can start at once. motion: the one that is loaded there, None if unknown."""

    engine: str
    motion: str | None = None


@dataclass(frozen=True)
class Progress:
    """done of total steps are finished. step_seconds: time of one of the steps since the last report."""

    job: str
    stage: str
    done: int
    total: int
    step_seconds: float | None = None


@dataclass(frozen=True)
class Preview:
    """Small pictures of a running job, for those who asked by `show_previews`. step: a finished one, from 0.
    webp: an animated WebP, in base64."""

    job: str
    stage: str
    step: int
    webp: str


@dataclass(frozen=True)
class Finished:
    """The end of a job on an engine that goes on.

    outcome: "completed"; "cancelled"; or "failed", with `code` (content_policy, out_of_space, engine_error)
    and a message. switched: whether the engine changed its motion for it.
    """

    job: str
    outcome: Literal["completed", "cancelled", "failed"]
    code: str | None = None
    message: str | None = None
    switched: bool = False


@dataclass(frozen=True)
class Lost:
    """The engine that ran the job is gone. What it had written is the front's to remove.

    hung: it was killed because it made no step for too long, so another try may hang as well.
    """

    job: str
    reason: str
    hung: bool = False


@dataclass(frozen=True)
class Changed:
    """Slots or the health of engines changed."""


Event = Progress | Preview | Finished | Lost | Changed
OnEvent = Callable[[Event], None]
State = Literal["starting", "idle", "busy", "restarting", "down"]


@dataclass(frozen=True)
class EngineHealth:
    """One engine. restarts: how often its process was started again. reason: of the last failure."""

    name: str
    state: State
    restarts: int = 0
    reason: str | None = None
    pid: int | None = field(default=None, compare=False)


class Pool(Protocol):
    """Engines that make videos. `start` comes first, `close` last; both may be called once."""

    async def start(self, on_event: OnEvent) -> None:
        """Begin to start the engines, and return without waiting for them."""

    def slots(self) -> Sequence[Slot]:
        """Where a job can start now. A job whose slot was taken in between is a programming error."""

    def run(self, slot: Slot, job: EngineJob) -> None:
        """Start a job. It ends with exactly one Finished or Lost, after which no file of it changes."""

    def cancel(self, job: str) -> None:
        """Stop a running job within a step. It still ends with a Finished or Lost. An unknown one is
        ignored."""

    def show_previews(self, job: str, wanted: bool) -> None:
        """Begin or end to report Previews of a running job; at first there are none. An unknown one is
        ignored. None comes before the first frame has passed where a safety checker may refuse it."""

    def health(self) -> Sequence[EngineHealth]:
        """The state of every engine, those that are down included."""

    async def close(self) -> None:
        """Stop everything. Nothing that the pool started is left, and no more events come."""
