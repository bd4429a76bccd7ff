# SPDX-License-Identifier: Apache-2.0
"""The proofs' command on a machine where something is missing or every part overruns: always a row, never a
traceback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lamp_trt.benchmarks.proof import peers
from lamp_trt.benchmarks.proof.check import Unavailable
from lamp_trt.benchmarks.proof.commands import run
from lamp_trt.benchmarks.proof.commands.command import main
from lamp_trt.benchmarks.proof.commands.outcomes import Outcome, PartReport
from lamp_trt.benchmarks.proof.commands.parts import PARTS
from lamp_trt.benchmarks.proof.kernels import checks as kernel_checks
from lamp_trt.benchmarks.proof.pipeline import PipelineProof
from lamp_trt.benchmarks.proof.prepared import engines
from lamp_trt.benchmarks.proof.prepared.engines import compile_networks, load_network
from lamp_trt.benchmarks.proof.prepared.locks import locked
from lamp_trt.benchmarks.proof.results.gather import PARTS as REPORTED
from lamp_trt.benchmarks.proof.timing import COMMIT, UNKNOWN, machine
from lamp_trt.engine.backends.registry import find_backend
from lamp_trt.engine.bundle.reader import Bundle
from lamp_trt.engine.errors import EngineError, UnavailableError
from tests.doubles.gpu_machine import GpuMachine, fake_program, gpu_machine, rows_of
from tests.doubles.proof import SUBJECTS


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    return gpu_machine(monkeypatch)


def report(folder: Path, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{part}-proof-h200.json").read_text())
    return content


def fail() -> str:
    raise AssertionError("not what it should be")


def lacking() -> str:
    raise Unavailable("diffusers is not installed")


def imports_old() -> str:
    raise ImportError("cannot import name 'Device' from 'cuda.core'", name="cuda.core")


def test_a_part_that_overruns_leaves_a_row_for_every_check(lent: GpuMachine, tmp_path: Path) -> None:
    lent.every_part_overruns(700)
    assert main(["--budget", "60", "--out", str(tmp_path), "--folder", str(tmp_path)]) == 0
    assert lent.made == ["prepare claim 0"]
    for part in PARTS:
        results = list(rows_of(report(tmp_path, part)).values())
        first = "passed" if part == "prepare" else "not run"
        assert results == [first, "not run", "not run"]


def test_a_later_call_goes_on_and_keeps_what_has_a_result(lent: GpuMachine, tmp_path: Path) -> None:
    lent.every_part_overruns(700)
    arguments = ["--budget", "60", "--out", str(tmp_path), "--folder", str(tmp_path)]
    for _ in range(3):
        main(["kernels", *arguments])
    assert lent.made == [f"kernels claim {number}" for number in range(3)]
    assert set(rows_of(report(tmp_path, "kernels")).values()) == {"passed"}
    for _ in range(2):  # its checks need each other: they begin again
        main(["unet", *arguments])
    assert lent.made[3:] == ["unet claim 0"] * 2
    assert list(rows_of(report(tmp_path, "unet")).values()) == ["passed", "not run", "not run"]


def test_results_of_another_commit_are_not_kept(
    lent: GpuMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent.part("kernels", ("it holds", lambda: "yes"))
    for commit, expected in (("a", "passed"), ("b", "failed")):
        monkeypatch.setenv(COMMIT, commit)
        main(["kernels", "--out", str(tmp_path), "--folder", str(tmp_path)])
        assert rows_of(report(tmp_path, "kernels")) == {"it holds": expected}
        lent.part("kernels", ("it holds", fail))


def test_every_way_to_end_is_a_line_and_a_row(
    lent: GpuMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lent.part("unet", ("holds", lambda: "7 ms"), ("breaks", fail), ("lacks", lacking), ("old", imports_old))
    assert main(["unet", "--out", str(tmp_path), "--folder", str(tmp_path)]) == 1
    expected = {"holds": "passed", "breaks": "failed", "lacks": "skipped", "old": "skipped"}
    written = report(tmp_path, "unet")
    assert rows_of(written) == expected
    assert "Traceback" in written["checks"][1]["detail"]
    printed = capsys.readouterr().out
    assert "Traceback" not in printed
    assert "AssertionError: not what it should be" in printed
    assert "not installed, or too old: cannot import name 'Device' from 'cuda.core'" in printed


def test_a_part_whose_checks_cannot_be_made_has_a_row(lent: GpuMachine, tmp_path: Path) -> None:
    def no_device(_: Any) -> Any:
        raise EngineError("libcuda.so.1 does not load")

    lent.patch.setitem(PARTS, "unet", no_device)
    assert main(["unet", "--out", str(tmp_path), "--folder", str(tmp_path)]) == 1
    (row,) = report(tmp_path, "unet")["checks"]
    assert row["figures"] == "EngineError: libcuda.so.1 does not load"


def test_a_gpu_that_is_lost_ends_no_report(lent: GpuMachine, tmp_path: Path) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lent.patch.setattr("lamp_trt.benchmarks.proof.gpu.release_cached", lost)
    lent.part("unet", ("one", lambda: "fine"), ("two", lambda: "fine"))
    assert main(["unet", "--out", str(tmp_path), "--folder", str(tmp_path)]) == 1
    assert rows_of(report(tmp_path, "unet")) == {"one": "failed", "two": "failed"}


def test_the_time_that_is_up_cuts_the_check_off_and_the_rest_is_not_run(
    lent: GpuMachine, tmp_path: Path
) -> None:
    def asked_to_end() -> str:
        raise run.TimeIsUp

    lent.part("unet", ("one", lambda: "fine"), ("two", asked_to_end), ("three", lambda: "fine"))
    assert main(["unet", "peers", "--out", str(tmp_path), "--folder", str(tmp_path)]) == 0
    assert rows_of(report(tmp_path, "unet")) == {"one": "passed", "two": "cut off", "three": "not run"}


PROGRAM = """
import sys, time
from pathlib import Path
import pytest
from tests.doubles.gpu_machine import gpu_machine
from lamp_trt.benchmarks.proof.commands import run
signal = run.signal.signal
patch = pytest.MonkeyPatch()
machine = gpu_machine(patch)
patch.setattr(run.signal, "signal", signal)
patch.setattr(run, "time", time)
def sleep():
    Path(sys.argv[1], "started").touch()
    time.sleep(60)
