# SPDX-License-Identifier: Apache-2.0
"""Previews of a loop on a device: drawn between captured steps, read from mapped memory without a wait."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import PreviewEntry
from lamp_trt.runtime.algorithm.preview import colour_table
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.cuda.device import Device
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.latent_loop import LoopArrays
from lamp_trt.runtime.kernels.launch import NO_STEP
from lamp_trt.runtime.kernels.preview import preview
from lamp_trt.runtime.ops import Loop
from lamp_trt.runtime.preview import Previews


class PreviewMemory:
    """The memory of a loop's previews: `frames` uint8 (f, h, w, 3), of which the host sees `values`, and
    `colours`, the map."""

    def __init__(self, device: Device, arrays: LoopArrays, entry: PreviewEntry) -> None:
        shape = (arrays.frames, *arrays.sample.shape[-2:], 3)
        self.frames, self.values = device.mapped(np.uint8, shape)
        table = colour_table(entry)
        self.colours: DeviceArray = device.empty(table.shape, table.dtype)
        device.upload(self.colours, table)


class RunningPreviews:
    """The previews of one running loop, see DeviceWork.follow. At most one is under way: `enqueue` draws when
    one is due, and a later `report`, once the device has drawn it, shows it.

    progress: PROGRESS (1,) of the loop; nothing is shown after a step whose latents are not finite.
    """

    def __init__(
        self,
        device: Device,
        memory: PreviewMemory,
        arrays: LoopArrays,
        loop: Loop,
        previews: Previews,
        progress: NDArray[Any],
    ) -> None:
        assert loop.clean is not None
        self._device, self._memory, self._arrays = device, memory, arrays
        self._loop, self._clean, self._previews, self._progress = loop, loop.clean, previews, progress
        self._step = 0
        self._mark: Any = None

    def enqueue(self, step: int) -> None:
        """Draw step `step`, which was just enqueued, if a preview is due and none is under way."""
        if self._mark is not None or not self._previews.due():
            return
        preview(
            self._device.launch,
            self._arrays,
            self._memory.colours,
            self._memory.frames,
            step=step,
            num_steps=len(self._loop),
            row=self._loop.rows[step],
            clean=(float(self._clean[step, 0]), float(self._clean[step, 1])),
        )
        self._step, self._mark = step, self._device.mark()

    def report(self, control: Control) -> None:
        """Show the preview that is under way if the device has drawn it."""
        if self._mark is None or not self._device.reached(self._mark):
            return
        self._mark = None
        if int(self._progress["first_overflow"][0]) == NO_STEP:
            self._previews.show(self._loop.stage, self._step, self._memory.values.copy())
