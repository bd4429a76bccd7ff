# SPDX-License-Identifier: Apache-2.0
"""The rules of conftest.py: golden tests run or fail where goldens are given, and the summary counts them."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import numpy as np, pytest
pytestmark = pytest.mark.golden

def test_compares(golden, golden_close):
    want = golden("numbers")["x"]
    golden_close(want + {error}, want, atol=1e-3, rel_l2=1e-3)
    golden_close(want, want, atol=0, rel_l2=0)

{skip}
def test_other(golden_set):
    pass
"""


TWO_WORKERS = pytest.param(
    2,
    marks=pytest.mark.skipif(
        find_spec("xdist") is None, reason="needs pytest-xdist: pip install pytest-xdist"
    ),
)
"""Processes of pytest-xdist; 0: the tests run in the process that prints the summary."""


def run(
    folder: Path, *, golden: bool = True, error: float = 0.0, skip: str = "", workers: int = 0
) -> tuple[int, str]:
    import numpy as np

    (folder / "sets" / "a").mkdir(parents=True)
    np.savez(folder / "sets" / "a" / "numbers.npz", x=np.ones(3))
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_golden_sample.py").write_text(TESTS.format(error=error, skip=skip))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = golden\n")
    environment = {k: v for k, v in os.environ.items() if k != "LAMP_TRT_GOLDEN"}
    plugins = str(ROOT)  # that conftest.py names
    environment["PYTHONPATH"] = os.pathsep.join([plugins, *filter(None, [os.environ.get("PYTHONPATH")])])
    if golden:
        environment["LAMP_TRT_GOLDEN"] = str(folder / "sets")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-v",
         *([f"-n{workers}"] if workers else []), str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_comparisons_are_counted(tmp_path: Path) -> None:
    code, output = run(tmp_path, error=1e-4)
    assert code == 0
    assert "golden: 2 comparisons in 2 tests over the sets: a" in output
    assert "  1.0e-04 max abs  1.0e-04 rel L2  test_golden_sample.py::test_compares[a]" in output


@pytest.mark.parametrize("workers", [0, TWO_WORKERS])
def test_a_wrong_value_fails(tmp_path: Path, workers: int) -> None:
    code, output = run(tmp_path, error=0.01, workers=workers)
    assert code == 1
    assert "max abs 1.00e-02 > 1.0e-03" in output
    assert "golden: 1 comparisons in 2 tests over the sets: a" in output
    assert "  1.0e-02 max abs  1.0e-02 rel L2  test_golden_sample.py::test_compares[a]" in output
    assert ("[gw1]" in output) is bool(workers)


@pytest.mark.parametrize("workers", [0, TWO_WORKERS])
@pytest.mark.parametrize(
    "skip", ["@pytest.mark.skip('later')", "pytest.skip('all', allow_module_level=True)"]
)
def test_a_skipped_golden_test_fails(tmp_path: Path, skip: str, workers: int) -> None:
    code, output = run(tmp_path, skip=skip, workers=workers)
    assert code != 0
    assert "skipped although LAMP_TRT_GOLDEN is set" in output


def test_without_goldens_they_are_skipped_with_the_reason(tmp_path: Path) -> None:
    code, output = run(tmp_path, golden=False)
    assert code == 0
    assert "2 skipped" in output
    assert "LAMP_TRT_GOLDEN is not set" in output
