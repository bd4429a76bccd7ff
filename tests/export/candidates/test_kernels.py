# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: under Triton's interpreter against their plain forms, and compiled for every GPU that
AOTInductor packages are for. Neither needs a GPU; both need `triton` (pip install triton)."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.packages import apply_forms
from lamp_trt.export.lamp.lean_unet import make_lean
from tests.export.lamp.test_unet import inputs, random_unet

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed, and torch's CPU build does not bring it: pip install triton",
)

ROOT = Path(__file__).parents[3]

ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
"""Of LAMP_CUDA_ARCHITECTURES those that Triton compiles for: 75 is too old for it."""

SLOTS = [candidate.slot for candidate in registry.CANDIDATES if candidate.requires == "triton"]


def run(module: str, *arguments: str, **variables: str) -> list[str]:
    """Lines of standard output."""
    command = [sys.executable, "-m", f"tests.export.candidates.{module}", *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("slot", SLOTS)
def test_a_kernel_is_its_plain_form_under_the_interpreter(slot: str) -> None:
    assert len(run("interpreted", slot, TRITON_INTERPRET="1")) == 4 * 4  # sizes, kinds


@pytest.mark.parametrize("slot", SLOTS)
def test_a_kernel_compiles_for_every_architecture_without_spills(slot: str, tmp_path: Path) -> None:
    rows = run("compiled", slot, *ARCHITECTURES, TRITON_CACHE_DIR=str(tmp_path))
    assert len(rows) == len(ARCHITECTURES) * 2 * (1 if slot == registry.GATE else 3)
    for row in rows:
        used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", row)
        assert used, row
        assert set(used) == {("0", "0", "0")}, row


@pytest.mark.parametrize("slot", SLOTS)
def test_a_kernel_is_an_operator_of_the_exported_unet(slot: str) -> None:
    """As Inductor gets it: one operator in place of the layer."""
    lean, values = make_lean(random_unet()), inputs(2, 3, 8, 6)
    apply_forms(lean, f"{slot}=triton")
    program = torch.export.export(lean, values, strict=False)
    names = [str(node.target) for node in program.graph.nodes]
    layers = sum(slot in vars(layer) for layer in lean.modules())
    assert sum(name.startswith("lamp_trt.") for name in names) == layers > 0
