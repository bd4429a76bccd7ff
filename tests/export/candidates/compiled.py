# SPDX-License-Identifier: Apache-2.0
"""Compiles a slot's Triton kernel for GPUs and assembles it, without one; prints ptxas's messages as JSON.

python -m tests.export.candidates.compiled SLOT ARCHITECTURE …
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lamp_trt.export.candidates import registry
from lamp_trt.export.candidates.kernels import gate, temporal_attention

HEAD_WIDTHS = (64, 128, 256)
"""Powers of two above Stable Diffusion's 40, 80 and 160."""

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time constants; the other arguments are pointers, floats or integers."""

    kernel: Any
    pointers: frozenset[str]
    constants: dict[str, int]
    warps: int
    floats: frozenset[str] = frozenset()

    def kind(self, name: str, dtype: str) -> str:
        if name in self.constants:
            return "constexpr"
        if name in self.pointers:
            return f"*{dtype}"
        return "fp32" if name in self.floats else "i32"


def variants(slot: str) -> Iterator[Variant]:
    if slot == registry.GATE:
        sizes = {"PIXELS": gate.PIXELS, "CHANNELS": gate.CHANNELS}
        pointers = frozenset({"y", "z", "weight", "bias", "out"})
        yield Variant(gate.gated_sum_kernel, pointers, sizes, gate.WARPS)
        return
    for width in HEAD_WIDTHS:
        sizes = {"PIXELS": temporal_attention.tile_pixels(width), "FRAMES": 16, "WIDTH": width}
        yield Variant(
            temporal_attention.temporal_attention_kernel,
            frozenset({"q", "k", "v", "out"}),
            sizes,
            temporal_attention.WARPS,
            frozenset({"scale"}),
        )


def messages(variant: Variant, architecture: int, dtype: str) -> str:
    """ptxas's, of the code for an architecture."""
    names = variant.kernel.arg_names
    signature = {name: variant.kind(name, dtype) for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    source = ASTSource(variant.kernel, signature, constexprs=constants)
    target = GPUTarget("cuda", architecture, 32)
    ptx = triton.compile(source, target=target, options={"num_warps": variant.warps}).asm["ptx"]
    found = re.search(r"\.target (sm_\w+)", ptx)
    assert found is not None
    newer = PTXAS.with_name("ptxas-blackwell")
    assembler = newer if architecture >= 100 and newer.exists() else PTXAS
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(ptx.encode())
        file.flush()
        command = [assembler, "-v", f"--gpu-name={found[1]}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def main(slot: str, *architectures: str) -> None:
    for architecture in map(int, architectures):
        for dtype in ("fp16", "bf16"):
            for variant in variants(slot):
                row = [architecture, dtype, variant.constants, messages(variant, architecture, dtype)]
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
