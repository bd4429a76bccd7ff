# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX's parser and builder take the networks at their published size, on a machine without a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lamp_trt.engine.families import NETWORKS

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'lamp-trt[rtx]'")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
MOTION_TENSORS = 360
BUILD_MEMORY_OVER_WEIGHTS = 2.5
"""Anonymous memory of a build. Measured 2.2: docs/tensorrt.md."""


def figures(folder: Path, network: str, what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.fixtures.full_size.plan", str(folder), network, what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(report)
    return report


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "lamp_unet"])
def test_a_full_size_network_is_parsed(network: str, tmp_path: Path) -> None:
    report = figures(tmp_path, network, "parse")
    assert report["layers"] > 100


def test_the_full_size_lamp_unet_is_built_and_its_motion_can_be_marked(tmp_path: Path) -> None:
    """2560 tokens a frame, heads of width 40, 80 and 160, 16 frames."""
    report = figures(tmp_path, "lamp_unet", "build")
    assert report["marked"] == MOTION_TENSORS
    assert report["peak_anonymous_bytes"] < BUILD_MEMORY_OVER_WEIGHTS * report["weight_bytes"]
    assert report["plan_bytes"] > 1 << 20
