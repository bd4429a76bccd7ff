# SPDX-License-Identifier: Apache-2.0
"""What can be said of the GPU's code without a GPU: it compiles for every architecture without stack or
spills, and takes what the launcher passes."""

import ctypes
import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lamp_trt.engine.errors import EngineError
from lamp_trt.runtime import kernels
from lamp_trt.runtime.kernels import device, nvrtc

ROOT = Path(__file__).parents[3]
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

PTX_BYTES = {"u64": 8, "f64": 8, "u32": 4, "f32": 4}

Ptx = dict[str, tuple[str, str]]


def architectures() -> list[str]:
    """Those of the fatbin."""
    found = re.search(r"set\(LAMP_CUDA_ARCHITECTURES ([\d ]+) CACHE", (ROOT / "CMakeLists.txt").read_text())
    assert found is not None
    return found[1].split()


def nvcc(*arguments: str | Path) -> str:
    """nvcc's messages, warnings being errors."""
    source = ROOT / "runtime" / "kernels" / kernels.TRANSLATION_UNIT
    command = [str(NVCC), "-std=c++17", "-O3", "-Werror", "all-warnings", *map(str, arguments), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@needs_nvcc
def test_no_kernel_spills_or_has_a_stack_on_any_architecture(tmp_path: Path) -> None:
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures()]
    log = nvcc("-fatbin", "--threads", "0", "-Xptxas", "-v", *codes, "-o", tmp_path / "k.fatbin")
    found = re.findall(r"entry function '(\w+)' for 'sm_(\d+)'", log)
    assert sorted(found) == sorted((name, arch) for name in kernels.SIGNATURES for arch in architectures())
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(used) >= len(found)
    assert set(used) == {("0", "0", "0")}, log
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == len(found)
    assert max(registers) <= 128  # 512 threads fill the 65536 registers of a multiprocessor


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> Ptx:
    """Parameters and body of each kernel."""
    path = tmp_path_factory.mktemp("ptx") / "k.ptx"
    nvcc("-ptx", "-arch=compute_90", "-o", path)
    entries = re.findall(r"\.entry (\w+)\((.*?)\)(.*?)\n}", path.read_text(), re.DOTALL)
    return {name: (parameters, body) for name, parameters, body in entries}


@needs_nvcc
def test_compiled_parameters_are_what_the_launcher_passes(ptx: Ptx) -> None:
    assert set(ptx) == set(kernels.SIGNATURES)
    for name, (parameters, _) in ptx.items():
        sizes = [PTX_BYTES[t] for t in re.findall(r"\.param \.(\w+)", parameters)]
        device.check_parameters(name, sizes)


@needs_nvcc
@pytest.mark.parametrize(
    "kernel", ["latent_step_f16", "latent_step_f32", "begin_loop_f16", "begin_loop_f32", "hist_apply_u8"]
)
def test_vectors_are_loaded_and_stored_at_once(ptx: Ptx, kernel: str) -> None:
    """Never a single fp16 value or byte, but for hist_apply's table, before its barrier."""
    body = ptx[f"lamp_{kernel}"][1]
    if kernel == "hist_apply_u8":
        body = body.split("bar.sync")[1]
    assert re.search(r"ld\.global\S*\.v[248]", body)
    assert re.search(r"st\.global\S*\.v[248]", body)
    assert not re.search(r"(ld|st)\.global(\.nc)?\.[usb](8|16)\b", body)


def test_parameters_of_another_size_are_refused() -> None:
    assert [ctypes.sizeof(t) for t in kernels.SIGNATURES["lamp_hist_lut"]] == [8, 8, 4, 8]
    with pytest.raises(EngineError, match=r"lamp_hist_lut takes parameters of \[8, 8, 8, 8\] bytes"):
        device.check_parameters("lamp_hist_lut", [8, 8, 8, 8])


@pytest.fixture
def cuda_core() -> None:
    pytest.importorskip("cuda.core", reason="cuda-core[cu13] is not installed")


@pytest.mark.usefixtures("cuda_core")
def test_nvrtc_compiles_once_and_keeps_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lamp_trt"):
        first = nvrtc.cubin("sm_90", tmp_path)
        assert nvrtc.cubin("sm_90", tmp_path) == first
    assert first[:4] == b"\x7fELF"
    assert all(name.encode() in first for name in kernels.SIGNATURES)
    assert caplog.text.count("compiling the CUDA kernels") == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".cubin"]

    monkeypatch.setattr(nvrtc, "_compile", lambda *_: b"changed")
    source = kernels.single_source()
    monkeypatch.setattr(kernels, "single_source", lambda: source + "\n")
    assert nvrtc.cubin("sm_90", tmp_path) == b"changed"
    assert nvrtc.cubin("sm_80", tmp_path) == b"changed"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("cuda_core")
def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot compile the CUDA kernels for sm_20"):
        nvrtc.cubin("sm_20", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("cuda_core")
def test_kernels_are_used_though_they_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nvrtc, "_compile", lambda *_: b"code")
    (tmp_path / "file").write_text("in the way")
    assert nvrtc.cubin("sm_90", tmp_path / "file" / "folder") == b"code"
    assert "every start compiles" in caplog.text


@needs_nvcc
@pytest.mark.slow
def test_a_build_through_cmake_names_the_fatbin_after_the_sources(tmp_path: Path) -> None:
    options = ["-DSKBUILD=ON", "-DLAMP_CUDA_ARCHITECTURES=90"]
    subprocess.run(["cmake", "-S", ROOT, "-B", tmp_path, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    assert (tmp_path / kernels.fatbin_name()).read_bytes()[:4] == b"\x50\xed\x55\xba"
