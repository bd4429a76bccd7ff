# SPDX-License-Identifier: Apache-2.0
"""The processor that this is, as Linux describes it."""

from pathlib import Path
from typing import Literal

from lamp_trt.engine.dtypes import Precision
from lamp_trt.engine.families import COMPONENTS

CpuPrecision = Literal["fp32", "bf16"]
"""The arithmetic of a network on the CPU, whatever its weights are stored in."""

_CPUINFO = Path("/proc/cpuinfo")
_BF16_PRODUCTS = frozenset({"avx512_bf16", "amx_bf16"})


def cpu_features() -> frozenset[str]:
    """Of the first processor, as in /proc/cpuinfo; empty where Linux does not list any."""
    if not _CPUINFO.is_file():
        return frozenset()
    for line in _CPUINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def why_no_bf16() -> str:
    """Why this CPU cannot multiply in bfloat16, as a clause; "" where it can."""
    if cpu_features() & _BF16_PRODUCTS:
        return ""
    return f"this CPU has neither of {' and '.join(sorted(_BF16_PRODUCTS))} (/proc/cpuinfo)"


def arithmetic(component: str, precision: Precision, asked: CpuPrecision | None) -> CpuPrecision:
    """The arithmetic of a network of `component` and `precision` on a backend that offers both: as asked,
    else bf16 for bf16 where the CPU multiplies it, and fp32. What is fp32 in every bundle stays so: SDXL's
    VAE."""
    if COMPONENTS[component].precision == "fp32":
        return "fp32"
    return asked or ("bf16" if precision == "bf16" and not why_no_bf16() else "fp32")
