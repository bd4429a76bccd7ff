# SPDX-License-Identifier: Apache-2.0
"""What the suite says of the tests that it skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system_tools import find, require_cxx_compiler

LACKS_A_COMPILER = """
from tests.system_tools import require_cxx_compiler
def test_compiles(): require_cxx_compiler("the kernels on the CPU")
def test_compiles_too(): require_cxx_compiler("AOTInductor packages")
def test_adds(): assert 1 + 1 == 2
"""
LACKS_DATA = """
import pytest
def test_compares(): pytest.skip("LAMP_TRT_GOLDEN is not set")
def test_adds(): assert 1 + 1 == 2
"""


def last_lines(tests: str, folder: Path) -> list[str]:
    (folder / "test_it.py").write_text(tests)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.skip_summary",
        "-p",
        "no:cacheprovider",
        "test_it.py",
    ]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "CXX": "no-such-compiler"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_last_line_is_the_command_that_brings_skipped_tests_back(tmp_path: Path) -> None:
    lines = last_lines(LACKS_A_COMPILER, tmp_path)
    assert lines[-1] == "To run the 2 tests that lack a system package: make system-packages"
    assert "skipped: 2 of 3 tests (67%), 2 of them for want of a system package" in lines


def test_other_skips_are_counted_without_a_command(tmp_path: Path) -> None:
    lines = last_lines(LACKS_DATA, tmp_path)
    assert "skipped: 1 of 2 tests (50%), 0 of them for want of a system package" in lines
    assert "make system-packages" not in "\n".join(lines)


def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(pytest.skip.Exception, match=r"needs g\+\+, see make system-packages"):
        require_cxx_compiler("the kernels on the CPU")


def test_a_program_of_a_wheel_is_found_beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert find("cmake") is None
    (tmp_path / "cmake").write_text("#!/bin/sh\n")
    (tmp_path / "cmake").chmod(0o755)
    assert find("cmake") == str(tmp_path / "cmake")
