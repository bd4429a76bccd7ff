# SPDX-License-Identifier: Apache-2.0
"""Engines on one device that run one after another, with their arrays and shared scratch memory."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from lamp_trt.engine.backends.contract import DeviceEngine
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.runtime.cuda.device import Device
from lamp_trt.runtime.kernels.arrays import DeviceArray

log = logging.getLogger("lamp_trt")

LoadEngine = Callable[[str], DeviceEngine]
"""Network name → its engine with weights on the device."""


@dataclass(frozen=True, eq=False)
class BoundEngine:
    """An engine bound to arrays, by tensor name."""

    network: str
    engine: DeviceEngine
    arrays: Mapping[str, DeviceArray]
    device: Device

    def enqueue(self) -> None:
        self.engine.enqueue(self.device.stream)


class EngineSet:
    """Loads engines and binds them; a context manager that closes them.

    They never run at the same time, so they share scratch memory of the largest one's size.
    """

    def __init__(self, device: Device, load: LoadEngine) -> None:
        self.device, self._load = device, load
        self._engines: list[DeviceEngine] = []
        self._made: list[DeviceArray] = []
        self._scratch: DeviceArray | None = None
        self._closed = False
        self.generation = 0
        """Incremented when the scratch memory moves, which invalidates earlier captures."""

    def add(self, network: str, given: Mapping[str, DeviceArray] | None = None) -> BoundEngine:
        """Load a network. Allocates every tensor except those in `given`: arrays that another engine writes
        or reads, under the same name and of the same dtype and size."""
        if self._closed:
            raise EngineError(f"{network} cannot be loaded: these engines were closed.")
        engine = self._load(network)
        self._engines.append(engine)
        arrays = {}
        for tensor in (*engine.inputs, *engine.outputs):
            array = (given or {}).get(tensor.name)
            if array is None:
                array = self.device.empty(tensor.shape, tensor.dtype)
                self._made.append(array)
            _check(network, tensor, array)
            engine.bind(tensor.name, array.pointer)
            arrays[tensor.name] = array
        return BoundEngine(network, engine, arrays, self.device)

    def share_scratch(self) -> None:
        """Give every engine the scratch memory; to be called after the last `add`, again after later ones."""
        needed = max((engine.scratch_bytes for engine in self._engines), default=0)
        if needed > (self._scratch.nbytes if self._scratch else 0):
            if self._scratch:
                self.device.release(self._scratch)
            self._scratch = self.device.empty((needed,), "uint8")
            self.generation += 1
        if self._scratch:
            log.debug("scratch shared by %d engines: %.2f GB", len(self._engines), needed / 1e9)
            for engine in self._engines:
                engine.use_scratch(self._scratch.pointer, self._scratch.nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the engines, their scratch memory and the allocated arrays. Waits for the stream. A second
        call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.device.synchronize()
        for engine in self._engines:
            engine.close()
        self.device.release(*self._made, *([self._scratch] if self._scratch else []))
        self._engines.clear()
        self._made.clear()
        self._scratch = None


def _check(network: str, tensor: IOTensor, array: DeviceArray) -> None:
    expected = DeviceArray(0, tensor.shape, array.dtype).nbytes
    if array.dtype.name != tensor.dtype or array.nbytes != expected:
        raise EngineError(
            f"{network} takes {tensor.name} as {tensor.dtype} {tensor.shape}, but the given array is "
            f"{array.dtype.name} {array.shape}. The bundle's networks do not fit together: build them again."
        )
