# SPDX-License-Identifier: Apache-2.0
"""Networks of a bundle with the plain inputs of engine/families.py, on any device and backend, whatever is
hoisted out of their graphs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from lamp_trt.engine.backends.contract import Array, Engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import NETWORKS
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.precompute import HOISTED, networks_beside
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.host.conditioning import conditions_by_step
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.load import Place


class PlainEngine(Protocol):
    """A network together with its precompute networks. Methods raise EngineError."""

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on host arrays by the names of `plain_inputs`, with one timestep. The outputs are new
        arrays."""
        ...

    def set_motion(self, motion: str) -> None: ...

    def close(self) -> None:
        """Free the memory; the engine is unusable afterwards."""
        ...


def precompute_networks(bundle: Bundle, network: str) -> list[str]:
    """Return the networks that compute inputs of `network`; only UNets have any."""
    return networks_beside(bundle.manifest, network) if network in HOISTED else []


def plain_inputs(bundle: Bundle, network: str) -> tuple[IOTensor, ...]:
    """Return the inputs that `network` has when nothing is hoisted."""
    precision = bundle.network(network).precision
    return NETWORKS[network].resolve(bundle.manifest.sizes, precision)[0]


def plain_engine(bundle: Bundle, network: str, place: Place, motion: str | None = None) -> PlainEngine:
    """Load `network` as a pipeline at `place` does. EngineError if it cannot be loaded."""
    if place.ordinal is None:
        return HostPlainEngine(bundle, network, partial(place.host_engine, bundle), motion)
    return DevicePlainEngine(bundle, network, place.engine_set(bundle, motion))


class HostPlainEngine:
    """Plain engine on host arrays. load: returns the engine of a network, of the UNet with a motion."""

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        load: Callable[[str, str | None], Engine],
        motion: str | None = None,
    ) -> None:
        self._engine = load(network, motion)
        self._precompute = [load(name, None) for name in precompute_networks(bundle, network)]

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        if not self._precompute:
            return self._engine.run(arrays)
        conditions = conditions_by_step(self._engine, self._precompute, arrays, arrays["timestep"])
        return self._engine.run({"sample": arrays["sample"], **next(conditions)})

    def set_motion(self, motion: str) -> None:
        self._engine.set_motion(motion)

    def close(self) -> None:
        for engine in (self._engine, *self._precompute):
            engine.close()


class DevicePlainEngine:
    """Plain engine on device arrays. An output of one network that is an input of another under the same
    name is one array."""

    def __init__(self, bundle: Bundle, network: str, engines: EngineSet) -> None:
        self._engines, self._arrays = engines, dict[str, DeviceArray]()
        self._bound = []
        for name in (*precompute_networks(bundle, network), network):
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
        self._engines.device.close()
