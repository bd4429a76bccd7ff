# SPDX-License-Identifier: Apache-2.0
"""Entries of the machine's limits: matrix products and memory copies.

On a CPU the limit of fp32 arithmetic is the faster of NumPy and ONNX Runtime; on a GPU it is PyTorch's fp16
product, where PyTorch is installed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from lamp_trt.benchmarks.bench.compare import RULER
from lamp_trt.benchmarks.bench.harness import Entry
from lamp_trt.doctor.machine import cpu_count
from lamp_trt.engine.backends.onnxruntime.session import import_onnxruntime

COPY = "memory copy"

CPU_SIDE, GPU_SIDE = 1024, 8192
"""Rows and columns of the matrices: large enough for the library's full speed, small enough to repeat."""

CPU_COPY_BYTES, GPU_COPY_BYTES = 2**27, 2**30
"""Larger than any cache."""


def ceiling_entries(ordinal: int | None) -> list[Entry]:
    if ordinal is not None:
        matrix = partial(_torch_product, ordinal)
        return [
            _entry(RULER, "PyTorch fp16", matrix, clock="stream", flops=2 * GPU_SIDE**3),
            _entry(
                COPY, "CUDA", partial(_device_copy, ordinal), clock="stream", bytes_moved=2 * GPU_COPY_BYTES
            ),
        ]
    return [
        _entry(RULER, "NumPy", _numpy_product, flops=2 * CPU_SIDE**3),
        _entry(RULER, "ONNX Runtime", _onnx_product, flops=2 * CPU_SIDE**3),
        _entry(COPY, "NumPy", _host_copy, bytes_moved=2 * CPU_COPY_BYTES),
    ]


def _entry(name: str, backend: str, setup: Any, **fields: Any) -> Entry:
    return Entry(name=name, group="ceilings", backend=backend, setup=setup, **fields)


def _matrices() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((CPU_SIDE, CPU_SIDE), np.float32) for _ in range(2))
    return a, b


@contextmanager
def _numpy_product() -> Iterator[Callable[[], Any]]:
    a, b = _matrices()
    out = np.empty_like(a)
    yield lambda: np.matmul(a, b, out=out)


@contextmanager
def _onnx_product() -> Iterator[Callable[[], Any]]:
    onnxruntime = import_onnxruntime()
    from onnx import TensorProto, helper, numpy_helper

    a, b = _matrices()
    shape = [CPU_SIDE, CPU_SIDE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    yield lambda: session.run(None, {"a": a})


@contextmanager
def _host_copy() -> Iterator[Callable[[], None]]:
    """Yield a copy by as many threads as there are cores: one alone may not saturate the memory."""
    parts = cpu_count()
    source, target = (np.ones(CPU_COPY_BYTES, np.uint8) for _ in range(2))
    pairs = list(zip(np.array_split(target, parts), np.array_split(source, parts), strict=True))

    with ThreadPoolExecutor(parts) as pool:

        def copy() -> None:
            list(pool.map(lambda pair: np.copyto(*pair), pairs))

        yield copy


@contextmanager
def _torch_product(ordinal: int) -> Iterator[Callable[[], float]]:
    import torch

    a, b = (torch.randn(GPU_SIDE, GPU_SIDE, dtype=torch.float16, device=f"cuda:{ordinal}") for _ in range(2))
    out = torch.empty_like(a)
    yield torch_seconds(lambda: torch.mm(a, b, out=out), ordinal)


def torch_seconds(function: Callable[[], Any], ordinal: int) -> Callable[[], float]:
    """Return a function that calls `function` and returns the seconds between events on PyTorch's current
    stream."""
    import torch

    def measure() -> float:
        with torch.cuda.device(ordinal):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            function()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

    return measure


@contextmanager
def _device_copy(ordinal: int) -> Iterator[Callable[[], float]]:
    from lamp_trt.runtime.cuda.device import CudaDevice

    with CudaDevice(ordinal) as device:
        source, target = (device.empty((GPU_COPY_BYTES,), np.uint8) for _ in range(2))

        def copy() -> float:
            start = device.mark()
            device.copy(target, source)
            end = device.mark()
            device.synchronize()
            return device.seconds(start, end)

        yield copy
