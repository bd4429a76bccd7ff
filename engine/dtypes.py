# SPDX-License-Identifier: Apache-2.0
"""Element types and precisions: the one table of what each is called by NumPy, PyTorch, safetensors, ONNX and
TensorRT. Imports none of them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DType:
    """An element type.

    name      in PyTorch, and in NumPy if `in_numpy`
    stored    in safetensors files
    onnx      in TensorProto.DataType and onnx_ir.DataType
    tensorrt  in trt.DataType; None where TensorRT has none
    size      bytes of a value
    is_float  whether weights may be stored so in a checkpoint
    """

    name: str
    stored: str
    onnx: str
    tensorrt: str | None
    size: int
    is_float: bool = False
    in_numpy: bool = True


DTYPES = (
    DType("float64", "F64", "DOUBLE", None, 8, is_float=True),
    DType("float32", "F32", "FLOAT", "FLOAT", 4, is_float=True),
    DType("float16", "F16", "FLOAT16", "HALF", 2, is_float=True),
    DType("bfloat16", "BF16", "BFLOAT16", "BF16", 2, is_float=True, in_numpy=False),
    DType("int64", "I64", "INT64", "INT64", 8),
    DType("int32", "I32", "INT32", "INT32", 4),
    DType("int16", "I16", "INT16", None, 2),
    DType("int8", "I8", "INT8", "INT8", 1),
    DType("uint8", "U8", "UINT8", "UINT8", 1),
    DType("bool", "BOOL", "BOOL", "BOOL", 1),
)

BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_STORED = {dtype.stored: dtype for dtype in DTYPES}
BY_ONNX = {dtype.onnx: dtype for dtype in DTYPES}

Precision = Literal["bf16", "fp16", "fp32"]
"""What a network's weights and activations are."""

PRECISIONS: dict[Precision, DType] = {
    "bf16": BY_NAME["bfloat16"],
    "fp16": BY_NAME["float16"],
    "fp32": BY_NAME["float32"],
}


def border_dtype(precision: Precision) -> str:
    """NumPy's name of the dtype in which networks of a precision take and give floats. NumPy has no bfloat16,
    so networks in bf16 take float32, round it, and give float32."""
    inside = PRECISIONS[precision]
    return inside.name if inside.in_numpy else "float32"
