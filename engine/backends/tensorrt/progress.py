# SPDX-License-Identifier: Apache-2.0
"""Progress bars for TensorRT builds, and cancellation by Ctrl-C."""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from lamp_trt.engine.progress import progress

Result = TypeVar("Result")

POLL_SECONDS = 0.2
"""Maximum delay of Ctrl-C if another thread received the signal."""


def progress_monitor(module: ModuleType, label: str) -> Any:
    """An IProgressMonitor with a bar for each running phase, on a terminal.

    `cancel()` ends the build at its next step. TensorRT calls it from several threads.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._lock = threading.Lock()
            self._bars: dict[str, Any] = {}
            self._depth: dict[str | None, int] = {None: -1}

        def cancel(self) -> None:
            self.cancelled = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                depth = self._depth.get(parent_phase, 0) + 1
                self._depth[phase_name] = depth
                self._bars[phase_name] = progress(
                    label=f"{label}: {phase_name}" if depth == 0 else phase_name,
                    total=num_steps,
                    position=depth,
                    leave=depth == 0,
                )

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                bar = self._bars.get(phase_name)
                if bar is not None:
                    bar.update(step + 1 - bar.n)
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                bar = self._bars.pop(phase_name, None)
                if bar is not None:
                    bar.close()

    return Monitor()


def interruptible(work: Callable[[], Result], cancel: Callable[[], None]) -> Result:
    """Run `work` in a separate thread, so that this one receives Ctrl-C; return or raise its result.

    At Ctrl-C, calls `cancel`, waits for `work` to end and raises KeyboardInterrupt; a second Ctrl-C does not
    wait.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
    except KeyboardInterrupt:
        cancel()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
