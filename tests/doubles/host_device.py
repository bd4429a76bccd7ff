# SPDX-License-Identifier: Apache-2.0
"""A CUDA device's double: host memory, kernels under the CPU emulator, and a stream that runs late.

What is enqueued runs when somebody waits, and not before: a host that reads too early, or writes a buffer
that a copy still needs, gets wrong values here as it would on a GPU. New memory holds NaN.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from lamp_trt.engine.backends.contract import Array, Closable, Engine
from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.networks import IOTensor
from lamp_trt.runtime.kernels.arrays import DeviceArray
from tests.doubles.cpu_kernels import Memory, launcher

Work = Callable[[], None]

STREAMS: dict[int, "HostStream"] = {}
"""By handle, as an engine is given them."""


def values_at(array: DeviceArray) -> np.ndarray:
    """A device array's values, which lie in host memory."""
    memory = (ctypes.c_uint8 * max(array.nbytes, 1)).from_address(array.pointer)
    return np.ctypeslib.as_array(memory)[: array.nbytes].view(array.dtype).reshape(array.shape)


class HostStream:
    """Work in order, run by whoever waits. While recording, work goes into the recording instead."""

    def __init__(self) -> None:
        self.handle = id(self)
        STREAMS[self.handle] = self
        self._pending: deque[Work] = deque()
        self._recording: list[Work] | None = None
        self.recordings = 0

    def put(self, work: Work) -> None:
        (self._pending if self._recording is None else self._recording).append(work)

    def run_one(self) -> None:
        if self._pending:
            self._pending.popleft()()

    def drain(self) -> None:
        assert self._recording is None, "a wait while a stream is captured"
        while self._pending:
            self.run_one()

    @property
    def idle(self) -> bool:
        return not self._pending

    @property
    def recording(self) -> bool:
        return self._recording is not None

    def begin_recording(self) -> None:
        assert self._recording is None, "a stream is captured already"
        self._recording = []

    def end_recording(self) -> list[Work]:
        assert self._recording is not None, "the stream is not captured"
        recorded, self._recording = self._recording, None
        self.recordings += 1
        return recorded

    def record(self, work: Work) -> Work:
        self.begin_recording()
        try:
            work()
        finally:
            recorded = self.end_recording()
        return lambda: self._pending.extend(recorded)


class LateLauncher:
    """Launches onto a HostStream."""

    def __init__(self, stream: HostStream) -> None:
        self._stream, self._launch = stream, launcher()

    def __call__(
        self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[float]
    ) -> None:
        fixed = list(arguments)
        self._stream.put(lambda: self._launch(kernel, grid, threads, fixed))


class HostDevice(Closable):
    """runtime.cuda.device.Device on the host."""

    def __init__(self) -> None:
        self.ordinal = 0
        self.queue = HostStream()
        self.stream = self.queue.handle
        self.launch = LateLauncher(self.queue)
        self.memory = Memory()
        self.free = 1 << 40
        self._arrays: dict[int, np.ndarray] = {}
        self._uploading: dict[int, np.ndarray] = {}
        self.waits = 0
        self.closed = False

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        array = self.memory.empty(shape, dtype)
        self._arrays[array.ctypes.data] = array
        return DeviceArray(array.ctypes.data, tuple(shape), np.dtype(dtype), owner=array)

    def release(self, *arrays: DeviceArray) -> None:
        self.synchronize()
        for array in arrays:
            del self._arrays[array.pointer]
            values_at(array).view(np.uint8)[...] = 0xFF

    def mapped(self, dtype: Any, shape: tuple[int, ...] = (1,)) -> tuple[DeviceArray, np.ndarray]:
        array = self.memory.empty(shape, dtype)
        return DeviceArray(array.ctypes.data, shape, np.dtype(dtype), owner=array), array

    def upload(self, target: DeviceArray, values: Array) -> None:
        assert values.dtype == target.dtype
        assert values.size == prod(target.shape)
        assert target.pointer not in self._uploading, "uploaded twice without a wait: staging is overwritten"
        staged = self._uploading[target.pointer] = values.reshape(target.shape).copy()

        def copy() -> None:
            values_at(target)[...] = staged

        self.queue.put(copy)

    def download(self, source: DeviceArray) -> np.ndarray:
        self.synchronize()
        return values_at(source).copy()

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        assert target.nbytes == source.nbytes

        def copy() -> None:
            values_at(target).reshape(-1).view(np.uint8)[:] = values_at(source).reshape(-1).view(np.uint8)

        self.queue.put(copy)

    def copy_columns(self, target: DeviceArray, source: DeviceArray, first: int) -> None:
        def copy() -> None:
            values_at(target)[..., first : first + source.shape[-1]] = values_at(source)

        self.queue.put(copy)

    def zero(self, target: DeviceArray) -> None:
        def clear() -> None:
            values_at(target).reshape(-1).view(np.uint8)[:] = 0

        self.queue.put(clear)

    def view(self, x: Any) -> DeviceArray | None:
        return x if isinstance(x, DeviceArray) else None

    def mark(self) -> list[bool]:
        mark = [False]
        self.queue.put(lambda: mark.__setitem__(0, True))
        return mark

    def reached(self, mark: list[bool]) -> bool:
        self.queue.run_one()
        return mark[0]

    def seconds(self, start: list[bool], end: list[bool]) -> float:
        assert start[0], "the time of a moment that has not come"
        assert end[0], "the time of a moment that has not come"
        return 0.25

    def synchronize(self) -> None:
        assert not self.closed, "the device was closed"
        self.waits += 1
        self.queue.drain()
        self._uploading.clear()

    def free_bytes(self) -> int:
        return self.free

    def close(self) -> None:
        if not self.closed:
            self.synchronize()
            self.closed = True


