# SPDX-License-Identifier: Apache-2.0
"""-lcuda where a machine has the driver and no stub of it."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from lamp_trt.export.gpu_linking import linkable_driver
from tests.system_tools import require_cxx_compiler


def link(folder: Path) -> int:
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(folder / "package.so"), "-lcuda"]
    return subprocess.run(command, input="", text=True, stderr=subprocess.DEVNULL).returncode


def test_the_driver_that_is_loaded_is_linked_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_cxx_compiler("linking against the driver")
    monkeypatch.setenv("LIBRARY_PATH", "/before")
    if link(tmp_path) == 0:
        pytest.skip("libcuda.so is installed")
    driver = tmp_path / "a folder" / "libcuda.so.1"
    driver.parent.mkdir()
    source = 'extern "C" int cuInit(unsigned) { return 0; }'
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(driver), "-Wl,-soname,libcuda.so.1"]
    subprocess.run(command, input=source, text=True, check=True)
    ctypes.CDLL(str(driver))
    with linkable_driver():
        assert link(tmp_path) == 0
        assert os.environ["LIBRARY_PATH"].endswith(":/before")
    assert os.environ["LIBRARY_PATH"] == "/before"
    assert link(tmp_path) != 0


@pytest.mark.parametrize("given", [None, "/opt/cuda"])
def test_a_toolkit_that_torch_finds_is_named(
    given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch names the toolkit's stubs only then."""
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "/usr/local/cuda")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    if given:
        monkeypatch.setenv("CUDA_HOME", given)
    with linkable_driver(tmp_path / "no maps"):
        assert os.environ["CUDA_HOME"] == (given or "/usr/local/cuda")
        assert "LIBRARY_PATH" not in os.environ
    assert os.environ.get("CUDA_HOME") == given
