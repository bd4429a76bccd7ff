# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt doctor` on this machine, on machines without packages, and on machines that we make up."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import lamp_trt
from lamp_trt import doctor
from lamp_trt.cli import main
from lamp_trt.doctor import backends, gpu, machine, needs, packages, tools
from lamp_trt.doctor.findings import Finding, probe
from lamp_trt.engine import memory
from lamp_trt.engine.backends.onnxruntime import BACKEND as ONNX_RUNTIME
from lamp_trt.engine.backends.onnxruntime.probe import SESSION
from lamp_trt.engine.backends.probe import Device, Gpu
from lamp_trt.engine.families import COMPONENTS, NETWORKS

SOURCES = Path(lamp_trt.__file__).parents[1]
NO_GPU = Gpu(problem="no NVIDIA driver: libcuda.so.1 does not load")
H200 = Gpu((Device("NVIDIA H200", (9, 0), 150_000_000_000),), "580.65.06", "13.0")
SMALL = Gpu((Device("NVIDIA T400", (7, 5), 2_000_000_000),), "580.65.06", "13.0")


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings)
    return named


# --- this machine ---------------------------------------------------------------------------------------


def test_this_machine_can_build_and_generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", f"--folder={tmp_path / 'new' / 'bundle'}"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["can"] == {"build": True, "generate": True}
    found = {finding["name"]: finding for finding in document["findings"]}
    assert found["torch"]["detail"] == version("torch")
    assert found["ONNX Runtime, CPU"]["status"] == "ok"
    assert found["H.264 (mp4)"]["detail"].endswith("encodes with libx264")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "AMD EPYC (family 26, model 2)"),
        ("cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\n", "AMD EPYC 7B13"),
    ],
)
def test_a_processor_without_a_model_in_its_name_has_its_numbers(
    cpuinfo: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    assert machine.processor() == name


def test_the_text_has_every_finding_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding("packages", "torch", "problem", "not installed", "pip install torch", ("build",)),
        Finding("machine", "memory", "ok", "8 GB"),
    ]
    lines = doctor.diagnosis_text(findings).splitlines()
    assert lines[0] == "packages"
    assert lines[1].split() == ["!", "torch", "not", "installed"]
    assert lines[2].strip() == "→ pip install torch"
    assert lines[-2:] == ["build cannot work here: torch", "generate can work here"]


def test_the_exit_code_is_about_what_the_machine_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("packages", "torch", "problem", "not installed", "pip install torch", ("build",))
    monkeypatch.setattr(doctor, "diagnose", lambda folder: [finding])
    assert main(["doctor"]) == 1
    assert "build cannot work here (torch). First of all: pip install torch." in capsys.readouterr().err
    assert main(["doctor", "--for", "generate"]) == 0
    assert main(["doctor", "--for", "generate", "--for", "build"]) == 1


# --- without packages -----------------------------------------------------------------------------------


def bare_python(folder: Path) -> Path:
    """A Python that has no package installed at all."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def run_bare(python: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SOURCES, *paths)))}
    return subprocess.run(
        [python, "-m", "lamp_trt.doctor"], env=environment, capture_output=True, text=True, check=False
    )


def test_without_any_package_it_still_says_what_is_missing(tmp_path: Path) -> None:
    done = run_bare(bare_python(tmp_path / "venv"))
    assert done.returncode == 1
    assert done.stderr == ""
    assert "requirements             is not installed as a package" in done.stdout
    assert "→ pip install '.[export,cpu]' in a clone" in done.stdout
    assert "onnxruntime is not installed" in done.stdout
    assert "ModuleNotFoundError: No module named 'av'" in done.stdout
    assert "build cannot work here: requirements" in done.stdout


def write_distribution(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    """Metadata of a package as if it were installed in `folder`."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires), ""]))


def test_a_machine_with_the_runtime_alone_can_generate_but_not_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have = {"numpy": "2.4.6", "onnx": "1.23.2", "onnxruntime": "1.31.1"}
    wanted = ["numpy>=2.0", 'onnxruntime>=1.24; extra == "cpu"', 'onnx>=1.19; extra == "cpu"']
    wanted += ['torch>=2.11; extra == "export"', 'onnx>=1.19; extra == "export"', 'ruff>=1; extra == "dev"']
    found = packages_of(monkeypatch, have, wanted)
    assert found["torch"].detail == "not installed; for build, motion add, verify and toy"
    assert found["torch"].remedy == "pip install 'lamp-trt[export]'"
    assert set(doctor.impossible(list(found.values()))) == {"build"}
    assert "ruff" not in found


