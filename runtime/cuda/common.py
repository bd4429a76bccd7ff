# SPDX-License-Identifier: Apache-2.0
"""What both halves of Algorithm 1 on a device have in common: time, a UNet's conditions, checks of values."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.precompute import HOISTED, TIME_PROJECTIONS
from lamp_trt.runtime.cuda.device import Device
from lamp_trt.runtime.cuda.engines import EngineSet
from lamp_trt.runtime.host.loop import require_finite
from lamp_trt.runtime.kernels.arrays import DeviceArray
from lamp_trt.runtime.stages import TokenIds


class Marks:
    """Moments of the stream between stages, and the seconds between them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks = [("", device.mark())]

    def end(self, stage: str) -> Any:
        """The stage that began with the mark before ends here."""
        mark = self._device.mark()
        self._marks.append((stage, mark))
        return mark

    def seconds(self) -> dict[str, float]:
        """By stage, after a wait; "total" is all."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        seconds = {stage: self._device.seconds(before, mark) for (_, before), (stage, mark) in pairs}
        return {**seconds, "total": sum(seconds.values())}


class Conditions:
    """A UNet with what it is given beside the sample: from the text, and from the timestep.

    The networks of HOISTED stand between them where the bundle has them: their outputs are the UNet's inputs
    under the same names.
    """

    def __init__(
        self,
        engines: EngineSet,
        manifest: Manifest,
        unet: str,
        given: Mapping[str, DeviceArray],
    ) -> None:
        beside = HOISTED[unet]
        self._text = engines.add(beside.text, given) if beside.text in manifest.networks else None
        self.time = engines.add(beside.time, given) if beside.time in manifest.networks else None
        made: dict[str, DeviceArray] = dict(given)
        for bound in (self._text, self.time):
            if bound is not None:
                made |= {tensor.name: bound.arrays[tensor.name] for tensor in bound.engine.outputs}
        if self.time is not None:
            del made[TIME_PROJECTIONS]  # the loop copies a row of its table into the UNet's own
        self.unet = engines.add(unet, made)

    def enqueue_text(self) -> None:
        """What depends on the prompt alone, once the text embeddings are enqueued."""
        if self._text is not None:
            self._text.enqueue()


def guided_ids(ids: TokenIds, guidance_scale: float) -> TokenIds:
    """Without guidance both halves are the prompt."""
    return ids if guidance_scale > 1 else ids[[1, 1]]


def require_finite_array(device: Device, array: DeviceArray, where: str) -> None:
    """As loop.require_finite, of an array on the device. Waits."""
    require_finite(device.download(array), where)


def require_no_nan(progress: NDArray[Any], where: str) -> None:
    """EngineError if a kernel met NaN in a decoded image; progress: PROGRESS (1,). After a wait."""
    if int(progress["decoder_nan"][0]):
        raise EngineError(f"{where} returned NaN; build the bundle with --precision fp32 and try again.")
