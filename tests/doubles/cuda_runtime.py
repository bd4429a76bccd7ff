# SPDX-License-Identifier: Apache-2.0
"""The functions of cuda.bindings.runtime that CudaDevice calls, on host memory; work is done at once."""

import ctypes
from typing import Any

import numpy as np
import pytest

STREAM, FREE_BYTES = 0x5EED, 1 << 20


class CudaRuntime:
    """held: what was given and not taken back, by handle. clock_ms: the time that events record.
    stream_status: what a wait for the stream returns."""

    def __init__(self) -> None:
        from cuda.bindings.runtime import cudaError_t

        self.success = self.stream_status = cudaError_t.cudaSuccess
        self.failure = cudaError_t.cudaErrorIllegalAddress
        self.held: dict[int, Any] = {}
        self.clock_ms = 0.0
        self._events = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in dir(self):
            if name.startswith("cuda"):
                monkeypatch.setattr(f"cuda.bindings.runtime.{name}", getattr(self, name))
        monkeypatch.setattr("cuda.core.Device", lambda ordinal: _Current())
        monkeypatch.setattr("lamp_trt.runtime.kernels.device.driver_present", lambda: True)
        monkeypatch.setattr("lamp_trt.runtime.kernels.device.CudaLauncher", lambda stream: None)

    def _give(self, handle: int, value: object) -> tuple[Any, int]:
        self.held[handle] = value
        return self.success, handle

    def _take(self, handle: int) -> tuple[Any]:
        return (self.success if self.held.pop(int(handle), None) is not None else self.failure,)

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return self.success, 1

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        return self._give(STREAM, "stream")

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        return self._take(stream)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        return (self.stream_status,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return self.success, FREE_BYTES, 2 * FREE_BYTES

    def cudaMalloc(self, nbytes: int) -> tuple[Any, int]:
        memory = np.full(nbytes, 0xA7, np.uint8)
        return self._give(memory.ctypes.data, memory)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[Any, int]:
        return self.cudaMalloc(nbytes)

    def cudaHostGetDevicePointer(self, pointer: int, flags: int) -> tuple[Any, int]:
        return self.success, pointer

    def cudaFree(self, pointer: int) -> tuple[Any]:
        return self._take(pointer)

    def cudaFreeHost(self, pointer: int) -> tuple[Any]:
        return self._take(pointer)

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: Any, stream: int) -> tuple[Any]:
        ctypes.memmove(target, source, nbytes)
        return (self.success,)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: Any,
        stream: int,
    ) -> tuple[Any]:
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        return (self.success,)

    def cudaMemsetAsync(self, target: int, value: int, nbytes: int, stream: int) -> tuple[Any]:
        ctypes.memset(target, value, nbytes)
        return (self.success,)

    def cudaEventCreate(self) -> tuple[Any, int]:
        self._events += 1
        return self._give(self._events, None)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any]:
        self.held[event] = self.clock_ms
        return (self.success,)

    def cudaEventQuery(self, event: int) -> tuple[Any]:
        return (self.stream_status,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, float]:
        """[CUDA] "Computes the elapsed time between two events (in milliseconds …)"."""
        return self.success, self.held[end] - self.held[start]

    def cudaEventDestroy(self, event: int) -> tuple[Any]:
        return self._take(event)


class _Current:
    def set_current(self) -> None:
        pass
