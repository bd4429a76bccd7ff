# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: sources, signatures, and the fatbin built with the package.

Nothing here needs a driver; only `device` does.
"""

import contextlib
import ctypes
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

TRANSLATION_UNIT = "lamp_kernels.cu"
"""Source file that includes all others."""

_POINTER, _INT, _FLOAT, _DOUBLE, _UINT64 = (
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_uint64,
)
_DTYPES = ("f16", "f32")
_VARIANTS = ("f16", "f16_any", "f32", "f32_any")
"""Suffixes of kernel names. `_any`: for arrays or sizes that do not allow aligned vector access."""

SIGNATURES: dict[str, tuple[type[Any], ...]] = {
    **{f"lamp_latent_step_{v}": (_POINTER,) * 8 + (_INT,) * 3 + (_FLOAT,) for v in _VARIANTS},
    **{
        f"lamp_begin_loop_{v}": (_POINTER,) * 9 + (_INT, _UINT64, _INT, _INT, _FLOAT) + (_INT,) * 5
        for v in _VARIANTS
    },
    **{f"lamp_posterior_sample_{d}": (_POINTER,) * 4 + (_UINT64, _INT, _FLOAT, _INT) for d in _DTYPES},
    **{f"lamp_first_frame_{v}": (_POINTER,) * 4 + (_INT, _INT) for v in ("f16_f16", "f32_f16", "f32_f32")},
    **{f"lamp_model_input_{d}": (_POINTER, _POINTER, _INT) for d in _DTYPES},
    **{f"lamp_decoder_input_{d}": (_POINTER, _POINTER, _FLOAT, _INT) for d in _DTYPES},
    **{f"lamp_hist_count_{v}": (_POINTER,) * 4 + (_INT,) for v in _VARIANTS},
    "lamp_hist_lut": (_POINTER, _POINTER, _INT, _DOUBLE),
    **{f"lamp_hist_apply_{v}": (_POINTER, _POINTER, _INT) for v in ("u8", "u8_any")},
    **{f"lamp_preview_{d}": (_POINTER,) * 4 + (_FLOAT,) * 3 + (_INT,) * 4 for d in _DTYPES},
}
"""Parameter types in order. Launchers convert arguments to these: cuda.core passes a Python float as 8 bytes.
"""


def sources() -> dict[str, str]:
    """Kernel sources and headers by file name."""
    files = resources.files(__name__).iterdir()
    return {f.name: f.read_text() for f in files if f.name.endswith((".cu", ".cuh"))}


def single_source() -> str:
    """The translation unit with its includes expanded, for NVRTC and for the key of its cache."""
    files = sources()
    seen: set[str] = set()

    def expand(name: str) -> str:
        seen.add(name)
        return re.sub(
            r'^#include "(.+)"$',
            lambda line: "" if line[1] in seen else expand(line[1]),
            files[name].replace("#pragma once", ""),
            flags=re.MULTILINE,
        )

    return expand(TRANSLATION_UNIT)


def source_digest() -> str:
    """Digest of the sources, part of the fatbin's name. CMakeLists.txt computes the same."""
    digests = [hashlib.sha256(text.encode()).hexdigest() for _, text in sorted(sources().items())]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def fatbins() -> dict[str, Path]:
    """Fatbins of the installed package by file name. Only `fatbin_name()` is made from the current sources.

    They are in this module's folder. In an editable install, where the module is in the source tree, they are
    in the distribution's folder.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    folders = [Path(__file__).parent]
    with contextlib.suppress(PackageNotFoundError):
        folders.append(Path(str(distribution("lamp-trt").locate_file("lamp_trt/runtime/kernels"))))
    return {path.name: path for folder in folders for path in folder.glob("*.fatbin")}


def fatbin_name() -> str:
    """File name of the fatbin made from the current sources."""
    return f"lamp_kernels-{source_digest()}.fatbin"
