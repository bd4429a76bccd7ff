# SPDX-License-Identifier: Apache-2.0
"""Element types and precisions, with their names in NumPy, PyTorch, safetensors, ONNX and TensorRT. Imports
none of these libraries."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DType:
    """An element type.

    name      in PyTorch, and in NumPy if `in_numpy`
    stored    in safetensors files
    onnx      in TensorProto.DataType and onnx_ir.DataType
    tensorrt  in trt.DataType; None if TensorRT lacks the type
    size      bytes per value
    is_float  whether checkpoints may store weights in it
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
"""The type of a network's weights and activations."""

PRECISIONS: dict[Precision, DType] = {
    "bf16": BY_NAME["bfloat16"],
    "fp16": BY_NAME["float16"],
    "fp32": BY_NAME["float32"],
}


def border_dtype(precision: Precision) -> str:
    """The NumPy dtype of the float inputs and outputs of networks in a precision. NumPy has no bfloat16, so
    networks in bf16 take float32, round it, and return float32."""
    inside = PRECISIONS[precision]
    return inside.name if inside.in_numpy else "float32"
