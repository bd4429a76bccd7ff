# SPDX-License-Identifier: Apache-2.0
"""CudaDevice on a double of the CUDA runtime (tests/doubles/cuda_runtime.py): what it copies, measures, gives
back and refuses. Whether CUDA does as the double says, `gpu_proof` asks a GPU."""

import numpy as np
import pytest

from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime.cuda.device import CudaDevice
from tests.doubles.cuda_runtime import FREE_BYTES, CudaRuntime

pytest.importorskip("cuda.bindings", reason="cuda-core is not installed")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    cuda = CudaRuntime()
    cuda.install(monkeypatch)
    return cuda


@pytest.fixture
def device(cuda: CudaRuntime) -> CudaDevice:
    return CudaDevice()


def test_arrays_come_back_as_they_were_sent(device: CudaDevice) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    first, second = (device.empty(values.shape, np.float32) for _ in range(2))
    device.upload(first, values)
    device.copy(second, first)
    device.zero(first)
    np.testing.assert_array_equal(device.download(second), values)
    assert not device.download(first).any()


def test_columns_go_where_they_are_told(device: CudaDevice) -> None:
    wide, narrow = device.empty((2, 3, 8), np.float16), device.empty((2, 3, 2), np.float16)
    device.zero(wide)
    values = np.arange(1, 13, dtype=np.float16).reshape(2, 3, 2)
    device.upload(narrow, values)
    device.copy_columns(wide, narrow, 5)
    expected = np.zeros((2, 3, 8), np.float16)
    expected[..., 5:7] = values
    np.testing.assert_array_equal(device.download(wide), expected)
    for first in (-1, 7):
        with pytest.raises(InputError, match=rf"columns {first}\.\. of float16"):
            device.copy_columns(wide, narrow, first)


def test_mapped_memory_has_the_shape_asked_for(device: CudaDevice, cuda: CudaRuntime) -> None:
    on_device, values = device.mapped(np.uint8, (2, 5, 3))
    assert (on_device.shape, on_device.nbytes, values.shape) == ((2, 5, 3), 30, (2, 5, 3))
    values[...] = np.arange(30).reshape(values.shape)
    np.testing.assert_array_equal(device.download(on_device), values)


def test_time_between_marks_is_in_seconds(device: CudaDevice, cuda: CudaRuntime) -> None:
    cuda.clock_ms = 1000.0
    start = device.mark()
    cuda.clock_ms = 1250.0
    assert device.seconds(start, device.mark()) == 0.25


def test_all_that_was_taken_is_given_back(device: CudaDevice, cuda: CudaRuntime) -> None:
    array, other = device.empty((4,), np.float32), device.empty((4,), np.float32)
    device.upload(array, np.ones(4, np.float32))
    device.download(other)
    device.mapped(np.uint32)
    held = len(cuda.held)
    device.release(array)
    assert len(cuda.held) == held - 2  # with its staging buffer
    device.close()
    device.close()
    assert cuda.held == {}
    with pytest.raises(EngineError, match="cuda:0 was closed by its pipeline; load the bundle again"):
        device.empty((4,), np.float32)


def test_an_error_of_work_that_was_enqueued_ends_the_device(device: CudaDevice, cuda: CudaRuntime) -> None:
    mark, array = device.mark(), device.empty((4,), np.float32)
    cuda.stream_status = cuda.failure
    with pytest.raises(EngineError, match="cudaStreamSynchronize failed on cuda:0"):
        device.synchronize()
    cuda.stream_status = cuda.success
    for use in (lambda: device.zero(array), lambda: device.reached(mark), device.free_bytes):
        with pytest.raises(EngineError, match="cudaStreamSynchronize failed on cuda:0"):
            use()
    device.close()  # the context took the memory with it: nothing is called


def test_more_memory_than_is_free_is_refused_with_both_figures(device: CudaDevice) -> None:
    device.empty((FREE_BYTES,), np.uint8)
    with pytest.raises(EngineError, match=r"2\.00 GB of GPU memory are needed, 0\.00 GB are free"):
        device.empty((2_000_000_000,), np.uint8)


@pytest.mark.parametrize("ordinal", [-1, 1])
def test_a_device_that_is_not_there_is_refused(ordinal: int, cuda: CudaRuntime) -> None:
    with pytest.raises(InputError, match=rf"device is cuda:{ordinal}; this machine has 1 CUDA devices"):
        CudaDevice(ordinal)
