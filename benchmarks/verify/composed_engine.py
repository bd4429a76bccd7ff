# SPDX-License-Identifier: Apache-2.0
"""Networks of a bundle with the inputs of engine/families.py, on any device and backend, whatever is hoisted
out of their graphs: the networks that precompute inputs of a UNet run first."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from lamp_trt.engine.backends.contract import Array, Engine
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.families import NETWORKS
from lamp_trt.engine.networks import IOTensor
from lamp_trt.engine.precompute import precompute_networks
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.host.conditioning import conditions_by_step
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.load import Place


class ComposedEngine(Protocol):
    """A network together with those that precompute its inputs. Methods raise EngineError."""

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """arrays: host arrays by the names of `original_inputs`, one timestep. The outputs are new arrays."""
        ...

    def set_motion(self, motion: str) -> None: ...

    def close(self) -> None:
        """Free memory; the engine is unusable afterwards."""
        ...


def original_inputs(bundle: Bundle, network: str) -> tuple[IOTensor, ...]:
    """The inputs of `network` with nothing hoisted out of it."""
    precision = bundle.network(network).precision
    return NETWORKS[network].resolve(bundle.manifest.sizes, precision)[0]


def composed_engine(bundle: Bundle, network: str, place: Place, motion: str | None = None) -> ComposedEngine:
    """`network` as a pipeline at `place` runs it. EngineError if it cannot be loaded."""
    if place.ordinal is None:
        return HostComposedEngine(bundle, network, partial(place.host_engine, bundle), motion)
    return DeviceComposedEngine(bundle, network, place.engine_set(bundle, motion))


class HostComposedEngine:
    """Engines on host arrays. load: (network, motion) → engine."""

    def __init__(
        self,
        bundle: Bundle,
        network: str,
        load: Callable[[str, str | None], Engine],
        motion: str | None = None,
    ) -> None:
        self._engine = load(network, motion)
        self._precompute = [load(name, None) for name in precompute_networks(bundle.manifest, network)]

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


class DeviceComposedEngine:
    """Engines on device arrays; an output and an input of the same name share one array."""

    def __init__(self, bundle: Bundle, network: str, engines: EngineSet) -> None:
        self._engines, self._arrays = engines, dict[str, DeviceArray]()
        self._bound = []
        for name in (*precompute_networks(bundle.manifest, network), network):
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
