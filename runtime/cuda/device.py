# SPDX-License-Identifier: Apache-2.0
"""One CUDA device with memory at fixed addresses, one stream, kernel launches and timing.

`Device` is the interface; `CudaDevice` implements it with cuda.bindings and cuda.core, which are imported
when a CudaDevice is created.
"""

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any, Protocol, Self
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from lamp_trt.engine.backends.cuda.calls import release
from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime.kernels.arrays import DeviceArray, contiguous_strides
from lamp_trt.runtime.kernels.launch import Launcher

Array = NDArray[Any]


class Device(Protocol):
    """A device on which all work is enqueued on one `stream`, a cudaStream_t, and runs in that order.

    Methods raise EngineError if the device fails. Only methods documented so wait for the stream.
    """

    ordinal: int
    stream: int
    launch: Launcher

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """Allocate memory, aligned to 256 bytes, which the device owns until `release`."""
        ...

    def release(self, *arrays: DeviceArray) -> None:
        """Free memory of `empty`. Waits for the stream."""
        ...

    def mapped(self, dtype: Any, shape: tuple[int, ...] = (1,)) -> tuple[DeviceArray, Array]:
        """Allocate mapped host memory, which kernels write while the host reads it; returns the device's and
        the host's view."""
        ...

    def upload(self, target: DeviceArray, values: Array) -> None:
        """Copy host to device; `values` must have the target's size and dtype, and may change afterwards.

        At most once per target between two waits: the copy reads a staging buffer of the target.
        """
        ...

    def download(self, source: DeviceArray) -> Array:
        """Copy device to host, into a new array. Waits for the stream."""
        ...

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copy device to device; the sizes in bytes must be equal."""
        ...

    def copy_columns(self, target: DeviceArray, source: DeviceArray, first: int) -> None:
        """Copy `source` (..., w) into columns first..first+w-1 of `target` (..., W)."""
        ...

    def zero(self, target: DeviceArray) -> None: ...

    def view(self, x: Any) -> DeviceArray | None:
        """A view of a contiguous array on this device (DLPack or __cuda_array_interface__), without a copy,
        ordered after its owner's work; None if x is not a device array. Raises InputError for another device
        or layout."""
        ...

    def mark(self) -> Any:
        """Record an event on the stream, for `seconds` and `reached`."""
        ...

    def reached(self, mark: Any) -> bool: ...

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks that were reached."""
        ...

    def synchronize(self) -> None:
        """Wait for the stream."""
        ...

    def free_bytes(self) -> int: ...

    def close(self) -> None:
        """Release the stream and all memory, including that of `mapped` and `upload`. Waits for the stream. A
        second call does nothing. No method works afterwards."""
        ...


class Mark:
    """A CUDA event, destroyed with the object."""

    def __init__(self, event: Any) -> None:
        self.event = event
        finalize(self, release, "cudaEventDestroy", event).atexit = False


