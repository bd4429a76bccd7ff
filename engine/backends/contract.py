# SPDX-License-Identifier: Apache-2.0
"""The protocols of engines on host arrays and on a device: one network, ready to run.

For both: an engine is used by one thread at a time. It is closed by `close` or at the end of a `with` block.
An engine that is closed, or that a failure left partly changed, is **unusable**: every later call except
`close` raises EngineError with the reason.
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
    """An object with `close`, which a `with` block calls at its end."""

    def close(self) -> None:
        """Free the memory; nothing may be pending on a stream. A second call does nothing."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BaseEngine(Closable):
    """Base of the backends' engines. `unusable`: the reason why it is unusable, None while it is usable."""

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
        """Switch to `motion`. Only the LAMP UNet has motions.

        Returns whether earlier captures are stale: always False, host engines have no captures.
        """
        ...


class DeviceEngine(Closable, Protocol):
    """A network on one CUDA device with fixed addresses of inputs and outputs.

    Construction puts its weights on the device. Then bind every tensor of `inputs` and `outputs`, give
    scratch memory, and enqueue any number of runs. Pointers are device addresses of C-contiguous memory,
    streams are cudaStream_t. Methods raise EngineError; the message says if the engine is unusable.
    """

    @property
    def inputs(self) -> tuple[IOTensor, ...]: ...

    @property
    def outputs(self) -> tuple[IOTensor, ...]: ...

    @property
    def scratch_bytes(self) -> int:
        """Minimum size for `use_scratch`; 0 if the engine's library manages scratch memory itself."""
        ...

    def bind(self, name: str, pointer: int) -> None:
        """Set the address of one input or output. Earlier captures become stale."""
        ...

    def use_scratch(self, pointer: int, nbytes: int) -> None:
        """Set the memory for intermediate values (pointer aligned to 256 bytes). Engines that never run
        concurrently may share it."""
        ...

    def enqueue(self, stream: int) -> None:
        """Enqueue one run and return without waiting for it."""
        ...

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None] | None:
        """Record the work that `work` enqueues on `stream`, including runs of this engine, for replay there.

        Returns None if this engine's runs cannot be recorded: call `work` each time instead. The engine must
        have run once on the stream before. EngineError if recording fails.
        """
        ...

    def set_motion(self, motion: str) -> bool:
        """Switch to `motion`; nothing may be pending on any stream. Only the LAMP UNet has motions.

        Returns whether earlier captures are stale and must be made again; the scratch memory may then be too
        small. Does nothing and returns False for the current motion. After a failed switch, the next
        `set_motion` tries again, unless the error says that the engine is unusable.
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
