# SPDX-License-Identifier: Apache-2.0
"""One piece of work on a device: start and end, progress of its loops, detection of non-finite values."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from numpy.typing import NDArray

from lamp_trt.engine.errors import EngineError
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.cuda.device import Device
from lamp_trt.runtime.finite import require_finite
from lamp_trt.runtime.kernels.arrays import DeviceArray

POLL_SECONDS = 0.002


class DeviceClock:
    """A clock with events on the stream, see ops.Clock."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks = [("", device.mark())]

    def end(self, stage: str) -> None:
        self._marks.append((stage, self._device.mark()))

    def seconds(self) -> dict[str, float]:
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        return {stage: self._device.seconds(before, mark) for (_, before), (stage, mark) in pairs}


class Followed(Protocol):
    """The work whose progress `DeviceWork.poll` reports."""

    def report(self, control: Control) -> None: ...


class RunningLoop:
    """A loop whose steps are partly or all enqueued. values: PROGRESS (1,) in mapped memory."""

    def __init__(self, stage: str, values: NDArray[Any], num_steps: int) -> None:
        self.stage, self.num_steps = stage, num_steps
        self._values, self._reported = values, -1

    @property
    def done(self) -> int:
        """Number of steps that the device has finished."""
        return int(self._values["steps_done"][0])

    def has_done(self, steps: int) -> bool:
        return self.done >= steps

    def report(self, control: Control) -> None:
        """Report the number of finished steps if it changed."""
        done = self.done
        if done != self._reported:
            self._reported = done
            control.report(self.stage, done, self.num_steps)


class DeviceWork:
    """The work of one device, shared by all operations on it.

    Only `working`, `wait` and `finish` wait for the stream.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._loops: list[Followed] = []
        self._flags: list[Callable[[], None]] = []
        self._causes: list[tuple[DeviceArray, str]] = []

    @contextmanager
    def working(self, control: Control) -> Iterator[DeviceClock]:
        """See ops.Ops. Waits until the stream is idle also after an error, Ctrl-C or cancelling."""
        control.check()
        self.device.synchronize()
        for list_ in (self._loops, self._flags, self._causes):
            list_.clear()
        try:
            yield DeviceClock(self.device)
        except BaseException:
            self.device.synchronize()
            raise

    def follow(self, loop: Followed, control: Control) -> None:
        """Start reporting the loop's progress, or its previews."""
        self._loops.append(loop)
        loop.report(control)

    def poll(self, mark: Any, control: Control) -> bool:
        """Whether the stream has reached `mark`. Reports progress; raises Cancelled if the token is set."""
        reached = self.device.reached(mark)
        for loop in self._loops:
            loop.report(control)
        control.check()
        return reached

    def wait(self, mark: Any, control: Control, enough: Callable[[], bool] = lambda: False) -> None:
        """Poll until the stream has reached `mark`, or `enough` returns True."""
        while not self.poll(mark, control) and not enough():
            time.sleep(POLL_SECONDS)

    def flag(self, check: Callable[[], None]) -> None:
        """Register `check`, called in `finish`: it raises EngineError if a kernel met non-finite values."""
        self._flags.append(check)

    def cause(self, array: DeviceArray, where: str) -> None:
        """Register an output of `where`; after a failed check, the first non-finite one is named."""
        self._causes.append((array, where))

    def finish(self, control: Control) -> None:
        """See ops.Ops. The error names the first network whose output is not finite."""
        self.wait(self.device.mark(), control)
        self.device.synchronize()
        try:
            for check in self._flags:
                check()
        except EngineError:
            for array, where in self._causes:
                require_finite(self.device.download(array), where)
            raise
