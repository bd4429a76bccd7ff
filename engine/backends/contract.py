# SPDX-License-Identifier: Apache-2.0
"""The contracts of an engine: one network, compiled or loaded, ready to run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import EngineError
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

    def set_motion(self, motion: str) -> bool:
        """As DeviceEngine's; nothing is captured on the host, so always False."""
        ...

    def close(self) -> None:
        """Give the memory back; a second time does nothing. The engine is unusable afterwards."""
        ...


class DeviceEngine(Protocol):
    """A network on one CUDA device, between addresses that stay where they are.

    Once constructed its weights are on the device. Then every tensor of `inputs` and `outputs` is bound, the
    scratch given, and runs are enqueued, any number. Pointers are device addresses of C-contiguous memory,
    streams are cudaStream_t. Methods raise EngineError; one that leaves the engine unusable says so, and
    every later call raises too.
    """

    @property
    def inputs(self) -> tuple[IOTensor, ...]: ...

    @property
    def outputs(self) -> tuple[IOTensor, ...]: ...

    @property
    def scratch_bytes(self) -> int:
        """What `use_scratch` must bring at least; 0 if the engine's library keeps its own."""
        ...

    def bind(self, name: str, pointer: int) -> None:
        """The address of one input or output, until another is bound. Earlier captures go stale."""
        ...

    def use_scratch(self, pointer: int, nbytes: int) -> None:
        """Memory for intermediate values (pointer aligned to 256 bytes). Engines that never run at the same
        time may be given the same."""
        ...

    def enqueue(self, stream: int) -> None:
        """Enqueue one run; returns without waiting for it."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        """Record what `work` enqueues on `stream`, this engine's runs among it, for replay on that stream.

        None if this engine's runs cannot be recorded: then calling `work` is the way. The engine must have
        run once on the stream before. EngineError if recording fails.
        """
        ...

    def set_motion(self, motion: str) -> bool:
        """Make `motion` the one that the network shows, while nothing is pending on any stream. Only the LAMP
        UNet has motions.

        True if captures made before are stale, and the scratch that was given may be too small; False if they
        stay valid. The motion that it shows already costs nothing. If a switch fails, the next `set_motion`
        tries again, unless the error says that the engine is unusable.
        """
        ...

    def close(self) -> None:
        """Give the device memory back; a second time does nothing. The engine is unusable afterwards."""
        ...


def check_arrays(network: str, inputs: Sequence[IOTensor], arrays: Mapping[str, Array]) -> None:
    """EngineError unless `arrays` have the shapes and dtypes of `inputs`."""
    for tensor in inputs:
        array = arrays[tensor.name]
        if (array.shape, array.dtype.name) != (tensor.shape, tensor.dtype):
            raise EngineError(
                f"{network}: input {tensor.name} is {array.dtype} {list(array.shape)}, "
                f"this bundle's engine takes {tensor.dtype} {list(tensor.shape)}."
            )
