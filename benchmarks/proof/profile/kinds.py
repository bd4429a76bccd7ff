# SPDX-License-Identifier: Apache-2.0
"""Kinds of work in a UNet's step, told from a kernel's name, from the operator that launched it and its input
shapes, or from a node of a graph."""

import re
from collections.abc import Sequence

CONV_3X3, CONV_1X1, TEMPORAL, GATE = "conv 3x3", "conv 1x1", "temporal conv", "gate conv"
LINEAR, NORM, COPIES, POINTWISE = "linear", "norm", "copies", "pointwise"
LATENT_STEP, OTHER, GAPS = "latent step", "other", "gaps"

Shape = Sequence[int]

_ROWS_FIRST = ("_flash_attention_forward", "_efficient_attention_forward")
"""Operators that take (b, tokens, heads, width); other attention takes (b, heads, tokens, width)."""

_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"^lamp_", LATENT_STEP),
    (r"nchwToNhwc|nhwcToNchw|convertTensor|transpose_readWrite", COPIES),
    (r"flash_fwd|fmha|sdpa|attention", "attention"),
    (r"group_norm|layer_norm|layernorm|groupnorm|RowwiseMoments|native_norm", NORM),
    (r"triton_(tem|conv)\w*convolution|implicit_gemm|fprop|conv2d|cudnn.*conv|winograd|wgrad|dgrad", "conv"),
    (r"gemm|nvjet|cublas|matmul|triton_tem\w*mm_", LINEAR),
    (r"memcpy|memset|copy|clone|CatArray|_cat_|constant_pad|permute|transpose", COPIES),
    (r"^triton_|elementwise|vectorized|reduce_kernel|silu|sigmoid|gelu", POINTWISE),
)
"""Patterns of kernels' names, the first that is found counts. A fused kernel counts as its dearest work, so
norms and copies stand before plain elementwise work."""


def conv_kind(weight: Shape) -> str:
    """weight (outputs, inputs / groups, *kernel)."""
    kernel = tuple(weight[2:])
    if kernel == (3, 1):
        return TEMPORAL
    if weight[0] == 1 and kernel == (3, 3):
        return GATE
    known: dict[tuple[int, ...], str] = {(3, 3): CONV_3X3, (1, 1): CONV_1X1}
    return known.get(kernel, f"conv {'x'.join(map(str, kernel))}")


def attention_kind(queries: int, keys: int, width: int) -> str:
    return f"attention {queries}x{keys} d{width}"


def operator_kind(operator: str, shapes: Sequence[Shape]) -> str | None:
    """Of a torch operator such as "aten::cudnn_convolution" with its inputs' shapes; None for one that does
    not tell."""
    name = operator.removeprefix("aten::")
    if ("convolution" in name or "conv2d" in name) and len(shapes) > 1 and len(shapes[1]) > 2:
        return conv_kind(shapes[1])
    if "attention" in name and len(shapes) > 1 and len(shapes[0]) == len(shapes[1]) == 4:
        tokens = 1 if name.startswith(_ROWS_FIRST) else 2
        return attention_kind(shapes[0][tokens], shapes[1][tokens], shapes[0][3])
    if name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_addmm_activation"):
        return LINEAR
    if "norm" in name:
        return NORM
    if name in ("copy_", "clone", "contiguous", "cat", "constant_pad_nd", "_to_copy", "fill_", "zero_"):
        return COPIES
    if name in ("view", "reshape", "permute", "transpose", "expand", "unsqueeze", "slice", "t", "empty"):
        return OTHER
    return None


def kernel_kind(kernel: str, operator: str, shapes: Sequence[Shape]) -> str:
    """operator: the innermost one under way when the kernel was launched, "" if there was none."""
    named = next((kind for pattern, kind in _BY_NAME if re.search(pattern, kernel, re.IGNORECASE)), None)
    if named == COPIES:
        return COPIES  # a change of layout within a convolution is no arithmetic
    launched = operator_kind(operator, shapes) if operator else None
    if launched is not None:
        return launched
    return named or (POINTWISE if operator else OTHER)


def node_kind(operator: str, shapes: Sequence[Shape]) -> str:
    """Of an ONNX node; attention takes (b, heads, tokens, width)."""
    if operator == "Conv":
        return conv_kind(shapes[1])
    if operator == "Attention":
        return attention_kind(shapes[0][2], shapes[1][2], shapes[0][3])
    if operator in ("MatMul", "Gemm"):
        return LINEAR
    if operator in ("GroupNormalization", "LayerNormalization"):
        return NORM
    if operator in ("Transpose", "Concat", "Pad", "Expand", "Slice", "Split"):
        return COPIES
    return POINTWISE
