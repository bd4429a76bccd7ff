# SPDX-License-Identifier: Apache-2.0
"""Golden data: arrays and checkpoints made by the official implementation, outside of this repository.

The one place that reads LAMP_TRT_GOLDEN, a folder whose sub-folders are independent sets of the same layout.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

Arrays = Mapping[str, np.ndarray]


def golden_sets() -> list[Path]:
    root = os.environ.get("LAMP_TRT_GOLDEN")
    return sorted(path for path in Path(root).iterdir() if path.is_dir()) if root else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_set" in metafunc.fixturenames:
        sets = golden_sets() or [pytest.param(None, marks=pytest.mark.skip("LAMP_TRT_GOLDEN is not set"))]
        metafunc.parametrize(
            "golden_set", sets, ids=lambda path: path.name if path else "none", scope="session"
        )


@pytest.fixture(scope="session")
def golden(golden_set: Path) -> Callable[[str], Arrays]:
    """golden("loop50") gives the arrays of loop50.npz by name."""

    def load(name: str) -> Arrays:
        with np.load(golden_set / f"{name}.npz") as arrays:
            return dict(arrays)

    return load
