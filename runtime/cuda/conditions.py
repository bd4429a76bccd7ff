# SPDX-License-Identifier: Apache-2.0
"""A UNet on a device with the engines that compute its inputs other than the sample."""

from collections.abc import Mapping

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.precompute import HOISTED, TIME_PROJECTIONS
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.kernels.arrays import DeviceArray


class Conditions:
    """A UNet and the networks of HOISTED that the bundle has for it, bound to each other.

    given   the plain conditions by name, such as text embeddings
    unet    the bound UNet
    time    the bound network of the time projections, or None
    Outputs of the hoisted networks are the UNet's inputs of the same names.
    """

    def __init__(
        self,
        engines: EngineSet,
        manifest: Manifest,
        unet: str,
        given: Mapping[str, DeviceArray],
    ) -> None:
        precomputed = HOISTED[unet]
        self._text = engines.add(precomputed.text, given) if precomputed.text in manifest.networks else None
        self.time = engines.add(precomputed.time, given) if precomputed.time in manifest.networks else None
        made: dict[str, DeviceArray] = dict(given)
        for bound in (self._text, self.time):
            if bound is not None:
                made |= {tensor.name: bound.arrays[tensor.name] for tensor in bound.engine.outputs}
        if self.time is not None:
            del made[TIME_PROJECTIONS]  # the loop copies a row of its table into the UNet's own input
        self.unet = engines.add(unet, made)

    def enqueue_text(self) -> None:
        """Enqueue the network that depends on the prompt only, if any; after the text embeddings."""
        if self._text is not None:
            self._text.enqueue()
