# SPDX-License-Identifier: Apache-2.0
"""What networks need of memory, measured, and which graphics cards hold that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamp_trt.benchmarks.bench.probe import probe
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.backends.registry import device_engine
from lamp_trt.engine.errors import LampError
from lamp_trt.runtime.cuda.memory import memory_need

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
    chosen = map(str, (options.engine_dir or "", options.num_threads or "", options.cpu_precision or ""))
    measured = probe("network", str(subject.bundle.path), network, subject.backends[0], *chosen)
    bare = int(measured["bare_bytes"])
    return {
        "loaded": int(measured["loaded_bytes"]) - bare,
        "peak": int(measured["peak_bytes"]) - bare,
    }


def _scratch_bytes(subject: Subject, network: str) -> int | None:
    """None where the engine's library keeps its own, which is not known."""
    from lamp_trt.runtime.cuda.device import CudaDevice

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


def fits(uses: Mapping[str, Mapping[str, Any]], memory: Mapping[str, Memory]) -> list[Fit]:
    """uses: what `Subject.summary` says of each. memory: network → what was measured."""
    return [Fit(what, _need(use, memory)) for what, use in uses.items()]


def _need(use: Mapping[str, Any], memory: Mapping[str, Memory]) -> int | None:
    largest = 0
    for network in use["networks"]:
        scratch = memory.get(network, {}).get("scratch")
        if scratch is None:
            return None
        largest = max(largest, scratch)
    return int(use["weights"]) + int(use["arrays"]) + largest
