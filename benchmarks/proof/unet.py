# SPDX-License-Identifier: Apache-2.0
"""Checks of a UNet on a device, in the runtime's own loop: parity, capture, motions, memory, time.

Every check is a claim of the README or of docs/. They also run on the tests' double of a device, at a small
size.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from lamp_trt.benchmarks.proof.check import Check, Unavailable
from lamp_trt.benchmarks.proof.work import Array, Work
from lamp_trt.benchmarks.verify.checks.limits import YARDSTICK
from lamp_trt.benchmarks.verify.composed_engine import original_inputs
from lamp_trt.benchmarks.verify.metrics import distance
from lamp_trt.runtime.algorithm.ddim import DDIMSchedule, ddim_schedule
from lamp_trt.runtime.algorithm.latents import step_table
from lamp_trt.runtime.cuda.conditions import Conditions
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.cuda.loop import DeviceLoop
from lamp_trt.runtime.kernels.arrays import DeviceArray

SAMPLES = 3


@dataclass(frozen=True)
class LoopTime:
    """Milliseconds of one loop on the device.

    once_ms   work once a prompt: text keys and values, the table of times, the first latents
    step_ms   mean of the steps
    loop_ms   all of it
    """

    once_ms: float
    step_ms: float
    loop_ms: float

    @classmethod
    def median(cls, times: "list[LoopTime]") -> "LoopTime":
        names = ("once_ms", "step_ms", "loop_ms")
        return cls(*(float(np.median([getattr(time, name) for time in times])) for name in names))


@dataclass(frozen=True)
class Loaded:
    """A UNet with its precompute networks, in a loop. conditions: its plain ones on the device, by name."""

    engines: EngineSet
    unet: Conditions
    loop: DeviceLoop
    conditions: Mapping[str, DeviceArray]
    noise: DeviceArray


class UnetProof:
    """One backend's UNet, loaded by its first check and closed by its last."""

    def __init__(self, work: Work, backend: str) -> None:
        self.work, self.backend = work, backend
        self._loaded: Loaded | None = None

    def checks(self) -> Iterator[Check]:
        """Yield the loop's claims about this backend, the most important first."""
        of = f"{self.backend}: {self.work.subject.title}"
        yield f"{of} loads", self.load
        yield f"{of} is as near to fp32 as PyTorch's own at this precision, times {YARDSTICK}", self.parity
        yield f"{of} replayed from a capture gives the bits of launches", self.replay_equals_launches
        yield f"{of}'s step is timed, and the whole loop", self.times
        if self.work.subject.motions:
            yield f"{of} shows another motion, and the first again bit for bit", self.switch
        yield f"{of} gives its memory back", self.close

    def load(self) -> str:
        device = self.work.device
        assert self.work.bundle
        before, start = device.free_bytes(), time.perf_counter()
        engines = EngineSet(device, lambda network: self.work.load(self.backend, self.work, network))
        try:
            self._loaded = self._prepared(engines)
        except BaseException:
            engines.close()
            raise
        figures = {
            "load_s": time.perf_counter() - start,
            "device_bytes": before - device.free_bytes(),
            "scratch_bytes": self._loaded.unet.unet.engine.scratch_bytes,
            "captured": self._loaded.loop.is_captured,
        }
        self.work.results[self.backend] = figures
        return json.dumps(figures)

    def parity(self) -> str:
        ours, own = distance(self.noise_pred(), self.work.reference(torch.float32)), yardstick(self.work)
        figures = {"rel_l2": ours.rel_l2, "pytorch_rel_l2": own, "cosine": ours.cosine}
        self.work.results[self.backend] |= figures
        limit = YARDSTICK * own
        assert ours.finite, "noise_pred is not finite"
        assert ours.rel_l2 <= limit, f"{figures}, limit {limit:.2e}"
        return json.dumps(figures)

    def replay_equals_launches(self) -> str:
        if not self.loaded.loop.is_captured:
            raise Unavailable("this backend's step is not captured by us")
        replayed, launched = self.latents(), self.latents(launch=True)
        assert np.isfinite(replayed).all(), "latents are not finite"
        np.testing.assert_array_equal(replayed, launched)
        return f"{self.work.steps} steps, largest latent {np.abs(replayed).max():.2f}"

    def times(self) -> str:
        unet, loop, n = self.loaded.unet.unet, self.loaded.loop, self.work.steps
        figures = {
            "unet_launched_ms": self._timed(lambda: repeat(unet.enqueue, n)),
            "step_launched_ms": self._timed(lambda: loop.enqueue(n, launch=True)),
            **asdict(LoopTime.median([self.loop_time() for _ in range(SAMPLES)])),
        }
        self.work.results[self.backend] |= figures
        return json.dumps(figures)

    def switch(self) -> str:
        engine, loop = self.loaded.unet.unet.engine, self.loaded.loop
        first, second = self.work.subject.motions[:2]
        outputs, seconds = [], []
        for motion in (first, second, first):
            self.work.device.synchronize()
            start = time.perf_counter()
            if engine.set_motion(motion):
                self.loaded.engines.share_scratch()
                loop.invalidate()
                loop.prepare()
                self.work.device.synchronize()
            seconds.append(time.perf_counter() - start)
            outputs.append(self.noise_pred())
        assert np.array_equal(outputs[0], outputs[2]), "the first motion's result changed"
        apart = distance(outputs[1], outputs[0]).rel_l2
        assert apart > 0.01, f"both motions give the same result, {apart:.2e} apart"
        self.work.results[self.backend]["switch_s"] = seconds[1:]
        return f"{seconds[1]:.3f} s and {seconds[2]:.3f} s, capture included; motions {apart:.2f} apart"

    def begin_loop(self) -> None:
        """Everything before a loop's first step; waits."""
        self.work.device.synchronize()
        self._begin()
        self.work.device.synchronize()

    def launch_step(self) -> None:
        """One step, launched and not replayed; waits."""
        self.loaded.loop.enqueue(1, launch=True)
        self.work.device.synchronize()

    def close(self) -> str:
        engines, device = self.loaded.engines, self.work.device
        before = device.free_bytes()
        self._loaded = None
        engines.close()
        return f"{(device.free_bytes() - before) / 1e9:.2f} GB came back"

    @property
    def loaded(self) -> Loaded:
        if self._loaded is None:
            raise Unavailable("it did not load")
        return self._loaded

    def noise_pred(self) -> Array:
        """Return noise_pred of Work.inputs, float32, by a loop of one step as the runtime runs it,
        captured where possible."""
        loaded, device, inputs = self.loaded, self.work.device, self.work.inputs()
        device.synchronize()
        for name, array in loaded.conditions.items():
            device.upload(array, inputs[name])
        device.upload(loaded.noise, inputs["sample"][:1].astype(np.float32))
        loaded.unet.enqueue_text()
        loaded.loop.begin(
            inputs["timestep"].astype(np.int64),
            self._rows(ddim_schedule(1)),
            prompt_changed=True,
            seed=0,
            purpose=self.work.subject.start["purpose"],
            noise=loaded.noise,
        )
        loaded.loop.enqueue(1)
        return device.download(loaded.unet.unet.arrays["noise_pred"]).astype(np.float32)

    def latents(self, *, launch: bool = False) -> Array:
        """Return the final latents of a whole loop from a seed."""
        self.work.device.synchronize()
        self._begin()
        self.loaded.loop.enqueue(self.work.steps, launch=launch)
        return self.work.device.download(self.loaded.loop.final_latents)

    def loop_time(self, *, first: bool = False) -> LoopTime:
        """Time one loop after another prompt, as the runtime runs it; `first`: including a new table of
        times."""
        device, n = self.work.device, self.work.steps
        device.synchronize()
        start = device.mark()
        self.loaded.unet.enqueue_text()
        self._begin(new_table=first)
        begun = device.mark()
        self.loaded.loop.enqueue(n)
        end = device.mark()
        device.synchronize()
        once, steps = (1e3 * device.seconds(*marks) for marks in ((start, begun), (begun, end)))
        return LoopTime(once, steps / n, 1e3 * device.seconds(start, end))

    def _prepared(self, engines: EngineSet) -> Loaded:
        """Load and bind everything, upload the inputs and capture the step."""
        device, subject = engines.device, self.work.subject
        conditions = {
            tensor.name: device.empty(tensor.shape, tensor.dtype)
            for tensor in original_inputs(self.work.bundle, self.work.subject.network)
            if tensor.name not in ("sample", "timestep")
        }
        manifest = self.work.bundle.manifest
        unet = Conditions(engines, manifest, subject.network, conditions)
        engines.share_scratch()
        loop = DeviceLoop(device, unet.unet, lambda: engines.generation, unet.time)
        inputs = self.work.inputs()
        for name, array in conditions.items():
            device.upload(array, inputs[name])
        device.upload(unet.unet.arrays["sample"], inputs["sample"])
        unet.enqueue_text()
        loop.prepare()
        noise = device.empty((1, *inputs["sample"].shape[1:]), np.float32)
        return Loaded(engines, unet, loop, conditions, noise)

    def _begin(self, *, new_table: bool = False) -> None:
        schedule, subject = ddim_schedule(self.work.steps), self.work.subject
        self.loaded.loop.begin(
            schedule.timesteps,
            self._rows(schedule),
            prompt_changed=new_table or subject.prompt_in_time,
            seed=0,
            **subject.start,
        )

    def _rows(self, schedule: DDIMSchedule) -> Any:
        return step_table(schedule, **self.work.subject.table)

    def _timed(self, enqueue: Callable[[], object]) -> float:
        """Return the milliseconds of a step; `enqueue` enqueues all of a loop's."""
        device, samples = self.work.device, []
        for _ in range(SAMPLES):
            device.synchronize()
            self._begin()
            device.synchronize()
            start = device.mark()
            enqueue()
            end = device.mark()
            device.synchronize()
            samples.append(1e3 * device.seconds(start, end) / self.work.steps)
        return float(np.median(samples))


def repeat(function: Callable[[], None], times: int) -> None:
    for _ in range(times):
        function()


def yardstick(work: Work) -> float:
    """Return PyTorch's own distance to fp32 at the work's precision, at least what fp32 itself is accurate
    to."""
    own, exact = work.reference(work.dtype), work.reference(torch.float32)
    return max(distance(own, exact).rel_l2, 1e-6)
