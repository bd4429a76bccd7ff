# SPDX-License-Identifier: Apache-2.0
"""A bundle's networks between the inputs of engine/networks.py, wherever they run and whatever their graphs
leave out."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from lamp_trt.engine.backends.contract import Array, Engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.networks import NETWORKS, IOTensor
from lamp_trt.engine.precompute import HOISTED, networks_beside
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.host.conditioning import conditions_by_step
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.load import Placement


class PlainEngine(Protocol):
    """A network together with those beside it. Methods raise EngineError."""

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """arrays: host arrays by the names of `plain_inputs`, one timestep. The outputs are new arrays."""
        ...

    def set_motion(self, motion: str) -> None: ...

    def close(self) -> None:
        """Give memory back; the engine is unusable afterwards."""
        ...


def beside(bundle: Bundle, network: str) -> list[str]:
    """The networks that make inputs of `network`; none but a UNet has any."""
    return networks_beside(bundle.manifest, network) if network in HOISTED else []


def plain_inputs(bundle: Bundle, network: str) -> tuple[IOTensor, ...]:
    """What `network` takes where nothing is hoisted."""
    precision = bundle.network(network).precision
    return NETWORKS[network].resolve(bundle.manifest.sizes, precision)[0]


def plain_engine(bundle: Bundle, network: str, place: Placement, motion: str | None = None) -> PlainEngine:
    """`network` as a pipeline at `place` runs it. EngineError if it cannot be loaded."""
    if place.ordinal is None:
        return HostPlainEngine(bundle, network, partial(place.host_engine, bundle), motion)
    return DevicePlainEngine(bundle, network, place.engine_set(bundle, motion))


class HostPlainEngine:
    """On host arrays. load: gives the engine of a network, of the UNet with a motion."""

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        load: Callable[[str, str | None], Engine],
        motion: str | None = None,
    ) -> None:
        self._engine = load(network, motion)
        self._beside = [load(name, None) for name in beside(bundle, network)]

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        if not self._beside:
            return self._engine.run(arrays)
        conditions = conditions_by_step(self._engine, self._beside, arrays, arrays["timestep"])
        return self._engine.run({"sample": arrays["sample"], **next(conditions)})

    def set_motion(self, motion: str) -> None:
        self._engine.set_motion(motion)

    def close(self) -> None:
        for engine in (self._engine, *self._beside):
            engine.close()


class DevicePlainEngine:
    """Between arrays on a device; what one network gives and another takes under the same name is one
    array."""

    def __init__(self, bundle: Bundle, network: str, engines: EngineSet) -> None:
        self._engines, self._arrays = engines, dict[str, DeviceArray]()
        self._bound = []
        for name in (*beside(bundle, network), network):
            self._bound.append(engines.add(name, self._arrays))
            self._arrays |= self._bound[-1].arrays
        engines.share_scratch()

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        device = self._engines.device
        device.synchronize()
        for name, values in arrays.items():
            device.upload(self._arrays[name], values)
        for bound in self._bound:
            bound.enqueue()
        outputs = self._bound[-1].engine.outputs
        return {tensor.name: device.download(self._arrays[tensor.name]) for tensor in outputs}

    def set_motion(self, motion: str) -> None:
        self._engines.device.synchronize()
        if self._bound[-1].engine.set_motion(motion):
            self._engines.share_scratch()

    def close(self) -> None:
        self._engines.close()
