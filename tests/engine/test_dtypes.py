# SPDX-License-Identifier: Apache-2.0
"""The table of element types against the libraries whose names it holds."""

import ast
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from safetensors.torch import save

from lamp_trt.engine.dtypes import DTYPES, PRECISIONS, DType, border_dtype

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_name_is_that_of_the_library(dtype: DType) -> None:
    there = getattr(torch, dtype.name)
    assert there.itemsize == dtype.size
    assert there.is_floating_point is dtype.is_float
    header = save({"x": torch.zeros(1, dtype=there)})
    assert f'"dtype":"{dtype.stored}"'.encode() in header
    assert onnx_ir.DataType[dtype.onnx] == onnx.TensorProto.DataType.Value(dtype.onnx)
    assert onnx_ir.DataType[dtype.onnx].itemsize == dtype.size
    if dtype.in_numpy:
        assert torch.from_numpy(np.zeros(1, dtype.name)).dtype == there
    else:
        assert dtype.name == "bfloat16"  # which NumPy has only where somebody imported ml_dtypes


def test_networks_take_floats_that_numpy_has() -> None:
    assert {precision: border_dtype(precision) for precision in PRECISIONS} == {
        "bf16": "float32",
        "fp16": "float16",
        "fp32": "float32",
    }


def test_no_other_module_has_a_table_of_dtypes() -> None:
    """A dictionary with two names of one naming scheme as keys or values would be one."""
    names = [
        {getattr(d, scheme) for d in DTYPES} - {None} for scheme in ("name", "stored", "onnx", "tensorrt")
    ]
    names.append(set(PRECISIONS))
    tables = set()
    for part in ("engine", "export", "runtime", "src/lamp_trt/commands", "src/lamp_trt/doctor"):
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Dict):
                    for side in (node.keys, node.values):
                        strings = {e.value for e in side if isinstance(e, ast.Constant)}
                        if any(len(strings & scheme) > 1 for scheme in names):
                            tables.add(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {table.partition(":")[0] for table in tables} == {"engine/dtypes.py"}