def packages_of(
    monkeypatch: pytest.MonkeyPatch, have: dict[str, str], wanted: list[str]
) -> dict[str, Finding]:
    """What is found where `have` is installed and lamp-trt asks for `wanted`."""
    monkeypatch.setattr(packages, "installed", have.get)
    monkeypatch.setattr(packages, "requires", lambda name: wanted)
    return by_name(packages.package_findings())


def test_every_package_that_pyproject_names_is_looked_at() -> None:
    found = by_name(packages.package_findings())
    assert {"numpy", "av", "torch", "diffusers", "transformers", "onnx", "onnxruntime-gpu"} <= found.keys()
    assert {"tensorrt-cu13", "tensorrt-rtx", "cuda-core", "polygraphy", "tokenizers"} <= found.keys()
    assert "pytest" not in found
    assert {f.status for f in found.values() if "build" in f.blocks or "generate" in f.blocks} <= {"problem"}


def test_packages_that_are_too_old_or_too_new_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"a": "2.9.1+cpu", "b": "2.11.0+cpu", "c": "2.0.0", "d": "1.99"}
    wanted = ["a>=2.11", "b>=2.11", "c[cu13]<2,>=1.2", "d<2,>=1.2"]
    found = packages_of(monkeypatch, have, wanted)
    assert [found[name].status for name in "abcd"] == ["problem", "ok", "problem", "ok"]
    assert found["a"].detail == "2.9.1+cpu, wanted >=2.11; needed by everything"


def test_two_onnx_runtimes_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    found = packages_of(monkeypatch, have, ['onnxruntime>=1.24; extra == "cpu"'])
    assert found["conflict"].status == "problem"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found["conflict"].remedy
    only_gpu = {"onnxruntime-gpu": "1.31.1"}
    found = packages_of(monkeypatch, only_gpu, ['onnxruntime>=1.24; extra == "cpu"'])
    assert found["onnxruntime"].detail == "not installed, onnxruntime-gpu is"
    assert found["onnxruntime"].blocks == ()
    assert "conflict" not in found


def test_metadata_of_packages_is_read_as_pip_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(tmp_path, "onnxruntime-gpu", "9.9.9")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.installed("onnxruntime-gpu") == "9.9.9"
    assert packages.wheels_of(ONNX_RUNTIME) == ["onnxruntime", "onnxruntime-gpu"]


# --- GPUs and backends ----------------------------------------------------------------------------------


@pytest.fixture
def backends_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    def found(have: dict[str, str], runtime: dict[str, Any], gpu: Gpu) -> dict[str, Finding]:
        monkeypatch.setattr(backends, "installed", have.get)
        monkeypatch.setattr(backends, "probe", lambda code: runtime)
        return by_name(backends.backend_findings(gpu))

    return found


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def test_onnx_runtime_gpu_that_would_run_on_the_cpu_is_found_out(
    backends_of: Callable[..., dict[str, Finding]],
) -> None:
    have = {"onnxruntime-gpu": "1.31.1"}
    silent = {"version": "1.31.1", "wanted": [CUDA, CPU], "got": [CPU]}
    found = backends_of(have, silent, H200)["ONNX Runtime, CUDA"]
    assert found.status == "problem"
    assert "silently falls back to the CPU although there is a GPU" in found.detail
    assert "newer driver than 580.65.06 (CUDA 13.0)" in found.remedy
    found = backends_of(have, silent, NO_GPU)["ONNX Runtime, CUDA"]
    assert (found.status, found.remedy) == ("note", "")
    assert "runs on the CPU here: no NVIDIA driver" in found.detail
    works = {**silent, "got": [CUDA, CPU]}
    found = backends_of(have, works, H200)["ONNX Runtime, CUDA"]
    assert (found.status, found.detail) == ("ok", "onnxruntime-gpu 1.31.1")


def test_the_probe_runs_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = probe(SESSION)
    assert answer == {"version": version("onnxruntime"), "wanted": [CPU], "got": [CPU]}


def test_a_broken_onnx_runtime_blocks_generation_with_its_own_words(
    backends_of: Callable[..., dict[str, Finding]],
) -> None:
    broken = {"error": "ImportError: libonnxruntime.so: cannot open shared object file"}
    found = backends_of({"onnxruntime": "1.31.1"}, broken, NO_GPU)["ONNX Runtime, CPU"]
    assert found.blocks == ("generate",)
    assert "cannot open shared object file" in found.detail
    assert found.remedy == "pip uninstall -y onnxruntime, then pip install 'lamp-trt[cpu]'"


