# SPDX-License-Identifier: Apache-2.0
"""What networks need of memory, measured, and which graphics cards hold that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamp_trt.benchmarks.bench.probe import probe
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.backends import device_engine
from lamp_trt.engine.errors import LampError
from lamp_trt.engine.networks import FIRST_FRAME_NETWORKS, VIDEO_NETWORKS
from lamp_trt.runtime.memory_plan import memory_need

CARDS_GB = (8, 12, 16, 24, 80)
"""Memory of graphics cards as sold."""

USABLE = 0.92
"""Of a card's memory what programs get: the driver, the CUDA context and a desktop take the rest."""

Memory = Mapping[str, int | None]
"""weights, arrays, scratch (None: not measured) of one network in bytes; on the CPU also loaded and peak of
a process that runs it alone, above the bare process."""


def network_memory(subject: Subject, network: str) -> tuple[dict[str, int | None], str]:
    """Of one network on the first backend, and why something of it is missing, "" if nothing is."""
    need = memory_need(subject.bundle.manifest, [network])
    memory: dict[str, int | None] = {"weights": need.weights, "arrays": need.arrays, "scratch": None}
    try:
        if subject.ordinal is None:
            memory |= _host_memory(subject, network)
        else:
            memory["scratch"] = _scratch_bytes(subject, network)
    except (LampError, ModuleNotFoundError) as error:
        return memory, f"memory of {network}: {error}"
    return memory, ""


def _host_memory(subject: Subject, network: str) -> dict[str, int | None]:
    options = subject.options
    threads, engines = str(options.num_threads or ""), str(options.engine_dir or "")
    measured = probe("network", str(subject.bundle.path), network, subject.backends[0], engines, threads)
    bare = int(measured["bare_bytes"])
    return {
        "loaded": int(measured["loaded_bytes"]) - bare,
        "peak": int(measured["peak_bytes"]) - bare,
    }


def _scratch_bytes(subject: Subject, network: str) -> int | None:
    """None where the engine's library keeps its own, which is not known."""
    from lamp_trt.runtime.cuda_device import CudaDevice

    assert subject.ordinal is not None
    device = CudaDevice(subject.ordinal)
    engine = device_engine(
        subject.backends[0],
        subject.bundle,
        network,
        device=device.ordinal,
        stream=device.stream,
        motion=subject.motion_of(network),
        engine_dir=subject.options.engine_dir,
    )
    try:
        return engine.scratch_bytes or None
    finally:
        engine.close()


@dataclass(frozen=True)
class Fit:
    """What a use needs of a card. need: weights, arrays and the largest scratch, as engines on one stream
    share it; None where a part was not measured."""

    what: str
    need: int | None

    def on(self, card_gb: int) -> bool | None:
        """None: not measured."""
        return None if self.need is None else self.need <= card_gb * 1e9 * USABLE


def fits(memory: Mapping[str, Memory]) -> list[Fit]:
    """Of a video from an image, and of one from text, where the bundle has the networks."""
    wanted = {
        "video from an image": VIDEO_NETWORKS,
        "video from a prompt": (*FIRST_FRAME_NETWORKS, *VIDEO_NETWORKS),
    }
    return [
        Fit(what, _need([memory[name] for name in names]))
        for what, names in wanted.items()
        if set(names) <= set(memory)
    ]


def _need(parts: Sequence[Memory]) -> int | None:
    total, scratch = 0, 0
    for part in parts:
        own, weights, arrays = part["scratch"], part["weights"], part["arrays"]
        if own is None or weights is None or arrays is None:
            return None
        total += weights + arrays
        scratch = max(scratch, own)
    return total + scratch
