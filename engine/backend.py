# SPDX-License-Identifier: Apache-2.0
"""The contract of an engine: one network, compiled or loaded, ready to run."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.networks import IOTensor

Array = NDArray[np.generic]


class Engine(Protocol):
    """A network that runs on host arrays. An engine belongs to one thread at a time."""

    @property
    def inputs(self) -> tuple[IOTensor, ...]: ...

    @property
    def outputs(self) -> tuple[IOTensor, ...]: ...

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Arrays must have the names, shapes and dtypes of `inputs`; outputs are new arrays."""
        ...

    def set_motion(self, motion: str) -> None:
        """Make `motion` the one that the network shows. Only the LAMP UNet has motions."""
        ...
