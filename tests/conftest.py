# SPDX-License-Identifier: Apache-2.0
"""Golden data: arrays and checkpoints made by the official implementation, outside of this repository.

The one place that reads LAMP_TRT_GOLDEN, a folder whose sub-folders are independent sets of the same
layout. Without it golden tests are skipped; with it a golden test that is skipped fails, so that a run which
claims to have compared has compared. The terminal summary says how much, and with -v how close.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

import lamp_trt  # noqa: F401 - before any test imports onnxruntime, which would report home else

pytest_plugins = [
    "tests.fixtures.shared",
    "tests.fixtures.toy",
    "tests.fixtures.safety",
    "tests.fixtures.sdxl",
    "tests.fixtures.hoisted",
    "tests.fixtures.openvino",
    "tests.doubles.ninth_network",
    "tests.fixtures.torture",
    "tests.skip_summary",
    "tests.schedule",
]

Arrays = Mapping[str, np.ndarray]
GOLDEN_ROOT = os.environ.get("LAMP_TRT_GOLDEN")


class GoldenClose(Protocol):
    def __call__(
        self, actual: object, expected: np.ndarray, *, atol: float, rel_l2: float, what: str = ""
    ) -> None:
        """Assert max |actual - expected| <= atol and ||actual - expected|| <= rel_l2 ||expected||."""


measured: dict[str, list[tuple[float, float]]] = {}
"""Max abs and rel L2 of every golden comparison, by test."""
golden_tests_run: set[str] = set()

RAN, DISTANCE = "golden test ran", "golden distance"
"""Properties of test reports, which carry these figures to the process that prints the summary: this one, or
the controller of pytest-xdist's workers."""


def golden_sets() -> list[Path]:
    return sorted(path for path in Path(GOLDEN_ROOT).iterdir() if path.is_dir()) if GOLDEN_ROOT else []


def pytest_configure(config: pytest.Config) -> None:
    if GOLDEN_ROOT and not (Path(GOLDEN_ROOT).is_dir() and golden_sets()):
        raise pytest.UsageError(f"LAMP_TRT_GOLDEN is {GOLDEN_ROOT}, which is no folder of golden sets")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_set" in metafunc.fixturenames:
        sets = golden_sets() or [pytest.param(None, marks=pytest.mark.skip("LAMP_TRT_GOLDEN is not set"))]
        metafunc.parametrize(
            "golden_set", sets, ids=lambda path: path.name if path else "none", scope="session"
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if GOLDEN_ROOT and item.get_closest_marker("golden"):
        if report.skipped:
            report.outcome = "failed"
            report.longrepr = f"skipped although LAMP_TRT_GOLDEN is set: {report.longrepr}"
        elif report.when == "call":
            report.user_properties.append((RAN, True))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call":
        return
    for name, value in report.user_properties:
        if name == RAN:
            golden_tests_run.add(report.nodeid)
        elif name == DISTANCE:
            max_abs, rel_l2 = value
            measured.setdefault(report.nodeid, []).append((max_abs, rel_l2))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if GOLDEN_ROOT and report.skipped and collector.path.name.startswith("test_golden"):
        report.outcome = "failed"
        report.longrepr = f"skipped although LAMP_TRT_GOLDEN is set: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not golden_tests_run:
        return
    sets = ", ".join(path.name for path in golden_sets())
    comparisons = sum(map(len, measured.values()))
    terminalreporter.write_line(
        f"golden: {comparisons} comparisons in {len(golden_tests_run)} tests over the sets: {sets}"
    )
    if terminalreporter.config.get_verbosity() > 0:
        for test, figures in measured.items():
            max_abs, rel_l2 = (max(column) for column in zip(*figures, strict=True))
            terminalreporter.write_line(f"  {max_abs:.1e} max abs  {rel_l2:.1e} rel L2  {test}")


@pytest.fixture(scope="session")
def golden(golden_set: Path) -> Callable[[str], Arrays]:
    """golden("loop50") gives the arrays of loop50.npz by name."""

    def load(name: str) -> Arrays:
        with np.load(golden_set / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture
def golden_close(request: pytest.FixtureRequest) -> GoldenClose:
    """Compare with a golden array; see GoldenClose. `actual` is anything that NumPy takes."""

    def close(actual: object, expected: np.ndarray, *, atol: float, rel_l2: float, what: str = "") -> None:
        got, want = np.asarray(actual, np.float64), expected.astype(np.float64)
        assert got.shape == want.shape, f"{what}: shape {got.shape}, golden {want.shape}"
        max_abs = float(np.abs(got - want).max(initial=0))
        relative = float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))
        request.node.user_properties.append((DISTANCE, (max_abs, relative)))
        assert max_abs <= atol, f"{what}: max abs {max_abs:.2e} > {atol:.1e}"
        assert relative <= rel_l2, f"{what}: rel L2 {relative:.2e} > {rel_l2:.1e}"

    return close


@pytest.fixture(scope="session")
def sd14_manifest() -> dict[str, list[int]]:
    """Names and shapes of an official checkpoint at Stable Diffusion v1.4's size, in state-dict order: the
    file spec/manifest_sd14.json beside the folder of the golden sets, where there is one."""
    path = Path(GOLDEN_ROOT or "/nowhere").parent / "spec" / "manifest_sd14.json"
    if not path.is_file():
        pytest.skip("no spec/manifest_sd14.json beside LAMP_TRT_GOLDEN")
    manifest: dict[str, list[int]] = json.loads(path.read_text())
    return manifest


@pytest.fixture(scope="session")
def run_python() -> Callable[[str], str]:
    """Run code in a fresh interpreter, as a user's program would, and return what it prints."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def one_thread() -> Generator[None]:
    """Tiny networks: a second torch thread costs more than it brings."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def memory() -> Generator[Any]:
    """cpu_kernels.Memory: arrays for the kernels on the CPU. Fails if one wrote beside an array."""
    from tests.doubles.cpu_kernels import Memory

    memory = Memory()
    yield memory
    memory.check()