HAVE = {"onnxruntime": "1.31.1", "tensorrt": "10.16.1", "tensorrt-rtx": "1.7.1", "torch": "2.13.0"}
ON_CPU = {"version": "1.31.1", "wanted": [CPU], "got": [CPU]}


@pytest.mark.parametrize(
    ("have", "gpu", "rows"),
    [
        pytest.param(
            HAVE,
            H200,
            {
                "ONNX Runtime, CUDA": ("note", "onnxruntime-gpu is not installed", "'lamp-trt[gpu]'"),
                "TensorRT": ("ok", "tensorrt 10.16.1 for sm_90", ""),
                "TensorRT-RTX": ("note", "tensorrt-rtx 1.7.1 does not know sm_90", "'lamp-trt[tensorrt]'"),
                "AOTInductor": ("ok", "torch 2.13.0", ""),
            },
            id="H200",
        ),
        pytest.param(HAVE, SMALL, {"TensorRT-RTX": ("ok", "tensorrt-rtx 1.7.1 for sm_75", "")}, id="T400"),
        pytest.param(
            HAVE,
            NO_GPU,
            {
                "ONNX Runtime, CUDA": ("note", "onnxruntime-gpu is not installed", ""),
                "TensorRT": ("note", f"tensorrt 10.16.1 cannot build or run: {NO_GPU.problem}", ""),
                "TensorRT-RTX": ("note", f"tensorrt-rtx 1.7.1 can build but not run: {NO_GPU.problem}", ""),
                "AOTInductor": ("ok", "torch 2.13.0", ""),
            },
            id="no GPU",
        ),
        pytest.param(
            {"onnxruntime": "1.31.1"},
            NO_GPU,
            {
                "TensorRT": ("note", "tensorrt is not installed", ""),
                "TensorRT-RTX": ("note", "tensorrt-rtx is not installed", ""),
                "AOTInductor": ("note", "torch is not installed", "'lamp-trt[aotinductor]'"),
            },
            id="nothing installed, no GPU",
        ),
        pytest.param(
            {"onnxruntime": "1.31.1"},
            SMALL,
            {
                "TensorRT": ("note", "tensorrt is not installed", "'lamp-trt[tensorrt]'"),
                "TensorRT-RTX": ("note", "tensorrt-rtx is not installed", "'lamp-trt[rtx]'"),
            },
            id="nothing installed, T400",
        ),
    ],
)
def test_each_backend_says_whether_it_runs_why_not_and_what_to_do(
    have: dict[str, str],
    gpu: Gpu,
    rows: dict[str, tuple[str, str, str]],
    backends_of: Callable[..., dict[str, Finding]],
) -> None:
    found = backends_of(have, ON_CPU, gpu)
    for name, (status, detail, remedy) in rows.items():
        assert (found[name].status, found[name].detail) == (status, detail)
        assert (found[name].remedy == "") is (remedy == "")
        assert found[name].remedy.endswith(remedy)


class FakeDriver:
    """libcuda with one H200, or out of order."""

    def __init__(self, init: int = 0, count: int = 1) -> None:
        self.init, self.count = init, count

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, number: Any) -> None:
        number._obj.value = 13000

    def cuDeviceGetCount(self, number: Any) -> None:
        number._obj.value = self.count

    def cuDeviceGet(self, handle: Any, index: int) -> None:
        handle._obj.value = index

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> None:
        name.value = b"NVIDIA H200"

    def cuDeviceTotalMem_v2(self, memory: Any, handle: Any) -> None:
        memory._obj.value = 150_000_000_000

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> None:
        value._obj.value = {75: 9, 76: 0}[attribute]


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (FakeDriver(), ""),
        (FakeDriver(init=999), "the NVIDIA driver does not start: cuInit returns 999"),
        (FakeDriver(count=0), "the driver sees no GPU"),
    ],
)
def test_the_driver_is_asked_for_its_devices(
    driver: FakeDriver, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(gpu, "probe", lambda code, timeout_s: gpu.ask_driver())
    found = gpu.find_gpu()
    assert found.problem == problem
    if not problem:
        assert (found.devices, found.cuda) == (H200.devices, "13.0")
        rows = by_name(gpu.gpu_findings(found))
        assert rows["NVIDIA H200"].detail == "sm_90, 140 GiB"
        assert rows["driver"].detail.endswith("runs CUDA up to 13.0")
    else:
        (row,) = gpu.gpu_findings(found)
        assert (row.status, row.detail) == ("note", problem)
        assert row.remedy


def test_a_driver_that_hangs_does_not_hang_us() -> None:
    assert probe("import time; time.sleep(60)", timeout_s=0.5) == {"error": "no answer within 0 s"}
    assert probe("raise ValueError('out of order')") == {"error": "ValueError: out of order"}
    assert probe("import os; os._exit(3)") == {"error": "it ended with code 3"}


# --- tools ----------------------------------------------------------------------------------------------


def test_a_missing_encoder_says_what_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "probe", lambda code: {"error": "UnknownCodecError: libx264"})
    found = by_name(tools.tool_findings(NO_GPU))
    assert found["H.264 (mp4)"].status == "problem"
    assert ".gif, .webp or PNGs only: UnknownCodecError: libx264" in found["H.264 (mp4)"].detail
    assert found["H.264 (mp4)"].blocks == ()


