# SPDX-License-Identifier: Apache-2.0
"""The safety checker's network on host arrays."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.contract import Engine
from lamp_trt.engine.errors import InputError
from lamp_trt.runtime.ops import Array


class HostSafetyNetwork:
    """Loaded by `load` at the first picture, then kept."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._load = load
        self._engine: Engine | None = None
        self._closed = False

    def cosines(self, pixel_values: NDArray[np.float32]) -> tuple[Array, Array]:
        """Outputs of the network for one batch. InputError after `close`, EngineError if it fails."""
        if self._closed:
            raise InputError("this safety checker was closed; load the bundle again.")
        if self._engine is None:
            self._engine = self._load()
        concepts, special_care = (tensor.name for tensor in self._engine.outputs)
        outputs = self._engine.run({self._engine.inputs[0].name: pixel_values})
        return outputs[concepts], outputs[special_care]

    def close(self) -> None:
        """Give its memory back; a second time does nothing."""
        self._closed = True
        if self._engine is not None:
            self._engine.close()
            self._engine = None
