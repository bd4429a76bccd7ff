# SPDX-License-Identifier: Apache-2.0
"""The safety checker's network on a device: pictures are prepared on the host and go up a batch at a time."""

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.bundle.manifest import Manifest
from lamp_trt.engine.families import SAFETY_CHECKER
from lamp_trt.runtime.cuda.engines import BoundEngine, EngineSet
from lamp_trt.runtime.cuda.memory import memory_need, require_memory
from lamp_trt.runtime.ops import Array


class CudaSafetyNetwork:
    """Added to `engines` at the first picture. Waits for the stream: verdicts are needed before what
    follows."""

    def __init__(self, manifest: Manifest, engines: EngineSet) -> None:
        self._manifest, self._engines = manifest, engines
        self._bound: BoundEngine | None = None

    def cosines(self, pixel_values: NDArray[np.float32]) -> tuple[Array, Array]:
        """Outputs of the network for one batch. EngineError if it fails."""
        bound = self._loaded()
        device = self._engines.device
        device.upload(bound.arrays[bound.engine.inputs[0].name], pixel_values)
        bound.enqueue()
        concepts, special_care = (device.download(bound.arrays[t.name]) for t in bound.engine.outputs)
        return concepts, special_care

    def _loaded(self) -> BoundEngine:
        if self._bound is None:
            device = self._engines.device
            device.synchronize()
            need = memory_need(self._manifest, [SAFETY_CHECKER])
            require_memory(need, device.free_bytes(), "checking pictures")
            self._bound = self._engines.add(SAFETY_CHECKER)
            self._engines.share_scratch()
        return self._bound
