# SPDX-License-Identifier: Apache-2.0
"""uv with packages from PyPI alone, whatever this machine's configuration says."""

import os
import sys
import urllib.request

import pytest

PYPI = "https://pypi.org/simple"
UV = (sys.executable, "-m", "uv", "pip")
FROM_PYPI = ("--quiet", "--no-config", "--default-index", PYPI)


def uv_environment() -> dict[str, str]:
    """This process's variables without uv's and pip's. The test is skipped without uv or PyPI."""
    pytest.importorskip("uv", reason="uv is not installed, see pip install 'lamp-trt[dev]'")
    try:
        urllib.request.urlopen(f"{PYPI}/uv/", timeout=10).close()
    except OSError as error:
        pytest.skip(f"PyPI cannot be reached ({getattr(error, 'reason', error)}), so nothing can be resolved")
    return {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