class HostDeviceEngine(Closable):
    """The DeviceEngine of engine/backends/contract.py around an engine on host arrays; every rule asserted.

    `captures`: "graph", None for an engine that cannot be captured, or an error's text.
    """

    def __init__(
        self,
        engine: Engine,
        device: HostDevice,
        *,
        motion: str | None = None,
        scratch_bytes: int = 4096,
        captures: str | None = "graph",
        stale_after_switch: bool = True,
    ) -> None:
        self.inputs: tuple[IOTensor, ...] = engine.inputs
        self.outputs: tuple[IOTensor, ...] = engine.outputs
        self.scratch_bytes = scratch_bytes
        self.runs = 0
        self.closed = False
        self._engine, self._device = engine, device
        self._captures, self._stale_after_switch = captures, stale_after_switch
        self._motion = motion
        self._bound: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None

    def bind(self, name: str, pointer: int) -> None:
        assert name in {tensor.name for tensor in (*self.inputs, *self.outputs)}
        self._bound[name] = pointer

    def use_scratch(self, pointer: int, nbytes: int) -> None:
        assert nbytes >= self.scratch_bytes
        self._scratch = (pointer, nbytes)

    def enqueue(self, stream: int) -> None:
        assert not self.closed
        assert self._scratch or not self.scratch_bytes, "no scratch was given"
        arrays = {t.name: self._array(t) for t in (*self.inputs, *self.outputs)}
        scratch = self._scratch

        def run() -> None:
            outputs = self._engine.run({t.name: values_at(arrays[t.name]).copy() for t in self.inputs})
            for tensor in self.outputs:
                values_at(arrays[tensor.name])[...] = outputs[tensor.name]
            if scratch:
                values_at(DeviceArray(scratch[0], (scratch[1],), np.dtype(np.uint8)))[...] = 0xA7
            self.runs += 1

        STREAMS[stream].put(run)

    def capture(self, stream: int, work: Work) -> Work | None:
        assert self.runs, "captured before the engine ran"
        if self._captures not in ("graph", None):
            raise EngineError(self._captures)
        return STREAMS[stream].record(work) if self._captures else None

    def set_motion(self, motion: str) -> bool:
        assert self._device.queue.idle, "a motion switched while work is pending"
        switched, self._motion = motion != self._motion, motion
        self._engine.set_motion(motion)
        return switched and self._stale_after_switch

    def close(self) -> None:
        assert self._device.queue.idle, "an engine is closed while work is pending"
        self.closed = True
        self._engine.close()

    def _array(self, tensor: IOTensor) -> DeviceArray:
        return DeviceArray(self._bound[tensor.name], tensor.shape, np.dtype(tensor.dtype))


def host_engines(
    device: HostDevice, load: Callable[[str], Engine], **options: Any
) -> tuple[Callable[[str], HostDeviceEngine], Mapping[str, HostDeviceEngine]]:
    """A loader of engines for the stages, and what it loaded so far."""
    loaded: dict[str, HostDeviceEngine] = {}

    def load_engine(network: str) -> HostDeviceEngine:
        loaded[network] = HostDeviceEngine(load(network), device, **options)
        return loaded[network]

    return load_engine, loaded
