# SPDX-License-Identifier: Apache-2.0
"""torch as on a machine with a GPU, as far as engine/backends/aotinductor/engine.py uses it: "device" memory
is the host's, and what is enqueued runs at once. Which stream was current is noted wherever it matters."""

import ctypes
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

CAPABILITY = (9, 0)


class Stream:
    def __init__(self, pointer: int, device: Any = None) -> None:
        self.pointer, self.waits = pointer, 0

    def synchronize(self) -> None:
        self.waits += 1


class Graph:
    def __init__(self, cuda: "Cuda") -> None:
        self._cuda = cuda
        self.captured_on: Stream | None = None
        self.error_mode = ""
        self.replayed_on: list[Stream | None] = []

    def replay(self) -> None:
        self.replayed_on.append(self._cuda.current)


class Cuda:
    ExternalStream = Stream

    def __init__(self) -> None:
        self.current: Stream | None = None
        self.free = 1 << 40
        self.graphs: list[Graph] = []

    def is_available(self) -> bool:
        return True

    def get_device_capability(self, device: Any) -> tuple[int, int]:
        return CAPABILITY

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        return self.free, 1 << 40

    def empty_cache(self) -> None:
        """Nothing is cached here."""

    def device(self, device: Any) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def stream(self, stream: Stream) -> Generator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self) -> Graph:
        self.graphs.append(Graph(self))
        return self.graphs[-1]

    @contextmanager
    def graph(self, graph: Graph, *, stream: Stream, capture_error_mode: str) -> Generator[None]:
        graph.captured_on, graph.error_mode = stream, capture_error_mode
        with self.stream(stream):
            yield


class CudaTorch(ModuleType):
    """The real torch but for devices. `runs`: the stream that was current at each run of a package."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.cuda = Cuda()
        self.runs: list[Stream | None] = []
        self._inductor = SimpleNamespace(aoti_load_package=self._load)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, kind: str, ordinal: int) -> torch.device:
        assert (kind, ordinal) == ("cuda", 0)
        return torch.device("cpu")

    def as_tensor(self, data: Any, device: torch.device) -> torch.Tensor:
        interface = data.__cuda_array_interface__
        pointer, read_only = interface["data"]
        assert not read_only
        assert interface["strides"] is None
        dtype = np.dtype(interface["typestr"])
        nbytes = int(np.prod(interface["shape"])) * dtype.itemsize
        memory = (ctypes.c_uint8 * nbytes).from_address(pointer)
        return torch.from_numpy(np.frombuffer(memory, dtype).reshape(interface["shape"]))

    def _load(self, path: str, *, run_single_threaded: bool, device_index: int) -> "_Package":
        assert run_single_threaded, "the bookkeeping for several threads waits for events: not capturable"
        assert device_index == 0
        return _Package(self, torch._inductor.aoti_load_package(path, run_single_threaded=True))


class _Package:
    def __init__(self, owner: CudaTorch, model: Any) -> None:
        self._owner, self._model = owner, model

    def __call__(self, *inputs: torch.Tensor) -> Any:
        self._owner.runs.append(self._owner.cuda.current)
        return self._model(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