class CudaDevice:
    """CUDA device `ordinal` of this machine; a context manager.

    Raises EngineError without an NVIDIA driver, InputError for an unknown ordinal. After an asynchronous CUDA
    error the CUDA context of the whole process is unusable: every later call raises the same EngineError.
    """

    def __init__(self, ordinal: int = 0) -> None:
        from lamp_trt.runtime.kernels.device import DRIVER_LIBRARY, CudaLauncher, driver_present

        if not driver_present():
            raise EngineError(
                f"{DRIVER_LIBRARY} does not load: there is no NVIDIA driver; install it or use device='cpu'."
            )
        from cuda.bindings import runtime
        from cuda.core import Device as CoreDevice

        self._cuda = runtime
        self._unusable: str | None = None
        self._closed = False
        self._blocks: dict[int, int] = {}
        self._staging: dict[int, tuple[int, Array]] = {}
        self._mapped: list[int] = []
        (count,) = self._call("cudaGetDeviceCount")
        if not 0 <= ordinal < count:
            raise InputError(f"device is cuda:{ordinal}; this machine has {count} CUDA devices, from cuda:0.")
        self.ordinal = ordinal
        CoreDevice(ordinal).set_current()
        (stream,) = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self.stream = int(stream)
        self.launch: Launcher = CudaLauncher(self.stream)

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        array = DeviceArray(0, tuple(shape), np.dtype(dtype))
        free = self.free_bytes()
        if array.nbytes > free:
            raise EngineError(
                f"{array.nbytes / 1e9:.2f} GB of GPU memory are needed, {free / 1e9:.2f} GB are free: close "
                "other programs on this GPU, or build a smaller bundle."
            )
        (pointer,) = self._call("cudaMalloc", max(array.nbytes, 1))
        self._blocks[int(pointer)] = array.nbytes
        return DeviceArray(int(pointer), array.shape, array.dtype)

    def release(self, *arrays: DeviceArray) -> None:
        self.synchronize()
        for array in arrays:
            del self._blocks[array.pointer]
            staged = self._staging.pop(array.pointer, None)
            if staged:
                self._call("cudaFreeHost", staged[0])
            self._call("cudaFree", array.pointer)

    def mapped(self, dtype: Any, shape: tuple[int, ...] = (1,)) -> tuple[DeviceArray, Array]:
        host_pointer, values = self._host_memory(shape, np.dtype(dtype))
        self._mapped.append(host_pointer)
        (pointer,) = self._call("cudaHostGetDevicePointer", host_pointer, 0)
        return DeviceArray(int(pointer), shape, np.dtype(dtype), owner=values), values

    def upload(self, target: DeviceArray, values: Array) -> None:
        staged = self._staged(target)
        staged.reshape(-1)[:] = _same_size(target, values).reshape(-1)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = self._staging[target.pointer][0]
        self._call("cudaMemcpyAsync", target.pointer, source, target.nbytes, kind, self.stream)

    def download(self, source: DeviceArray) -> Array:
        staged = self._staged(source)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = self._staging[source.pointer][0]
        self._call("cudaMemcpyAsync", target, source.pointer, source.nbytes, kind, self.stream)
        self.synchronize()
        return staged.reshape(source.shape).copy()

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        _same_bytes(target, source)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target.pointer, source.pointer, source.nbytes, kind, self.stream)

    def copy_columns(self, target: DeviceArray, source: DeviceArray, first: int) -> None:
        rows = _rows(target, source, first)
        item = source.dtype.itemsize
        width, pitch = source.shape[-1] * item, target.shape[-1] * item
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            "cudaMemcpy2DAsync",
            target.pointer + first * item,
            pitch,
            source.pointer,
            width,
            width,
            rows,
            kind,
            self.stream,
        )

    def zero(self, target: DeviceArray) -> None:
        self._call("cudaMemsetAsync", target.pointer, 0, target.nbytes, self.stream)

    def view(self, x: Any) -> DeviceArray | None:
        if isinstance(x, np.ndarray):
            return None
        if not hasattr(x, "__cuda_array_interface__") and not hasattr(x, "__dlpack__"):
            return None
        from cuda.core.utils import StridedMemoryView

        view = StridedMemoryView.from_any_interface(x, stream_ptr=self.stream)
        if not view.is_device_accessible:
            return None
        if view.device_id != self.ordinal:
            raise InputError(f"the array is on cuda:{view.device_id}, the pipeline on cuda:{self.ordinal}.")
        shape, dtype = tuple(view.shape), np.dtype(view.dtype)
        item_strides = tuple(stride // dtype.itemsize for stride in contiguous_strides(shape, dtype.itemsize))
        if view.strides is not None and tuple(view.strides) != item_strides:
            raise InputError(f"a CUDA array of shape {shape} has strides {view.strides}; make it contiguous.")
        return DeviceArray(int(view.ptr), shape, dtype, owner=(x, view))

    def mark(self) -> Any:
        (event,) = self._call("cudaEventCreate")
        mark = Mark(event)
        self._call("cudaEventRecord", event, self.stream)
        return mark

    def reached(self, mark: Any) -> bool:
        self._require_usable()
        (status,) = self._cuda.cudaEventQuery(mark.event)
        if status == self._cuda.cudaError_t.cudaErrorNotReady:
            return False
        self._check("cudaEventQuery", status, asynchronous=True)
        return True

    def seconds(self, start: Any, end: Any) -> float:
        (milliseconds,) = self._call("cudaEventElapsedTime", start.event, end.event)
        return float(milliseconds) / 1e3

    def synchronize(self) -> None:
        self._require_usable()
        (status,) = self._cuda.cudaStreamSynchronize(self.stream)
        self._check("cudaStreamSynchronize", status, asynchronous=True)

    def free_bytes(self) -> int:
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._unusable is None:  # the memory of a lost context is gone
            self.synchronize()
            for pointer in self._blocks:
                self._call("cudaFree", pointer)
            for pointer in (*self._mapped, *(pointer for pointer, _ in self._staging.values())):
                self._call("cudaFreeHost", pointer)
            self._call("cudaStreamDestroy", self.stream)
        for owned in (self._blocks, self._staging, self._mapped):
            owned.clear()
        self._unusable = f"cuda:{self.ordinal} was closed by its pipeline; load the bundle again."

    def _staged(self, array: DeviceArray) -> Array:
        """The pinned staging buffer of a device array, as values of its dtype."""
        if array.pointer not in self._staging:
            nbytes = max(array.nbytes, self._blocks.get(array.pointer, 0))
            self._staging[array.pointer] = self._host_memory((nbytes,), np.dtype(np.uint8))
        raw = self._staging[array.pointer][1]
        return raw[: array.nbytes].view(array.dtype)

    def _host_memory(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, Array]:
        nbytes = max(prod(shape) * dtype.itemsize, 1)
        (pointer,) = self._call("cudaHostAlloc", nbytes, self._cuda.cudaHostAllocMapped)
        memory = (ctypes.c_uint8 * nbytes).from_address(int(pointer))
        return int(pointer), np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the CUDA runtime; returns its results without the status."""
        self._require_usable()
        status, *results = getattr(self._cuda, name)(*arguments)
        self._check(name, status)
        return tuple(results)

    def _require_usable(self) -> None:
        if self._unusable:
            raise EngineError(self._unusable)

    def _check(self, name: str, status: Any, *, asynchronous: bool = False) -> None:
        if status == self._cuda.cudaError_t.cudaSuccess:
            return
        _, text = self._cuda.cudaGetErrorString(status)
        message = f"{name} failed on cuda:{getattr(self, 'ordinal', '?')}: {text.decode()}"
        if asynchronous:
            self._unusable = (
                f"{message}. This process can no longer use the GPU: load the bundle in a new process; "
                "`lamp-trt doctor` checks the GPU."
            )
            raise EngineError(self._unusable)
        raise EngineError(f"{message}.")


def _same_size(target: DeviceArray, values: Array) -> Array:
    if values.dtype != target.dtype or values.size != prod(target.shape):
        raise InputError(
            f"{values.dtype} {values.shape} does not fill {target.dtype} {target.shape} on the device."
        )
    return np.ascontiguousarray(values)


def _same_bytes(target: DeviceArray, source: DeviceArray) -> None:
    if target.nbytes != source.nbytes:
        raise InputError(f"{source.shape} {source.dtype} does not fill {target.shape} {target.dtype}.")


def _rows(target: DeviceArray, source: DeviceArray, first: int) -> int:
    """Number of rows of a copy of columns. Raises InputError if the arrays do not fit."""
    fits = source.shape[:-1] == target.shape[:-1] and source.dtype == target.dtype
    if not fits or not 0 <= first <= target.shape[-1] - source.shape[-1]:
        raise InputError(
            f"columns {first}.. of {target.dtype} {target.shape} do not take {source.dtype} {source.shape}."
        )
    return prod(source.shape[:-1])
