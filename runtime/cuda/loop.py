# SPDX-License-Identifier: Apache-2.0
"""The denoising loop on a device: one captured step, replayed n times, without waiting for the host.

The reference is host/loop.py. A step is the UNet and one kernel; values that differ between steps are read
from tables on the device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import PreviewEntry
from lamp_trt.engine.precompute import TIME_PROJECTIONS
from lamp_trt.runtime.algorithm.latents import STEP_ROW, final_adain
from lamp_trt.runtime.control import Control
from lamp_trt.runtime.cuda.capture import CapturedWork
from lamp_trt.runtime.cuda.device import Device
from lamp_trt.runtime.cuda.engines import BoundEngine
from lamp_trt.runtime.cuda.preview import PreviewMemory, RunningPreviews
from lamp_trt.runtime.cuda.work import DeviceWork, RunningLoop
from lamp_trt.runtime.finite import not_finite, step_of
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.kernels.latent_loop import LOOP_STATE, LoopArrays, begin_loop, latent_step
from lamp_trt.runtime.kernels.launch import NO_STEP, PROGRESS
from lamp_trt.runtime.ops import Loop

FIRST_CAPACITY = 50
"""Initial number of steps in the tables; they grow for a longer loop."""

STEPS_AHEAD = 3
"""Maximum number of enqueued unfinished steps, including the running one. Enough to keep the device busy
between polls of the host, few enough that a cancelled loop ends soon: enqueued steps still run."""


class DeviceLoop:
    """The denoising loop of one UNet, at fixed addresses.

    unet     the bound UNet; its time input is `timestep`, or `time_projections` made by `time`
    time     the network timestep → time_projections, or None
    preview  map of the latents' VAE, without which there are no previews
    """

    def __init__(
        self,
        device: Device,
        unet: BoundEngine,
        generation: Callable[[], int],
        time: BoundEngine | None = None,
        preview: PreviewEntry | None = None,
    ) -> None:
        self._device, self._unet, self._time = device, unet, time
        self._captured = CapturedWork(device, unet, self._step, generation, "its step")
        self._progress_on_device, self.progress = device.mapped(PROGRESS)
        self._filled_for: tuple[int, ...] | None = None
        self._preview = preview
        self._preview_memory: PreviewMemory | None = None
        self.arrays = self._new_arrays(FIRST_CAPACITY)

    @property
    def final_latents(self) -> DeviceArray:
        """(1, c, f, h, w) or (1, c, h, w)."""
        return self.arrays.final_latents

    def begin(
        self, timesteps: NDArray[np.int64], rows: NDArray[np.void], prompt_changed: bool, **start: Any
    ) -> None:
        """Fill the tables and the initial latents.

        rows            from latents.step_table
        prompt_changed  recompute the time projections, because they depend on the prompt (SDXL's do)
        start           arguments of begin_loop
        """
        n = len(rows)
        if n > self.arrays.capacity:
            old, timesteps_before = self.arrays, self._timesteps
            self.arrays = self._new_arrays(n)
            self._device.release(old.latents, old.rows, old.time_table, old.state, timesteps_before)
            self.invalidate()
        self.prepare()
        self.progress[:] = 0
        self._device.upload(self.arrays.rows.rows(0, n), rows)
        self._fill_time_table(timesteps.astype(np.float32), prompt_changed)
        begin_loop(self._device.launch, self.arrays, n, **start)

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed from a capture; valid after `prepare`."""
        return self._captured.is_captured

    def enqueue(self, num_steps: int, *, launch: bool = False) -> None:
        """Enqueue steps of the loop that `begin` started: replayed, or launched one by one if `launch`."""
        for _ in range(num_steps):
            self._captured.enqueue(launch=launch)

    def run(self, loop: Loop, work: DeviceWork, control: Control) -> None:
        """Run the loop that `begin` started, keeping at most STEPS_AHEAD steps enqueued.

        Draws previews between them. Does not wait for the last ones, unless the loop has a callback.
        `finish`, or this method with a callback, raises EngineError if latents exceed the range of the UNet's
        precision.
        """
        previews = self._running_previews(loop, control)
        if loop.on_step is not None:
            self._run_with_callback(loop, control, previews)
            return
        running = RunningLoop(loop.stage, self.progress, len(loop))
        work.follow(running, control)
        if previews:
            work.follow(previews, control)
        work.flag(lambda: self._require_finite(loop))
        mark = None
        for step in range(len(loop)):
            if step >= STEPS_AHEAD:
                work.wait(mark, control, partial(running.has_done, step - STEPS_AHEAD + 1))
            self._captured.enqueue()
            if previews:
                previews.enqueue(step)
            mark = self._device.mark()

    def _running_previews(self, loop: Loop, control: Control) -> RunningPreviews | None:
        """The previews of a loop, None if none are wanted or possible."""
        if control.previews is None or self._preview is None or loop.clean is None:
            return None
        if self._preview_memory is None:
            self._preview_memory = PreviewMemory(self._device, self.arrays, self._preview)
        memory = self._preview_memory
        return RunningPreviews(self._device, memory, self.arrays, loop, control.previews, self.progress)

    def _run_with_callback(self, loop: Loop, control: Control, previews: RunningPreviews | None) -> None:
        """Run the steps one by one: wait for each, and continue with the latents returned by the callback."""
        assert loop.on_step is not None
        n, latents = len(loop), np.empty(0, np.float32)
        control.report(loop.stage, 0, n)
        for i in range(n):
            control.check()
            self._captured.enqueue()
            if previews:
                previews.enqueue(i)
            after = self.arrays.latents.rows((n - i - 1) % 2, (n - i - 1) % 2 + 1)
            latents = self._device.download(after)
            self._require_finite(loop)
            changed = loop.on_step(i, int(loop.timesteps[i]), latents.copy())
            if not np.array_equal(changed, latents):
                latents = np.asarray(changed, np.float32)
                self._device.upload(after, latents)
                sample = self.arrays.sample
                self._device.upload(sample, np.repeat(latents, sample.shape[0], axis=0).astype(sample.dtype))
            control.report(loop.stage, i + 1, n)
            if previews:
                previews.report(control)
        if loop.final_adain:
            self._device.synchronize()
            self._device.upload(self.final_latents, final_adain(latents))

    def _require_finite(self, loop: Loop) -> None:
        """Raise EngineError, naming the step, if latents exceeded the range of the UNet's precision; to be
        called after a wait."""
        step = int(self.progress["first_overflow"][0])
        if step != NO_STEP:
            raise not_finite(step_of(loop.unet, step, loop.timesteps), self.arrays.sample.dtype)

    def invalidate(self) -> None:
        """Discard the captured step; the next `begin` captures again."""
        self._captured.invalidate()

    def prepare(self) -> None:
        """Run a step without effect, which triggers lazy loading, then capture one. Waits for the stream.

        Does nothing if the capture is valid; called by `begin`.
        """
        self._captured.prepare(before=lambda: self._device.zero(self.arrays.state))

    def _step(self) -> None:
        self._unet.enqueue()
        latent_step(self._device.launch, self.arrays)

    def _fill_time_table(self, timesteps: NDArray[np.float32], prompt_changed: bool) -> None:
        table, n = self.arrays.time_table, len(timesteps)
        if self._time is None:
            self._device.upload(table.rows(0, n), timesteps[:, None])
            return
        wanted = tuple(timesteps.tolist())
        if not prompt_changed and self._filled_for == wanted:
            return
        self._device.upload(self._timesteps.rows(0, n), timesteps)
        for i in range(n):
            self._device.copy(self._time.arrays["timestep"], self._timesteps.rows(i, i + 1))
            self._time.enqueue()
            self._device.copy(table.rows(i, i + 1), self._time.arrays[TIME_PROJECTIONS])
        self._filled_for = wanted

    def _new_arrays(self, capacity: int) -> LoopArrays:
        device, bound = self._device, self._unet.arrays
        sample = bound["sample"]
        row_of = bound["timestep" if self._time is None else TIME_PROJECTIONS]
        width = row_of.nbytes // row_of.dtype.itemsize
        self._filled_for = None
        self._timesteps = device.empty((capacity,), np.float32)
        return LoopArrays(
            sample=sample,
            noise_pred=bound["noise_pred"],
            latents=device.empty((2, *sample.shape[1:]), np.float32),
            rows=device.empty((capacity,), STEP_ROW),
            time_table=device.empty((capacity, width), row_of.dtype),
            time_row=DeviceArray(row_of.pointer, (1, width), row_of.dtype, owner=row_of),
            state=device.empty((1,), LOOP_STATE),
            progress=self._progress_on_device,
        )
