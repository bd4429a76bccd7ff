# SPDX-License-Identifier: Apache-2.0
"""The LAMP UNet on a device, in the runtime's own loop: parity, capture, motions, memory, time.

Every check is a claim of the README or of docs/; they run as well on the tests' double of a device, at a
small size.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamp_trt.benchmarks.metrics import distance
from lamp_trt.benchmarks.proof import Check, Unavailable
from lamp_trt.benchmarks.random_checkpoints import write_lamp_unet
from lamp_trt.engine.backend import DeviceEngine
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.networks import Precision
from lamp_trt.export.recipe import BuildOptions
from lamp_trt.runtime.config import NOISE_BASE_WEIGHT
from lamp_trt.runtime.cuda_device import Device
from lamp_trt.runtime.cuda_engines import BoundEngine, EngineSet
from lamp_trt.runtime.cuda_loop import DeviceLoop
from lamp_trt.runtime.ddim import ddim_schedule
from lamp_trt.runtime.latents import step_table
from lamp_trt.runtime.noise import Purpose

FULL_SIZE: Mapping[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
MOTIONS = ("first", "second")
YARDSTICK = 2.0
"""Our distance to fp32 may be so many times PyTorch's own at that precision."""

LoadEngine = Callable[[str, "Work", str], DeviceEngine]
"""(backend, work, motion) → the LAMP UNet's engine."""


def repeat(function: Callable[[], None], times: int) -> None:
    for _ in range(times):
        function()


@dataclass
class Work:
    """What the checks of all backends share. torch_device: where the reference runs."""

    folder: Path
    device: Device
    load: LoadEngine
    torch_device: str = "cuda"
    config: Mapping[str, Any] = field(default_factory=lambda: FULL_SIZE)
    precision: Precision = "fp16"
    height: int = 320
    width: int = 512
    num_frames: int = 16
    steps: int = 50
    results: dict[str, Any] = field(default_factory=dict)
    """Figures by backend, for the report."""
    _bundle: Bundle | None = None
    _reference: dict[torch.dtype, np.ndarray] = field(default_factory=dict)

    @property
    def options(self) -> BuildOptions:
        """Of the bundle: two motions over shared weights."""
        return BuildOptions(
            motions={name: self.folder / name for name in MOTIONS},
            precision=self.precision,
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
        )

    @property
    def bundle(self) -> Bundle:
        """Made when it is first asked for."""
        if self._bundle is None:
            from lamp_trt.export.build import build_bundle

            for number, name in enumerate(MOTIONS):
                write_lamp_unet(self.folder / name, self.config, motion=number)
            build_bundle(self.folder / "bundle", self.options)
            self._bundle = Bundle.open(self.folder / "bundle")
        return self._bundle

    def inputs(self) -> dict[str, np.ndarray]:
        """Seeded inputs of the UNet; both halves of guidance hold the same latents."""
        rng = np.random.default_rng(0)
        tensors = {tensor.name: tensor for tensor in self.bundle.manifest.networks["lamp_unet"].inputs}
        sample, text = tensors["sample"], tensors["encoder_hidden_states"]
        half = rng.standard_normal((1, *sample.shape[1:]))
        return {
            "sample": np.repeat(half, 2, axis=0).astype(sample.dtype),
            "timestep": np.array([501], np.float32),
            "encoder_hidden_states": rng.standard_normal(text.shape).astype(text.dtype),
        }

    def reference(self, dtype: torch.dtype) -> np.ndarray:
        """noise_pred of the official formulation in PyTorch, float32."""
        if dtype not in self._reference:
            from lamp_trt.export.lamp_unet import load_lamp_unet

            unet = load_lamp_unet(self.folder / MOTIONS[0], dtype).to(self.torch_device)
            arrays = [torch.from_numpy(array).to(self.torch_device) for array in self.inputs().values()]
            sample, timestep, text = arrays
            with torch.inference_mode():
                noise_pred = unet(sample.to(dtype), timestep, text.to(dtype))
            self._reference[dtype] = noise_pred.float().cpu().numpy()
        return self._reference[dtype]