@pytest.mark.parametrize(
    ("answer", "gpu", "status", "detail"),
    [
        ({"fatbin": True, "stale": True, "nvrtc": ""}, H200, "ok", "compiled with the package"),
        (
            {"fatbin": False, "stale": True, "nvrtc": "13.5"},
            H200,
            "ok",
            "other sources than the installed ones; NVRTC",
        ),
        ({"fatbin": False, "stale": False, "nvrtc": ""}, H200, "problem", "no NVRTC"),
        ({"fatbin": False, "stale": False, "nvrtc": ""}, NO_GPU, "note", "no NVRTC"),
    ],
)
def test_kernels_are_compiled_or_can_be(
    answer: dict[str, Any], gpu: Gpu, status: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "probe", lambda code: {"bytes": 1, "version": "1", **answer})
    found = by_name(tools.tool_findings(gpu))["CUDA kernels"]
    assert found.status == status
    assert detail in found.detail


# --- needs ----------------------------------------------------------------------------------------------


def test_the_parameter_table_is_that_of_the_published_models() -> None:
    kept_once = [component.name for component in COMPONENTS.values() if component.same_as]
    assert kept_once == ["sdxl_text_encoder"]
    assert COMPONENTS["sdxl_text_encoder"].parameters == COMPONENTS["text_encoder"].parameters
    assert needs.both_sizes("fp16") == (
        2 * (123_060_480 + 83_653_863 + 1_101_091_358) + 4 * 303_981_588,
        2 * (123_060_480 + 83_653_863 + 1_101_091_358 + 694_659_840 + 2_567_463_684)
        + 4 * (83_653_863 + 303_981_588),
    )
    assert needs.both_sizes("bf16") == needs.both_sizes("fp16")


def test_the_sizes_needed_follow_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A component whose precision or network changes is not counted by a list of doctor's own."""
    monkeypatch.setitem(COMPONENTS, "vae", replace(COMPONENTS["vae"], precision="fp32"))
    monkeypatch.setattr(needs, "NETWORKS", {name: NETWORKS[name] for name in ("vae_encoder", "vae_decoder")})
    assert needs.both_sizes("fp16")[0] == 4 * 83_653_863


def test_too_little_memory_and_disk_are_problems_but_block_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A toy bundle still works, so that no exit code depends on it."""
    monkeypatch.setattr(needs, "memory_bytes", lambda: (4 << 30, 1 << 30))
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 30}))
    found = by_name(needs.need_findings(tmp_path / "not" / "there", SMALL))
    assert {finding.status for finding in found.values()} == {"problem"}
    assert all(finding.remedy and not finding.blocks for finding in found.values())
    assert "1.1 GB of 4.3 GB are available" in found["memory for generate"].detail
    assert "weights in fp16 3.8 GB, with SDXL 10.7 GB" in found["GPU memory"].detail


def test_a_containers_limit_counts_as_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (limit,))
    whole, _ = memory.memory_bytes()
    limit.write_text("max\n")
    assert memory.memory_bytes()[0] == whole
    limit.write_text("1000000\n")
    assert memory.memory_bytes() == (1_000_000, 1_000_000)


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    found = by_name(machine.machine_findings(tmp_path))
    assert found["cache"].status == "problem"
    assert "Not a directory" in found["cache"].detail
    assert found["cache"].remedy == "set XDG_CACHE_HOME to a folder that can be written"
    assert found["folder for bundles"].status == "ok"


def test_where_no_cache_can_be_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "cache_folder", lambda name: None)
    found = by_name(machine.machine_findings(tmp_path))["cache"]
    assert found.status == "problem"
    assert "neither XDG_CACHE_HOME nor HOME is an absolute path" in found.detail
    assert found.remedy == "set XDG_CACHE_HOME to a folder that can be written"


def test_the_module_and_the_command_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lamp_trt.doctor"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("build can work here\ngenerate can work here")
