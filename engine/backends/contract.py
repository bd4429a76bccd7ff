# SPDX-License-Identifier: Apache-2.0
"""The contracts of an engine: one network, compiled or loaded, ready to run.

Rules of both kinds: an engine belongs to one thread at a time. It is closed by `close` or at the end of a
`with` block. An engine that is closed, or that a failure left half changed, is **unusable**: every later call
but `close` raises EngineError with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import IOTensor

Array = NDArray[np.generic]


class Closable(Protocol):
    """Something to be closed, which a `with` block does at its end."""

    def close(self) -> None:
        """Give the memory back, while nothing is pending on a stream. A second call does nothing."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BaseEngine(Closable):
    """Base of the backends' engines. `unusable`: why no call is possible any more, None while one is."""

    unusable: str | None = None

    def require_usable(self) -> None:
        """EngineError with the reason if the engine is unusable."""
        if self.unusable:
            raise EngineError(self.unusable)


class Engine(Closable, Protocol):
    """A network that runs on host arrays."""

    @property
    def inputs(self) -> tuple[IOTensor, ...]: ...

    @property
    def outputs(self) -> tuple[IOTensor, ...]: ...

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Arrays must have the names, shapes and dtypes of `inputs`; outputs are new arrays."""
        ...

    def set_motion(self, motion: str) -> bool:
        """Make `motion` the one that the network shows. Only the LAMP UNet has motions.

        Returns whether earlier captures are stale; a host engine has none, so always False.
        """
        ...


class DeviceEngine(Closable, Protocol):
    """A network on one CUDA device, between addresses that stay where they are.

    Once constructed its weights are on the device. Then every tensor of `inputs` and `outputs` is bound, the
    scratch given, and runs are enqueued, any number. Pointers are device addresses of C-contiguous memory,
    streams are cudaStream_t. Methods raise EngineError; one that leaves the engine unusable says so.
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

        Returns whether earlier captures are stale and must be made again; then the scratch that was given may
        be too small. For the motion that it shows already it does nothing and returns False. If a switch
        fails, the next `set_motion` tries again, unless the error says that the engine is unusable.
        """
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
