# SPDX-License-Identifier: Apache-2.0
"""Programs that tests call: found beside Python or on PATH; without one, a skip that names the remedy."""

import os
import shutil
import sys
from pathlib import Path

import pytest

REMEDY = "make system-packages"


def find(program: str) -> str | None:
    """Path of a program: beside this Python (wheels bring cmake), or on PATH."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")


def cxx_compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def require_cxx_compiler(purpose: str) -> str:
    """Path of the C++ compiler (CXX, or g++). Skips without one."""
    compiler = cxx_compiler()
    if compiler is None:
        pytest.skip(f"{purpose}: needs g++, see {REMEDY}")
    return compiler


def lacks_system_package(reason: str) -> bool:
    """True of the reason of a skip that `make system-packages` would prevent."""
    return REMEDY in reason
