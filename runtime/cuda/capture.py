# SPDX-License-Identifier: Apache-2.0
"""Work around one engine that is captured once and replayed, until memory that it uses moves."""

import logging
from collections.abc import Callable

from lamp_trt.engine.errors import EngineError
from lamp_trt.runtime.cuda.device import Device
from lamp_trt.runtime.cuda.engines import BoundEngine

log = logging.getLogger("lamp_trt")


class CapturedWork:
    """Work that is replayed from a capture, or launched where the engine cannot be captured.

    bound       the engine that `work` runs, which records it
    work        enqueues the work; at fixed addresses
    generation  of the engines, see EngineSet.generation
    title       the work's name in a warning
    """

    def __init__(
        self,
        device: Device,
        bound: BoundEngine,
        work: Callable[[], None],
        generation: Callable[[], int],
        title: str,
    ) -> None:
        self._device, self._bound, self._work, self._title = device, bound, work, title
        self._generation, self._captured_in = generation, -1
        self._replay: Callable[[], None] | None = None

    @property
    def is_captured(self) -> bool:
        """Valid after `prepare`."""
        return self._replay is not None

    def enqueue(self, *, launch: bool = False) -> None:
        """Replay the capture; launch the work if there is none, or if `launch`."""
        (self._work if launch or self._replay is None else self._replay)()

    def invalidate(self) -> None:
        """Discard the capture; the next `prepare` captures again."""
        self._replay, self._captured_in = None, -1

    def prepare(self, before: Callable[[], None] | None = None) -> None:
        """Do the work once, which triggers lazy loading, then capture it. Waits for the stream.

        Does nothing if the capture is valid. before: enqueued first.
        """
        if self._captured_in == self._generation():
            return
        if before is not None:
            before()
        self._work()
        self._device.synchronize()
        try:
            self._replay = self._bound.engine.capture(self._device.stream, self._work)
        except EngineError as error:
            log.warning(
                "%s: %s cannot be captured and is launched every time, which is slower (%s)",
                self._bound.network,
                self._title,
                error,
            )
            self._replay = None
        self._captured_in = self._generation()
