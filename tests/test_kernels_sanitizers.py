# SPDX-License-Identifier: Apache-2.0
"""Every kernel on the CPU under ThreadSanitizer, and under AddressSanitizer with UBSan, through ctest."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cpu_kernels import compiler, cuda_include

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "cpu"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_kernels_are_free_of_races_and_stray_accesses() -> None:
    if shutil.which("cmake") is None or compiler() is None or cuda_include() is None:
        pytest.skip("the sanitizers need cmake, g++ and the CUDA headers (cuda_fp16.h)")
    run("cmake", "-S", str(ROOT), "-B", str(BUILD))
    run("cmake", "--build", str(BUILD), "--parallel", "2")
    output = run("ctest", "--test-dir", str(BUILD), "--parallel", "2", "--output-on-failure")
    assert "100% tests passed, 0 tests failed out of 2" in output
