# SPDX-License-Identifier: Apache-2.0
"""Backends for the GPU's proofs without a GPU, sound and faulty ones, and a device whose clock they move."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamp_trt.benchmarks.proof.check import Unavailable
from lamp_trt.benchmarks.proof.work import LAMP, SDXL, Subject, Work
from lamp_trt.engine.backends.onnxruntime.cpu import OnnxRuntimeEngine
from lamp_trt.engine.precompute import HOISTED
from tests.doubles.host_device import STREAMS, HostDevice, HostDeviceEngine
from tests.doubles.host_device import Work as Enqueued
from tests.fixtures.sdxl import UNET_CONFIG

CONFIGS: dict[str, dict[str, Any]] = {
    "lamp_unet": {
        "block_out_channels": [8],
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock3D"],
        "up_block_types": ["CrossAttnUpBlock3D"],
    },
    "sdxl_unet": {
        **UNET_CONFIG,
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": [2],
        "block_out_channels": [16],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "transformer_layers_per_block": [1],
        "up_block_types": ["CrossAttnUpBlock2D"],
    },
}

PLAIN_S, TIME_S = 0.010, 0.0001
"""Seconds of a plain UNet's run, and of the time projections'."""


@dataclass(frozen=True)
class Backend:
    """How a backend behaves.

    error, hoisted_error, replayed_error   added to noise_pred; by forms with something hoisted; when replayed
    hoisted_s, text_s                      seconds of such a form's run, and of its text network's
    """

    error: float = 0.0
    hoisted_error: float = 0.0
    replayed_error: float = 0.0
    remembers_motions: bool = False
    hoisted_s: float = 0.0098
    text_s: float = 0.0005


BACKENDS = {
    "sound": Backend(),
    "wrong": Backend(error=1e-3),
    "wrong when hoisted": Backend(hoisted_error=1e-3),
    "wrong when replayed": Backend(replayed_error=1e-8),
    "residue": Backend(remembers_motions=True),
    "slow when hoisted": Backend(hoisted_s=0.0102),
    "dear text": Backend(text_s=0.005),
}


class ClockedDevice(HostDevice):
    """A device whose clock moves when an engine runs, by what that engine takes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.engines: list[HostDeviceEngine] = []

    def mark(self) -> Any:
        moment: list[float] = []
        self.queue.put(lambda: moment.append(self.now))
        return moment

    def reached(self, mark: Any) -> bool:
        self.queue.run_one()
        return bool(mark)

    def seconds(self, start: Any, end: Any) -> float:
        assert start, "the time of a moment that has not come"
        assert end, "the time of a moment that has not come"
        return float(end[0] - start[0])


class PacedEngine:
    """A network that takes its time, and adds an error to what it predicts."""

    def __init__(
        self, engine: OnnxRuntimeEngine, device: ClockedDevice, seconds: float, error: float
    ) -> None:
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.error = error
        self._engine, self._device, self._seconds = engine, device, seconds

    def run(self, arrays: Any) -> Any:
        self._device.now += self._seconds
        outputs = self._engine.run(arrays)
        if self.error:
            outputs["noise_pred"] = outputs["noise_pred"] + outputs["noise_pred"].dtype.type(self.error)
        return outputs

    def set_motion(self, motion: str) -> bool:
        return self._engine.set_motion(motion)

    def close(self) -> None:
        self._engine.close()


class MotionResidue(PacedEngine):
    """Keeps a trace of every motion that it showed."""

    def set_motion(self, motion: str) -> bool:
        self.error += 0.5
        return super().set_motion(motion)


class ReplayedOtherwise(HostDeviceEngine):
    """Adds an error to what is replayed only."""

    def __init__(self, paced: PacedEngine, device: HostDevice, error: float, **options: Any) -> None:
        super().__init__(paced, device, **options)
        self._paced, self._replayed_error = paced, error

    def capture(self, stream: int, work: Enqueued) -> Enqueued | None:
        recorded = super().capture(stream, work)
        assert recorded is not None

        def replay() -> None:
            STREAMS[stream].put(lambda: self._err(self._replayed_error))
            recorded()
            STREAMS[stream].put(lambda: self._err(-self._replayed_error))

        return replay

    def _err(self, by: float) -> None:
        self._paced.error += by


def load(backend: str, work: Work, network: str) -> HostDeviceEngine:
    """LoadEngine of benchmarks/proof/work.py of the backends above; any other one is not there."""
    if backend not in BACKENDS:
        raise Unavailable(f"{backend} is not installed")
    behaviour, device = BACKENDS[backend], work.device
    assert isinstance(device, ClockedDevice)
    unet, beside = work.subject.network, HOISTED[work.subject.network]
    motion = work.subject.motion if network == unet else None
    hoisted = behaviour.hoisted_s if work.hoist else PLAIN_S
    seconds = {unet: hoisted, beside.text: behaviour.text_s, beside.time: TIME_S}[network]
    error = behaviour.error + behaviour.hoisted_error * bool(work.hoist) if network == unet else 0.0
    replayed_error = behaviour.replayed_error if network == unet else 0.0
    engine = OnnxRuntimeEngine(work.bundle, network, motion=motion, num_threads=1)
    make = MotionResidue if behaviour.remembers_motions and motion else PacedEngine
    paced = make(engine, device, seconds, error)
    device.engines.append(ReplayedOtherwise(paced, device, replayed_error, motion=motion))
    return device.engines[-1]


def toy_work(folder: Path, subject: Subject, **options: Any) -> Work:
    """A UNet of `subject`'s kind so small that a test has time for it."""
    return Work(
        folder,
        ClockedDevice(),
        load,
        subject,
        torch_device="cpu",
        config=CONFIGS[subject.network],
        precision="fp32",
        height=64,
        width=64,
        num_frames=3,
        steps=3,
        **options,
    )


SUBJECTS = {subject.network: subject for subject in (LAMP, SDXL)}
