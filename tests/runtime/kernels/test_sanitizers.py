# SPDX-License-Identifier: Apache-2.0
"""Every kernel on the CPU under ThreadSanitizer, and under AddressSanitizer with UBSan, through ctest."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.doubles.cpu_kernels import kernel_tools
from tests.system_tools import find

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "cpu"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_kernels_are_free_of_races_and_stray_accesses() -> None:
    include, compiler = kernel_tools()
    cmake, ctest = find("cmake"), find("ctest")
    if cmake is None or ctest is None:
        pytest.skip("the sanitizers: need cmake, see pip install 'lamp-trt[dev]'")
    compilers = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DLAMP_CUDA_INCLUDE={include}"]
    run(cmake, "-S", str(ROOT), "-B", str(BUILD), *compilers)
    run(cmake, "--build", str(BUILD), "--parallel", "2")
    output = run(ctest, "--test-dir", str(BUILD), "--parallel", "2", "--output-on-failure")
    assert re.search("100% tests passed.* out of 2\n", output)  # CMake 3 and 4 word it differently
