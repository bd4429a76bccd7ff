# SPDX-License-Identifier: Apache-2.0
"""Measured memory of networks, and the graphics cards that hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamp_trt.benchmarks.bench.probe import probe
from lamp_trt.benchmarks.bench.subject import Subject
from lamp_trt.engine.backends.registry import device_engine
from lamp_trt.engine.errors import LampError
from lamp_trt.runtime.cuda.memory import memory_need

CARDS_GB = (8, 12, 16, 24, 80)
"""Memory of common graphics cards."""

USABLE = 0.92
"""Share of a card's memory for programs; the driver, the CUDA context and a desktop take the rest."""

Memory = Mapping[str, int | None]
"""Bytes of one network: weights, arrays, scratch (None: not measured); on the CPU also loaded and peak of
a process that runs it alone, above the bare process."""


def network_memory(subject: Subject, network: str) -> tuple[dict[str, int | None], str]:
    """Measure one network on the first backend. Returns the bytes, and the reason if a part is missing,
    else ""."""
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
    """Return the engine's scratch; None if its library allocates scratch itself, of unknown size."""
    from lamp_trt.runtime.cuda.device import CudaDevice

    assert subject.ordinal is not None
    with (
        CudaDevice(subject.ordinal) as device,
        device_engine(
            subject.backends[0],
            subject.bundle,
            network,
            device=device.ordinal,
            stream=device.stream,
            motion=subject.motion_of(network),
            engine_dir=subject.options.engine_dir,
        ) as engine,
    ):
        return engine.scratch_bytes or None


@dataclass(frozen=True)
class Fit:
    """Memory that a use needs. need: bytes of weights, arrays and the largest scratch, which engines on
    one stream share; None if a part was not measured."""

    use: str
    need: int | None

    def on(self, card_gb: int) -> bool | None:
        """Return whether it fits on a card; None: not measured."""
        return None if self.need is None else self.need <= card_gb * 1e9 * USABLE


def fits(uses: Mapping[str, Mapping[str, Any]], memory: Mapping[str, Memory]) -> list[Fit]:
    """Return the memory of each use. uses: as in `Subject.summary`; memory: by network, as measured."""
    return [Fit(name, _need(use, memory)) for name, use in uses.items()]


def _need(use: Mapping[str, Any], memory: Mapping[str, Memory]) -> int | None:
    largest = 0
    for network in use["networks"]:
        scratch = memory.get(network, {}).get("scratch")
        if scratch is None:
            return None
        largest = max(largest, scratch)
    return int(use["weights"]) + int(use["arrays"]) + largest
