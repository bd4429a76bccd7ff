# SPDX-License-Identifier: Apache-2.0
"""Loading of the kernels onto the current GPU, and their launch on a CUDA stream."""

import ctypes
import functools
import logging
from collections.abc import Sequence
from typing import Any

from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime import kernels
from lamp_trt.runtime.kernels import nvrtc

logger = logging.getLogger("lamp_trt")

DRIVER_LIBRARY = "libcuda.so.1"


def driver_present() -> bool:
    """Whether the NVIDIA driver's library can be loaded.

    Without it cuda.core 1.2 raises SystemError from its first loading call and hangs in the second, so this
    is checked before either.
    """
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return False
    return True


class CudaLauncher:
    """Launcher of kernels on one stream of the current device; loads the kernels.

    stream: a cuda.core Stream or GraphBuilder, a torch.cuda.Stream, any object with __cuda_stream__, or a
    cudaStream_t as int. The device is the current one: cuda.core's Device(n).set_current(), or torch's.
    Launches neither allocate nor synchronise, so they may be captured. Raises EngineError without a driver,
    or if the kernels cannot be loaded.
    """

    def __init__(self, stream: Any) -> None:
        if not driver_present():
            raise EngineError(
                f"{DRIVER_LIBRARY} does not load: there is no NVIDIA driver; install it or use device='cpu'."
            )
        from cuda.core import Device

        self.stream = stream_from(stream)
        self._kernels = loaded_kernels(f"sm_{Device().arch}")

    def __call__(
        self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]
    ) -> None:
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=grid, block=threads)
        launch(self.stream, config, self._kernels[kernel], *c_arguments(kernel, arguments))


def stream_from(stream: Any) -> Any:
    """`stream` in a form that cuda.core accepts, see CudaLauncher. Raises InputError for another type."""
    if isinstance(stream, int):
        return _stream_from_handle(stream)
    if hasattr(stream, "__cuda_stream__") or type(stream).__module__.startswith("cuda.core"):
        return stream
    if hasattr(stream, "cuda_stream"):  # torch.cuda.Stream of versions without the protocol
        return _stream_from_handle(stream.cuda_stream)
    raise InputError(
        f"{type(stream).__name__} is not a CUDA stream; expected cuda.core's, torch's or a handle."
    )


def c_arguments(kernel: str, arguments: Sequence[float]) -> list[Any]:
    """Arguments in the form that cuda.core accepts: pointers as int, scalars as ctypes of their C width."""
    signature = kernels.SIGNATURES[kernel]
    if len(arguments) != len(signature):
        raise InputError(f"{kernel} takes {len(signature)} arguments, got {len(arguments)}.")
    return [a if t is ctypes.c_void_p else t(a) for t, a in zip(signature, arguments, strict=True)]


@functools.cache
def loaded_kernels(arch: str) -> dict[str, Any]:
    """Every kernel by name, from the package's fatbin or compiled for `arch`, with checked parameters."""
    from cuda.core import ObjectCode

    fatbin = current_fatbin()
    if fatbin is not None:
        code = ObjectCode.from_fatbin(fatbin, name="lamp_kernels")
    else:
        code = ObjectCode.from_cubin(nvrtc.cubin(arch), name="lamp_kernels")
    loaded = {name: code.get_kernel(name) for name in kernels.SIGNATURES}
    for name, kernel in loaded.items():
        check_parameters(name, [size for _, size in kernel.arguments_info])
    return loaded


def current_fatbin() -> bytes | None:
    """The package's fatbin if it was made from the current sources, otherwise None. Logs a warning if the
    package has an outdated one."""
    fatbins = kernels.fatbins()
    fatbin = fatbins.get(kernels.fatbin_name())
    if fatbin is None and fatbins:
        logger.warning(
            "the CUDA kernels have changed since they were compiled (%s); reinstall lamp-trt to compile them "
            "ahead of time. NVRTC compiles them now.",
            ", ".join(sorted(fatbins)),
        )
    return None if fatbin is None else fatbin.read_bytes()


def check_parameters(kernel: str, sizes: Sequence[int]) -> None:
    """Raise EngineError unless a compiled kernel's parameter sizes match its signature."""
    expected = [ctypes.sizeof(t) for t in kernels.SIGNATURES[kernel]]
    if list(sizes) != expected:
        raise EngineError(
            f"the compiled kernel {kernel} takes parameters of {list(sizes)} bytes, expected {expected}; "
            "reinstall lamp-trt, and delete the kernel cache."
        )


def _stream_from_handle(handle: int) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(handle)