machine.part("unet", ("one", lambda: "fine"), ("two", sleep), ("three", lambda: "fine"))
sys.exit(run.main(["unet", "--out", sys.argv[1], "--folder", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("sent", "second", "third"), [(signal.SIGTERM, "cut off", "not run"), (signal.SIGKILL, "started", None)]
)
def test_a_process_that_is_ended_leaves_its_rows(
    sent: int, second: str, third: str | None, tmp_path: Path
) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    process.wait(30)
    rows = rows_of(report(tmp_path, "unet"))
    assert rows["one"] == "passed"
    assert rows["two"] == second
    assert rows.get("three") == third
    facts = report(tmp_path, "unet")["machine"]
    later = PartReport.open(tmp_path / "unet-proof-h200.json", facts)
    assert later.earlier["two"].result == "cut off"


def test_an_earlier_result_outlives_a_call_that_has_none(tmp_path: Path) -> None:
    facts, path = {"commit": "a"}, tmp_path / "unet-proof-h200.json"
    PartReport.open(path, facts).ended(Outcome("claim", "passed", "7 ms"), {"aotinductor": {"step_ms": 7}})
    again = PartReport.open(path, facts)
    again.started("claim", {})
    kept = PartReport.open(path, facts).ended(Outcome("claim", "not run", ""), {"aotinductor": {"load_s": 1}})
    assert kept.result == "passed"
    assert rows_of(report(tmp_path, "unet")) == {"claim": "passed"}
    assert report(tmp_path, "unet")["figures"] == {"aotinductor": {"step_ms": 7, "load_s": 1}}
    path.write_text("{")
    assert PartReport.open(path, facts).earlier == {}


def test_without_any_program_the_machine_is_still_described(lent: GpuMachine) -> None:
    lent.no_programs()
    facts = machine()
    assert (facts["gpu"], facts["commit"], facts["driver"]) == ("NVIDIA H200", UNKNOWN, UNKNOWN)
    lent.patch.setenv(COMMIT, "abc")
    assert machine()["commit"] == "abc"


# --- kernels ----------------------------------------------------------------------------------------------


def test_the_sanitizer_is_told_that_failed_calls_of_the_api_are_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the real one does: without the option, a call that only probes counts."""
    fake_program(
        tmp_path,
        "compute-sanitizer",
        'case "$*" in *"--report-api-errors no"*) echo "ERROR SUMMARY: 0 errors";; *) exit 9;; esac',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert kernel_checks.sanitizer_is_clean("memcheck") == "ERROR SUMMARY: 0 errors"
    fake_program(tmp_path, "compute-sanitizer", "echo 'Device not supported'; exit 1")
    with pytest.raises(Unavailable, match="refuses this device"):
        kernel_checks.sanitizer_is_clean("memcheck")


def test_without_the_sanitizer_nvcc_or_pytest_that_is_the_reason(lent: GpuMachine) -> None:
    lent.no_programs()
    with pytest.raises(Unavailable, match="compute-sanitizer is not installed"):
        kernel_checks.sanitizer_is_clean("memcheck")
    lent.patch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="pytest is not installed"):
        kernel_checks.tests_on_the_gpu()


@pytest.mark.parametrize("size", [0, lambda: 0], ids=["1.0 and newer", "0.5 to 0.7"])
def test_local_memory_is_read_off_every_cuda_core(size: Any) -> None:
    assert kernel_checks.local_bytes(SimpleNamespace(local_size_bytes=size)) == 0


@pytest.mark.parametrize("claim", [claim for claim, _ in kernel_checks.checks(Path())][:2])
def test_an_old_cuda_core_is_named_and_skipped(claim: str, lent: GpuMachine) -> None:
    lent.patch.setitem(sys.modules, "cuda.core", ModuleType("cuda.core"))
    outcome = run.make(claim, dict(kernel_checks.checks(Path()))[claim])
    assert outcome.result == "skipped"
    assert "cuda.core" in outcome.figures


# --- engines ----------------------------------------------------------------------------------------------


def work(folder: Path, bundle: Bundle) -> Any:
    device = SimpleNamespace(ordinal=0, stream=1)
    subject = SUBJECTS["lamp_unet"]
    return SimpleNamespace(
        folder=folder, bundle=bundle, device=device, subject=subject, options=None, hoist=(), build_flags={}
    )


def test_a_backend_without_its_provider_is_skipped(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(Unavailable, match="no CUDAExecutionProvider"):
        load_network("onnxruntime", work(tmp_path, Bundle.open(toy_bundle)), "lamp_unet")


def test_without_a_compiler_or_a_library_engines_are_skipped(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(toy_bundle)
    record = find_backend("aotinductor")

    def no_compiler(_: Any) -> Any:
        raise UnavailableError("AOTInductor compiles C++, and there is no g++")

    monkeypatch.setattr(type(record.build), "__call__", lambda _, request: no_compiler(request))
    with pytest.raises(Unavailable, match=r"there is no g\+\+"):
        compile_networks("aotinductor", bundle, None, tmp_path)
    monkeypatch.setattr(
        "lamp_trt.engine.backends.tensorrt.trt.tensorrt",
        lambda: no_compiler(None),
    )
    with pytest.raises(Unavailable, match="there is no"):
        compile_networks("tensorrt", bundle, None, tmp_path)


def test_the_pipeline_compiles_every_network_into_the_folder_that_the_unets_are_in(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").symlink_to(toy_bundle)
    asked: list[Any] = []
    record = find_backend("aotinductor")
    monkeypatch.setattr(type(record.build), "__call__", lambda _, request: asked.append(request))
    loaded: list[Any] = []

    def load(*_: Any, **options: Any) -> Any:
        loaded.append(options["engine_dir"])
        return SimpleNamespace(bundle=Bundle.open(toy_bundle))

    monkeypatch.setattr("lamp_trt.load", load)
    PipelineProof(tmp_path, "aotinductor").load()
    networks = [request.networks for request in asked]
    assert networks[-1] == ("lamp_unet",)
    assert {name for (name,) in networks} == set(Bundle.open(toy_bundle).manifest.networks)
    assert {request.engine_dir for request in asked} == {tmp_path / engines.FOLDER} == set(loaded)
    assert {request.device for request in asked} == {"cuda"}
    assert all(request.flags == engines.UNMEASURED for request in asked)
    asked.clear(), loaded.clear()
    PipelineProof(tmp_path, "aotinductor", flags={"forms": "gate=taps", "max_autotune": True}).load()
    folder = tmp_path / "engines-forms-gate-taps-max_autotune-True"
    assert {request.engine_dir for request in asked} == {folder} == set(loaded)
    unmeasured = {"conv_as_mm": False, "cudnn_benchmark": False}
    assert asked[0].flags == {"forms": "gate=taps", "max_autotune": True, **unmeasured}


def test_one_process_makes_a_thing_and_the_others_wait(tmp_path: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with locked(tmp_path, "thing"):
            order.append("other")

    with locked(tmp_path, "thing"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


def test_parts_can_be_cut_down() -> None:
    claims = [claim for claim, _ in kernel_checks.checks(Path())]
    assert [*(claim for claim, _ in kernel_checks.checks(Path(), timings=False)), "timings"] == claims
    lamp: Any = SimpleNamespace(subject=SUBJECTS["lamp_unet"])
    claims = [claim for claim, _ in peers.checks(lamp, ("eager",))]
    assert len(claims) == 2
    assert all("PyTorch eager" in claim for claim in claims)


def test_reports_name_every_part_that_there_is() -> None:
    assert tuple(PARTS) == REPORTED