class UnetProof:
    """One backend's UNet, loaded by its first check and let go by its last."""

    def __init__(self, work: Work, backend: str) -> None:
        self.work, self.backend = work, backend
        self._loaded: tuple[EngineSet, BoundEngine, DeviceLoop] | None = None

    def checks(self) -> Iterator[Check]:
        """The loop's claims about this backend, most telling first."""
        of = f"{self.backend}: the LAMP UNet"
        yield f"{of} loads", self.load
        yield f"{of} is as near to fp32 as PyTorch's own at this precision, times {YARDSTICK}", self.parity
        yield f"{of} replayed from a capture gives the bits of launches", self.replay_equals_launches
        yield f"{of}'s step is timed, and the whole loop", self.times
        yield f"{of} shows another motion, and the first again bit for bit", self.switch
        yield f"{of} gives its memory back", self.close

    def load(self) -> str:
        work, device = self.work, self.work.device
        assert work.bundle
        before, start = device.free_bytes(), time.perf_counter()
        engines = EngineSet(device, lambda network: work.load(self.backend, work, MOTIONS[0]))
        unet = engines.add("lamp_unet")
        engines.share_scratch()
        loop = DeviceLoop(device, unet, self.backend, lambda: engines.generation)
        for name, values in work.inputs().items():
            device.upload(unet.arrays[name], values)
        loop.prepare()
        self._loaded = engines, unet, loop
        figures = {
            "load_s": time.perf_counter() - start,
            "device_bytes": before - device.free_bytes(),
            "scratch_bytes": unet.engine.scratch_bytes,
            "captured": loop.is_captured,
        }
        work.results[self.backend] = figures
        return json.dumps(figures)

    def parity(self) -> str:
        noise_pred = self._run_once()
        exact, own = self.work.reference(torch.float32), self.work.reference(self._torch_dtype)
        ours, yardstick = distance(noise_pred, exact), distance(own, exact)
        figures = {"rel_l2": ours.rel_l2, "pytorch_rel_l2": yardstick.rel_l2, "cosine": ours.cosine}
        self.work.results[self.backend] |= figures
        limit = YARDSTICK * max(yardstick.rel_l2, 1e-6)
        assert ours.finite, "noise_pred is not finite"
        assert ours.rel_l2 <= limit, f"{figures}, limit {limit:.2e}"
        return json.dumps(figures)

    def replay_equals_launches(self) -> str:
        _, _, loop = self._engine()
        if not loop.is_captured:
            raise Unavailable("this backend's step is not captured by us")
        replayed, launched = self._latents(launch=False), self._latents(launch=True)
        assert np.isfinite(replayed).all(), "latents are not finite"
        np.testing.assert_array_equal(replayed, launched)
        return f"{self.work.steps} steps, largest latent {np.abs(replayed).max():.2f}"

    def times(self) -> str:
        _, unet, loop = self._engine()
        device, n = self.work.device, self.work.steps
        figures: dict[str, float] = {}
        ways: dict[str, Callable[[], Any]] = {
            "unet_launched_ms": lambda: repeat(unet.enqueue, n),
            "step_launched_ms": lambda: loop.enqueue(n, launch=True),
            "step_ms": lambda: loop.enqueue(n),
        }
        for name, enqueue in ways.items():
            samples = []
            for _ in range(3):
                self._begin(loop)
                device.synchronize()
                start = device.mark()
                enqueue()
                end = device.mark()
                device.synchronize()
                samples.append(device.seconds(start, end) * 1e3 / n)
            figures[name] = float(np.median(samples))
        self.work.results[self.backend] |= figures
        return json.dumps(figures)

    def switch(self) -> str:
        _, unet, loop = self._engine()
        outputs, seconds = [], []
        for motion in (MOTIONS[0], MOTIONS[1], MOTIONS[0]):
            self.work.device.synchronize()
            start = time.perf_counter()
            if unet.engine.set_motion(motion):
                loop.invalidate()
                loop.prepare()
                self.work.device.synchronize()
            seconds.append(time.perf_counter() - start)
            outputs.append(self._run_once())
        assert np.array_equal(outputs[0], outputs[2]), "the first motion's result changed"
        apart = distance(outputs[1], outputs[0]).rel_l2
        assert apart > 0.01, f"both motions give the same result, {apart:.2e} apart"
        self.work.results[self.backend]["switch_s"] = seconds[1:]
        return f"{seconds[1]:.3f} s and {seconds[2]:.3f} s, capture included; motions {apart:.2f} apart"

    def close(self) -> str:
        engines, _, _ = self._engine()
        before = self.work.device.free_bytes()
        engines.close()
        self._loaded = None
        return f"{(self.work.device.free_bytes() - before) / 1e9:.2f} GB came back"

    @property
    def _torch_dtype(self) -> torch.dtype:
        return torch.float16 if self.work.precision == "fp16" else torch.float32

    def _engine(self) -> tuple[EngineSet, BoundEngine, DeviceLoop]:
        if self._loaded is None:
            raise Unavailable("it did not load")
        return self._loaded

    def _run_once(self) -> np.ndarray:
        """noise_pred of Work.inputs, float32."""
        _, unet, _ = self._engine()
        device = self.work.device
        device.synchronize()
        for name, values in self.work.inputs().items():
            device.upload(unet.arrays[name], values)
        unet.enqueue()
        return device.download(unet.arrays["noise_pred"]).astype(np.float32)

    def _begin(self, loop: DeviceLoop) -> None:
        schedule = ddim_schedule(self.work.steps)
        self.work.device.synchronize()
        loop.begin(
            schedule.timesteps,
            step_table(schedule, guidance_scale=12.5),
            prompt_changed=False,
            seed=0,
            purpose=Purpose.VIDEO,
            base_weight=NOISE_BASE_WEIGHT,
        )

    def _latents(self, *, launch: bool) -> np.ndarray:
        _, _, loop = self._engine()
        self._begin(loop)
        loop.enqueue(self.work.steps, launch=launch)
        return self.work.device.download(loop.final_latents)
