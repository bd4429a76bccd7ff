# SPDX-License-Identifier: Apache-2.0
"""A bundle's networks between the inputs of engine/networks.py, whatever their graphs leave out."""

from collections.abc import Mapping

from lamp_trt.engine.backend import Array
from lamp_trt.engine.backend_onnxruntime import OnnxRuntimeEngine
from lamp_trt.engine.bundle import Bundle
from lamp_trt.engine.hoisting import HOISTED, networks_beside
from lamp_trt.engine.networks import NETWORKS, IOTensor
from lamp_trt.runtime.conditioning import conditions_by_step


def beside(bundle: Bundle, network: str) -> list[str]:
    """The networks that make inputs of `network`; none but a UNet has any."""
    return networks_beside(bundle.manifest, network) if network in HOISTED else []


def plain_inputs(bundle: Bundle, network: str) -> tuple[IOTensor, ...]:
    """What `network` takes where nothing is hoisted."""
    precision = bundle.network(network).precision
    return NETWORKS[network].resolve(bundle.manifest.sizes, precision)[0]


class PlainEngine:
    """A network on ONNX Runtime, run together with those beside it. Raises as OnnxRuntimeEngine does."""

    def __init__(
        self, bundle: Bundle, network: str, *, motion: str | None = None, num_threads: int | None = None
    ) -> None:
        self._engine = OnnxRuntimeEngine(bundle, network, motion=motion, num_threads=num_threads)
        self._beside = [
            OnnxRuntimeEngine(bundle, name, num_threads=num_threads) for name in beside(bundle, network)
        ]

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """arrays: by the names of `plain_inputs`, one timestep."""
        if not self._beside:
            return self._engine.run(arrays)
        conditions = conditions_by_step(self._engine, self._beside, arrays, arrays["timestep"])
        return self._engine.run({"sample": arrays["sample"], **next(conditions)})

    def set_motion(self, motion: str) -> None:
        self._engine.set_motion(motion)
