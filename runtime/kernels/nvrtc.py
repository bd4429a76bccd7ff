# SPDX-License-Identifier: Apache-2.0
"""Compilation of the kernels at run time, for packages without a fatbin. NVRTC needs no GPU."""

import hashlib
import logging
from pathlib import Path

from lamp_trt.engine.errors import EngineError
from lamp_trt.engine.files.user_cache import cache_folder, keep
from lamp_trt.runtime import kernels

logger = logging.getLogger("lamp_trt")

BUNDLED_HEADERS = (13, 3)
"""First version of NVRTC that includes cuda_fp16.h."""


def cubin(arch: str, cache: Path | None = None) -> bytes:
    """Machine code of all kernels for `arch`, e.g. "sm_90", from the cache or compiled (a few seconds).

    The cache key covers the sources, the compiler's version and the architecture. Raises EngineError if NVRTC
    is not installed, or does not support the architecture.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise EngineError(
            "the CUDA kernels must be compiled, and NVRTC is missing: pip install 'cuda-core[cu13]'."
        ) from error
    _, major, minor = nvrtc.nvrtcVersion()
    source = kernels.single_source()
    key = hashlib.sha256(f"{arch} {major}.{minor}\n{source}".encode()).hexdigest()[:16]
    folder = cache or cache_folder("kernels")
    if folder is None:
        return _compile(source, arch, (major, minor))
    path = folder / f"lamp_kernels-{arch}-{key}.cubin"
    try:
        return path.read_bytes()
    except OSError:  # not there, or not readable
        code = _compile(source, arch, (major, minor))
    keep(path, code, "every start compiles the CUDA kernels")
    return code


def _compile(source: str, arch: str, version: tuple[int, int]) -> bytes:
    from cuda.core import Program, ProgramOptions

    logger.info("compiling the CUDA kernels for %s with NVRTC %d.%d.", arch, *version)
    options = ProgramOptions(name=kernels.TRANSLATION_UNIT, std="c++17", arch=arch)
    if version >= BUNDLED_HEADERS:
        options.use_bundled_headers = True
    else:
        from cuda.pathfinder import find_nvidia_header_directory

        options.include_path = find_nvidia_header_directory("cudart")
    try:
        return bytes(Program(source, "c++", options).compile("cubin").code)
    except Exception as error:
        raise EngineError(
            f"NVRTC {version[0]}.{version[1]} cannot compile the CUDA kernels for {arch}: {error} "
            "A newer nvidia-cuda-nvrtc may know this GPU."
        ) from error
