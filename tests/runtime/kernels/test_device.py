# SPDX-License-Identifier: Apache-2.0
"""Loading and launching on a GPU, as far as it goes without one."""

import ctypes
import logging
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lamp_trt.engine.errors import EngineError, InputError
from lamp_trt.runtime import kernels
from lamp_trt.runtime.kernels import device
from lamp_trt.runtime.kernels.arrays import DeviceArray, device_array


def test_kernels_import_without_cuda() -> None:
    code = """
import sys, time
start = time.perf_counter()
import lamp_trt.runtime.kernels.device, lamp_trt.runtime.kernels.latent_loop, lamp_trt.runtime.kernels.frames
loaded = {name.partition(".")[0] for name in sys.modules} & {"cuda", "torch", "onnx", "cv2", "PIL", "av"}
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_driver_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda.core's loading calls raise or hang without one: they must not be reached."""
    monkeypatch.setattr(device, "DRIVER_LIBRARY", "libcuda-that-is-not-there.so.1")
    monkeypatch.setattr(device, "loaded_kernels", lambda _: pytest.fail("a kernel was loaded"))
    assert not device.driver_present()
    with pytest.raises(EngineError, match="there is no NVIDIA driver"):
        device.CudaLauncher(0)


def test_scalars_travel_at_their_width_in_c() -> None:
    arguments = device.c_arguments("lamp_decoder_input_f16", [1 << 40, 0, 0.18215, 35])
    assert arguments[:2] == [1 << 40, 0]
    assert [type(a) for a in arguments[2:]] == [ctypes.c_float, ctypes.c_int]
    assert arguments[2].value == np.float32(0.18215)
    seed = device.c_arguments("lamp_posterior_sample_f32", [0] * 4 + [2**64 - 1, 1, 1.0, 4])[4]
    assert (type(seed), seed.value) == (ctypes.c_uint64, 2**64 - 1)
    with pytest.raises(InputError, match="lamp_hist_lut takes 4 arguments, got 3"):
        device.c_arguments("lamp_hist_lut", [0, 0, 1])


def test_streams_come_from_cuda_core_torch_or_a_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_stream_from_handle", lambda handle: ("stream", handle))
    protocol = SimpleNamespace(__cuda_stream__=lambda: (0, 7))
    assert device.stream_from(protocol) is protocol
    assert device.stream_from(SimpleNamespace(cuda_stream=11)) == ("stream", 11)
    assert device.stream_from(13) == ("stream", 13)
    with pytest.raises(InputError, match="str is not a CUDA stream"):
        device.stream_from("0")


def test_a_fatbin_of_other_sources_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: dict[str, Path] = {}
    monkeypatch.setattr(kernels, "fatbins", lambda: found)
    assert device.current_fatbin() is None
    assert caplog.text == ""
    found["lamp_kernels-0123456789abcdef.fatbin"] = tmp_path / "stale"
    with caplog.at_level(logging.WARNING, "lamp_trt"):
        assert device.current_fatbin() is None
    assert "lamp_kernels-0123456789abcdef.fatbin" in caplog.text
    assert "reinstall" in caplog.text
    (tmp_path / "fresh").write_bytes(b"fresh")
    found[kernels.fatbin_name()] = tmp_path / "fresh"
    assert device.current_fatbin() == b"fresh"


def test_fatbins_are_found_beside_an_editable_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "lamp_trt" / "runtime" / "kernels"
    installed.mkdir(parents=True)
    (installed / "lamp_kernels-0.fatbin").write_bytes(b"")
    monkeypatch.setattr(
        "importlib.metadata.distribution", lambda _: PathDistribution(tmp_path / "x.dist-info")
    )
    assert kernels.fatbins()["lamp_kernels-0.fatbin"] == installed / "lamp_kernels-0.fatbin"


def test_the_digest_follows_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    files = kernels.sources()
    assert set(files) >= {"lamp_kernels.cu", "latent_step.cu", "noise.cu", "hist_match.cu", "lamp_common.cuh"}
    digests = {kernels.source_digest()}
    for name in files:
        changed = {**files, name: files[name] + " "}
        monkeypatch.setattr(kernels, "sources", lambda changed=changed: changed)
        digests.add(kernels.source_digest())
    assert len(digests) == len(files) + 1


def test_the_single_source_holds_every_kernel_once() -> None:
    source = kernels.single_source()
    assert '#include "' not in source
    assert source.count("#include <cuda_fp16.h>") == 1
    assert source.count("struct LampLoopState {") == 1


def cuda_tensor(**changes: Any) -> Any:
    interface = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3, **changes}
    return SimpleNamespace(__cuda_array_interface__=interface)


def test_cuda_tensors_become_device_arrays() -> None:
    tensor = cuda_tensor(strides=(12, 4))
    array = device_array(tensor)
    assert array == DeviceArray(4096, (2, 3), np.dtype("f4"), owner=tensor)
    assert array.nbytes == 24
    assert device_array(array) is array
    assert (array[1].pointer, array[1].shape) == (4108, (3,))
    with pytest.raises(InputError, match=r"has strides \(4, 8\); make it contiguous"):
        device_array(cuda_tensor(strides=(4, 8)))
    with pytest.raises(InputError, match="ndarray is not a CUDA array"):
        device_array(np.zeros(3))
    with pytest.raises(InputError, match=r"rows 1\.\.2 of an array of shape \(2, 3\) do not exist"):
        array.rows(1, 3)
